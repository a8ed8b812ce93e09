"""The harness: the real engine, store and commit protocol over a broker in memory, on a virtual clock.

With a seed it cuts batches and firings at random places and crashes at random steps of commits, then opens everything
again from what a real worker would find: an app that depends on either gives other results, and its test fails. It also
fails on an object that was changed but that no commit saves.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import anyio.lowlevel

from flowkit.agent import Group, Outlet, Topic
from flowkit.app import App
from flowkit.clock import VirtualClock
from flowkit.codec import Codec, encode_key, field_getter
from flowkit.errors import ConfigError, UnsavedChange
from flowkit.options import WorkerOptions
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.sink import Rejected
from flowkit.store import open_store
from flowkit.table import AnyTable, Mode, State
from flowkit.testing.places import place_of
from flowkit.worker import (
    ClockMark,
    Finished,
    Idle,
    LiveTask,
    Piece,
    Records,
    TopicFinder,
    Waiting,
    random_ids,
    resources,
    task_name,
)

T = TypeVar("T")


TURNS = 50
"""How many turns of the event loop a call is given to end before the harness takes it for waiting."""


class SimulatedCrash(BaseException):
    """The harness has pulled the plug. Not an Exception: no code of the app or of ours may catch it."""


class StillClock(VirtualClock):
    """Moves only when the test says so: a retry's back-off takes no time, or a crash would make it later."""

    async def sleep(self, ms: float) -> None:
        await anyio.lowlevel.checkpoint()


class MemorySink:
    """Keeps what reaches it, exactly once; outlives the crashes of its worker."""

    guarantee = "exactly once, in memory"
    codec = None
    repeats = False

    def __init__(self, kept: list[bytes]) -> None:
        self.kept = kept
        self._length = len(kept)

    async def open(self, state: Any) -> None:
        self._length = state or 0

    def stage(self, records: Any, final: bool) -> Any:
        start, self._length = self._length, self._length + len(records)
        return [start, [record.value for record in records]] if records else None

    def state(self) -> Any:
        return self._length

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        if handoff is not None:
            start, values = handoff
            self.kept[start:] = values
        return ()

    async def close(self) -> None:
        return None


