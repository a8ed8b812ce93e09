"""Changes to a folder that are made only if it is still as they suppose: what Kafka has no compare-and-swap for.

Each folder has a transactional id. To begin under it fences everyone else who writes to the folder, and ends what they
had open. So who has begun, then reads what is committed, and then commits, has changed just what was read: anyone who
came in between has fenced it, and the commit fails. Then, as after any error, nobody knows whether it counts: beginning
again decides it, and reading again tells. What is still wanted then is tried again.

A change is one short transaction of small records: while it is open, nobody reads on in its partition.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka

from flowkit.errors import BrokerError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_blob_index import Index
from flowkit.source.kafka_client import all_sent, started, stopped
from flowkit.source.kafka_hanging import end_in

log = structlog.get_logger("flowkit.kafka")

Change = tuple[bytes, bytes | None]
"""Key and value of a record."""

TRANSACTION_MS = 10_000
REQUEST_BYTES = 8 * 2**20
FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 1.0
UNSURE = (kafka.KafkaError, BrokerError, TimeoutError, AssertionError, OSError)
"""After these nobody knows what came of it. aiokafka asserts that its states follow."""
HOPELESS = (
    kafka.TopicAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.ClusterAuthorizationFailedError,
    kafka.MessageSizeTooLargeError,
)


class Owner:
    """Who changes one folder, in this process. `index` has the folder's heads."""

    def __init__(self, address: KafkaAddress, topic: str, folder: str, index: Index) -> None:
        self.address, self.topic, self.folder, self.index = address, topic, folder, index
        self.used = 0.0
        """When (monotonic) it was last needed."""
        self._producer: Any = None
        self._lock = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether it only holds connections."""
        return self._producer is not None and not self._lock.locked()

    async def change(self, tag: str, decide: Callable[[], Sequence[Change] | None]) -> bool:
        """Make the change that `decide` makes of what the index says now; False if it makes none.

        A change that came through is known by `tag`, which a head in it has. Raises what is in UNSURE.
        """
        async with self._lock:
            self.index.awaited.add(tag)
            try:
                return await self._change(tag, decide)
            finally:
                self.used = time.monotonic()
                self.index.awaited.discard(tag)
                self.index.committed.discard(tag)

    async def _change(self, tag: str, decide: Callable[[], Sequence[Change] | None]) -> bool:
        wait, until = FIRST_WAIT_S, time.monotonic() + self.address.timeout_ms / 1000
        while True:
            try:
                if self._producer is None:
                    self._producer = await self._begun()
                await self.index.refresh()
                if tag in self.index.committed:
                    return True
                if (records := decide()) is None:
                    return False
                await self._transact(records)
            except UNSURE as error:
                await self.close()
                if isinstance(error, HOPELESS) or time.monotonic() > until:
                    raise
                log.debug("a change to checkpoints is tried again", folder=self.folder, why=repr(error))
            except BaseException:
                await self.close()
                raise
            else:
                return True
            await asyncio.sleep(wait * (0.5 + random.random()))  # two who fence each other
            wait = min(wait * 2, LONGEST_WAIT_S)

    async def _transact(self, records: Sequence[Change]) -> None:
        async with asyncio.timeout(TRANSACTION_MS / 1000):
            await self._producer.begin_transaction()
            partition = self.index.partition
            # A commit may be answered as if well after a record was refused: each is heard first.
            await all_sent(
                [await self._producer.send(self.topic, value, key=key, partition=partition) for key, value in records]
            )
            await self._producer.commit_transaction()

    async def _begun(self) -> Any:
        """A producer, now that all others are fenced, and what they had open has ended."""
        return await started(
            AIOKafkaProducer(
                **self.address.client_options(),
                transactional_id=f"flowkit-checkpoints/{self.topic}/{self.folder}",
                transaction_timeout_ms=TRANSACTION_MS,
                max_request_size=REQUEST_BYTES,
            ),
            self.address,
        )

    async def end_what_hangs(self) -> None:
        """End what is open under the folder's id, also if the cluster has lost that it is.

        What hangs is committed: its writer had begun, had read, and nobody has read on since, nor told anybody that
        it does not count.
        """
        producer = await self._begun()
        try:
            async with asyncio.timeout(TRANSACTION_MS / 1000):
                await end_in(producer, [TopicPartition(self.topic, self.index.partition)], commit=True)
        finally:
            await stopped(producer)

    async def close(self) -> None:
        """Let go of the connections; what is open ends by the next one who begins, or by time."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stopped(producer)
