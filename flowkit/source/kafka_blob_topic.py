"""A topic of checkpoints in use: what it is made of, who reads and who changes it.

It is made with settings that lose nothing, or refused if its own would.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaProducer

from flowkit.errors import ConfigError, FlowkitError, StoreError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_blob_index import Index
from flowkit.source.kafka_blob_owner import REQUEST_BYTES, UNSURE, Change, Owner
from flowkit.source.kafka_blob_readers import Readers
from flowkit.source.kafka_blob_records import LAYOUT_KEY, Layout, decode_key, encode_layout
from flowkit.source.kafka_client import all_sent, broker_error, started, stopped
from flowkit.source.kafka_frames import PART_BYTES
from flowkit.source.kafka_topics import KafkaTopics

T = TypeVar("T")

log = structlog.get_logger("flowkit.kafka")

PARTITIONS = 16
"""Half of them for heads, half for chunks: on a cluster of several brokers, each takes its share."""
SETTINGS = {
    "cleanup.policy": "compact",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "message.timestamp.type": "LogAppendTime",
    # What was deleted is cleaned away only in segments that are full or old, and from the time that half is garbage.
    "segment.bytes": str(128 * 2**20),
    "segment.ms": "3600000",
    "min.cleanable.dirty.ratio": "0.3",
}
OVERHEAD = 1_000
"""Bytes of a record beside its value, and of the batch that it stands in alone."""

UNDER_WAY = 8
"""So many chunks of a blob may be on their way: they are copied until they are there."""
OWNERS = 16
"""So many folders keep the connections by which they are changed."""


class BlobTopic:
    """The topic `name` at `address`."""

    def __init__(self, address: KafkaAddress, name: str) -> None:
        self.address, self.name = address, name
        self.readers = Readers(address, name)
        self.limit = PART_BYTES
        """How many bytes a record may have."""
        self._layout: Layout | None = None
        self._producer: Any = None
        self._indexes: dict[int, Index] = {}
        self._owners: dict[str, Owner] = {}
        self._lock = asyncio.Lock()

    async def telling(self, doing: str, work: Callable[[], Awaitable[T]], *, check: bool = False) -> T:
        """What `work` gives. Raises StoreError that names the topic and the cause."""
        try:
            return await work()
        except StoreError:
            raise
        except UNSURE as error:
            told = error if isinstance(error, FlowkitError) else broker_error(self.address, doing, error)
            raise StoreError(f"checkpoints in topic {self.name!r}: {told}") from error
        except ConfigError as error:
            if check:
                raise
            raise StoreError(str(error)) from error

    async def layout(self, *, make: bool) -> Layout | None:
        """Which partition has what; None if there is no topic, and none is to be made."""
        async with self._lock:
            if self._layout is None:
                async with KafkaTopics(self.address) as topics:
                    there = await (made if make else KafkaTopics.partitions)(topics, self.name)
                    if not there:
                        return None
                    self.limit = min(PART_BYTES, await limit_of(topics, self.name))
                self._layout = await self._agreed(there, make=make)
            return self._layout or Layout(there)

    async def _agreed(self, there: int, *, make: bool) -> Layout | None:
        """The layout that all go by: partitions that were added later are not used."""
        first = self.index(0)
        await first.refresh()
        if first.layout is None and make:
            await self.send(0, [(LAYOUT_KEY, encode_layout(Layout(there)))])
            await first.refresh()
        if first.layout is not None and first.layout.partitions > there:
            raise ConfigError(
                f"checkpoints: topic {self.name!r} at {self.address.url} has {there} partitions, but what "
                f"is in it lies in {first.layout.partitions}: it was copied or made anew; name another topic"
            )
        return first.layout

    def index(self, partition: int) -> Index:
        if partition not in self._indexes:
            self._indexes[partition] = Index(self.readers, partition, self._unblock, self.name)
        return self._indexes[partition]

    def index_of(self, folder: str, layout: Layout) -> Index:
        """What there is in a folder, and in others."""
        return self.index(layout.of_heads(folder))

    async def change(self, folder: str, index: Index, tag: str, decide: Callable[[], list[Change] | None]) -> bool:
        """Change a folder; see `Owner.change`."""
        owner = self._owners.setdefault(folder, Owner(self.address, self.name, folder, index))
        try:
            return await owner.change(tag, decide)
        finally:
            idle = sorted((each for each in self._owners.values() if each.is_idle), key=lambda each: each.used)
            for each in idle[:-OWNERS]:
                await each.close()

    async def _unblock(self, partition: int, offset: int, end: int) -> None:
        """End the transactions that readers are held up by."""
        folders: set[str] = set()
        async with self.readers.uncommitted() as reader:
            async for records in reader.read(partition, offset, end, self.readers.patience):
                for record in records:
                    with suppress(ValueError):  # of somebody else: it is told once it is committed
                        if len(key := decode_key(record.key)) == 2:
                            folders.add(key[0])
        log.warning("checkpoints are held up by transactions, which are ended", folders=sorted(folders))
        for folder in folders:
            owner = Owner(self.address, self.name, folder, self.index(partition))
            await owner.end_what_hangs()

    async def send(self, partition: int, records: list[Change]) -> list[int]:
        """Write records that mean nothing by themselves; their offsets, -1 where the cluster does not say."""
        if self._producer is None:
            options = {**self.address.client_options(), "acks": "all", "enable_idempotence": True}
            making = AIOKafkaProducer(**options, max_batch_size=self.limit, max_request_size=REQUEST_BYTES)
            self._producer = await started(making, self.address)
        producer = self._producer
        try:
            sent: list[Any] = []
            for n, (key, value) in enumerate(records):
                if n >= UNDER_WAY:
                    await asyncio.wait([sent[n - UNDER_WAY]])
                sent.append(await producer.send(self.name, value, key=key, partition=partition))
            return [told.offset for told in await all_sent(sent)]
        except BaseException:  # its sequence numbers may be spent: another goes on
            if self._producer is producer:
                self._producer = None
            await stopped(producer)
            raise

    async def close(self) -> None:
        """Let go of the cluster."""
        producer, self._producer = self._producer, None
        owners = [owner.close() for owner in self._owners.values()]
        await asyncio.gather(self.readers.close(), *owners, *([] if producer is None else [stopped(producer)]))


async def made(topics: KafkaTopics, topic: str) -> int:
    """Make the topic, if it is not there: how many partitions it has."""
    if not (found := await topics.partitions(topic)):
        try:
            await topics.create(topic, PARTITIONS, SETTINGS)
        except ConfigError:  # another one may have made it at the same moment, in its own way
            if not (found := await topics.partitions(topic)):
                raise
    return found or PARTITIONS


async def limit_of(topics: KafkaTopics, topic: str) -> int:
    """How many bytes a record of the topic may have. Raises ConfigError if the topic would lose records."""
    settings = await topics.config(topic)
    policy = settings["cleanup.policy"]
    losing = [f"{name}={settings[name]}" for name in ("retention.ms", "retention.bytes") if settings[name] != "-1"]
    if "delete" in policy and losing:
        raise ConfigError(
            f"checkpoints: topic {topic!r} at {topics.url} has cleanup.policy={policy} and {', '.join(losing)}, which "
            "deletes checkpoints that are needed: set cleanup.policy=compact (kafka-configs --alter), or name a topic "
            "that does not exist, which is made so"
        )
    return int(settings["max.message.bytes"]) - OVERHEAD
