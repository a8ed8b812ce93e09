"""One task of a live run: opened under a new epoch, fed by its readers, ended cleanly or dropped."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import groupby
from typing import Any, Protocol

import structlog

from flowkit.agent import Group, Internal, Topic
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.options import WorkerOptions
from flowkit.record import MIN_TIME
from flowkit.sink import Ending, Sink
from flowkit.source import END, AtOffset, Broker, Pushes, Reader, partition_of
from flowkit.store import LsmStore, Store
from flowkit.window import MarkedSplit, Split
from flowkit.worker.build import make_engine, make_inlet, make_outlets
from flowkit.worker.checkpointing import TaskCheckpoints
from flowkit.worker.draining import TaskDrain
from flowkit.worker.engine import Counters, Engine
from flowkit.worker.feed import ClockMark, Drained, Idle, Marks, Piece, Records, Tick
from flowkit.worker.floors import Owns
from flowkit.worker.inlet import Decoded
from flowkit.worker.live_feed import LiveFeed
from flowkit.worker.matched import GONE, Finder, Matched
from flowkit.worker.meter import BUSY, IDLE, Meter
from flowkit.worker.task import Hook, Task, _no_hook
from flowkit.worker.trimming import Trimmer
from flowkit.worker.whole import whole

log = structlog.get_logger("flowkit.task")


END_SECONDS = 300.0
"""So long the last checkpoint of a shard's task may take; without it the state stays where it is."""


def task_name(app: App, group: Group, partition: int) -> str:
    """The task's name: that of its lease, its transactions and its state directory."""
    return f"{app.name}/{group.name}/{partition}"


class Begins(Protocol):
    """What a task begins with that has no commit yet."""

    async def commit(
        self, store: Store, ledger: Broker, epoch: int, commit_id: bytes, sinks: Mapping[str, Sink], /
    ) -> None:
        """Make the task's first commit."""


