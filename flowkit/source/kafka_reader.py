"""Kafka as workers read it: one consumer for all readers of a broker, which are assigned by hand.

Reading only committed records, without a group: positions live in the tasks' commits. aiokafka forgets the positions
of all partitions when the assignment changes, so each reader keeps its own, and a change seeks every one again.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka

from flowkit.errors import BrokerError, ConfigError, InputError, TopicGone
from flowkit.options import OutOfRange, Start
from flowkit.source.kafka_arrivals import Arrivals
from flowkit.source.kafka_batch import KafkaBatch
from flowkit.source.kafka_client import AWAY, broker_error, started, stopped
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.source.rules import unknown_topic

GONE_AFTER_S = 1.0
"""How often a reader that gets nothing looks whether its topic is still there."""


@dataclass(frozen=True)
class FetchOptions:
    """How much is fetched ahead. A partition takes at most `partition_bytes` of memory (one batch of its producer, if
    that is bigger), a broker's answer `response_bytes`.

    `wait_ms`: a broker holds back an answer without records for so long. While it does, a partition of that broker
    which has just been drained waits too, so this bounds what a quiet partition costs a busy one.
    """

    partition_bytes: int = 1 << 20
    response_bytes: int = 16 << 20
    wait_ms: int = 50


class KafkaReaders:
    """The readers of one cluster. Use `open` and `close`; `topics` must be open for as long."""

    def __init__(self, topics: KafkaTopics, options: FetchOptions | None = None, also: Arrivals | None = None) -> None:
        self.topics, self.url = topics, topics.url
        self._options = options or FetchOptions()
        self._readers: dict[Any, KafkaReader] = {}
        self._consumer: Any = None
        self._arrivals = Arrivals(also)
        self._beside: KafkaReaders | None = None
        """A consumer has one position a partition: another reads those that have a reader here, and want another."""
        self._assigned = True  # whether the consumer's assignment is what the readers want
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Connect. Raises BrokerError, saying why, if that fails."""
        consumer = AIOKafkaConsumer(
            **self.topics.address.client_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=self._options.partition_bytes,
            fetch_max_bytes=self._options.response_bytes,
            fetch_max_wait_ms=self._options.wait_ms,
        )
        self._consumer = await started(consumer, self.topics.address)
        self._arrivals.watch(self._consumer)
        self._assigned = False

    async def close(self) -> None:
        """Close the connection; readers must not be used after it."""
        self._readers.clear()
        await self._drop()
        if self._beside is not None:
            await self._beside.close()

    def source(
        self,
        topic: str,
        *,
        start: Start = "earliest",
        out_of_range: OutOfRange = "fail",
        until_end: bool = False,
        shared: bool = False,
    ) -> "KafkaSource":
        """The topic as the worker reads it; see KafkaSource."""
        return KafkaSource(self, topic, start=start, out_of_range=out_of_range, until_end=until_end, shared=shared)

    async def wait(self, timeout_ms: float, seen: int | None = None) -> int:
        """Return once there are records that no reader has taken, or after `timeout_ms`.

        The answer is a mark; given as `seen` to the next call it makes that return only if more came since, so that
        a reader which is not being read does not keep its worker awake. Fetch everything after one call, then call
        again with its mark, and nothing is overlooked.
        """
        ready = self.prepare()
        return await self._arrivals.wait(0 if ready and seen is None else timeout_ms, seen)

    def prepare(self) -> bool:
        """See that all readers are fetched for, here and beside; True if something lies there."""
        self._assign()
        return (self._beside is not None and self._beside.prepare()) or self._arrivals.lies_there

    async def with_room(self, part: Any) -> "KafkaReaders":
        """Those where `part` has no reader yet: here, or beside, which is made if need be. Raises BrokerError."""
        if part not in self._readers:
            return self
        async with self._lock:
            if self._beside is None:
                beside = KafkaReaders(self.topics, self._options, self._arrivals)
                await beside.open()
                self._beside = beside
        return await self._beside.with_room(part)

    def add(self, reader: "KafkaReader") -> None:
        """Begin to fetch for `reader`. Raises InputError if the partition has a reader."""
        if reader.part in self._readers:
            raise InputError(f"{reader.part.topic}[{reader.part.partition}] at {self.url} has a reader already")
        self._readers[reader.part] = reader
        self._assigned = False

    def remove(self, reader: "KafkaReader") -> None:
        """Fetch no more for `reader`."""
        if self._readers.get(reader.part) is reader:
            del self._readers[reader.part]
            self._assigned = False

    async def take(self, reader: "KafkaReader", max_records: int) -> KafkaBatch | None:
        """Records of `reader` that have arrived, if some have; its `offset` is where to go on then.

        Raises OffsetOutOfRangeError of aiokafka, BrokerError for what does not pass by itself.
        """
        if self._readers.get(reader.part) is not reader:
            raise InputError(f"the reader of {reader.part.topic}[{reader.part.partition}] at {self.url} is closed")
        if self._arrivals.failed():
            await self._revive()
        self._assign()
        self._arrivals.in_columns(reader.part)
        try:
            found = await self._consumer.getmany(reader.part, max_records=max_records)
            # Not the last record's offset: markers of transactions take offsets, too, and may be all that came.
            reader.offset = await self._consumer.position(reader.part)
        except kafka.OffsetOutOfRangeError:
            raise
        except AWAY as error:
            raise broker_error(self.topics.address, f"reading topic {reader.part.topic!r}", error) from error
        batches: list[KafkaBatch] = found.get(reader.part, [])
        return batches[0] if batches else None

    def seek(self, reader: "KafkaReader", offset: int) -> None:
        """Go on elsewhere."""
        reader.offset = offset
        self._assigned = False  # the next fetch seeks, whatever has become of the consumer meanwhile

    def end(self, reader: "KafkaReader") -> int | None:
        """Where the partition ended when it was fetched last; None before that."""
        if self._consumer is None or reader.part not in self._consumer.assignment():
            return None
        found: int | None = self._consumer.highwater(reader.part)
        return found

    def knows(self, topic: str) -> bool:
        """Whether the cluster, when it was asked last, had the topic."""
        return self._consumer is None or bool(self._consumer.partitions_for_topic(topic))

    def _assign(self) -> None:
        """Make the consumer's assignment that of the readers: once for all that were opened since the last fetch."""
        if self._assigned or self._consumer is None:
            return
        if self._readers:  # without any, it would ask for every topic of the cluster
            self._consumer.assign(list(self._readers))
            for part, reader in self._readers.items():
                self._consumer.seek(part, reader.offset)
        else:
            self._consumer.pause(*self._consumer.assignment())
        self._assigned = True

    async def _revive(self) -> None:
        """Another consumer in place of one whose background task has ended, which would give nothing for ever."""
        async with self._lock:
            error = self._arrivals.failed()
            if error:
                structlog.get_logger().warning("kafka.consumer_restarted", url=self.url, error=error)
                await self._drop()
                await self.open()

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._arrivals.leave()
        if consumer is not None:
            await stopped(consumer)


