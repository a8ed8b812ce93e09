"""Blobs as objects of an S3 bucket, or of any object store with the same protocol and conditional puts.

A new object is put with `If-None-Match: *`, one that replaces another with `If-Match: ETAG`: of several who write, one
gets through. Credentials, region and endpoint come from where the AWS tools take them (environment, profile, role;
AWS_ENDPOINT_URL_S3). Objects are put in one request, which S3 takes up to 5 GiB; sstables have 32 MiB.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from flowkit.aws import MISSING, REFUSED, S3Place, code_of, session, told
from flowkit.errors import ConfigError, StoreError
from flowkit.store.blobs import Blob
from flowkit.store.checksum import crc32

__all__ = ["S3Blobs", "S3Place", "S3Storage", "open_s3"]

_T = TypeVar("_T")

TRIES = 5
"""So often botocore tries a request (its standard mode), and we one that others were in the way of."""
FIRST_WAIT = 0.05

_IN_THE_WAY = ("ConditionalRequestConflict", "OperationAborted", "409")
_DENIED = ("AccessDenied", "403")
_FOR_A_PERSON = (
    *("NoSuchBucket", "AccessDenied", "AllAccessDisabled", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("InvalidToken", "ExpiredToken", "PermanentRedirect", "301", "AuthorizationHeaderMalformed", "InvalidBucketName"),
    *("400", "404", "NotImplemented"),
)
"""Codes of errors that no trying again mends."""


@asynccontextmanager
async def open_s3(place: S3Place) -> AsyncIterator["S3Storage"]:
    """The storage at `place`, with one client for all its folders."""
    from aiobotocore.config import AioConfig
    from botocore.exceptions import BotoCoreError

    config = AioConfig(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        **place.config,
    )
    try:
        found, credentials = session(None, place.region, f"checkpoints {place}")
        making = found.create_client("s3", region_name=place.region, config=config)
        client = await making.__aenter__()
        credentials.watch(client)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"checkpoints {place}: {told(error)}") from None
    try:
        yield S3Storage(place, client)
    finally:
        await making.__aexit__(None, None, None)


class S3Storage:
    """The part of a bucket below a prefix. Made by `open_s3`."""

    def __init__(self, place: S3Place, client: Any) -> None:
        self.place, self.client, self.url = place, client, str(place)

    def blobs(self, *folder: str) -> "S3Blobs":
        """The objects of one folder."""
        return S3Blobs(self, self._prefix(folder))

    def _prefix(self, folder: tuple[str, ...]) -> str:
        return "".join(f"{name}/" for name in ([self.place.prefix] if self.place.prefix else []) + list(folder))

    async def folders(self, *folder: str) -> list[str]:
        """The names of the folders in one, in order."""
        prefix = self._prefix(folder)
        pages = await self.pages(prefix, Delimiter="/")
        found = [each["Prefix"] for page in pages for each in page.get("CommonPrefixes", ())]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    async def check(self) -> None:
        """Ask for a listing. Raises ConfigError if what is wrong is for a person to mend, StoreError otherwise."""
        from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError, ParamValidationError

        try:
            await self.do("listing", lambda: self.list_page(Prefix=self._prefix(()), MaxKeys=1))
        except StoreError as error:
            cause = error.__cause__
            mendable = isinstance(cause, NoCredentialsError | CredentialRetrievalError | ParamValidationError)
            if mendable or (isinstance(cause, ClientError) and code_of(cause) in _FOR_A_PERSON):
                raise ConfigError(f"checkpoints {error}") from error
            raise

    async def pages(self, prefix: str, **options: Any) -> list[dict[str, Any]]:
        """All of a listing."""
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            now = dict(more)
            page = await self.do("listing", lambda now=now: self.list_page(Prefix=prefix, **options, **now))  # type: ignore[misc]
            found.append(page)
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def list_page(self, **options: Any) -> dict[str, Any]:
        """One page of a listing, with the client's own errors."""
        page: dict[str, Any] = await self.client.list_objects_v2(**self.place.target, **options)
        return page

    async def do(self, doing: str, work: Callable[[], Awaitable[_T]]) -> _T:
        """What `work` gives. Raises StoreError that names the bucket and the cause."""
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            return await work()
        except (BotoCoreError, HTTPClientError, ClientError, HttpError, OSError) as error:
            raise StoreError(f"{self.place}: {doing}: {told(error)}") from error