class LiveTask:
    """Partition `partition` of a group. One asyncio task calls its methods, from `open` to `close`."""

    def __init__(
        self,
        app: App,
        group: Group,
        partition: int,
        partitions: int,
        *,
        broker: Broker,
        topics: dict[str, int],
        senders: Mapping[str, Sequence[str]] | None = None,
        sinks: dict[str, Sink],
        store: AbstractAsyncContextManager[Store],
        epoch: int,
        clock: Clock,
        options: WorkerOptions,
        new_id: Callable[[], bytes],
        hook: Hook = _no_hook,
        meter: Meter | None = None,
        checkpoints: TaskCheckpoints | None = None,
        drain: TaskDrain | None = None,
        begin: "Begins | None" = None,
        owns: Callable[[bytes], bool] | None = None,
        finder: Finder | None = None,
        keys_in: Callable[[str], Owns] | None = None,
    ) -> None:
        self.app, self.group, self.partition, self.partitions = app, group, partition, partitions
        self.name = task_name(app, group, partition)
        self.broker, self.topics, self.sinks, self.epoch = broker, topics, sinks, epoch
        self.senders = senders or {}
        """By internal topic: the tasks that send into it."""
        self.clock, self.options, self.new_id, self.hook = clock, options, new_id, hook
        self.counters = Counters()
        self.meter = meter or Meter()
        self.checkpoints, self.drain = checkpoints, drain
        self.holding = False
        """True while a savepoint is taken: only internal topics are read, and the clock stands still."""
        self.readers: list[tuple[str, Split, Reader]] = []
        self.looked = 0
        """When (ms by the clock) the readers were last asked."""
        self.quiet_since: dict[str, int] = {}
        """By split: when (ms by the clock) it was first asked in vain since it last sent something."""
        self.task: Task
        self.engine: Engine
        self.feed: LiveFeed
        self.recovered = False
        """False while the state is being read, which takes as long as it takes."""
        self.opened = False
        self.progress = time.monotonic()
        self._beats = 0
        self._awake = self.progress
        self._store, self._begin = store, begin
        self._owns = owns or (None if partitions == 1 else self._has)
        self._keys_in = keys_in
        self._stack = AsyncExitStack()
        self._matched: Matched | None = None
        if group.patterns:
            assert finder is not None
            self._matched = Matched(group, self.name, partition, finder, broker, self.readers, self._close_later)
        self._marked = MIN_TIME

    async def open(self) -> None:
        """Recover and start the agents."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _open(self) -> None:
        self.meter.opened += 1
        store = await whole(self._stack.enter_async_context(self._store))
        if self._begin is not None:
            await whole(self._begin.commit(store, self.broker, self.epoch, self.new_id(), self.sinks))
        outlets = make_outlets(self.app, [self.group], self.sinks)
        self.engine = make_engine(
            self.app,
            self.group,
            store,
            outlets,
            self.clock,
            self.counters,
            owns=self._owns,
            clean_limit=self.options.live_objects,
            keys_in=self._keys_in,
        )
        self._stack.callback(self._closes, store)
        self.task = Task(
            self.app,
            self.name,
            [self.engine],
            store,
            outlets,
            counters=self.counters,
            sinks=self.sinks,
            broker=self.broker,
            topics=self.topics,
            epoch=self.epoch,
            commit_every=self.options.commit_every,
            commit_interval=self.options.commit_interval / 1000,
            new_id=self.new_id,
            hook=self.hook,
            meter=self.meter,
        )
        self._stack.push_async_callback(self.task.close)
        meta = await self.task.recover()
        self.recovered, self.progress = True, time.monotonic()
        self.trimmer = Trimmer(self.broker, self.group.topics, self.partition)
        self._stack.push_async_callback(self.trimmer.close)
        patterns = [topic.name for topic in self.group.patterns]
        self.feed = LiveFeed(self.engine.inlets, meta.get("positions", {}), meta.get("heard", {}), patterns)
        self._stack.push_async_callback(self.feed.close)
        for topic in self.group.inputs:
            if topic.pattern is not None:
                continue
            shared = topic not in self.group.topics
            source = self.broker.source(topic.name, start=topic.start, out_of_range=topic.out_of_range, shared=shared)
            if isinstance(self.broker, Pushes) and not isinstance(topic, Internal):
                source = self.broker.subscribed(source, self.app.name, self.group.name)
            numbers: Sequence[int] = await source.splits() if shared else [self.partition]
            for number in numbers:
                split = self._split(topic, number)
                make_inlet(self.engine, topic, number, source.codec)
                reader = await source.open(number, self.feed.positions.get(split.name))
                self._close_later(reader)
                self.readers.append((topic.name, split, reader))
        found = await self._matched.open(self.engine, self.feed, meta) if self._matched is not None else []
        await self.task.start(self.feed, meta)
        for piece in found:
            self.feed.give(piece)
        if not set(patterns) <= set(meta.get("patterns", ())):
            # What matches from here on is new, also to who opens the task after us: that must not be lost.
            await self.task.commit(always=True)
        if self.checkpoints is not None and isinstance(store, LsmStore):
            self.checkpoints.start(store)
            self._stack.push_async_callback(self.checkpoints.stop)
        if self.drain is not None:
            await self.drain.opened(self.task)
            self._stack.push_async_callback(self.drain.close)
        self.opened = True
        log.info("task opened", task=self.name, epoch=self.epoch, commit=store.number)

    def _close_later(self, reader: Reader) -> None:
        self._stack.push_async_callback(reader.close)

    def _split(self, topic: Topic[Any], number: int) -> Split:
        name, splits = f"{topic.name}[{number}]", self.engine.splits
        if isinstance(topic, Internal):
            return splits.follow(MarkedSplit(name, number, self.senders[topic.name]))
        return splits.add(name, topic.out_of_order, number)

    def _closes(self, store: Store) -> None:
        """The store is about to go: from now on what it has done is the meter's to tell, and nobody else's."""
        self.opened = False
        made = hasattr(self, "engine")  # not if what it was to begin with has failed: that is to be told, and not this
        self.meter.closes(store, self.engine.calls.cached() if made else {})

    def _has(self, key: bytes) -> bool:
        return partition_of(key, self.partitions) == self.partition

    async def close(self) -> None:
        """Stop the agents and let go of everything; what was not committed comes again."""
        await self._stack.aclose()

    async def rests(self) -> bool:
        """See to a savepoint, if one is taken; True while there is nothing to do but wait for the others."""
        if self.drain is None:
            return False
        held, self.holding = self.holding, self.drain.holding
        if held and not self.holding:
            self.quiet_since.clear()  # nobody has looked
        if self.holding:
            await self.drain.attend(self, [(topic, split.number) for topic, split, _ in self._marked_readers()])
        if self.drain.resting:
            self.progress = time.monotonic()
        return self.drain.resting

    def _marked_readers(self) -> list[tuple[str, Split, Reader]]:
        return [each for each in self.readers if isinstance(each[1], MarkedSplit)]

    def caught_up(self, ends: Mapping[tuple[str, int], int]) -> bool:
        """True if everything that was taken in is done, and the partitions in `ends` are read so far."""
        if self.engine.unfinished or self.feed.at < len(self.feed.journal):
            return False
        at = {(topic, split.number): _offset(reader) for topic, split, reader in self.readers}
        return all(at[part] >= end for part, end in ends.items())

    def save_starts(self) -> None:
        """Where nothing has come yet, the position is where the reader began: that would be elsewhere tomorrow."""
        for _, split, reader in self.readers:
            self.feed.positions.setdefault(split.name, _offset(reader))

    async def fetch(self, limit: int) -> bool:
        """Take in what the readers have, if everything taken before is done; True if there is anything to do."""
        found = False
        if self.engine.unfinished or self.feed.at < len(self.feed.journal):
            return True
        self.looked = self.clock.now_ms()
        matched = self._matched
        if matched is not None and not self.holding and await matched.look():
            read = {split.name for _, split, _ in self.readers}
            self.quiet_since = {name: since for name, since in self.quiet_since.items() if name in read}
        for topic, split, reader in self._marked_readers() if self.holding else list(self.readers):
            if reader.at_end:
                continue
            self.meter.enter(IDLE)
            try:
                batch = await reader.fetch(limit)
            except GONE:
                if matched is None or not await matched.gone(split):
                    raise
                self.quiet_since.pop(split.name, None)
                continue
            finally:
                self.meter.enter(BUSY)
            events = 0
            if batch is not None and len(batch):
                found = True
                self.feed.heard[split.name] = self.looked
                decoded = self.engine.inlets[(topic, split.number)].decode(batch)
                events = len(decoded) - len(decoded.marks)
                for piece in _cut(self.engine, topic, split, decoded):
                    self.feed.give(piece)
            if events:
                self.quiet_since.pop(split.name, None)
            else:
                self.quiet_since.setdefault(split.name, self.looked)
            if matched is not None:
                matched.looked(split, reader, events)
        return found

    @property
    def ended(self) -> bool:
        """True if its split is read to its end, which only some brokers' have, and nothing waits to be worked on."""
        if not self.readers or not all(reader.at_end for _, _, reader in self.readers):
            return False
        return not self.engine.unfinished and self.feed.at == len(self.feed.journal)

    async def end(self) -> None:
        """Finish what an ended split has left, and commit that it has ended: whoever follows takes over the state.

        That comes last and alone, since nobody opens the task again once it counts: by then all is delivered.
        """
        for sink in self.sinks.values():
            if isinstance(sink, Ending):
                sink.end()
        await self._commit_all()
        self.engine.watermark()  # how far it came at last is what those go on from who take over its keys
        for _, split, _ in self.readers:
            self.feed.positions[split.name] = END
        await self._commit_all()
        if self.checkpoints is not None and isinstance(self.task.store, LsmStore):
            await self.checkpoints.finish(self.task.store, END_SECONDS)
        log.info("shard is done", task=self.name, commit=self.task.store.number)

    async def _commit_all(self) -> None:
        """Do all that is left, commit, and wait until what that hands over is delivered."""
        drained = False
        while True:
            if await self.step():
                await asyncio.sleep(0)  # give way
            elif self.waits_for_calls:
                self.engine.calls.watch.expire()
                await self.wait_for_calls(20)
            elif self.engine.has_more and not drained:
                self.feed.give(Drained(self.engine))
                drained = True
            elif await self.task.commit(final=True):
                return

    async def step(self) -> bool:
        """Work on one piece; False if there is none."""
        moved = await self.task.step()
        if moved:
            self.progress = time.monotonic()
        return moved

    @property
    def waits_for_calls(self) -> bool:
        """True if calls of async functions are under way."""
        return self.engine.calls.under_way

    @property
    def has_no_room(self) -> bool:
        """True if nothing can be done before a call ends."""
        return self.engine.calls.no_room or self.engine.calls.cuts

    async def wait_for_calls(self, ms: int) -> None:
        """Wait until a call is done, for at most `ms`."""
        calls = self.engine.calls
        self.progress = time.monotonic()
        if not calls.ready:
            calls.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(calls.wake.wait(), ms / 1000)
        self.progress = time.monotonic()

    def look_at_clock(self) -> None:
        """What time has brought: idle splits, batches that have waited, a watermark that goes on by the clock.

        How long a split has been silent is told by the last look at it: what came while the task was busy with
        something else has not been seen yet, and is no silence.
        """
        now, engine = self.looked, self.engine
        engine.calls.watch.expire()
        if self.holding:
            return
        idle_after = {topic.name: topic.idle_after for topic in self.group.inputs}
        for topic, split, _ in self.readers:
            after, since = idle_after[topic], self.quiet_since.get(split.name)
            if after is not None and since is not None and not split.idle and now - since >= after:
                log.info("split is idle: it no longer holds the watermark", task=self.name, split=split.name)
                self.feed.give(Idle(engine, split))
        if engine.has_old_batch() or engine.clock_due() <= now:
            self.feed.give(Tick(engine, now))
        if self.group.close_after_idle is not None:
            self._go_by_clock(self.group.close_after_idle)

    def _go_by_clock(self, close_after: int) -> None:
        """If all inputs have been silent for `close_after` (ms): the watermark by the clock, where that matters.

        What comes by another key is as silent as its senders say: its own silence may be a sender that is restarted.
        """
        engine = self.engine
        told = [split for _, split, _ in self.readers if isinstance(split, MarkedSplit)]
        own = [split for _, split, _ in self.readers if not isinstance(split, MarkedSplit)]
        if not own or len(self.quiet_since) < len(self.readers) or not all(split.silent for split in told):
            return
        quiet = self.looked - max(self.quiet_since[split.name] for split in own)
        if quiet < close_after:
            return
        marks = [split.watermark + quiet for split in own if split.high > MIN_TIME]
        mark = max([*marks, *(split.watermark for split in told)], default=MIN_TIME)
        matters = mark >= engine.step.next_due
        if self.group.hops:
            # Nobody here knows what is due there: those are told now and then, and first of all that it is silent.
            matters = matters or mark - self._marked >= close_after
            if mark == MIN_TIME and not engine.splits.by_clock:
                self.feed.give(ClockMark(engine, mark))
        if matters and mark > self._marked:
            self._marked = mark
            self.feed.give(ClockMark(engine, mark))

    async def commit_if_due(self) -> None:
        """Cut a commit if it is time. Raises what the one before failed with, and Fenced if checkpoints tell that."""
        if self.checkpoints is not None:
            self.checkpoints.check()
        self.trimmer.look(self.task.store.meta.get("positions", {}))
        if self.task.commit_is_due() or self.task.failed():
            await self.task.commit()
            self.progress = time.monotonic()

    @property
    def high(self) -> int:
        """The highest event time (ms) in its own inputs: what comes by another key moves by what its senders say."""
        splits = (split for _, split, _ in self.readers if not isinstance(split, MarkedSplit))
        return max((split.high for split in splits), default=MIN_TIME)

    def silent(self) -> float:
        """For how many seconds nothing has moved: no event, no look at the inputs, or a commit that does not end.

        A sink that holds it up is no stall: to begin again would not make its service any quicker.
        """
        now = time.monotonic()
        if self.held_up() is not None:
            self.progress = now
        if self.opened:
            step = self.engine.step
            if step.resting or step.beats != self._beats:
                self._beats, self.progress = step.beats, now
            return max(now - self.progress, min(self.task.committing(), now - self._awake))
        return now - self.progress

    def held_up(self) -> tuple[str, float] | None:
        """The sink without which nothing goes on, and for how many seconds that has been so."""
        task = getattr(self, "task", None)  # there is none before its store is open
        return None if task is None else task.held_up()

    def excuse(self) -> None:
        """All of the process has stood still: what was silent meanwhile begins anew."""
        self.progress = self._awake = time.monotonic()

    async def finish(self, seconds: float) -> None:
        """A clean stop: for at most `seconds` do what was taken in, then commit. What is left comes again.

        What is part of a savepoint is left as it is.
        """
        if self.holding and self.drain is not None and self.drain.resting and self.drain.holding:
            await self.task.settled()
            return
        stopped = self.drain is not None and self.drain.savepoints.stopped
        until = time.monotonic() + (0 if stopped else seconds)
        while True:
            while time.monotonic() < until:
                if await self.step():
                    await asyncio.sleep(0)  # give way
                elif self.waits_for_calls:
                    self.engine.calls.watch.expire()
                    await self.wait_for_calls(min(20, max(1, int((until - time.monotonic()) * 1000))))
                else:
                    break
            if await self.task.commit(final=True):
                break
        await self.task.settled()
        if self.checkpoints is not None and isinstance(self.task.store, LsmStore):
            await self.checkpoints.finish(self.task.store, seconds)


def _offset(reader: Reader) -> int:
    """Where a reader of a broker's topic is."""
    assert isinstance(reader, AtOffset)
    return reader.offset


def _cut(engine: Engine, topic: str, split: Split, decoded: Decoded) -> Iterator[Piece]:
    """A batch as pieces: marks are heard where they stand among the events."""
    if not decoded.marks:  # each record's turn in the loop below is a fiftieth of all that it costs
        if len(decoded):
            yield Records(engine, topic, split, decoded, 0, len(decoded))
        return
    start = 0
    for is_mark, part in groupby(range(len(decoded)), decoded.marks.__contains__):
        stop = start + sum(1 for _ in part)
        if is_mark:
            assert isinstance(split, MarkedSplit)
            yield Marks(engine, split, decoded, start, stop)
        else:
            yield Records(engine, topic, split, decoded, start, stop)
        start = stop
