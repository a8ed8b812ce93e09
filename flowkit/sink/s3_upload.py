"""Writing one object of any size from bytes as they come: in one request, or in parts, some of them at once.

Every request is made again until it succeeds, which changes nothing: the same bytes under the same name. An upload in
parts that someone has aborted (a successor that cleans up) is begun anew.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from flowkit.aws import S3Place, checksum, code_of, patiently
from flowkit.errors import SinkError

PARTS_AT_ONCE = 3
LEAST_PART = 5 << 20
"""Bytes: all parts but the last one must have as many."""
MOST_PARTS = 10_000

T = TypeVar("T")


class Objects:
    """The objects of a bucket, to be written. `calls` bounds the requests that are made at once, and so memory."""

    def __init__(self, client: Any, place: S3Place, part_bytes: int, calls: int) -> None:
        self.client, self.place, self.part_bytes = client, place, part_bytes
        self._calls = asyncio.Semaphore(calls)
        self.requests = 0
        """How many objects were written in one request, and `uploads` in parts."""
        self.uploads = 0

    async def write(self, key: str, content_type: str, begin: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        """Make the object `key` of the bytes that `begin` gives, each time anew. Raises SinkError."""
        while True:
            async with aclosing(begin()) as pieces, aclosing(_parts(pieces, self.part_bytes)) as parts:
                if await self._write(key, content_type, parts):
                    return

    async def abort(self, prefix: str, ours: Callable[[str], bool]) -> int:
        """Abort uploads in parts, under `prefix`, whose keys are `ours`: how many there were. Raises SinkError."""
        found = 0
        more: dict[str, str] = {}
        while True:
            now = dict(more)
            page = await self.do(
                "list_multipart_uploads",
                prefix,
                lambda now=now: {"Prefix": prefix, **now},  # type: ignore[misc]
            )
            for upload in page.get("Uploads", ()):
                if ours(upload["Key"]):
                    found += 1
                    await self._abort(upload["Key"], upload["UploadId"])
            if not page.get("IsTruncated"):
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def do(self, action: str, key: str, options: Callable[[], dict[str, Any]]) -> Any:
        """One request, until it succeeds."""
        call = getattr(self.client, action)
        async with self._calls:
            return await patiently(
                f"{self._where(key)}: {action}", lambda: call(**self.place.target, **options()), SinkError
            )

    def _where(self, key: str) -> str:
        return f"s3://{self.place.bucket}/{key}"

    async def _write(self, key: str, content_type: str, parts: AsyncIterator[bytes]) -> bool:
        first = await anext(parts)
        second = await anext(parts, None)
        if second is not None:
            return await self._in_parts(key, content_type, first, second, parts)
        self.requests += 1
        await self.do(
            "put_object",
            key,
            lambda: {
                "Key": key,
                "Body": first,
                "ContentType": content_type,
                "ChecksumCRC32": checksum(first),
                **self.place.encryption,
            },
        )
        return True

    async def _in_parts(
        self, key: str, content_type: str, first: bytes, second: bytes, rest: AsyncIterator[bytes]
    ) -> bool:
        """False if the upload was aborted by someone else."""
        self.uploads += 1
        made = await self.do(
            "create_multipart_upload",
            key,
            lambda: {
                "Key": key,
                "ContentType": content_type,
                "ChecksumAlgorithm": "CRC32",
                **self.place.encryption,
            },
        )
        upload = {"Key": key, "UploadId": made["UploadId"]}
        try:
            tags = await self._send_parts(upload, first, second, rest)
            await self.do("complete_multipart_upload", key, lambda: {**upload, "MultipartUpload": {"Parts": tags}})
        except SinkError as error:
            if code_of(error.__cause__) == "NoSuchUpload":
                return False
            with suppress(SinkError):  # the first one tells more
                await self._abort(key, made["UploadId"])
            raise
        return True

    async def _send_parts(
        self, upload: dict[str, str], first: bytes, second: bytes, rest: AsyncIterator[bytes]
    ) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        running: set[asyncio.Task[dict[str, Any]]] = set()
        number = 0
        try:
            async for data in _chained(first, second, rest):
                number += 1
                running.add(asyncio.create_task(self._send_part(upload, number, data)))
                if len(running) == PARTS_AT_ONCE:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    sent += [task.result() for task in done]
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                sent += [task.result() for task in done]
        finally:
            await _ended(running)
        return sorted(sent, key=lambda part: int(part["PartNumber"]))

    async def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, Any]:
        crc = checksum(data)
        done = await self.do(
            "upload_part", upload["Key"], lambda: {**upload, "PartNumber": number, "Body": data, "ChecksumCRC32": crc}
        )
        return {"PartNumber": number, "ETag": done["ETag"], "ChecksumCRC32": crc}

    async def _abort(self, key: str, upload: str) -> None:
        """Let go of an upload; one that is gone already is as good."""
        try:
            await self.do("abort_multipart_upload", key, lambda: {"Key": key, "UploadId": upload})
        except SinkError as error:
            if code_of(error.__cause__) != "NoSuchUpload":
                raise


async def side_by_side(jobs: list[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Do all jobs, some at once. Raises what the first one that fails raises; the others are broken off then."""
    left = iter(jobs)

    async def work() -> None:
        for job in left:
            await job()

    running = {asyncio.create_task(work()) for _ in range(min(at_once, len(jobs)))}
    try:
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        await _ended(running)


async def _ended(running: set[asyncio.Task[T]]) -> None:
    for task in running:
        task.cancel()
    if running:
        await asyncio.gather(*running, return_exceptions=True)


async def _chained(first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    async for data in rest:
        yield data


async def _parts(pieces: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """The same bytes, `size` at a time; at least one part, which may be empty."""
    held: list[bytes] = []
    length = 0
    given = False
    async for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length > size:  # not at `size` itself: the last part is not to be an empty one
            data = b"".join(held)
            whole = (length - 1) // size * size
            for at in range(0, whole, size):
                yield data[at : at + size]
            held, length, given = [data[whole:]], length - whole, True
    if length or not given:
        yield b"".join(held)
