"""How requests to OpenSearch are signed: by Amazon's Signature Version 4, by user and password, or not at all."""

import asyncio
import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flowkit.aws import Blame, blame_of, failures, told
from flowkit.errors import ConfigError, SinkError
from flowkit.sink.dispatch import TryAgain

SERVICES = ("es", "aoss")
USER, PASSWORD = "OPENSEARCH_USER", "OPENSEARCH_PASSWORD"


class Auth(Protocol):
    """Signs requests. `problems` tells what is wrong without I/O beyond a file."""

    def problems(self) -> list[str]: ...

    async def open(self) -> None:
        """Get ready. Raises ConfigError."""

    async def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, str]:
        """The headers with what is to be added to them. Raises TryAgain, SinkError."""

    def refused(self, reason: str) -> bool:
        """The service has refused a request that was signed so: True if it may take the next one."""


class NoAuth:
    """Nothing is asked for: a server of one's own, or one whose policy goes by address."""

    def problems(self) -> list[str]:
        """As the protocol says."""
        return []

    async def open(self) -> None:
        """As the protocol says."""

    async def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, str]:
        """As the protocol says."""
        return headers

    def refused(self, reason: str) -> bool:
        """As the protocol says."""
        return False


class Basic:
    """User and password, from a file (USER:PASSWORD), or from the environment. The file may be written anew."""

    def __init__(self, path: str | None) -> None:
        self._path, self._header = path, ""

    def problems(self) -> list[str]:
        """As the protocol says."""
        try:
            self._header = self._read()
        except ConfigError as error:
            return [str(error)]
        return []

    async def open(self) -> None:
        """As the protocol says."""
        self._header = await asyncio.to_thread(self._read)

    async def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, str]:
        """As the protocol says."""
        return {**headers, "Authorization": self._header}

    def refused(self, reason: str) -> bool:
        """As the protocol says."""
        before = self._header
        try:
            self._header = self._read()
        except ConfigError:
            return False
        return self._header != before

    def _read(self) -> str:
        if self._path is None:
            user, password = os.environ.get(USER), os.environ.get(PASSWORD)
            if not user or not password:
                raise ConfigError(f"auth=basic: set {USER} and {PASSWORD}, or say ?credentials=FILE")
            pair = f"{user}:{password}"
        else:
            try:
                pair = Path(self._path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"credentials={self._path}: cannot be read: {error.strerror}") from None
            if not pair.partition(":")[0] or not pair.partition(":")[2] or "\n" in pair:
                raise ConfigError(f"credentials={self._path}: needs one line, USER:PASSWORD")
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


class SigV4:
    """Signature Version 4, with credentials from where the AWS tools take them (flowkit/aws/client.py)."""

    def __init__(self, service: str, region: str | None, profile: str | None) -> None:
        self.service, self.region, self.profile = service, region, profile
        self._credentials: Any = None
        self._had = False
        """True once there were any: others will come."""

    def problems(self) -> list[str]:
        """As the protocol says."""
        return []

    async def open(self) -> None:
        """As the protocol says."""
        try:
            await self._look()
        except SinkError as error:
            raise ConfigError(str(error)) from None
        except TryAgain:
            pass  # they are asked for again with the first request

    async def _look(self) -> None:
        from aiobotocore.session import AioSession
        from botocore.exceptions import NoCredentialsError, NoRegionError

        try:
            session = AioSession(profile=self.profile)
            self.region = self.region or session.get_config_variable("region")
            if self.region is None:
                raise NoRegionError
            self._credentials = await session.get_credentials()
            if self._credentials is None:
                raise NoCredentialsError
            self._had = True
        except failures() as error:
            raise self._meaning(error) from error

    async def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, str]:
        """As the protocol says."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            await self._look()
        try:
            frozen = await self._credentials.get_frozen_credentials()
        except failures() as error:
            raise self._meaning(error) from error
        # OpenSearch Serverless wants the payload's hash as a header; the service for domains takes it too.
        hashed = {**headers, "X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest()}
        request = AWSRequest(method=method, url=url, headers=hashed, data=body)
        SigV4Auth(frozen, self.service, self.region).add_auth(request)
        return dict(request.headers.items())

    def refused(self, reason: str) -> bool:
        """As the protocol says."""
        if "expired" not in reason.lower():
            return False
        self._credentials = None  # what stands in a file, or is given by a role, is asked for anew
        return True

    def _meaning(self, error: BaseException) -> SinkError | TryAgain:
        """Of a failure to get credentials. A profile that is not there is botocore's, too, and does not pass."""
        from botocore.exceptions import NoRegionError, ProfileNotFound

        lasting = blame_of(error) is Blame.PERSON or isinstance(error, NoRegionError | ProfileNotFound)
        if lasting and not self._had:
            return SinkError(told(error))
        return TryAgain(f"no credentials now: {told(error)}")