class KafkaSource:
    """One topic of a cluster.

    A reader without a position begins at `start`. One whose position is not in the log any more (retention was
    faster, or the topic was made anew) follows `out_of_range`: fails, or goes on at an end of the log with a warning.
    With `until_end`, readers end where the log ended when they were opened. A partition of one that is `shared` may
    have several readers: every task reads all of what is broadcast.
    """

    codec: str | None = None

    def __init__(
        self,
        readers: KafkaReaders,
        topic: str,
        *,
        start: Start,
        out_of_range: OutOfRange,
        until_end: bool,
        shared: bool,
    ) -> None:
        self.topic = topic
        self.out_of_range, self._shared = out_of_range, shared
        self._readers, self._start, self._until_end = readers, start, until_end

    async def splits(self) -> Sequence[int]:
        """The partitions. Raises ConfigError if there is no such topic, BrokerError if the cluster is away."""
        topics = await self._readers.topics.topics()
        if self.topic not in topics:
            raise unknown_topic(self.topic, self._readers.url, topics)
        return range(topics[self.topic])

    async def open(self, split: int, position: Any) -> "KafkaReader":
        """A reader from offset `position` (None: from `start`).

        Raises InputError if the position is out of range and must not be, ConfigError if there is no such partition,
        BrokerError if the cluster is away.
        """
        topics = self._readers.topics
        start, end = await topics.bounds(self.topic, split, committed=True)
        offset = position if position is not None else await self._begin(split, start, end)
        part: Any = TopicPartition(self.topic, split)
        readers = await self._readers.with_room(part) if self._shared else self._readers
        reader = KafkaReader(readers, self, split, offset, end if self._until_end else None)
        if offset < start:
            await reader.out_of_range()
        readers.add(reader)
        return reader

    async def _begin(self, split: int, start: int, end: int) -> int:
        match self._start:
            case "earliest":
                return start
            case "latest":
                return end
            case int(time_ms):
                return await self._readers.topics.offset_at(self.topic, split, time_ms)
            case offsets:
                return offsets.get(split, start)


