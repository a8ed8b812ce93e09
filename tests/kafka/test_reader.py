"""Readers on a real cluster: what they give, where they begin and end, and what they do when the log has changed."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from flowkit.errors import ConfigError, InputError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_reader import FetchOptions, KafkaReader, KafkaReaders
from flowkit.source.kafka_topics import KafkaTopics
from tests.kafka.real import Kafka


@pytest.fixture
async def topics(kafka_address: str) -> AsyncIterator[KafkaTopics]:
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as topics:
        yield topics


@pytest.fixture
async def readers(topics: KafkaTopics) -> AsyncIterator[KafkaReaders]:
    readers = KafkaReaders(topics)
    await readers.open()
    yield readers
    await readers.close()


def numbered(start: int, stop: int) -> list[tuple[bytes | None, bytes | None, int]]:
    return [(None, b"%d" % number, number) for number in range(start, stop)]


async def take(readers: KafkaReaders, reader: KafkaReader, count: int, at_once: int = 1_000) -> list[int]:
    """The next `count` values of numbered records; a broken reader runs into the test's time-out."""
    found: list[int] = []
    mark = None
    while len(found) < count:
        batch = await reader.fetch(at_once)
        if batch is None:
            mark = await readers.wait(5_000, mark)
            continue
        assert len(batch) <= at_once
        found += [int(value or b"-1") for value in batch.values]
    return found


async def take_all(readers: KafkaReaders, reader: KafkaReader) -> list[int]:
    """Every value of a bounded reader."""
    found: list[int] = []
    mark = None
    while not reader.at_end:
        batch = await reader.fetch(1_000)
        if batch is not None:
            found += [int(value or b"-1") for value in batch.values]
        elif not reader.at_end:
            mark = await readers.wait(5_000, mark)
    return found


async def test_records_in_order_as_they_were_sent(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 2)
    async with AIOKafkaProducer(bootstrap_servers=list(topics.address.servers)) as producer:
        headers = [("trace", b"1"), ("trace", b"2"), ("none", b"")]
        await producer.send_and_wait(name, b"v", key=b"k", partition=1, timestamp_ms=77, headers=headers)
        await producer.send_and_wait(name, None, key=b"k", partition=1, timestamp_ms=78)
        await producer.send_and_wait(name, b"", partition=1, timestamp_ms=5)
    source = readers.source(name)
    assert (list(await source.splits()), source.codec) == ([0, 1], None)
    reader = await source.open(1, None)
    while (batch := await reader.fetch(10)) is None:
        await readers.wait(5_000)
    assert (batch.values, batch.keys, batch.times) == ([b"v", None, b""], [b"k", b"k", None], [77, 78, 5])
    assert list(batch.headers(0)) == headers
    assert list(batch.headers(1)) == []
    assert (batch.offset(2), batch.position(2), batch.position(3)) == (2, 2, 3)
    assert batch.where(2) == f"{name}[1] offset 2"
    assert batch.offsets == range(3)  # three producer batches together; without gaps nothing is kept an offset
    assert await reader.fetch(10) is None
    assert not reader.at_end


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec(topics: KafkaTopics, readers: KafkaReaders, name: str, compression: str | None) -> None:
    await topics.create(name, 1)
    options: dict[str, Any] = {"compression_type": compression, "linger_ms": 50}
    async with AIOKafkaProducer(bootstrap_servers=list(topics.address.servers), **options) as producer:
        sent = [await producer.send(name, b"%d" % number + b" " * 200, partition=0) for number in range(500)]
        for each in sent:
            await each
    reader = await readers.source(name).open(0, None)
    assert await take(readers, reader, 500) == list(range(500))


async def test_a_reader_goes_on_from_a_position(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 20))
    reader = await readers.source(name).open(0, 7)
    assert await take(readers, reader, 13, at_once=5) == list(range(7, 20))
    assert reader.offset == 20
    await reader.close()
    again = await readers.source(name).open(0, reader.offset)
    await topics.put(name, numbered(20, 22))
    assert await take(readers, again, 2) == [20, 21]


