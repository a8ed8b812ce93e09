"""A transaction whose end the cluster has lost: the next owner of the task ends it, in every partition."""

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
from aiokafka.errors import KafkaError

from flowkit.errors import OutcomeUnknown
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_frames import open_changelog
from flowkit.source.kafka_hanging import hangs
from flowkit.source.kafka_tasks import TaskProducer
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.store import Frame, SpaceChange
from tests.kafka.real import Kafka

TASK = "app/group/0"
WRITES = {"out": 2}


class Out(NamedTuple):
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    time: int


class Cluster:
    """A cluster that takes a transaction's records without having been told of it: so one can be left hanging."""

    def __init__(self, address: KafkaAddress, topics: KafkaTopics) -> None:
        self.address, self.topics = address, topics

    async def owner(self) -> TaskProducer:
        producer = TaskProducer(self.address, TASK, "", "exactly once")
        await producer.start(WRITES)
        return producer

    async def out(self) -> list[bytes | None]:
        """What readers of committed records see."""
        batches = [await self.topics.read("out", partition, 0, 100) for partition in range(2)]
        return [value for batch in batches for value in batch.values]

    async def numbers(self) -> list[int]:
        async with open_changelog(self.address, TASK) as log:
            return [frame.number async for frame in log.after(0)]


@pytest.fixture
async def cluster(own_kafka: Callable[..., Kafka]) -> AsyncIterator[Cluster]:
    kafka = own_kafka(properties={"transaction.partition.verification.enable": "false"})
    address = KafkaAddress.parse(f"kafka://{kafka.bootstrap}", {})
    async with KafkaTopics(address) as topics:
        await topics.create("app-group-changelog", 1)
        await topics.create("out", 2)
        yield Cluster(address, topics)


def frame(number: int, size: int = 1) -> Frame:
    changes = [SpaceChange("t", None, [b"k"], [bytes(n * n % 251 for n in range(size))])]
    parent = b"" if number == 1 else b"commit %d" % (number - 1)
    return Frame(number, b"commit %d" % number, parent, 1, {}, changes)


def outputs(number: int) -> list[Out]:
    return [Out("out", partition, b"k", b"%d" % number, 0) for partition in range(2)]


async def lose_the_end(cluster: Cluster, producer: TaskProducer) -> Any:
    """From now on the coordinator hears nothing of what is sent, nor of the end of it."""
    while await hangs(cluster.address, TASK):
        """The marker of the commit before would end what comes now."""
    manager = producer._producer._txn_manager
    manager.maybe_add_partition_to_txn = lambda _part: None
    return producer._producer


async def test_what_was_committed_counts_for_the_next_owner(cluster: Cluster) -> None:
    first = await cluster.owner()
    await first.commit(frame(1), outputs(1))
    await lose_the_end(cluster, first)
    await first.commit(frame(2), outputs(2))
    assert await hangs(cluster.address, TASK)
    await first.stop()

    second = await cluster.owner()
    assert second.last == (2, b"commit 2")
    assert not await hangs(cluster.address, TASK)
    assert await cluster.out() == [b"1", b"2", b"1", b"2"]
    await second.commit(frame(3), outputs(3))
    await second.stop()
    assert await cluster.numbers() == [1, 2, 3]
    assert await cluster.out() == [b"1", b"2", b"3", b"1", b"2", b"3"]


async def test_what_was_not_sent_whole_never_counts(cluster: Cluster) -> None:
    first = await cluster.owner()
    await first.commit(frame(1), outputs(1))
    producer = first._producer
    await producer.begin_transaction()
    await first._send_frame(frame(2))  # whole, but aborted in good order: no sign of what hangs
    await producer.abort_transaction()
    await lose_the_end(cluster, first)
    await producer.begin_transaction()
    await producer.send_and_wait("out", b"2", key=b"k", partition=0)
    await producer.send_and_wait(
        "app-group-changelog", b"\x98\x01\x02\xc4\x01a\xc4\x01b\xa0\x00\x02\xc4\x01x", partition=0
    )
    await first.stop()

    second = await cluster.owner()
    assert second.last == (1, b"commit 1")
    await second.commit(frame(2), outputs(2))
    await second.stop()
    assert await cluster.numbers() == [1, 2]
    assert await cluster.out() == [b"1", b"2", b"1", b"2"]


async def test_outputs_whose_frame_never_came_never_count(cluster: Cluster) -> None:
    first = await cluster.owner()
    await first.commit(frame(1), outputs(1))
    await lose_the_end(cluster, first)

    async def stands_still(frame: Frame) -> list[Any]:
        raise KafkaError

    first._send_frame = stands_still  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await first.commit(frame(2), outputs(2))

    second = await cluster.owner()
    assert second.last == (1, b"commit 1")
    await second.commit(frame(2), outputs(2))
    await second.stop()
    assert await cluster.numbers() == [1, 2]
    assert await cluster.out() == [b"1", b"2", b"1", b"2"]
