"""A task's commits on Kafka: its frame and its outputs, exactly once or at least once.

Exactly once, they are one transaction under the task's own id, which also fences every earlier owner. At least once,
the outputs are sent first, then the frame: what was sent before an owner died is sent again by the next one. Nobody but
the task's owner writes to its partition of the changelog. So there the offsets that are given to a claim and to frames
fence: if they follow one another, nobody has claimed the task in between; if not, the changelog is read.

Either way `commit` returns only if the frame counts: who asks for more before an effect leaves asks in vain, for he may
stand still after that, too.

The traps of aiokafka that lie here, each with its way around:

- `commit_transaction` may return as if well after a produce has failed: every send is awaited first, and the
  transaction left open, for the next owner to end, if one failed.
- An error from a commit means that nobody knows whether it counts. The producer is of no use any more: the task opens
  again under a new one, which ends what the old one began, and reads from the changelog what counts.
- Some of its requests are tried again for ever, as for a topic that has been deleted: a commit has a time limit.
- A producer that stood still is fenced, but learns it only when it sends: then it must not begin anew before it knows
  that the task is still its own.
- Its lz4 compresses hard: a fifth of all that a worker did. Frames are packed before; outputs go as they are.
- A batch that is too large for its topic is given back, not split, as Java's producer does: smaller ones are made when
  the task has been opened again.
- `send` takes some 20 µs a record; whole batches are built here, and sent as such.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from flowkit.errors import Fenced, OutcomeUnknown
from flowkit.options import Guarantee
from flowkit.source.internal import changelog_of
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_client import all_sent, started, stopped
from flowkit.source.kafka_frames import Part, claim_of, open_changelog, parts_of
from flowkit.source.kafka_hanging import end_again, hangs
from flowkit.source.rules import group_outputs
from flowkit.source.seam import Output
from flowkit.store import Frame

T = TypeVar("T")

log = structlog.get_logger("flowkit.kafka")

TRANSACTION_MS = 10_000
"""A dead owner's open transaction holds up the readers of what it wrote for as long."""
BATCH_BYTES = 512 * 1024
CLAIM_AGAIN_S = 0.05
UNDER_WAY = 64
"""So many batches may be on their way before their commit."""
REMEMBERED = 10_000
"""Offsets of so many frames: those of earlier ones are looked up when they are to be deleted."""