async def test_lag(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    reader = await readers.source(name).open(0, 2)
    assert reader.lag() is None
    await take(readers, reader, 3, at_once=3)
    assert reader.lag() == 5
    await reader.close()
    assert reader.lag() in (5, None)


async def test_readers_that_open_and_close_disturb_no_other(
    topics: KafkaTopics, readers: KafkaReaders, name: str
) -> None:
    await topics.create(name, 3)
    for partition in range(3):
        await topics.put(name, numbered(0, 100), partition)
    source = readers.source(name)
    first = await source.open(0, None)
    found = await take(readers, first, 10, at_once=10)
    second = await source.open(1, None)
    found += await take(readers, first, 10, at_once=10)
    other = await take(readers, second, 30, at_once=30)
    await first.close()
    other += await take(readers, second, 30, at_once=30)
    third = await source.open(0, first.offset)
    found += await take(readers, third, 80, at_once=80)
    other += await take(readers, second, 40, at_once=40)
    assert found == other == list(range(100))


@pytest.mark.parametrize("seed", range(4))
async def test_readers_come_and_go_while_transactions_end(
    topics: KafkaTopics, readers: KafkaReaders, name: str, seed: int
) -> None:
    """Whatever is cancelled or fetched again when the assignment changes, each partition is read once and in order."""
    await topics.create(name, 3)
    counts, done = [0, 0, 0], asyncio.Event()

    async def write() -> None:
        draw = random.Random(seed)
        servers = list(topics.address.servers)
        async with AIOKafkaProducer(bootstrap_servers=servers, transactional_id=name, linger_ms=1) as producer:
            for _ in range(40):
                await producer.begin_transaction()
                written, counts_then = draw.randrange(1, 60), list(counts)
                sent = []
                for _ in range(written):
                    partition = draw.randrange(3)
                    sent.append(await producer.send(name, b"%d" % counts[partition], partition=partition))
                    counts[partition] += 1
                await asyncio.gather(*sent)
                if draw.random() < 0.3:
                    await producer.abort_transaction()
                    counts[:] = counts_then
                else:
                    await producer.commit_transaction()
        done.set()

    writing = asyncio.create_task(write())
    draw, source = random.Random(-seed), readers.source(name)
    found: list[list[int]] = [[], [], []]
    positions: list[int | None] = [None, None, None]
    opened: dict[int, KafkaReader] = {}
    mark = None
    while not (done.is_set() and [len(each) for each in found] == counts):
        partition = draw.randrange(3)
        if partition not in opened:
            opened[partition] = await source.open(partition, positions[partition])
        batch = await opened[partition].fetch(draw.randrange(1, 50))
        if batch is not None:
            found[partition] += [int(value or b"-1") for value in batch.values]
            positions[partition] = batch.position(len(batch))
        elif draw.random() < 0.5:
            mark = await readers.wait(20, mark)
        if draw.random() < 0.1:
            await opened.pop(partition).close()
    await writing
    assert found == [list(range(count)) for count in counts]


async def test_a_partition_has_one_reader(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    reader = await readers.source(name).open(0, None)
    with pytest.raises(InputError, match=rf"{name}\[0\] at kafka://.* has a reader already"):
        await readers.source(name).open(0, None)
    await reader.close()
    with pytest.raises(InputError, match="is closed"):
        await reader.fetch(1)
    assert await readers.wait(10) > 0  # nobody is left to read for, which is no reason to hang or to fail


async def test_a_shared_partition_has_as_many_readers_as_want_it(
    topics: KafkaTopics, readers: KafkaReaders, name: str
) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    source = readers.source(name, shared=True)
    opened = [await source.open(0, None) for _ in range(3)]
    for reader in opened:
        assert await take(readers, reader, 10) == list(range(10))
    mark = await readers.wait(10)
    waiting = asyncio.create_task(readers.wait(60_000, mark))
    await opened[0].close()
    await topics.put(name, numbered(10, 12))
    assert await waiting > mark
    assert await take(readers, opened[2], 2) == [10, 11]
    assert await take(readers, opened[1], 1, at_once=1) == [10]
    again = await source.open(0, 11)
    assert await take(readers, again, 1) == [11]
    assert await take(readers, opened[1], 1) == [11]


async def test_what_is_not_there(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no topic '{name}'"):
        await readers.source(name).splits()
    await topics.create(name, 1)
    with pytest.raises(ConfigError, match="but no 1"):
        await readers.source(name).open(1, None)


# --- where reading begins ---------------------------------------------------------------------------------------------


async def test_starts(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    starts: list[tuple[Any, int]] = [("earliest", 0), ("latest", 10), (4, 4), (99, 10), ({0: 6}, 6), ({1: 6}, 0)]
    for start, offset in starts:
        reader = await readers.source(name, start=start).open(0, None)
        assert reader.offset == offset, start
        await reader.close()
    reader = await readers.source(name, start="latest").open(0, 3)  # a position is stronger
    assert reader.offset == 3


async def test_a_reader_from_the_latest_sees_what_comes(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    reader = await readers.source(name, start="latest").open(0, None)
    await topics.put(name, numbered(10, 12))  # before its first fetch
    assert await take(readers, reader, 2) == [10, 11]


# --- where it ends ----------------------------------------------------------------------------------------------------


async def test_a_bounded_reader_ends_where_the_log_ended(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 2)
    await topics.put(name, numbered(0, 10), 0)
    source = readers.source(name, until_end=True)
    reader, empty = await source.open(0, None), await source.open(1, None)
    assert (reader.at_end, empty.at_end) == (False, True)
    await topics.put(name, numbered(10, 20), 0)
    assert await take_all(readers, reader) == list(range(10))
    assert await reader.fetch(10) is None
    assert await empty.fetch(10) is None


async def test_markers_of_transactions_keep_no_bounded_reader_waiting(
    topics: KafkaTopics, readers: KafkaReaders, name: str
) -> None:
    await topics.create(name, 2)
    async with AIOKafkaProducer(bootstrap_servers=list(topics.address.servers), transactional_id=name) as producer:
        async with producer.transaction():
            for number in range(3):
                await producer.send_and_wait(name, b"%d" % number, partition=0)
        await producer.begin_transaction()
        for partition in (0, 1):
            await producer.send_and_wait(name, b"99", partition=partition)
        await producer.abort_transaction()
        source = readers.source(name, until_end=True)
        reader, aborted = await source.open(0, None), await source.open(1, None)
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"98", partition=0)
        assert await take_all(readers, reader) == [0, 1, 2]
        assert (reader.offset, aborted.offset) == (6, 0)
        assert await take_all(readers, aborted) == []
        assert aborted.offset == 2
        await producer.abort_transaction()
    restarted = await _reopened(readers, reader, 3)  # the position after the last record: only markers follow it
    assert await take_all(readers, restarted) == []


async def _reopened(readers: KafkaReaders, reader: KafkaReader, position: int) -> KafkaReader:
    await reader.close()
    return await readers.source(reader.part.topic, until_end=True).open(reader.part.partition, position)


async def test_a_transaction_is_seen_once_it_is_committed(
    topics: KafkaTopics, readers: KafkaReaders, name: str
) -> None:
    await topics.create(name, 1)
    reader = await readers.source(name).open(0, None)
    async with AIOKafkaProducer(bootstrap_servers=list(topics.address.servers), transactional_id=name) as producer:
        async with producer.transaction():
            await producer.send_and_wait(name, b"1", partition=0)
            await readers.wait(200)
            assert await reader.fetch(10) is None
        assert await take(readers, reader, 1) == [1]


async def test_compaction_leaves_gaps(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    config = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    await topics.create(name, 1, config)
    await topics.put(name, [(b"k", b"%d" % number, 1) for number in range(50)])
    batch = await topics.read(name, 0, 0, 100)
    filler = 50
    while len(batch) >= filler:  # the cleaner comes round by itself; a new record closes the old segment
        await topics.put(name, [(b"other", b"%d" % filler, 1_000 * filler)])
        filler += 1
        batch = await topics.read(name, 0, 0, 1_000)
    end = (await topics.bounds(name, 0))[1]
    reader = await readers.source(name, until_end=True).open(0, None)
    found = await take_all(readers, reader)
    assert found == sorted(found)
    assert len(found) < end == found[-1] + 1 == reader.offset


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_records_deleted_before_they_were_read(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    await topics.delete_before(name, 0, 5)
    with pytest.raises(InputError, match=r"holds offsets 5 to 9, but the reader is at 2: .*set out_of_range"):
        await readers.source(name).open(0, 2)
    reader = await readers.source(name, out_of_range="earliest").open(0, 2)
    assert await take(readers, reader, 5) == [5, 6, 7, 8, 9]
    await reader.close()
    reader = await readers.source(name, out_of_range="latest").open(0, 2)
    assert reader.offset == 10


async def test_a_position_beyond_the_end(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    reader = await readers.source(name).open(0, 99)
    with pytest.raises(ConfigError, match=r"ends at offset 10, but the reader is at 99: this is not the topic"):
        await take(readers, reader, 1)
    await reader.close()
    for policy, first in (("earliest", 0), ("latest", 10)):
        wanted: Any = policy
        reader = await readers.source(name, out_of_range=wanted).open(0, 99)
        while reader.offset == 99:
            await reader.fetch(100)
            await readers.wait(100)
        await topics.put(name, numbered(10, 11))
        assert (await take(readers, reader, 1, at_once=1))[0] == first
        await reader.close()


async def test_retention_that_overtakes_a_reader(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1)
    readers = KafkaReaders(topics, FetchOptions(partition_bytes=1_000))
    await readers.open()
    try:
        for start in range(0, 100, 10):
            await topics.put(name, [(None, b"%d" % number + b" " * 200, 1) for number in range(start, start + 10)])
        reader = await readers.source(name).open(0, None)
        found = await take(readers, reader, 10, at_once=10)
        await topics.delete_before(name, 0, 80)
        with pytest.raises(InputError, match="holds offsets 80 to 99"):
            found += await take(readers, reader, 90)
        assert found == list(range(len(found)))
    finally:
        await readers.close()


async def test_a_topic_that_is_deleted(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 1))
    reader = await readers.source(name).open(0, None)
    assert await take(readers, reader, 1) == [0]
    await topics._admin.delete_topics([name])
    with pytest.raises(InputError, match=rf"topic '{name}' at kafka://.* was deleted while it was read"):
        await take(readers, reader, 1)


async def test_a_broker_that_goes_away_and_comes_back(own_kafka: Callable[..., Kafka], name: str) -> None:
    kafka = own_kafka()
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka.bootstrap}", {})) as topics:
        readers = KafkaReaders(topics)
        await readers.open()
        await topics.create(name, 2)
        await topics.put(name, numbered(0, 5), 0)
        reader = await readers.source(name).open(0, None)
        assert await take(readers, reader, 5) == list(range(5))
        kafka.kill()
        assert await reader.fetch(10) is None
        await readers.wait(300)
        assert await reader.fetch(10) is None
        kafka.start()
        await topics.put(name, numbered(5, 8), 0)
        assert await take(readers, reader, 3) == [5, 6, 7]
        await readers.close()


async def test_a_leader_that_changes(own_kafka: Callable[..., Kafka], name: str) -> None:
    kafka = own_kafka(nodes=3)
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka.bootstrap}", {})) as topics:
        readers = KafkaReaders(topics)
        await readers.open()
        await topics.create(name, 1)
        await topics.put(name, numbered(0, 5))
        reader = await readers.source(name).open(0, None)
        found = await take(readers, reader, 5)
        ((leader,),) = [
            [part["leader"] for part in told["partitions"]] for told in await topics._admin.describe_topics([name])
        ]
        kafka.kill(leader)
        await topics.put(name, numbered(5, 10))
        found += await take(readers, reader, 5)
        assert found == list(range(10))
        await readers.close()


async def test_a_fetcher_that_has_ended_is_replaced(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    """The background task of aiokafka ends at an error that it does not know, and gives nothing from then on."""
    await topics.create(name, 1)
    await topics.put(name, numbered(0, 10))
    reader = await readers.source(name).open(0, None)
    found = await take(readers, reader, 4, at_once=4)
    readers._consumer._fetcher.error_future.cancel()
    await topics.put(name, numbered(10, 20))
    found += await take(readers, reader, 16, at_once=3)
    assert found == list(range(20))


# --- waiting and memory -----------------------------------------------------------------------------------------------


async def test_wait_returns_when_records_come(topics: KafkaTopics, readers: KafkaReaders, name: str) -> None:
    await topics.create(name, 1)
    reader = await readers.source(name).open(0, None)
    mark = await readers.wait(10)
    waiting = asyncio.create_task(readers.wait(60_000, mark))
    await topics.put(name, numbered(0, 1))
    assert await waiting > mark
    assert await take(readers, reader, 1) == [0]


async def test_records_that_nobody_takes_wake_nobody_twice(
    topics: KafkaTopics, readers: KafkaReaders, name: str
) -> None:
    await topics.create(name, 1)
    reader = await readers.source(name).open(0, None)
    mark = await readers.wait(10)
    await topics.put(name, numbered(0, 1))
    mark = await readers.wait(5_000, mark)
    began = asyncio.get_running_loop().time()
    assert await readers.wait(300, mark) == mark  # held back: the reader has no room
    assert asyncio.get_running_loop().time() - began > 0.25
    assert await readers.wait(60_000) == mark  # without a mark, what lies there counts
    assert await take(readers, reader, 1) == [0]


async def test_what_is_fetched_ahead_is_bounded(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1)
    for start in range(0, 100, 5):
        await topics.put(name, [(None, b"%d" % number + b" " * 2_000, 1) for number in range(start, start + 5)])
    readers = KafkaReaders(topics, FetchOptions(partition_bytes=20_000))
    await readers.open()
    try:
        reader = await readers.source(name).open(0, None)
        mark = await readers.wait(5_000)
        for _ in range(3):
            mark = await readers.wait(200, mark)
        batch = await reader.fetch(1_000)
        assert batch is not None
        assert len(batch) <= 10
        found = [int(value or b"") for value in batch.values] + await take(readers, reader, 100 - len(batch))
        assert found == list(range(100))
    finally:
        await readers.close()
