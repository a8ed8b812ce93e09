"""Where records lie in S3 while Redshift takes them: one object a load, removed when that is through."""

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import structlog
from isal import igzip

from flowkit.aws import S3Place, failures, told
from flowkit.errors import SinkError
from flowkit.sink.calls import called
from flowkit.sink.dispatch import Refused
from flowkit.sink.redshift_sql import Copied

log = structlog.get_logger("flowkit.sink")


class Stage:
    """Objects at `place`. Redshift reads them by `role`; `region` is the bucket's, if it differs."""

    def __init__(self, client: Any, place: S3Place, role: str, region: str | None, where: str) -> None:
        self.client, self.place, self.role, self.region, self.where = client, place, role, region, where

    def _at(self, name: str) -> dict[str, str]:
        return {**self.place.target, "Key": self.place.start + name}

    async def write(self, name: str, lines: Sequence[bytes]) -> Copied:
        """Write lines as an object: again, it is the same. Raises TryAgain, SinkError."""
        # A tenth of zlib's time for a tenth more of bytes, which are read once.
        body = await anyio.to_thread.run_sync(lambda: igzip.compress(b"\n".join([*lines, b""]), 2, mtime=0))
        key = f"s3://{self.place.bucket}/{self.place.start}{name}"
        try:
            await called(self.where, self.client.put_object(**self._at(name), Body=body, **self.place.encryption))
        except Refused as error:  # it is the request that is wrong, not a record
            raise SinkError(f"{self.where}: {key}: {error.never.reason}") from error
        return Copied(key, self.role, self.region)

    async def remove(self, name: str) -> None:
        """Remove an object. One that stays does no harm: no load reads it again."""
        try:
            await self.client.delete_object(**self._at(name))
        except failures() as error:
            log.warning("a staged object stays", sink=self.where, key=self.place.start + name, reason=told(error))