class S3Blobs:
    """The objects under a prefix that ends in `/`. Made by `S3Storage.blobs`."""

    def __init__(self, storage: S3Storage, prefix: str) -> None:
        self.storage, self.prefix = storage, prefix
        self._client, self._target = storage.client, storage.place.target

    async def put(self, name: str, data: bytes, *, over: str | None = None) -> str | None:
        """As the protocol says."""
        return await self.storage.do(f"putting {name}", lambda: self._put(name, data, over))

    async def _put(self, name: str, data: bytes, over: str | None) -> str | None:
        from botocore.exceptions import ClientError

        place = self.storage.place
        options = {"IfNoneMatch": "*"} if over is None else {"IfMatch": over}
        options |= place.encryption
        # botocore would work it out in the event loop, and send it in a way that not every server knows.
        crc = await anyio.to_thread.run_sync(crc32, data)
        options["ChecksumCRC32"] = base64.b64encode(crc.to_bytes(4, "big")).decode()
        for tries_left in reversed(range(TRIES)):
            try:
                done = await self._client.put_object(**self._target, Key=self.prefix + name, Body=data, **options)
                return str(done["ETag"])
            except ClientError as error:
                code = code_of(error)
                if code in REFUSED or (over is not None and code in MISSING):
                    return None
                # Someone writes it at this moment, and may yet fail: only asking again tells.
                if code not in _IN_THE_WAY or not tries_left:
                    raise
            await asyncio.sleep(FIRST_WAIT * 2 ** (TRIES - 1 - tries_left))
        raise AssertionError

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """As the protocol says."""
        return await self.storage.do(f"getting {name}", lambda: self._get(name))

    async def _get(self, name: str) -> tuple[bytes, str] | None:
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

        for tries_left in reversed(range(TRIES)):
            try:
                found = await self._client.get_object(**self._target, Key=self.prefix + name)
                async with found["Body"] as body:
                    return await body.read(), str(found["ETag"])
            except ClientError as error:
                if code_of(error) in MISSING or (code_of(error) in _DENIED and await self._is_missing(name)):
                    return None
                raise
            except (HTTPClientError, IncompleteReadError, HttpError):  # botocore tries again only up to the first byte
                if not tries_left:
                    raise
            await asyncio.sleep(FIRST_WAIT * 2 ** (TRIES - 1 - tries_left))
        raise AssertionError

    async def _is_missing(self, name: str) -> bool:
        """True if there is no such object, which S3 tells only those who may list the whole bucket: others are denied.

        A role that may list what is under the prefix finds out by that.
        """
        from botocore.exceptions import ClientError

        try:
            page = await self.storage.list_page(Prefix=self.prefix + name, MaxKeys=1)
        except ClientError:
            return False
        return all(each["Key"] != self.prefix + name for each in page.get("Contents", ()))

    async def find(self, prefix: str = "") -> list[Blob]:
        """As the protocol says; what lies in folders of this one is not in it."""
        start = self.prefix + prefix
        found = []
        for page in await self.storage.pages(start, Delimiter="/"):
            for each in page.get("Contents", ()):
                name, at = each["Key"].removeprefix(self.prefix), each["LastModified"]
                found.append(Blob(name, each["Size"], round(at.timestamp() * 1000)))
        return sorted(blob for blob in found if blob.name)

    async def delete(self, name: str) -> None:
        """As the protocol says."""
        await self.storage.do(
            f"deleting {name}", lambda: self._client.delete_object(**self._target, Key=self.prefix + name)
        )
