"""Clients of a real cluster are let go of whole, whatever state they are in."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ProducerClosed, ProducerFenced

from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import STOP_SECONDS, started, stopped
from tests.kafka.real import Kafka


async def test_a_producer_that_is_fenced_while_it_stops_keeps_no_connection(own_kafka: Callable[..., Kafka]) -> None:
    kafka = own_kafka()
    await make_topic(kafka, 1)
    late, successor = (AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="x") for _ in range(2))
    await started(late, KafkaAddress.parse(f"kafka://{kafka.bootstrap}"))
    await late.partitions_for("t")
    await late.begin_transaction()
    await successor.start()  # fences it
    await successor.stop()
    kafka.pause()
    sent = await late.send("t", b"too late")
    # The broker's answer comes once it has not ended in good order, and is being made to end.
    asyncio.get_running_loop().call_later(STOP_SECONDS * 1.5, kafka.resume)
    await stopped(late)
    assert [connection for connection in late.client._conns.values() if connection.connected()] == []
    assert late._sender.sender_task.done()
    with pytest.raises((ProducerFenced, ProducerClosed)):
        await sent


async def test_what_a_producer_had_under_way_when_it_was_fenced_ends_with_it(own_kafka: Callable[..., Kafka]) -> None:
    kafka = own_kafka()
    await make_topic(kafka, 2)
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await asyncio.create_task(fence_amid_requests(kafka))
    gc.collect()
    assert complaints == [], "failures that nobody has heard"


async def make_topic(kafka: Kafka, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("t", partitions, 1)])
    await admin.close()


async def fence_amid_requests(kafka: Kafka) -> None:
    late, successor = (AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="x") for _ in range(2))
    await started(late, KafkaAddress.parse(f"kafka://{kafka.bootstrap}"))
    await late.begin_transaction()
    await late.send_and_wait("t", b"in time", partition=0)
    await successor.start()  # fences it
    await successor.stop()
    # Of two requests one is told so first: one partition has records to send, the other is to become part of it.
    sent = [await late.send("t", b"too late", partition=partition) for partition in (0, 1)]
    assert {type(error) for error in await asyncio.gather(*sent, return_exceptions=True)} == {ProducerFenced}
    requests = under_way()  # mostly one; none if both were answered at once
    await stopped(late)
    assert under_way() == []
    assert all(request.done() for request in requests)
    assert [connection for connection in late.client._conns.values() if connection.connected()] == []


def under_way() -> "list[asyncio.Task[Any]]":
    return [task for task in asyncio.all_tasks() if "Sender._" in repr(task.get_coro())]


async def test_a_producer_whose_broker_is_away_leaves_nothing_behind(kafka_address: str, name: str) -> None:
    """Not what waits until all is sent, of which asyncio would complain at the end."""
    async with AIOKafkaProducer(bootstrap_servers=kafka_address) as producer:
        before = asyncio.all_tasks()
        producer._sender._muted_partitions.add(TopicPartition(name, 0))  # nothing is sent
        await producer._message_accumulator.add_message(TopicPartition(name, 0), b"k", b"v", 1)
        await stopped(producer)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before
