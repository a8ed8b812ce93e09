"""An object of S3 as a stream of bytes for a reader's thread: in ranges, the next one on its way while one is used.

An object that is not the one that was listed is an InputError: each answer bears its ETag.
"""

import asyncio
import concurrent.futures
import io
import tempfile
from typing import Any

from flowkit.aws import S3Place, code_of, patiently
from flowkit.errors import InputError
from flowkit.source.file_archive import GzipBytes, ZstdBytes
from flowkit.source.file_bytes import RawBytes, skip
from flowkit.source.json_stream import JsonLines
from flowkit.source.s3_listing import CURE, Entry

PATIENCE_SECONDS = 600.0
"""So long a request is made again. Then the run ends, with everything before it done, and can be gone on with."""

GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


class S3Object:
    """One object: its first range is read when it is opened, which tells how it is compressed."""

    def __init__(self, client: Any, place: S3Place, entry: Entry, range_bytes: int) -> None:
        self.client, self.place, self.entry, self.range_bytes = client, place, entry, range_bytes
        self.name = f"s3://{place.bucket}/{entry.key}"
        self.first = b""
        self.streams: list[ObjectBytes] = []
        self._looking: asyncio.Task[bytes] | None = None

    async def look(self) -> None:
        """Read the first range. Raises InputError."""
        self._looking = asyncio.create_task(self.get(0), name=f"read {self.name}")
        self.first = await self._looking

    @property
    def is_parquet(self) -> bool:
        """True if it says so."""
        return self.first.startswith(PARQUET)

    async def get(self, start: int) -> bytes:
        """The range that begins at `start`. Raises InputError."""
        stop = min(start + self.range_bytes, self.entry.size)
        try:
            return await patiently(self.name, lambda: self._get(start, stop), InputError, seconds=PATIENCE_SECONDS)
        except InputError as error:
            if code_of(error.__cause__) in ("NoSuchKey", "InvalidRange"):
                raise InputError(f"{self.name}: is gone, or shorter than it was when the run began. {CURE}") from error
            raise

    async def _get(self, start: int, stop: int) -> bytes:
        got = await self.client.get_object(**self.place.target, Key=self.entry.key, Range=f"bytes={start}-{stop - 1}")
        async with got["Body"] as body:
            if got["ETag"] != self.entry.etag:
                raise InputError(
                    f"{self.name}: has changed since the run began: its ETag was {self.entry.etag}, and is "
                    f"{got['ETag']}. {CURE}"
                )
            data: bytes = await body.read()
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came of {stop - start}")
        return data

    def stream(self, loop: asyncio.AbstractEventLoop, offset: int = 0) -> "ObjectBytes":
        """Its bytes as they lie there, from `offset` on; for a thread."""
        made = ObjectBytes(self, loop, offset)
        self.streams.append(made)
        return made

    def open(self, loop: asyncio.AbstractEventLoop, offset: int, *, values: bool) -> RawBytes:
        """Its lines, decompressed, from `offset` on; for a thread. `values`: they are JSON values one after another."""
        if not values and not self.first.startswith((GZIP, ZSTD)):
            return self.stream(loop, offset)
        raw: RawBytes
        if self.first.startswith(GZIP):
            raw = GzipBytes(self.name, self.stream(loop), self.entry.size)
        elif self.first.startswith(ZSTD):
            raw = ZstdBytes(self.name, self.spooled(loop))
        else:
            raw = self.stream(loop)
        if values:
            raw = JsonLines(raw)
        try:
            skip(self.name, raw, offset)
        except BaseException:
            raw.close()
            raise
        return raw

    def spooled(self, loop: asyncio.AbstractEventLoop) -> io.FileIO:
        """All of it in a file without a name, for what must be seen whole; for a thread."""
        file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  handed on
        try:
            stream = self.stream(loop)
            while piece := stream.read(self.range_bytes):
                file.write(piece)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        found: io.FileIO = file
        return found

    async def cancel(self) -> None:
        """Break off what is read: a thread that waits for it gets an error."""
        if self._looking is not None:
            self._looking.cancel()
        for stream in self.streams:
            await stream.cancel()


class ObjectBytes:
    """See the head of this file. `read` blocks, and is for a thread; `cancel` is for the event loop."""

    def __init__(self, whole: S3Object, loop: asyncio.AbstractEventLoop, offset: int) -> None:
        self.size: int | None = whole.entry.size
        self.taken = offset
        self._whole, self._loop = whole, loop
        self._data = whole.first[offset:]
        self._asked = max(offset, len(whole.first))
        """Where the next range begins."""
        self._ahead: asyncio.Task[bytes] | None = None
        self._cancelled = False

    def read(self, limit: int) -> bytes:
        """As the protocol says."""
        if not self._data and self.taken < self._whole.entry.size:
            try:
                self._data = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            except (concurrent.futures.CancelledError, RuntimeError) as error:
                raise InputError(f"{self._whole.name}: reading was broken off") from error
        given, self._data = self._data[:limit], self._data[limit:]
        self.taken += len(given)
        return given

    async def _next(self) -> bytes:
        ahead, self._ahead = self._ahead, None
        if self._cancelled:
            raise InputError(f"{self._whole.name}: reading was broken off")
        if ahead is None:
            ahead = self._ask()
        self._ahead = ahead
        data = await ahead
        self._ahead = self._ask() if self._asked < self._whole.entry.size else None
        return data

    def _ask(self) -> "asyncio.Task[bytes]":
        start, self._asked = self._asked, min(self._asked + self._whole.range_bytes, self._whole.entry.size)
        return asyncio.create_task(self._whole.get(start), name=f"read {self._whole.name}")

    async def cancel(self) -> None:
        """Break off the request that is under way."""
        self._cancelled = True
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)

    def ended(self) -> bool:
        """As the protocol says."""
        return self.taken == self._whole.entry.size

    def close(self) -> None:
        """As the protocol says: what is under way is broken off by `cancel`."""