class TaskProducer:
    """The producer of one task that this process owns."""

    def __init__(
        self, address: KafkaAddress, task: str, state: str, guarantee: Guarantee, most: "dict[str, int] | None" = None
    ) -> None:
        self.address, self.task, self.state, self.guarantee = address, task, state, guarantee
        self.most = {} if most is None else most
        """Bytes of a batch for topics that have refused larger ones; whoever opens the task next must know, too."""
        self.topic, self.partition = changelog_of(task)
        self.epoch = 0
        """Of this ownership: one more than that of the last one."""
        self.last: tuple[int, bytes | None] = 0, None
        """Number and id of the last commit that counts."""
        self.commits = 0
        self.offsets: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        """Of the frames that this owner has written: number, and offset of the first record."""
        self.positions: dict[str, Any] = {}
        """By split: where the last commit stands."""
        self._producer: Any = None
        self._end = 0
        """Where the changelog ended when it was read last; at least once, also after what we have written since."""
        self._early: deque[Any] = deque()
        """What was sent before its commit, and may not be there yet."""
        self._refused = ""
        """What was too large for its topic."""

    async def start(self, writes: Mapping[str, int]) -> Part | None:
        """Fence every earlier owner of the task, and end what it had begun: the last frame that counts.

        `writes` has the topics that the task may write to, with their partitions. Raises BrokerError, OutcomeUnknown.
        """
        from aiokafka import AIOKafkaProducer

        once: dict[str, Any] = {"enable_idempotence": True}
        if self.guarantee == "exactly once":
            once = {"transactional_id": self.task, "transaction_timeout_ms": TRANSACTION_MS}
        self._producer = await started(
            AIOKafkaProducer(
                **self.address.client_options(),
                **once,
                client_id=self.task,
                max_batch_size=BATCH_BYTES,
                max_request_size=8 * 2**20,
            ),
            self.address,
        )
        epoch, last = await self._read()
        if self.guarantee == "exactly once" and await hangs(self.address, self.task, self._end):
            again = end_again(self.address, self.task, self._producer, last, writes)
            await self._guarded(again, "its last commit counts")
            epoch, last = await self._read()
        if self.guarantee == "at least once":
            epoch, last = await self._guarded(self._claim(epoch, last), "its claim counts")
        self.epoch = epoch + 1
        if last is not None:
            self.last = last.number, last.commit_id
        return last

    async def _claim(self, epoch: int, last: Part | None) -> tuple[int, Part | None]:
        """Write a claim with nothing between it and what was read before: the highest epoch, and the last frame.

        Else two who open the task at once would have one epoch, or a frame that was under way would be passed over.
        """
        while True:
            claim = claim_of(epoch + 1)
            told = await self._producer.send_and_wait(self.topic, claim, partition=self.partition)
            if told.offset == self._end:
                self._end += 1
                return epoch, last
            await asyncio.sleep(CLAIM_AGAIN_S)
            epoch, last = await self._read()

    async def _read(self) -> tuple[int, Part | None]:
        async with open_changelog(self.address, self.task) as changelog:
            self._end = changelog.end
            return await changelog.last(fenced=self.guarantee == "exactly once")

    async def stop(self) -> None:
        """Let go of the producer; what it had begun ends by the next owner, or by time."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stopped(producer)

    async def commit(self, frame: Frame, outputs: Sequence[Output]) -> None:
        """All of it, or nothing. Raises Fenced, OutcomeUnknown."""
        offset = await self._guarded(self._commit(frame, outputs), f"commit {frame.number} counts")
        self.last = frame.number, frame.commit_id
        self.positions = frame.meta.get("positions", {})
        self.commits += 1
        self.offsets.append((frame.number, offset))

    async def _guarded(self, work: Awaitable[T], what: str) -> T:
        """Do something with the producer; it is of no use any more if that fails."""
        from aiokafka.errors import KafkaError, ProducerFenced

        try:
            async with asyncio.timeout(TRANSACTION_MS / 1000):  # the cluster ends it then, so nothing is lost by that
                return await work
        except ProducerFenced as error:
            await self.stop()
            raise Fenced(f"task {self.task}: another worker opened it; {what} only there") from error
        except (KafkaError, AssertionError, TimeoutError) as error:  # aiokafka asserts that its states follow
            await self.stop()
            why = self._refused or repr(error)
            raise OutcomeUnknown(f"task {self.task}: nobody knows whether {what}: {why}") from error

    async def send_early(self, outputs: Sequence[Output]) -> None:
        """Send what the next commit will wait for. Raises OutcomeUnknown."""
        await self._guarded(self._send_all(outputs), "what it sent is there")

    async def _send_all(self, outputs: Sequence[Output]) -> None:
        for refused in [each for each in self._early if each.done() and each.exception() is not None]:
            await refused  # nothing goes on behind it
        while self._early and (len(self._early) > UNDER_WAY or self._early[0].done()):
            await self._early.popleft()
        for (topic, partition), columns in group_outputs(outputs).items():
            self._early += await self._send(topic, partition, *columns)

    async def _all_early(self) -> None:
        while self._early:
            await self._early.popleft()

    def offset_of(self, number: int) -> int | None:
        """Where frame `number` begins in the changelog, or the last one if that comes first; None if it is unknown."""
        if not self.offsets or self.offsets[0][0] > number:
            return None
        return next((offset for known, offset in self.offsets if known >= number), self.offsets[-1][1])

    async def _commit(self, frame: Frame, outputs: Sequence[Output]) -> int:
        """Where the frame begins in the changelog."""
        producer = self._open_producer()
        if self.guarantee == "at least once":
            # With these outputs go marks, which must not overtake an event: whoever takes it later finds it late.
            await self._all_early()
            await self._send_all(outputs)
            await self._all_early()
            records = await self._send_frame(frame)
            await all_sent(records)
            await self._check_counts(frame, [int(record.result().offset) for record in records])
        else:
            await producer.begin_transaction()
            groups = group_outputs(outputs).items()
            if groups:
                # What hangs is seen by the changelog, even if the frame never came (`kafka_hanging`).
                begun = await producer.send(self.topic, claim_of(self.epoch), partition=self.partition)
                await all_sent([begun])
            sent = [await self._send(topic, partition, *columns) for (topic, partition), columns in groups]
            await all_sent(future for futures in sent for future in futures)
            # After all the others: where the frame is, there everything is that the commit consists of.
            records = await self._send_frame(frame)
            await all_sent(records)
            await producer.commit_transaction()
        return int(records[0].result().offset)

    async def _check_counts(self, frame: Frame, offsets: Sequence[int]) -> None:
        """Raise Fenced if a later owner had claimed the task before this frame of ours was written."""
        if list(offsets) == list(range(self._end, self._end + len(offsets))):
            self._end += len(offsets)
            return
        epoch, last = await self._read()
        if last is not None and (last.number, last.commit_id) == (frame.number, frame.commit_id):
            return
        await self.stop()
        if epoch > self.epoch:
            raise Fenced(f"task {self.task}: another worker claimed it; commit {frame.number} counts only there")
        raise OutcomeUnknown(f"task {self.task}: commit {frame.number} is not shown in its changelog")

    def _open_producer(self) -> Any:
        if self._producer is None:
            raise OutcomeUnknown(f"task {self.task}: its producer is closed")
        return self._producer

    async def _send_frame(self, frame: Frame) -> list[Any]:
        producer = self._open_producer()
        records = parts_of(frame, self.epoch, self.state)
        return [await producer.send(self.topic, record, partition=self.partition) for record in records]

    async def _send(
        self, topic: str, partition: int, keys: list[bytes | None], values: list[bytes | None], times: list[int]
    ) -> list[Any]:
        sent: list[Any] = []
        batch, first = self._new_batch(topic), 0
        for n, (key, value, at) in enumerate(zip(keys, values, times, strict=True)):
            if batch.append(key=key, value=value, timestamp=max(at, 0)) is None:
                if sent and self.guarantee == "at least once":
                    await sent[-1]
                sent.append(await self._send_batch(batch, topic, partition, keys, values, range(first, n)))
                batch, first = self._new_batch(topic), n
                batch.append(key=key, value=value, timestamp=max(at, 0))
        if sent and self.guarantee == "at least once":
            await sent[-1]
        sent.append(await self._send_batch(batch, topic, partition, keys, values, range(first, len(keys))))
        return sent

    def _new_batch(self, topic: str) -> Any:
        producer = self._open_producer()
        if topic not in self.most:
            return producer.create_batch()
        from aiokafka.producer.message_accumulator import BatchBuilder

        return BatchBuilder(self.most[topic], 0, is_transactional=self.guarantee == "exactly once")

    async def _send_batch(
        self,
        batch: Any,
        topic: str,
        partition: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        part: range,
    ) -> Any:
        """The future of a batch, `part` of the records, which leaves a word behind if the topic takes less."""

        def look(sent: Any) -> None:
            from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

            if sent.cancelled() or not isinstance(sent.exception(), MessageSizeTooLargeError | RecordListTooLargeError):
                return
            size, key = max((len(keys[n] or b"") + len(values[n] or b""), keys[n] or b"") for n in part)
            if len(part) > 1:
                self.most[topic] = max(self.most.get(topic, BATCH_BYTES) // 8, 1)
                self._refused = f"topic {topic!r} takes no batch of {len(part)} records: sending smaller ones"
            else:
                self._refused = (
                    f"topic {topic!r} takes no record of {size:,} bytes (key {key[:100]!r}): raise its "
                    "max.message.bytes, and nothing is lost; or let the app send less"
                )

        future = await self._open_producer().send_batch(batch, topic, partition=partition)
        future.add_done_callback(look)
        return future


def offsets_of(positions: dict[str, Any]) -> dict[Any, int]:
    """Positions by split as offsets by partition: `orders[3]` is partition 3 of `orders`."""
    from aiokafka import TopicPartition

    offsets = {}
    for split, position in positions.items():
        topic, _, number = split.removesuffix("]").rpartition("[")
        if isinstance(position, int):
            offsets[TopicPartition(topic, int(number))] = position
    return offsets
