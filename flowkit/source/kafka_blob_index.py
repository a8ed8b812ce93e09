"""What blobs there are, from the heads in one partition: read through once, then kept up to date by reading its tail.

It holds names, sizes and offsets; the bytes of blobs stay where they are. What it says is never older than the moment
at which it was asked to refresh: it reads up to the end that the partition had then, and everything before that end has
been decided.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from flowkit.errors import StoreCorrupt
from flowkit.source.kafka_blob_readers import Readers, StuckError
from flowkit.source.kafka_blob_records import DRAFT, FORMAT, Head, Layout, decode_head, decode_key, decode_layout

LOOK_S = 1.5
"""When nothing has come for so long, it is seen whether a transaction is in the way."""


class Entry(NamedTuple):
    """A blob: `data` of its head is left where it is, at `offset`."""

    head: Head
    offset: int
    modified: int


class Index:
    """One partition of heads. `unblock` ends what holds up readers between two offsets."""

    def __init__(
        self, readers: Readers, partition: int, unblock: Callable[[int, int, int], Awaitable[None]], where: str
    ) -> None:
        self.readers, self.partition, self.where = readers, partition, where
        self.folders: dict[str, dict[str, Entry]] = {}
        self.layout: Layout | None = None
        self.awaited: set[str] = set()
        """Tags of puts whose outcome is not known yet."""
        self.committed: set[str] = set()
        """Those of them that came through, whatever came after them."""
        self._unblock = unblock
        self._position = -1
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Take in all that is committed by now. Raises KafkaError, BrokerError, TimeoutError, StoreCorrupt."""
        async with self._lock:
            if self._position < 0:
                self._position, end = await self.readers.bounds(self.partition)
            else:
                end = await self.readers.end(self.partition)
            until = time.monotonic() + 2 * self.readers.patience
            while self._position < end:
                before = self._position
                if await self._read(end):
                    await self._unblock(self.partition, self._position, end)
                if self._position > before:
                    until = time.monotonic() + 2 * self.readers.patience
                elif time.monotonic() > until:
                    raise StuckError(before)

    async def _read(self, end: int) -> bool:
        """Read on; whether a transaction is in the way."""
        async with self.readers.reader() as reader:
            try:
                async for records in reader.read(self.partition, self._position, end, LOOK_S):
                    for record in records:
                        self._take(record)
                        self._position = record.offset + 1
            except StuckError:
                self._position = max(self._position, reader.position)
                return await reader.stable(self.partition) <= self._position
            self._position = reader.position
            return False

    def _take(self, record: Any) -> None:
        try:
            key = decode_key(record.key)
            if len(key) == 3:
                return  # a chunk, where there is one partition for everything
            if not key:
                self._take_layout(record)
                return
            folder, name = key
            if record.value is None:
                blobs = self.folders.get(folder, {})
                blobs.pop(name, None)
                if not blobs:
                    self.folders.pop(folder, None)
                return
            head = decode_head(record.value)
        except ValueError as error:
            raise StoreCorrupt(
                f"{self.where}[{self.partition}]: the record at offset {record.offset} is none of a checkpoint: give "
                f"checkpoints a topic of their own ({error})"
            ) from None
        if head.tag in self.awaited and not name.startswith(DRAFT):
            self.committed.add(head.tag)
        small = Head(head.tag, head.size, head.chunks, head.first, head.last)
        self.folders.setdefault(folder, {})[name] = Entry(small, record.offset, record.timestamp)

    def _take_layout(self, record: Any) -> None:
        if record.value is None:
            return
        format_, layout = decode_layout(record.value)
        if format_ > FORMAT:
            raise StoreCorrupt(
                f"{self.where}: is of format {format_}, this flowkit reads up to {FORMAT}: use a newer flowkit"
            )
        self.layout = layout
