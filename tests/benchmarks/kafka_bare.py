"""Reads so many events of a topic as bare aiokafka does, decodes them, and prints the CPU-seconds that it took.

python tests/benchmarks/kafka_bare.py HOST:PORT TOPIC EVENTS
"""

import asyncio
import sys
import time

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition


class Event(msgspec.Struct):
    """As the worker decodes it."""

    key: str
    at: int
    amount: int


async def bare(kafka: str, topic: str, events: int) -> float:
    decode = msgspec.json.Decoder(Event).decode
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    part = TopicPartition(topic, 0)
    consumer.assign([part])
    await consumer.seek_to_beginning(part)
    seen, started = 0, time.process_time()
    while seen < events:
        for record in (await consumer.getmany(part, timeout_ms=1000, max_records=5000)).get(part, ()):
            decode(record.value)
            seen += 1
    took = time.process_time() - started
    await consumer.stop()
    return took


if __name__ == "__main__":
    print(asyncio.run(bare(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
