"""Consumers that read stretches of a topic, a few at a time, each used again and again.

A consumer that nobody uses is paused, and asks for nothing. Few of them bound the memory: each holds what it has
fetched ahead.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import started, stopped

MOST = 4
"""So many at a time."""
FETCH_BYTES = 4 * 2**20
"""At a time. The more, the fewer answers are waited for; what is fetched ahead at the end of a blob is for nothing."""
WAIT_MS = 20
"""So long a broker may hold back an answer when there is nothing new."""


class StuckError(TimeoutError):
    """Nothing comes, though there is something: at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"nothing comes from offset {offset}")
        self.offset = offset


class Readers:
    """Those of one topic, which must exist. All methods raise BrokerError and KafkaError."""

    def __init__(self, address: KafkaAddress, topic: str) -> None:
        self.address, self.topic = address, topic
        self.patience = address.timeout_ms / 1000
        """So long (s) a cluster may take for what it can answer."""
        self._turns = asyncio.Semaphore(MOST)
        self._idle: list[Any] = []
        self._asker: Any = None
        self._lock = asyncio.Lock()

    async def bounds(self, partition: int) -> tuple[int, int]:
        """Where a partition begins, and where all that is written to it ends, committed or not."""
        part = TopicPartition(self.topic, partition)
        async with self._lock:
            if self._asker is None:
                self._asker = await self._consumer("read_uncommitted")
        start = await self._asker.beginning_offsets([part])
        return start[part], (await self._asker.end_offsets([part]))[part]

    async def end(self, partition: int) -> int:
        """Where all that is written to a partition ends, committed or not."""
        part = TopicPartition(self.topic, partition)
        if self._asker is None:
            return (await self.bounds(partition))[1]
        found: int = (await self._asker.end_offsets([part]))[part]
        return found

    async def _consumer(self, isolation: str) -> Any:
        return await started(
            AIOKafkaConsumer(
                **self.address.client_options(),
                isolation_level=isolation,
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=FETCH_BYTES,
                fetch_max_wait_ms=WAIT_MS,
            ),
            self.address,
        )

    @asynccontextmanager
    async def reader(self) -> AsyncIterator["Stretch"]:
        """One that reads committed records."""
        async with self._turns:
            consumer = self._idle.pop() if self._idle else await self._consumer("read_committed")
            try:
                yield Stretch(consumer, self.topic)
            except BaseException:
                await stopped(consumer)
                raise
            consumer.pause(*consumer.assignment())
            self._idle.append(consumer)

    @asynccontextmanager
    async def uncommitted(self) -> AsyncIterator["Stretch"]:
        """One that reads all that is written."""
        consumer = await self._consumer("read_uncommitted")
        try:
            yield Stretch(consumer, self.topic)
        finally:
            await stopped(consumer)

    async def close(self) -> None:
        """Let go of all of them."""
        clients, self._idle, self._asker = [*self._idle, self._asker], [], None
        await asyncio.gather(*(stopped(client) for client in clients if client is not None))


class Stretch:
    """Reads part of a partition."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self.consumer, self.topic = consumer, topic
        self.position = 0
        """The offset of what comes next; behind the markers of transactions, too."""

    async def stable(self, partition: int) -> int:
        """How far a partition can be read: to where the oldest transaction begins that is open."""
        part = TopicPartition(self.topic, partition)
        found: int = (await self.consumer.end_offsets([part]))[part]
        return found

    async def read(self, partition: int, offset: int, end: int, patience: float) -> AsyncIterator[list[Any]]:
        """Records from `offset` to `end` or somewhat farther, some at a time.

        Raises StuckError if for `patience` (s) none comes.
        """
        part = TopicPartition(self.topic, partition)
        if self.consumer.assignment() != {part}:
            self.consumer.assign([part])
        self.consumer.seek(part, offset)
        self.consumer.resume(part)
        self.position, stuck_at = offset, asyncio.get_running_loop().time() + patience
        while self.position < end:
            found = await self.consumer.getmany(part, timeout_ms=100)
            before, self.position = self.position, await self.consumer.position(part)
            now = asyncio.get_running_loop().time()
            if self.position > before:
                stuck_at = now + patience
            elif now > stuck_at:
                raise StuckError(self.position)
            if records := found.get(part):
                yield records