class Harness:
    """A running app under test. Made by `harness`."""

    def __init__(
        self, app: App, *, seed: int | None, partitions: int, crashes: float, start_ms: int, broker: str | None = None
    ) -> None:
        self.app = app
        self.clock = StillClock(start_ms)
        self.crashed = 0
        """How often the plug was pulled so far."""
        self.cut = 0
        """How many commits so far stood in the middle of a firing."""
        self._random = random.Random(seed)
        self._seeded, self._crashes = seed is not None, crashes if seed is not None else 0.0
        self._partitions = partitions
        self._plan = app.plan(rekey=partitions > 1)
        self._place = place_of(broker, self.clock, app.guarantee)
        self._finder = TopicFinder(app, self._plan)
        self._tasks: dict[str, LiveTask] = {}
        self._disks: dict[str, list[bytes]] = {}
        self._kept: dict[tuple[str, str, int], list[bytes]] = {}
        """By sink, group and partition: what reached it."""
        self._counts: dict[str, int] = {}
        self._event_time: dict[str, int] = {}
        self._new_id = random_ids(seed or 0)
        self._look_at_resources: Callable[[], None] = _nothing
        self._options = WorkerOptions()
        self._world: dict[str, list[Piece]] = {}
        """By task: what the test did to time since the last commit that is through."""
        self._late_at: dict[str, dict[int, int]] = {}
        """By task and commit: how many late records there were by then."""
        self._late_before: dict[str, int] = {}

    # Life

    async def _open(self) -> None:
        named = [topic for topic in self.app.topics.values() if topic.pattern is None]
        named += [self.app.dead_letters, *self._plan.internals]
        topics = {topic.name: self._partitions for topic in named}
        tasks = {f"{self.app.name}/{g.name}": self._partitions if g.topics else 1 for g in self._plan.groups}
        await self._place.open(topics, tasks)
        for group in self._plan.groups:
            count = self._partitions if group.topics else 1
            for partition in range(count):
                self._counts[task_name(self.app, group, partition)] = count
                await self._open_task(group, partition, count, topics)
        if self._finder.patterns:
            await self._begun()

    async def _begun(self) -> None:
        """Until the first commits are through: they tell what tasks begin with, and all that matches later is new."""
        while True:
            try:
                for task in self._tasks.values():
                    await task.task.settled()
                return
            except SimulatedCrash:
                self.crashed += 1
                await self._reopen()

    async def _open_task(self, group: Group, partition: int, count: int, topics: dict[str, int]) -> None:
        name = task_name(self.app, group, partition)
        claim = await self._place.broker.claim(name, "memory")
        sinks: dict[str, Any] = {
            sink.name: MemorySink(self._kept.setdefault((sink.name, group.name, partition), []))
            for sink in group.outlets
            if not isinstance(sink, Topic)
        }
        task = LiveTask(
            self.app,
            group,
            partition,
            count,
            broker=self._place.broker,
            topics=topics,
            senders=self._senders(),
            sinks=sinks,
            store=open_store(None, disk=self._disks.setdefault(name, [])),
            epoch=claim.epoch,
            clock=self.clock,
            options=self._options,
            new_id=self._new_id,
            hook=self._maybe_crash,
            finder=self._finder,
        )
        self._tasks[name] = task
        await task.open()

    def _senders(self) -> dict[str, list[str]]:
        """By internal topic: the tasks that send into it."""
        return {
            topic.name: [
                f"{group.name}/{n}"
                for group in self._plan.senders(topic)
                for n in range(self._partitions if group.topics else 1)
            ]
            for topic in self._plan.internals
        }

    async def _close(self) -> None:
        for task in self._tasks.values():
            await task.close()
        await self._place.close()

    # Driving

    async def send(
        self, topic: Topic[T], *values: T | bytes, key: Any = None, time: int | None = None, name: str | None = None
    ) -> None:
        """Send values to a topic and let the app handle them. Bytes are sent as they are (to test bad input).

        `key` is taken by the topic's `key=` unless given; `time` (ms) is the broker's timestamp, else the clock's. To
        a topic with a pattern they go by way of the one called `name`, which is made if need be. Raises ConfigError
        for one that does not match.
        """
        name = await self._named(topic, name)
        codec = Codec(topic.codec, topic.type)
        getter: Callable[[Any], Any] | None = (
            field_getter(topic.type, topic.key) if isinstance(topic.key, str) else topic.key
        )
        rows: list[tuple[bytes | None, bytes | None, int]] = []
        for value in values:
            raw = isinstance(value, bytes) and topic.type is not bytes
            of = key if key is not None or getter is None or raw else getter(value)
            data = value if isinstance(value, bytes) and raw else codec.encode(value)
            rows.append((None if of is None else encode_key(of), data, self.clock.now_ms() if time is None else time))
        await self._place.put(name, rows)
        await self.settle()

    async def _named(self, topic: Topic[Any], name: str | None) -> str:
        """The broker's topic that stands for `topic`, made if it is the first of its name."""
        wanted = topic.name if name is None else name
        if not topic.stands_for(wanted):
            pattern = "" if topic.pattern is None else f" (pattern {topic.pattern.pattern!r}): give name="
            raise ConfigError(f"harness: {wanted!r} is no topic that {topic.name!r} stands for{pattern}")
        if topic.pattern is not None and wanted not in self._finder.found[topic.name]:
            await self._place.make(wanted, self._partitions)
            await self._finder.look(self._place.looks)
        return wanted

    async def advance(self, ms: int, *, event_time: bool = True) -> None:
        """Let `ms` pass: the clock moves on, and with it event time, as if every input had gone on meanwhile.

        With `event_time=False` only the clock moves, as for inputs that have fallen silent. Timers that go by the clock
        come one after the other, each at its time.
        """
        end = self.clock.now_ms() + ms
        while (now := self.clock.now_ms()) < end:
            due = min([task.engine.clock_due() for task in self._tasks.values()], default=end)
            await self._pass(min(max(due, now + 1), end) - now, event_time=event_time)
        if not ms:
            await self._pass(0, event_time=event_time)

    async def _pass(self, ms: int, *, event_time: bool) -> None:
        """Let time pass in which nothing is due by the clock before its end."""
        self.clock.advance(ms)
        self._look_at_resources()
        for group in self._plan.groups:  # what one sends is taken in by the next before that goes on in time
            for _, task in self._of(group):
                await task.fetch(10_000)
            furthest = max((task.high for _, task in self._of(group)), default=MIN_TIME) if group.hops else MIN_TIME
            for name, task in self._of(group):
                # One that sends on by another key goes on as its like do: those that take it wait for it.
                high = max(task.high, furthest)
                if event_time and high > MIN_TIME:
                    reached = max(high, self._event_time.get(name, MIN_TIME)) + ms
                    self._event_time[name] = reached
                    late = max(topic.out_of_order for topic in group.inputs)
                    self._give(name, ClockMark(task.engine, reached - late - 1))
                known = len(task.feed.journal)
                task.look_at_clock()
                self._world.setdefault(name, []).extend(task.feed.journal[known:])
            await self.settle()

    async def finish(self) -> None:
        """End all inputs: the watermark goes to the end of time, and all windows close."""
        for group in self._plan.groups:
            for name, task in self._of(group):
                self._give(name, Finished(task.engine))
            await self.settle()

    def _of(self, group: Group) -> list[tuple[str, LiveTask]]:
        return [(name, task) for name, task in self._tasks.items() if task.group is group]

    def _give(self, name: str, piece: Piece) -> None:
        self._world.setdefault(name, []).append(piece)
        self._tasks[name].feed.give(piece)

    async def settle(self) -> None:
        """Work until there is nothing left to do, through commits, and crashes if there are any.

        Calls of async functions that wait for something are not waited for: `drain` does.
        """
        while True:
            try:
                moved = False
                for task in list(self._tasks.values()):
                    moved = await self._work(task) or moved
                if not moved:
                    await self._place.look()
                    return
            except SimulatedCrash:
                self.crashed += 1
                await self._reopen()

    async def drain(self) -> None:
        """Wait for all calls of async functions (`map_async`), as long as they take, and handle their results."""
        await self.settle()
        while waiting := [task for task in self._tasks.values() if task.waits_for_calls]:
            await waiting[0].wait_for_calls(1000)
            await self.settle()

    async def _work(self, task: LiveTask) -> bool:
        found = await task.fetch(self._cut(50))
        calls = task.engine.calls
        if calls.under_way and (not found or calls.no_room or calls.cuts):
            for _ in range(TURNS):  # those that need nothing but turns of the event loop come to their end
                if calls.ready:
                    break
                await anyio.lowlevel.checkpoint()
            if not calls.ready:
                return False
        elif not found:
            return False
        while True:
            while (piece := await task.task.next(self._cut(20))) is not None:
                assert not isinstance(piece, Waiting)
                if isinstance(piece, Records) and self._seeded:
                    task.task.careful = task.task.careful or self._random.random() < 0.1
                # How many results a firing may give before it is cut.
                task.task.commit_every = task.task.since_commit + self._cut(10)
                await task.task.handle(piece)
                if self._seeded and self._random.random() < (0.5 if task.engine.unfinished else 0.2):
                    await self._commit(task)
            if await self._commit(task):
                return True

    def _cut(self, most: int) -> int:
        return self._random.randint(1, most) if self._seeded else 10_000

    async def _commit(self, task: LiveTask) -> bool:
        self._check_saved(task)
        self.cut += task.engine.unfinished
        late = self._late_before.get(task.name, 0) + task.counters.late
        self._late_at.setdefault(task.name, {})[task.task.store.number + 1] = late
        if not await task.task.commit():
            return False
        await task.task.settled()
        if task.feed.at == len(task.feed.journal):
            self._world.pop(task.name, None)
        return True

    async def _maybe_crash(self, _step: str) -> None:
        if self._random.random() < self._crashes:
            raise SimulatedCrash

    async def crash(self) -> None:
        """Pull the plug now, and open everything again."""
        self.crashed += 1
        await self._reopen()
        await self.settle()

    async def _reopen(self) -> None:
        for name, task in list(self._tasks.items()):
            with contextlib.suppress(SimulatedCrash):
                await task.close()
            await self._open_task(task.group, task.partition, self._counts[name], task.topics)
            again = self._tasks[name]
            # The broker brings its records again; what the test did to time it does not know. Both are idempotent,
            # but for the end of the input, which a commit that counts has behind it.
            if self._world.get(name):
                await again.fetch(10_000)
            for piece in self._world.get(name, []):
                piece.engine = again.engine
                if isinstance(piece, Idle):
                    piece.split = again.engine.splits.by_name[piece.split.name]
                if not isinstance(piece, Finished) or again.engine.splits.floor < END_OF_TIME:
                    again.feed.give(piece)
            # How long an input has been silent does not depend on crashes here: with any seed a test ends the same.
            again.looked, again.quiet_since = task.looked, task.quiet_since
            self._late_before[name] = self._late_at.get(name, {}).get(again.task.store.number, 0)

    # Looking

    def sent(self, outlet: Outlet[T]) -> list[T]:
        """Everything sent to a topic or sink so far, in order (by partition, where there are several)."""
        codec = Codec(outlet.codec, outlet.element)
        if isinstance(outlet, Topic):
            return [codec.decode(value) for value in self._place.sent(outlet.name) if value is not None]
        kept = [values for (name, _, _), values in sorted(self._kept.items()) if name == outlet.name]
        return [codec.decode(value) for values in kept for value in values]

    def table(self, table: AnyTable[Any, Any]) -> dict[Any, Any]:
        """What a table holds now: `{key: value}`, or `{(key, start, end): value}` by window. Copies."""
        found: dict[Any, Any] = {}
        for state in self._states(table):
            mode = state.shape.mode
            state.set_mode(Mode.READ)
            for key, entry in state.scan():
                windowed = entry.start > MIN_TIME or entry.end < END_OF_TIME
                found[(key, entry.start, entry.end) if windowed else key] = entry.value
            state.set_mode(mode)
        return found

    def watermark(self) -> int:
        """The least watermark of all tasks (ms)."""
        return min(task.engine.watermark() for task in self._tasks.values())

    @property
    def late(self) -> int:
        """How many late records there were."""
        return sum(self._late_before.get(name, 0) + task.counters.late for name, task in self._tasks.items())

    def _states(self, table: AnyTable[Any, Any]) -> list[State]:
        return [task.engine.states[table.name] for task in self._tasks.values() if table.name in task.engine.states]

    def _check_saved(self, task: LiveTask) -> None:
        for state in task.engine.states.values():
            for cells in state.all_cells():
                for key, value in cells.unsaved():
                    raise UnsavedChange(
                        f"table {state.name!r}: the object of key {key!r} was changed after its event was over, and no "
                        f"commit saves that ({value!r}): take it by table[key] in each event that changes it"
                    )