class KafkaReader:
    """Reads one partition in order. `offset` is where the next fetch begins."""

    def __init__(self, readers: KafkaReaders, source: KafkaSource, split: int, offset: int, end: int | None) -> None:
        self.part: Any = TopicPartition(source.topic, split)
        self.offset, self._end = offset, end
        self.at_end = end is not None and offset >= end
        self._readers, self._source = readers, source
        self._looked = 0.0

    async def fetch(self, max_records: int) -> KafkaBatch | None:
        """The next records, at most `max_records`; None if there are none for now.

        Raises InputError if the position is out of range and must not be (ConfigError if it lies beyond the end),
        TopicGone if the topic is; BrokerError for what does not pass by itself. A broker that is away is waited for.
        """
        if self.at_end:
            return None
        try:
            batch = await self._readers.take(self, max_records)
        except kafka.OffsetOutOfRangeError:
            await self.out_of_range()
            self._readers.seek(self, self.offset)
            return None
        if self._end is not None and self.offset >= self._end:
            self.at_end = True
            batch = batch and batch.part(0, bisect_left(batch.offsets, self._end))
        if batch:
            return batch
        await self._look()
        return None

    def lag(self) -> int | None:
        """How many offsets lie between this reader and the end, as of the last fetch; None before the first."""
        end = self._readers.end(self)
        return None if end is None else max(0, end - self.offset)

    async def close(self) -> None:
        self._readers.remove(self)

    async def out_of_range(self) -> None:
        """Move `offset` to where the policy says. Raises InputError if it says to fail.

        ConfigError if it lies beyond the end then: tried again, it might pass once that many records have come, which
        nobody would ever read.
        """
        topic, partition = self.part
        start, end = await self._readers.topics.bounds(topic, partition)
        policy = self._source.out_of_range
        if policy == "fail" and self.offset > end:
            raise ConfigError(
                f"{topic}[{partition}] at {self._readers.url} ends at offset {end}, but the reader is at "
                f"{self.offset}: this is not the topic that the state belongs to (it was deleted and made anew, or has "
                "lost records); to go on all the same, set out_of_range to earliest or latest"
            )
        if policy == "fail":
            raise InputError(
                f"{topic}[{partition}] at {self._readers.url} holds offsets {start} to {end - 1}, but the reader is at "
                f"{self.offset}: records were deleted before they were read, or this is not the topic that the state "
                "belongs to; to go on all the same, set out_of_range to earliest or latest"
            )
        structlog.get_logger().warning(
            "kafka.offset_out_of_range", topic=topic, partition=partition, offset=self.offset, start=start, end=end
        )
        self.offset = start if policy == "earliest" else end
        self.at_end = self._end is not None and self.offset >= self._end

    async def _look(self) -> None:
        """Whether the topic is still there: aiokafka would ask for it in silence for ever."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < GONE_AFTER_S:
            return
        self._looked = now
        topic = self.part.topic
        if self._readers.knows(topic):
            return
        try:
            gone = not await self._readers.topics.partitions(topic)
        except BrokerError:
            return  # away, which is another thing
        if gone:
            raise TopicGone(f"topic {topic!r} at {self._readers.url} was deleted while it was read")
