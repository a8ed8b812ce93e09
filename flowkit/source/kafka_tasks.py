"""A task's commits on Kafka: its frame, its outputs and its offsets in one transaction under the task's own id.

The traps of aiokafka that lie here, each with its way around:

- `commit_transaction` may return as if well after a produce has failed: every send is awaited first, and the
  transaction aborted if one failed.
- An error from a commit means that nobody knows whether it counts. The producer is of no use any more: the task opens
  again under a new one, which ends what the old one began, and reads from the changelog what counts.
- A producer that stood still is fenced, but learns it only when it sends: then it must not begin anew before it knows
  that the task is still its own.
- `send` takes some 20 µs a record; whole batches are built here, and sent as such.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog

from flowkit.errors import Fenced, OutcomeUnknown
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import started, stopped
from flowkit.source.kafka_frames import changelog_of, parts_of
from flowkit.source.rules import group_outputs
from flowkit.source.seam import Output
from flowkit.store import Frame

log = structlog.get_logger("flowkit.kafka")

TRANSACTION_MS = 10_000
"""A dead owner's open transaction holds up the readers of what it wrote for as long."""
BATCH_BYTES = 512 * 1024
OFFSETS_EVERY = 1.0
"""Seconds between two commits that tell the group the task's offsets. They serve lag tools alone: two requests more."""
REMEMBERED = 10_000
"""Offsets of so many frames: those of earlier ones are looked up when they are to be deleted."""


class TaskProducer:
    """The transactional producer of one task that this process owns."""

    def __init__(self, address: KafkaAddress, task: str, group: str, state: str) -> None:
        self.address, self.task, self.group, self.state = address, task, group, state
        self.topic, self.partition = changelog_of(task)
        self.epoch = 0
        """Of this ownership: larger than that of every earlier one."""
        self.last: tuple[int, bytes | None] = 0, None
        """Number and id of the last commit that counts."""
        self.commits = 0
        self.offsets: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        """Of the frames that this owner has written: number, and offset of the first record."""
        self._producer: Any = None
        self._told_offsets = 0.0

    async def start(self) -> None:
        """Fence every earlier owner of the task, and end what it had begun. Raises BrokerError."""
        from aiokafka import AIOKafkaProducer

        producer = await started(
            AIOKafkaProducer(
                **self.address.client_options(),
                client_id=self.task,
                transactional_id=self.task,
                transaction_timeout_ms=TRANSACTION_MS,
                compression_type="lz4",
                max_batch_size=BATCH_BYTES,
                max_request_size=8 * 2**20,
            ),
            self.address,
        )
        self._producer = producer
        manager = producer._txn_manager  # noqa: SLF001  no public way to the producer's epoch
        self.epoch = manager.producer_id << 16 | manager.producer_epoch

    async def stop(self) -> None:
        """Let go of the producer; what it had begun ends by the next owner, or by time."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stopped(producer)

    async def commit(self, frame: Frame, outputs: Sequence[Output]) -> None:
        """All of it, or nothing. Raises Fenced, OutcomeUnknown."""
        from aiokafka.errors import KafkaError, ProducerFenced

        producer = self._producer
        if producer is None:
            raise OutcomeUnknown(f"task {self.task}: its producer is closed")
        try:
            await producer.begin_transaction()
            sent = [
                await producer.send(self.topic, record, partition=self.partition)
                for record in parts_of(frame, self.state)
            ]
            first = sent[0]
            for (topic, partition), columns in group_outputs(outputs).items():
                sent += await self._send(topic, partition, *columns)
            now, positions = time.monotonic(), frame.meta.get("positions", {})
            if positions and now - self._told_offsets >= OFFSETS_EVERY:
                self._told_offsets = now
                await producer.send_offsets_to_transaction(_offsets(positions), self.group)
            for future in sent:
                await future
            await producer.commit_transaction()
        except ProducerFenced as error:
            await self.stop()
            raise Fenced(f"task {self.task}: another worker opened it; commit {frame.number} never counts") from error
        except (KafkaError, AssertionError) as error:  # aiokafka asserts that its states follow each other
            await self.stop()
            raise OutcomeUnknown(
                f"task {self.task}: nobody knows whether commit {frame.number} counts: {error!r}"
            ) from error
        self.last = frame.number, frame.commit_id
        self.commits += 1
        self.offsets.append((frame.number, first.result().offset))

    def offset_of(self, number: int) -> int | None:
        """Where frame `number` begins in the changelog, or the last one if that comes first; None if it is unknown."""
        if not self.offsets or self.offsets[0][0] > number:
            return None
        return next((offset for known, offset in self.offsets if known >= number), self.offsets[-1][1])

    async def _send(
        self, topic: str, partition: int, keys: list[bytes | None], values: list[bytes | None], times: list[int]
    ) -> list[Any]:
        producer = self._producer
        sent = []
        batch = producer.create_batch()
        for key, value, at in zip(keys, values, times, strict=True):
            if batch.append(key=key, value=value, timestamp=max(at, 0)) is None:
                sent.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=max(at, 0))
        sent.append(await producer.send_batch(batch, topic, partition=partition))
        return sent


def _offsets(positions: dict[str, Any]) -> dict[Any, int]:
    """Positions by split as offsets by partition: `orders[3]` is partition 3 of `orders`."""
    from aiokafka import TopicPartition

    offsets = {}
    for split, position in positions.items():
        topic, _, number = split.removesuffix("]").rpartition("[")
        if isinstance(position, int):
            offsets[TopicPartition(topic, int(number))] = position
    return offsets
