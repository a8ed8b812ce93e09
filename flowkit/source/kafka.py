"""`kafka://HOST:PORT`: topics, exactly-once commits and placement on Apache Kafka.

    topics      `kafka_topics`; read by one consumer for all tasks of the process, `kafka_reader`
    placement   the consumer group protocol, with the task as its unit: `kafka_group`
    commits     one transaction for a task's frame and outputs, or (at least once) one after the other: `kafka_tasks`
    recovery    the frames since the last checkpoint, from the task's changelog: `kafka_frames`

A task is owned by whoever was the last to initialise a producer under its transactional id, or to claim it in its
changelog, which says what counts.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import anyio

from flowkit.aws import Right
from flowkit.errors import ConfigError, Fenced, OutcomeUnknown
from flowkit.options import Guarantee, OutOfRange, Start
from flowkit.source.internal import changelog_of
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_batch import KafkaBatch
from flowkit.source.kafka_frames import open_changelog
from flowkit.source.kafka_group import KafkaGroup
from flowkit.source.kafka_reader import KafkaReaders, KafkaSource
from flowkit.source.kafka_rights import broker_rights
from flowkit.source.kafka_tasks import TaskProducer, offsets_of
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.source.placement import Placing
from flowkit.source.rules import Claimed, KeyValueTime, Lease
from flowkit.source.seam import Home, Output, TopicUse
from flowkit.store import Frame

KEPT = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
"""Frames go when a checkpoint holds them, and internal records when they have been read: never by their age."""

GONE_LOOKS, GONE_MS = 5, 400
"""How often it is asked, and how long between, whether a topic that a broker does not know is gone."""

ANOTHER = 2**63 - 1
"""The epoch under which another worker has a task, as far as the group tells: it tells no number."""


class KafkaBroker:
    """Apache Kafka. Use it within `async with`. Every method may raise BrokerError, naming the cluster."""

    def __init__(self, address: KafkaAddress, guarantee: Guarantee = "exactly once") -> None:
        self.address, self.url, self.guarantee = address, address.url, guarantee
        self._topics = KafkaTopics(address)
        self._readers = KafkaReaders(self._topics)
        self._group: KafkaGroup | None = None
        self._owned: dict[str, TaskProducer] = {}
        self._most: dict[str, int] = {}
        self.writes: Mapping[str, int] = {}
        self.home: Home | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect."""
        try:
            await self._topics.open()
            await self._readers.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of everything; what a task had begun and not committed never counts."""
        with anyio.CancelScope(shield=True):
            for task in list(self._owned):
                await self._let_go(task)
            if self._group is not None:
                await self._group.stop()
            await self._readers.close()
            await self._topics.close()

    # --- topics ---

    async def topics(self) -> dict[str, int]:
        """The number of partitions by topic."""
        return await self._topics.topics()

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 if it does not exist."""
        return await self._topics.partitions(topic)

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        """Make a topic. Raises ConfigError if it exists with another number, or the name cannot be one.

        Records carry the time of their events, by which Kafka would delete old ones before they are read: not in one
        that is `internal`.
        """
        await self._topics.create(topic, partitions, KEPT if internal else None)

    async def end_offsets(self, topic: str) -> list[int]:
        """By partition, the offset that the next record will have. Raises ConfigError if there is no such topic."""
        return await self._topics.end_offsets(topic)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The offsets of the oldest record that is left, and of the next one to come."""
        return await self._topics.bounds(topic, partition)

    async def put(self, topic: str, records: Sequence[KeyValueTime], partition: int | None = None) -> None:
        """Append (key, value, time in ms) from outside: to `partition`, or by key, or round robin."""
        await self._topics.put(topic, records, partition)

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> KafkaBatch:
        """At most `limit` records from `offset` on, or from the oldest that is left."""
        return await self._topics.read(topic, partition, offset, limit)

    async def delete(self, topics: Sequence[str]) -> None:
        """Delete topics with all that is in them."""
        await self._topics.delete(topics)

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`."""
        await self._topics.delete_before(topic, partition, offset)

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> KafkaSource:
        """The topic as the worker reads it."""
        return self._readers.source(topic, start=start, out_of_range=out_of_range, shared=shared)

    def rights(self, use: TopicUse) -> Sequence[Right]:
        """As the protocol says: none where the cluster does not ask IAM."""
        return broker_rights(self.address, use, self.guarantee)

    async def wait(self, timeout_ms: float, seen: int | None = None) -> int:
        """Return once any task's partition has records, or after `timeout_ms`; the answer is a mark for `seen`."""
        return await self._readers.wait(timeout_ms, seen)

    # --- placement ---

    async def join(self, worker: str, ttl_ms: int, tasks: Sequence[str] = ()) -> None:
        """Become a member of the app's group, which shares out `tasks`; their changelogs are made if need be.

        Raises ConfigError if one has been there before and is gone.
        """
        group = self._group
        if group is not None:
            await group.stop()
        counts: dict[str, int] = {}
        for task in tasks:
            topic, partition = changelog_of(task)
            counts[topic] = max(counts.get(topic, 0), partition + 1)
        app = worker.partition("/")[0]
        found = await self._topics.topics()
        missing = counts.keys() - found.keys()
        notes = await self._topics.notes(app) if missing else {}
        for topic in missing & set().union(*notes.values()):
            raise changelog_gone(topic, self.url)
        for topic, count in counts.items():
            if found.get(topic) != count:
                await self._topics.create(topic, count, KEPT)
        if group is None or group.worker != worker:
            group = self._group = KafkaGroup(self.address, app, worker, sorted(counts), ttl_ms, self.home)
        group.ttl_ms = ttl_ms
        await group.start(tasks)

    async def heartbeat(self, worker: str) -> None:
        """Nothing: the group's member sends its own, and `place` shows that the worker is alive."""

    async def leave(self, worker: str) -> None:
        """Leave the group, if `worker` is the one that joined; a dead one's place is taken by who joins at its home."""
        if self._group is not None and self._group.worker == worker:
            for task in list(self._owned):
                await self._let_go(task)
            await self._group.stop()

    async def place(self, worker: str, tasks: Sequence[str], held: set[str]) -> Placing:
        """What `worker`, which runs the tasks `held`, has to claim and to release, so that all `tasks` are shared."""
        assert self._group is not None
        placing = await self._group.place(tasks, held)
        offsets: dict[Any, int] = {}
        notes: dict[Any, str] = {}
        for producer in self._owned.values():
            read = offsets_of(producer.positions)
            offsets |= read
            for part in read:
                notes[part] = f"{notes[part]},{producer.topic}" if part in notes else producer.topic
        await self._group.tell(offsets, notes)
        return placing

    async def shared_out(self) -> None:
        """Return once the group has shared out the tasks since the last `place`."""
        assert self._group is not None
        await self._group.news.wait()

    async def renew(self, worker: str, tasks: Sequence[str]) -> list[str]:
        """Nothing is lost in silence: whose task another worker has opened is fenced at its next commit."""
        return []

    async def leases(self, prefix: str = "") -> list[Lease]:
        """Of one task, `prefix`: another worker's lease if the group has given it away; nothing if it is ours."""
        if self._group is None or self._group.assigned is None or prefix in self._group.assigned:
            return []
        return [Lease(prefix, "another worker", ANOTHER, 0, "")]

    async def ran(self, tasks: str) -> int:
        """How many tasks there have been whose names begin with `tasks` (`APP/GROUP/`); 0: none yet."""
        return await self._topics.partitions(changelog_of(f"{tasks}0")[0])

    async def left(self, app: str, groups: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """By topic, the changelogs of those who were the last to read it for `app`, but are none of its `groups`."""
        ours = {changelog_of(f"{app}/{group}/0")[0] for group in groups}
        there = (await self._topics.topics()).keys() - ours
        notes = await self._topics.notes(app)
        return {topic: sorted(noted & there) for topic, noted in notes.items() if noted & there}

    # --- tasks ---

    async def claim(self, task: str, state: str, *, worker: str | None = None, seen: int | None = None) -> Claimed:
        """Become the task's owner: fences every earlier one, and ends what it had begun.

        Raises Fenced unless the group has given the task to this worker: before, since only then may it fence the
        owner, and after, since it may have stood still meanwhile.
        """
        self._check_ours(task)
        await self._let_go(task)
        topic, partition = changelog_of(task)
        if self._group is None:  # else `join` has made them all
            if not await self._topics.partitions(topic):
                await self._topics.create(topic, partition + 1, KEPT)
        elif await self._gone(topic):
            raise changelog_gone(topic, self.url)
        producer = TaskProducer(self.address, task, state, self.guarantee, self._most)
        try:
            last = await producer.start(self.writes)
            self._check_ours(task)
        except BaseException:
            await producer.stop()
            raise
        self._owned[task] = producer
        return Claimed(producer.epoch, *producer.last, "" if last is None else last.state)

    async def _gone(self, topic: str) -> bool:
        """Whether a topic that was there is gone: no broker says so that has only not heard of it yet."""
        for _ in range(GONE_LOOKS):
            if await self._topics.partitions(topic):
                return False
            await anyio.sleep(GONE_MS / 1000)
        return True

    def _check_ours(self, task: str) -> None:
        if self._group is not None and not self._group.is_ours(task):
            raise Fenced(f"task {task}: the group has given it to another worker, or has not heard of this one")

    async def _let_go(self, task: str) -> None:
        producer = self._owned.pop(task, None)
        if producer is not None:
            await producer.stop()

    async def release(self, task: str, epoch: int) -> None:
        """Give the task up; the group hears of it at the next `place`."""
        if task in self._owned and self._owned[task].epoch == epoch:
            await self._let_go(task)

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        """Number and id of the last commit of `task` that counts (0, None: none yet)."""
        if task in self._owned:  # if another owner has come meanwhile, the next commit is told
            return self._owned[task].last
        if not await self._topics.partitions(changelog_of(task)[0]):
            return 0, None
        async with open_changelog(self.address, task) as log:
            _, last = await log.last(fenced=self.guarantee == "exactly once")
        return (0, None) if last is None else (last.number, last.commit_id)

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Output],
        frame: Frame | None = None,
    ) -> None:
        """Frame and outputs in one transaction, or first the outputs. Raises Fenced, OutcomeUnknown."""
        producer = self._owned.get(task)
        if producer is None or producer.epoch != epoch:
            raise OutcomeUnknown(f"task {task}: it is not open under epoch {epoch}")
        assert frame is not None
        await producer.commit(frame, outputs)

    async def send(self, task: str, epoch: int, outputs: Sequence[Output]) -> None:
        """Send outputs before their commit, at least once. Raises OutcomeUnknown."""
        producer = self._owned.get(task)
        if producer is None or producer.epoch != epoch:
            raise OutcomeUnknown(f"task {task}: it is not open under epoch {epoch}")
        await producer.send_early(outputs)

    async def frames(self, task: str, after: int) -> AsyncGenerator[Frame, None]:
        """The task's frames that follow number `after` and count, in order."""
        async with open_changelog(self.address, task) as log:
            async for frame in log.after(after):
                yield frame

    async def trim(self, task: str, number: int) -> None:
        """Forget the task's frames before `number`; the last one stays: it says which commit counts."""
        producer = self._owned.get(task)
        offset = None if producer is None else producer.offset_of(number)
        if offset is None:
            async with open_changelog(self.address, task) as log:
                offset = await log.offset_of(number)
        await self._topics.delete_before(*changelog_of(task), offset)


def changelog_gone(topic: str, url: str) -> ConfigError:
    """Without its changelog nobody knows what counts: to make it anew would be to begin anew, in silence."""
    return ConfigError(
        f"topic {topic!r} at {url} was deleted: it is the changelog of tasks that have worked, and says which of their "
        "commits count. Bring it back; or, to begin anew, start the app under another name (or delete the consumer "
        "group that has its name)"
    )
