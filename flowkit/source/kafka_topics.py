"""Topics of a Kafka cluster: made, counted, written and read from outside, as `flowkit topics` and tests do."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from flowkit.errors import BrokerError, ConfigError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_batch import KafkaBatch
from flowkit.source.kafka_client import AWAY, broker_error, no_brokers, started, stopped, why_not
from flowkit.source.rules import (
    KeyValueTime,
    check_same_partitions,
    check_topic,
    columns_of,
    place,
    unknown_partition,
    unknown_topic,
)

Isolation = Literal["read_committed", "read_uncommitted"]
T = TypeVar("T")

UNCONNECTED = (kafka.KafkaConnectionError, kafka.NodeNotReadyError, OSError)
"""What says only that there is no connection, so that the servers are asked why."""

TRIES = 3
"""So often a question is asked before the cluster counts as away: one connection may be half open."""
RETRY_SECONDS = 0.1
NEWS_SECONDS = 10.0
"""By then every node of a cluster has heard of a topic that was made."""
REQUEST_BYTES = 100 * 2**20
"""What brokers take at once unless they are told otherwise; how large a record may be is the topic's to say."""
REFUSED = (
    kafka.InvalidPartitionsError,
    kafka.InvalidReplicationFactorError,
    kafka.InvalidConfigurationError,
    kafka.PolicyViolationError,
    kafka.InvalidTopicError,
)
"""What a broker answers when the topic that is asked for cannot be."""


