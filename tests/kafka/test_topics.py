"""Topics of a real cluster: made, counted, written, read and trimmed from outside."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from flowkit.errors import BrokerError, ConfigError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.source.partitioner import partition_of
from tests.kafka.real import Kafka, free_ports


@pytest.fixture
async def topics(kafka_address: str) -> AsyncIterator[KafkaTopics]:
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as topics:
        yield topics


async def test_a_topic_is_made_once(topics: KafkaTopics, name: str) -> None:
    assert await topics.partitions(name) == 0
    await topics.create(name, 3)
    await topics.create(name, 3)
    assert await topics.partitions(name) == 3
    assert (await topics.topics())[name] == 3
    with pytest.raises(ConfigError, match=r"exists with 3 partitions, not 4"):
        await topics.create(name, 4)


async def test_what_the_cluster_refuses_is_told(topics: KafkaTopics, name: str) -> None:
    with pytest.raises(ConfigError, match=r"topic name 'no way!'"):
        await topics.create("no way!", 1)
    with pytest.raises(ConfigError, match=r"partitions=0"):
        await topics.create(name, 0)
    with pytest.raises(ConfigError, match=rf"{name}' cannot be made at kafka://.*replication factor"):
        await topics.create(name, 1, replication=7)
    with pytest.raises(ConfigError, match=r"cannot be made.*retention\.ms"):
        await topics.create(name, 1, {"retention.ms": "soon"})
    assert await topics.partitions(name) == 0


async def test_config_reaches_the_topic(topics: KafkaTopics, name: str) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    await topics.create(name, 1, {"cleanup.policy": "compact", "max.message.bytes": "12345"})
    (answer,) = await topics._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    ((*_, entries),) = answer.resources
    assert {entry[0]: entry[1] for entry in entries}["max.message.bytes"] == "12345"


async def test_asking_for_a_topic_does_not_make_it(own_kafka: Callable[..., Kafka]) -> None:
    kafka = own_kafka(properties={"auto.create.topics.enable": "true"})
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka.bootstrap}", {})) as topics:
        assert await topics.partitions("nobody-made-this") == 0
        with pytest.raises(ConfigError, match=r"no topic 'nobody-made-this'.*flowkit topics create nobody-made-this"):
            await topics.end_offsets("nobody-made-this")
        assert await topics.topics() == {}


async def test_records_go_where_javas_clients_put_them(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 4)
    keys = [f"key-{number}".encode() for number in range(40)]
    await topics.put(name, [(key, b"v" + key, 1_000 + at) for at, key in enumerate(keys)])
    for partition in range(4):
        batch = await topics.read(name, partition, 0, 100)
        assert batch.keys == [key for key in keys if partition_of(key, 4) == partition]
        assert batch.values == [b"v" + key for key in batch.keys or ()]
        assert list(batch.times or ()) == [1_000 + keys.index(key) for key in batch.keys or () if key]
    assert sum(await topics.end_offsets(name)) == 40


async def test_records_without_a_key_go_round(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 3)
    await topics.put(name, [(None, b"x", 1)] * 4)
    await topics.put(name, [(None, b"x", 1)] * 2)
    assert await topics.end_offsets(name) == [2, 2, 2]


async def test_a_partition_and_a_tombstone(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 2)
    await topics.put(name, [(b"k", None, 7), (b"k", b"", 8)], partition=1)
    batch = await topics.read(name, 1, 0, 10)
    assert (batch.keys, batch.values, batch.times) == ([b"k", b"k"], [None, b""], [7, 8])
    assert (batch.first, batch.offset(1), batch.position(0), batch.position(2)) == (0, 1, 0, 2)
    assert batch.where(1) == f"{name}[1] offset 1"
    assert await topics.end_offsets(name) == [0, 2]


async def test_what_is_not_there(topics: KafkaTopics, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no topic '{name}' at kafka://"):
        await topics.put(name, [(None, b"x", 1)])
    await topics.create(name, 2)
    with pytest.raises(ConfigError, match=r"has the partitions 0 to 1, but no 2"):
        await topics.put(name, [(None, b"x", 1)], partition=2)
    with pytest.raises(ConfigError, match=r"has the partitions 0 to 1, but no 2"):
        await topics.bounds(name, 2)
    wrong: Any = "text"
    with pytest.raises(TypeError, match=r"a value of type str"):
        await topics.put(name, [(None, wrong, 1)])


async def test_read_takes_a_part(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, [(None, b"%d" % number, number) for number in range(10)])
    batch = await topics.read(name, 0, 4, 3)
    assert (batch.values, batch.offset(0), batch.position(3)) == ([b"4", b"5", b"6"], 4, 7)
    assert (batch.part(1, 3).values, batch.part(1, 3).first) == ([b"5", b"6"], 5)
    assert len(await topics.read(name, 0, 10, 3)) == 0
    assert (await topics.read(name, 0, 10, 3)).position(0) == 10


async def test_deleted_records_are_gone(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, [(None, b"%d" % number, number) for number in range(10)])
    await topics.delete_before(name, 0, 4)
    assert await topics.bounds(name, 0) == (4, 10)
    assert (await topics.read(name, 0, 0, 100)).offset(0) == 4
    with pytest.raises(ConfigError, match=r"holds offsets 4 to 9, none before 11"):
        await topics.delete_before(name, 0, 11)


async def test_the_first_offset_at_a_time(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1)
    await topics.put(name, [(None, b"x", time) for time in (100, 200, 300)])
    assert [await topics.offset_at(name, 0, time) for time in (0, 100, 101, 300, 301)] == [0, 0, 1, 2, 3]


async def test_offsets_have_gaps_where_transactions_ended(topics: KafkaTopics, name: str) -> None:
    await topics.create(name, 1)
    async with AIOKafkaProducer(bootstrap_servers=list(topics.address.servers), transactional_id=name) as producer:
        for value in (b"a", b"b"):
            async with producer.transaction():
                await producer.send_and_wait(name, value, partition=0)
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"aborted", partition=0)
        await producer.abort_transaction()
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"open", partition=0)
        assert await topics.bounds(name, 0) == (0, 7)
        assert await topics.bounds(name, 0, committed=True) == (0, 6)
        assert (await topics.end_offsets(name), await topics.end_offsets(name, committed=True)) == ([7], [6])
        batch = await topics.read(name, 0, 0, 100)
        assert (batch.values, [batch.offset(at) for at in range(2)]) == ([b"a", b"b"], [0, 2])
        assert (batch.position(1), batch.position(2)) == (1, 3)
        assert len(await topics.read(name, 0, 3, 100)) == 0
        await producer.abort_transaction()


async def test_a_broker_that_is_away_at_the_start_is_named() -> None:
    (port,) = free_ports(1)
    topics = KafkaTopics(KafkaAddress.parse(f"kafka://127.0.0.1:{port}?timeout_ms=2000", {}))
    with pytest.raises(BrokerError, match=rf"kafka://127\.0\.0\.1:{port}.* cannot be used: .*refused"):
        await topics.open()


async def test_a_broker_that_goes_away_and_comes_back(own_kafka: Callable[..., Kafka], name: str) -> None:
    kafka = own_kafka()
    url = f"kafka://{kafka.bootstrap}?timeout_ms=1500"
    async with KafkaTopics(KafkaAddress.parse(url, {})) as topics:
        await topics.create(name, 1)
        await topics.put(name, [(None, b"before", 1)])
        kafka.pause()
        with pytest.raises(
            BrokerError, match=rf"kafka://{kafka.bootstrap}.*: listing topics: no answer within 1500 ms"
        ):
            await topics.topics()
        kafka.resume()
        kafka.kill()
        with pytest.raises(BrokerError, match=rf"kafka://{kafka.bootstrap}"):
            await topics.put(name, [(None, b"lost", 1)], partition=0)
        kafka.start()
        await topics.put(name, [(None, b"after", 1)])
        assert (await topics.read(name, 0, 0, 10)).values == [b"before", b"after"]


async def test_a_consumer_of_a_group_and_a_restart(own_kafka: Callable[..., Kafka], name: str) -> None:
    """What the server under test must be able to do: groups, and data that stays."""
    kafka = own_kafka()
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka.bootstrap}", {})) as topics:
        await topics.create(name, 1)
        await topics.put(name, [(None, b"x", 1)])
    kafka.restart()
    options: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap, "group_id": "g", "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(name, **options) as consumer:
        assert (await consumer.getone()).value == b"x"
        await consumer.commit()


async def test_three_nodes_go_on_without_one(own_kafka: Callable[..., Kafka], name: str) -> None:
    kafka = own_kafka(nodes=3)
    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka.bootstrap}", {})) as topics:
        await topics.create(name, 3)
        await topics.put(name, [(None, b"x", 1)] * 3)
        kafka.kill(2)
        await topics.put(name, [(None, b"y", 2)] * 3)
        assert await topics.end_offsets(name) == [2, 2, 2]
        kafka.start(2)
        await topics.put(name, [(None, b"z", 3)] * 3)
        assert [(await topics.read(name, part, 0, 9)).values for part in range(3)] == [[b"x", b"y", b"z"]] * 3