def _nothing() -> None:
    return None


@asynccontextmanager
async def harness(
    app: App,
    *,
    seed: int | None = None,
    partitions: int = 1,
    crashes: float = 0.05,
    start_ms: int = 0,
    broker: str | None = None,
) -> AsyncIterator[Harness]:
    """Run `app` in a test.

    With `seed`, batches and firings are cut at random, some events go the careful way at random, and each step of a
    commit crashes with probability `crashes`; without, everything goes smoothly. The clock starts at `start_ms` (ms)
    and moves only by `advance`.

    The broker is one in memory, unless `broker` or else FLOWKIT_TEST_BROKER names a real one: `kafka://HOST:PORT`,
    `embedded://DIR`. The test stays as it is, all of `Harness` works there, and what comes out is the same:

        async with harness(app, broker="kafka://localhost:9092") as h: ...
        FLOWKIT_TEST_BROKER=kafka://localhost:9092 pytest

    Topics, transactions and fences are the real ones then. Time stays virtual, for it is the harness that says what
    time it is; the state of tasks stays in memory. Topics are made for this one harness, under names of their own
    (`flowkit-test-….NAME`), and deleted from Kafka at its end. What only a broker knows may differ: Kafka's offsets
    count marks of transactions, in topics that the app itself writes, and it takes no records of more than an hour
    from now. Raises ConfigError for what is no broker, BrokerError if it is not there.
    """
    async with AsyncExitStack() as stack:
        running = Harness(app, seed=seed, partitions=partitions, crashes=crashes, start_ms=start_ms, broker=broker)
        running._look_at_resources = await stack.enter_async_context(resources(app, running.clock))
        stack.push_async_callback(running._close)
        await running._open()
        if any(task.engine.step.clocked for task in running._tasks.values()):
            await running.advance(0)  # periodic agents count from now on
        yield running
