"""Frames in a changelog topic: what was committed since the last checkpoint, on machines whose disks vanish.

    topic   := APP-GROUP-changelog, a partition for each task of the group
    record  := msgpack [epoch, number, commit id, parent id, state, part, parts, bytes of that part of the frame]
    frame   := as the store's log has it, as one lz4 block with its size before it

A frame is written within the transaction of its commit, in as many records as the broker's limit on one asks for.
Without transactions (at least once) an owner begins with a claim, which has no parts: what owners of a lower epoch
write behind it never counts. Nor does a frame that does not follow the one before it, by its number and by the id of
its parent. With transactions, one that has outputs begins with a claim, which says nothing but that it has begun.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import cramjam
import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.source.internal import changelog_of
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import broker_error, started, stopped
from flowkit.store import Frame, decode_frame, encode_frame

PART_BYTES = 900_000
"""Below the million bytes that brokers take a record by default."""
LOOK_BACK, LOOK_BACK_FAR = 16, 500
"""So many records before its end are read to find the last frame; then four times as many, and so on."""


class Part(msgspec.Struct, array_like=True):
    """One record of a changelog. A claim has nothing but an epoch."""

    epoch: int
    number: int
    commit_id: bytes
    parent: bytes
    state: str
    part: int
    parts: int
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_part = msgspec.msgpack.Decoder(Part).decode


def parts_of(frame: Frame, epoch: int, state: str) -> Iterator[bytes]:
    """The records of one frame. `state` is where its owner, under `epoch`, keeps the task's state."""
    whole = bytes(cramjam.lz4.compress_block(encode_frame(frame)))
    parts = cut(whole)
    for part, data in enumerate(parts):
        yield _encode(Part(epoch, frame.number, frame.commit_id, frame.parent, state, part, len(parts), data))


def cut(whole: bytes, size: int = PART_BYTES) -> list[bytes]:
    """What fits into a record each; one part at the least."""
    return [whole[start : start + size] for start in range(0, max(1, len(whole)), size)]


def claim_of(epoch: int) -> bytes:
    """The record by which an owner begins, or a transaction with outputs."""
    return _encode(Part(epoch, 0, b"", b"", "", 0, 0, b""))


class Whole(msgspec.Struct):
    """A frame that was found whole: the offset of its first record, and its bytes."""

    offset: int
    last: Part
    data: bytes

    def frame(self, where: str) -> Frame:
        """The frame itself. Raises StoreCorrupt."""
        try:
            data = bytes(cramjam.lz4.decompress_block(self.data))
        except cramjam.DecompressionError as error:
            raise StoreCorrupt(f"{where}: the frame at offset {self.offset} cannot be unpacked: {error}") from error
        return decode_frame(data, where, self.offset)


class Changelog:
    """Reads one partition of a changelog. Made by `open_changelog`."""

    def __init__(self, consumer: Any, where: Any, start: int, end: int, address: KafkaAddress) -> None:
        self.consumer, self.where, self.start, self.end, self.address = consumer, where, start, end, address
        self.name = f"{where.topic}[{where.partition}]"

    async def last(self, *, fenced: bool = True) -> tuple[int, Part | None]:
        """The highest epoch, and the last part of the last frame that counts; (0, None) if there is none.

        Unless earlier owners are `fenced`, they may have written on behind the claim of a later one, which has to be
        seen then: so more is looked at.
        """
        from aiokafka.errors import OffsetOutOfRangeError

        back = LOOK_BACK if fenced else LOOK_BACK_FAR
        while True:
            first = max(self.start, self.end - back)
            epoch, found = 0, None
            try:
                async for whole in self.read(first):
                    part = whole.last
                    epoch = part.epoch
                    if part.parts and (found is None or part.number == found.number + 1):
                        found = part
            except OffsetOutOfRangeError:  # trimmed just now, which leaves the last frame
                self.start = (await self.consumer.beginning_offsets([self.where]))[self.where]
                self.end = (await self.consumer.end_offsets([self.where]))[self.where]
                continue
            if found is not None or first == self.start:
                return epoch, found
            back *= 4

    async def after(self, number: int) -> AsyncGenerator[Frame, None]:
        """The frames that follow number `number`, in order. Raises StoreCorrupt if the next one is not there."""
        first, back = self.end, LOOK_BACK
        while first > self.start:
            first = max(self.start, self.end - back)
            found = number + 1
            async for whole in self.read(first):
                if whole.last.parts:
                    found = whole.last.number
                    break
            if found <= number + 1 and first < self.end:
                break
            back *= 4
        expected, parent = number + 1, None
        async for whole in self.read(first):
            part = whole.last
            if not part.parts or part.number < expected or (parent is not None and part.parent != parent):
                continue
            if part.number > expected:
                raise StoreCorrupt(
                    f"{self.name}: commit {expected} is not there, the next one is {part.number}: frames were "
                    "deleted before a checkpoint held them"
                )
            yield whole.frame(self.name)
            expected, parent = expected + 1, part.commit_id

    async def offset_of(self, number: int) -> int:
        """Where frame `number` begins, or the last one if that comes first: all before it may go."""
        offset = self.start
        async for whole in self.read(self.start):
            if whole.last.parts:
                offset = whole.offset
                if whole.last.number >= number:
                    break
        return offset

    async def read(self, first: int) -> AsyncIterator[Whole]:
        """The whole frames, and the claims, from offset `first` on. Parts that are left of others are passed over."""
        self.consumer.seek(self.where, first)
        begun, epoch = first, 0
        data: list[bytes] = []
        at, moved = first, time.monotonic()
        while (now_at := await self.consumer.position(self.where)) < self.end:
            if now_at > at:
                at, moved = now_at, time.monotonic()
            elif time.monotonic() - moved > self.address.timeout_ms / 1000:  # aiokafka would wait for ever
                raise broker_error(self.address, f"reading {self.name} at offset {at} of {self.end}", None)
            records = await self.consumer.getmany(self.where, timeout_ms=1000)
            for record in records.get(self.where, ()):
                try:
                    part = _part(record.value)
                except (msgspec.MsgspecError, TypeError) as error:
                    raise StoreCorrupt(f"{self.name}: unreadable record at offset {record.offset}: {error}") from error
                if part.epoch < epoch:
                    continue  # an owner that is none any more
                epoch = part.epoch
                if part.part == 0:
                    begun, data = record.offset, []
                elif part.part != len(data):
                    continue
                if part.parts:
                    data.append(part.data)
                if len(data) == part.parts:
                    yield Whole(begun, part, b"".join(data))
                    data = []


@asynccontextmanager
async def open_changelog(address: KafkaAddress, task: str, *, committed: bool = True) -> AsyncIterator[Changelog]:
    """A task's changelog as it is now: what is committed to it, or all that is written. Raises BrokerError."""
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from aiokafka.errors import KafkaError

    where = TopicPartition(*changelog_of(task))
    consumer = await started(
        AIOKafkaConsumer(
            **address.client_options(),
            isolation_level="read_committed" if committed else "read_uncommitted",
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=8 * 2**20,
            fetch_max_wait_ms=50,
        ),
        address,
    )
    try:
        consumer.assign([where])
        start = (await consumer.beginning_offsets([where]))[where]
        end = (await consumer.end_offsets([where]))[where]
        yield Changelog(consumer, where, start, end, address)
    except KafkaError as error:
        raise broker_error(address, f"reading {where.topic}[{where.partition}]", error) from error
    finally:
        await stopped(consumer)
