"""Where records lie in S3 while Redshift takes them: one object a load, removed when that is through."""

import gzip
from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import structlog

from flowkit.aws import failures, told
from flowkit.errors import SinkError
from flowkit.sink.calls import called
from flowkit.sink.dispatch import Refused
from flowkit.sink.redshift_sql import Copied

log = structlog.get_logger("flowkit.sink")


class Stage:
    """Objects of `bucket` whose keys begin with `prefix`. Redshift reads them by `role`.

    `region` is the bucket's, if it differs.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, role: str, region: str | None, where: str) -> None:
        self.client, self.bucket, self.prefix, self.role, self.region = client, bucket, prefix, role, region
        self.where = where

    def _key(self, name: str) -> str:
        return self.prefix + name

    async def write(self, name: str, lines: Sequence[bytes]) -> Copied:
        """Write lines as an object: again, it is the same. Raises TryAgain, SinkError."""
        body = await anyio.to_thread.run_sync(lambda: gzip.compress(b"\n".join(lines) + b"\n", 6, mtime=0))
        key = self._key(name)
        try:
            await called(self.where, self.client.put_object(Bucket=self.bucket, Key=key, Body=body))
        except Refused as error:  # it is the request that is wrong, not a record
            raise SinkError(f"{self.where}: s3://{self.bucket}/{key}: {error.never.reason}") from error
        return Copied(f"s3://{self.bucket}/{key}", self.role, self.region)

    async def remove(self, name: str) -> None:
        """Remove an object. One that stays does no harm: no load reads it again."""
        try:
            await self.client.delete_object(Bucket=self.bucket, Key=self._key(name))
        except failures() as error:
            log.warning("a staged object stays", sink=self.where, key=self._key(name), reason=told(error))