class KafkaTopics:
    """The topics of the cluster at `address`. Use it within `async with`, or `open` and `close` it.

    Every method raises BrokerError, naming the address, if the cluster does not answer within the address's
    `timeout_ms`. Clients are made when they are first needed, apart from those that workers read and write by: a
    broker answers a connection's requests one after the other, and a waiting fetch would hold up a question.
    """

    def __init__(self, address: KafkaAddress) -> None:
        self.address, self.url = address, address.url
        self._admin: Any = None
        self._producer: Any = None
        self._askers: dict[Isolation, _Asker] = {}
        self._lock = anyio.Lock()
        self._turn = 0
        self._made: dict[str, float] = {}
        """When (monotonic) topics were made here. The node that is asked may not have heard of them for a while."""

    async def open(self) -> None:
        """Connect. Raises BrokerError, saying why, if that fails."""
        self._admin = await started(AIOKafkaAdminClient(**_asking(self.address)), self.address)

    async def close(self) -> None:
        """Close every connection."""
        clients = [*(asker.client for asker in self._askers.values()), self._producer, self._admin]
        self._askers, self._producer, self._admin = {}, None, None
        for client in clients:
            if client is not None:
                await stopped(client)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def topics(self) -> dict[str, int]:
        """The number of partitions by topic; Kafka's own topics are left out."""

        async def ask() -> dict[str, int]:
            # All of them: a question for one topic makes brokers that make topics on their own make it.
            found = await self._admin._get_cluster_metadata()  # noqa: SLF001  # `describe_topics` leaves out the brokers
            if not found.brokers:  # not one without topics, which would be taken for deleted
                raise no_brokers(self.address)
            topics = found.to_object()["topics"]
            return {each["topic"]: len(each["partitions"]) for each in topics if not each["is_internal"]}

        return await self._try("listing topics", ask)

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 if it does not exist."""
        return (await self.topics()).get(topic, 0)

    async def create(
        self, topic: str, partitions: int, config: Mapping[str, str] | None = None, replication: int = -1
    ) -> None:
        """Make a topic with Kafka's `config` entries; replication -1 is the cluster's default.

        Raises ConfigError if it exists with another number of partitions (its config is not looked at), if the name
        cannot be one, or if the cluster refuses, with its reason. Returns once every partition has a leader.
        """
        check_topic(topic, partitions)
        found = await self.partitions(topic)
        if not found:
            found = await self._try(
                f"making topic {topic!r}",
                lambda: _create(self._admin, self.address, topic, partitions, config, replication),
            )
            self._made[topic] = time.monotonic()
        check_same_partitions(topic, self.url, found, partitions)

    async def config(self, topic: str) -> dict[str, str]:
        """The settings of a topic that are in force, the cluster's defaults among them."""

        async def ask() -> dict[str, str]:
            (answer,) = await self._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            ((code, message, _, _, entries),) = answer.resources
            if code:
                raise kafka.for_code(code)(message)
            return {entry[0]: entry[1] for entry in entries}

        return await self._try(f"asking for the settings of topic {topic!r}", ask)

    async def end_offsets(self, topic: str, *, committed: bool = False) -> list[int]:
        """By partition, the offset that the next record will have. Raises ConfigError if there is no such topic.

        With `committed`, where a reader of committed records stops for now: the beginning of the oldest transaction
        that is open.
        """
        asked = await self._partitions_of(topic)
        found = await self._ask("read_committed" if committed else "read_uncommitted", "end_offsets", asked)
        return [found[part] for part in asked]

    async def bounds(self, topic: str, partition: int, *, committed: bool = False) -> tuple[int, int]:
        """The offsets of the oldest record that is left, and of the next one to come (`committed`: see end_offsets).

        Raises ConfigError if there is no such topic or partition.
        """
        part = await self._partition(topic, partition)
        isolation: Isolation = "read_committed" if committed else "read_uncommitted"
        start = await self._ask(isolation, "beginning_offsets", [part])
        end = await self._ask(isolation, "end_offsets", [part])
        return start[part], end[part]

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        """The offset of the first record whose timestamp is `time_ms` or later; the end if there is none.

        Raises ConfigError if there is no such topic or partition.
        """
        part = await self._partition(topic, partition)
        found = (await self._ask("read_uncommitted", "offsets_for_times", {part: time_ms}))[part]
        return found.offset if found is not None else (await self.bounds(topic, partition))[1]

    async def put(self, topic: str, records: Sequence[KeyValueTime], partition: int | None = None) -> None:
        """Append (key, value, time in ms) from outside: to `partition`, or by key (murmur2), or round robin.

        Returns when every replica in sync has them. They are no transaction: after an error some may be there. Raises
        ConfigError if there is no such topic or partition, TypeError if a key or value is no bytes.
        """
        if not records:
            return
        partitions = (
            await self._partitions_of(topic) if partition is None else [await self._partition(topic, partition)]
        )
        columns_of(topic, records)  # checks them
        groups = place(records, len(partitions), partition, self._turn)
        self._turn += sum(record[0] is None for record in records)
        await self._try(f"writing to topic {topic!r}", lambda: self._put(topic, groups))

    async def _put(self, topic: str, groups: dict[int, list[KeyValueTime]]) -> None:
        if self._producer is None:
            options = {**self.address.client_options(), "acks": "all", "enable_idempotence": True}
            making = AIOKafkaProducer(**options, max_request_size=REQUEST_BYTES)
            self._producer = await started(making, self.address)
        producer = self._producer
        try:
            sent = [
                await producer.send(topic, value, key=key, partition=partition, timestamp_ms=time)
                for partition, records in groups.items()
                for key, value, time in records
            ]
            for each in sent:  # each by itself: a failed one must not go unseen
                await each
        except BaseException:  # its sequence numbers may be spent: another goes on
            if self._producer is producer:  # not if another call has found that out, which goes on with another
                self._producer = None
                await stopped(producer)
            raise

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> KafkaBatch:
        """At most `limit` committed records from `offset` on, or from the oldest that is left.

        Raises ConfigError if there is no such topic or partition.
        """
        part = await self._partition(topic, partition)
        start, end = await self.bounds(topic, partition, committed=True)
        return await self._try(
            f"reading topic {topic!r}", lambda: _read(self.address, part, max(start, offset), end, limit)
        )

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`. Raises ConfigError if there is no such topic, partition or offset."""
        part = await self._partition(topic, partition)

        async def delete() -> None:
            try:
                await self._admin.delete_records({part: RecordsToDelete(offset)}, timeout_ms=self.address.timeout_ms)
            except kafka.OffsetOutOfRangeError:
                start, end = await self.bounds(topic, partition)
                raise ConfigError(
                    f"{topic}[{partition}] at {self.url} holds offsets {start} to {end - 1}, none before {offset}"
                ) from None

        await self._try(f"deleting records of topic {topic!r}", delete)

    async def delete(self, topics: Sequence[str]) -> None:
        """Delete topics with all that is in them; those that do not exist are none the less gone."""

        async def delete() -> None:
            answer = await self._admin.delete_topics(list(topics), timeout_ms=self.address.timeout_ms)
            for topic, code, *_ in answer.topic_error_codes:
                error = kafka.for_code(code)
                if error not in (kafka.NoError, kafka.UnknownTopicOrPartitionError):
                    raise error(topic)

        for topic in topics:
            self._made.pop(topic, None)
        if topics:
            await self._try(f"deleting topics {', '.join(topics)}", delete)

    async def notes(self, group: str) -> dict[str, set[str]]:
        """By topic, what the members of a consumer group have noted beside their offsets (see `KafkaGroup.tell`)."""

        async def ask() -> dict[str, set[str]]:
            notes: dict[str, set[str]] = {}
            for part, told in (await self._admin.list_consumer_group_offsets(group)).items():
                notes.setdefault(part.topic, set()).update(told.metadata.split(","))
            return notes

        return await self._try(f"asking for the offsets of group {group!r}", ask)

    # --- within -------------------------------------------------------------------------------------------------------

    async def _partitions_of(self, topic: str) -> list[Any]:
        topics = await self._topics_with(topic)
        if topic not in topics:
            raise unknown_topic(topic, self.url, topics)
        return [TopicPartition(topic, number) for number in range(topics[topic])]

    async def _topics_with(self, topic: str) -> dict[str, int]:
        """All topics, with this one if it has just been made here: that is waited for."""
        until = self._made.get(topic, 0.0) + NEWS_SECONDS
        while topic not in (topics := await self.topics()) and time.monotonic() < until:  # noqa: ASYNC110
            await anyio.sleep(RETRY_SECONDS)
        return topics

    async def _partition(self, topic: str, partition: int) -> Any:
        topics = await self._topics_with(topic)
        if not 0 <= partition < topics.get(topic, 0):
            raise unknown_partition(topic, partition, self.url, topics)
        return TopicPartition(topic, partition)

    async def _ask(self, isolation: Isolation, method: str, about: Any) -> Any:
        """A question about offsets, by a consumer that reads nothing."""

        async def ask() -> Any:
            async with self._lock:
                if isolation not in self._askers:
                    client = await started(_consumer(self.address, isolation), self.address)
                    self._askers[isolation] = _Asker(client)
                asker = self._askers[isolation]
            asker.users += 1
            try:
                return await getattr(asker.client, method)(about)
            except BaseException:
                # aiokafka gives up together with its connection's own time-out, and so keeps one that is half open.
                if self._askers.get(isolation) is asker:
                    del self._askers[isolation]
                raise
            finally:
                asker.users -= 1
                if not asker.users and self._askers.get(isolation) is not asker:
                    await stopped(asker.client)

        return await self._try("asking for offsets", ask)

    async def _try(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """`attempt`, again after errors that pass, within the address's `timeout_ms`. Raises BrokerError."""
        last: BaseException | None = None
        with anyio.move_on_after(self.address.timeout_ms / 1000):
            while True:
                try:
                    return await attempt()
                except BrokerError:
                    raise
                except AWAY as error:
                    if not getattr(error, "retriable", True):
                        raise broker_error(self.address, doing, error) from error
                    last = error
                await anyio.sleep(RETRY_SECONDS)
        if isinstance(last, UNCONNECTED):
            why = await why_not(self.address)
            raise type(why)(f"{self.url}: {doing}: {why}") from last
        raise broker_error(self.address, doing, last)


class _Asker:
    """A client that is asked about offsets; the last of its users closes it, once it has failed one of them."""

    def __init__(self, client: Any) -> None:
        self.client, self.users = client, 0


async def _create(
    admin: Any, address: KafkaAddress, topic: str, partitions: int, config: Mapping[str, str] | None, replication: int
) -> int:
    # aiokafka takes -1 only together with an assignment, even an empty one, and any other number only without.
    replicas: dict[int, list[int]] | None = {} if replication == -1 else None
    new = NewTopic(topic, partitions, replication, replica_assignments=replicas, topic_configs=dict(config or {}))
    answer = await admin.create_topics([new], timeout_ms=address.timeout_ms)
    for _, code, message, *_ in answer.topic_errors:
        error = kafka.for_code(code)
        if error in REFUSED:
            raise ConfigError(f"topic {topic!r} cannot be made at {address.url}: {message or error.description}")
        if error not in (kafka.NoError, kafka.TopicAlreadyExistsError):
            raise error(message)
    while True:  # brokers hear of the topic one after the other
        for told in await admin.describe_topics([topic]):  # none at all if the connection was refused: see no_brokers
            parts = told["partitions"]
            if not told["error_code"] and parts and all(part["leader"] >= 0 for part in parts):
                return len(parts)
        await anyio.sleep(0.02)


async def _read(address: KafkaAddress, part: Any, offset: int, end: int, limit: int) -> KafkaBatch:
    records: list[Any] = []
    if offset < end and limit > 0:
        consumer = await started(_consumer(address, "read_committed"), address)
        try:
            consumer.assign([part])
            consumer.seek(part, offset)
            while len(records) < limit and await consumer.position(part) < end:  # records or markers, to the end
                found = await consumer.getmany(part, timeout_ms=500, max_records=limit - len(records))
                records += [record for record in found.get(part, ()) if record.offset < end]
        finally:
            await stopped(consumer)
    return KafkaBatch.of(part.topic, part.partition, offset, records)


def _consumer(address: KafkaAddress, isolation: Isolation) -> Any:
    return AIOKafkaConsumer(
        **_asking(address),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level=isolation,
        fetch_max_wait_ms=100,
    )


def _asking(address: KafkaAddress) -> dict[str, Any]:
    """Options of a client for short questions."""
    return {**address.client_options(), "request_timeout_ms": max(address.timeout_ms // TRIES, 500)}
