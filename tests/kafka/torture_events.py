"""What is fed to the tortured app: its topics, and events all the while."""

import asyncio
import json
import threading
import time
from typing import Any

from aiokafka import AIOKafkaProducer

from tests.kafka.torture_model import Book

PARTITIONS = 3
RATE = 150
"""Events a second."""


class Generator:
    """Writes the events of a book to a topic, at a steady rate, whatever becomes of the broker.

    Its producer is idempotent and tries again for ever: each event is there once.
    """

    def __init__(self, bootstrap: str, topic: str, book: Book, rate: int = RATE) -> None:
        self.bootstrap, self.topic, self.book, self.rate = bootstrap, topic, book, rate
        self.error: BaseException | None = None
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End with one event in each partition that closes all windows. Raises what went wrong in its thread."""
        self._enough.set()
        self._thread.join(120)
        if self._thread.is_alive():
            raise AssertionError("the generator does not end")
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """No more events: the run has failed."""
        self._enough.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._write())
        except BaseException as error:
            self.error = error

    async def _write(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, enable_idempotence=True, request_timeout_ms=180_000, linger_ms=10
        )
        await producer.start()
        try:
            while not self._enough.is_set():
                began = time.monotonic()
                sent = [await self._send(producer, self.book.make()) for _ in range(max(1, self.rate // 20))]
                for each in sent:
                    await each
                await asyncio.sleep(max(0.0, 0.05 - (time.monotonic() - began)))
            for user in _one_in_each(PARTITIONS):
                await (await self._send(producer, self.book.make_last(user)))
        finally:
            await producer.stop()

    async def _send(self, producer: Any, event: Any) -> Any:
        value = json.dumps(event._asdict()).encode()
        return await producer.send(self.topic, value, key=event.user.encode(), timestamp_ms=event.at)


def _one_in_each(partitions: int) -> list[str]:
    """A user for each partition."""
    from flowkit.source import partition_of

    found: dict[int, str] = {}
    for n in range(1_000):
        found.setdefault(partition_of(f"last {n}".encode(), partitions), f"last {n}")
    return [found[partition] for partition in range(partitions)]


def make_topics(bootstrap: str, app: str) -> None:
    """The topics that the app does not make, and those that must be there to be read."""
    from flowkit.source.kafka_address import KafkaAddress
    from flowkit.source.kafka_topics import KafkaTopics

    async def make() -> None:
        async with KafkaTopics(KafkaAddress.parse(f"kafka://{bootstrap}", {})) as topics:
            for kind, count in (("events", PARTITIONS), ("users", 3), ("items", 2), ("shops", 2), ("sizes", 1)):
                await topics.create(f"{app}-{kind}", count)
            await topics.create("dead-letters", 1)

    asyncio.run(make())
