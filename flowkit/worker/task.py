"""A task: engines over one store, and their commits. COMMIT.md, "The frame".

    cut        state, positions, watermarks and hand-offs become one frame; processing goes on
    prepared   the frame is durable, undecided
    decided    the broker's transaction (outputs, positions, identity) counts it; without a broker, being durable does
    resolved   the store shows it
    delivered  hand-offs to sinks are completed, idempotently; the next frame may follow

`recover` takes up where the last frame that counts left off. It applies frames and never runs committed input again.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog

from flowkit.app import App
from flowkit.codec import encode_mark
from flowkit.errors import Fenced, StoreCorrupt
from flowkit.record import EARLIEST, LATEST, MIN_TIME, DeadLetter
from flowkit.sink import Rejected, Sink, Staging
from flowkit.source import Broker, SendsEarly, partition_of
from flowkit.store import Frame, SpaceChange, Store
from flowkit.table import check_schema, migrate_cell, schema_of
from flowkit.worker.engine import Counters, Engine, EventFailed
from flowkit.worker.feed import (
    ClockMark,
    Completed,
    Drained,
    Ended,
    Feed,
    Finished,
    Found,
    Idle,
    Marks,
    Piece,
    Records,
    Tick,
    Unfinished,
    Waiting,
)
from flowkit.worker.letters import letter_again
from flowkit.worker.meter import BUSY, CommitWatch, Meter
from flowkit.worker.outlets import BoundOutlet, Outgoing
from flowkit.worker.resources import lease_all
from flowkit.worker.whole import whole

log = structlog.get_logger("flowkit.task")

SENT = -1
"""The partition of a dead letter that came from no topic."""

Hook = Callable[[str], Awaitable[None]]
"""Called between any two steps of a commit, with the name of the one just done; the harness crashes there."""


class Out(NamedTuple):
    """One record for a broker's topic."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    time: int


async def _no_hook(_step: str) -> None:
    return None


class Task:
    """Runs pieces of a feed through engines and commits them. One asyncio task calls all its methods.

    `broker`, where there is one, decides whether a frame counts; `topics` are the partition counts of those outlets
    that it holds. `sinks` are the others.
    """

    def __init__(
        self,
        app: App,
        name: str,
        engines: Sequence[Engine],
        store: Store,
        outlets: dict[str, BoundOutlet],
        *,
        counters: Counters,
        sinks: dict[str, Sink],
        broker: Broker | None = None,
        topics: dict[str, int] | None = None,
        epoch: int = 0,
        commit_every: int = 5_000,
        commit_interval: float = 1.0,
        new_id: Callable[[], bytes],
        hook: Hook = _no_hook,
        meter: Meter | None = None,
    ) -> None:
        self.app, self.name, self.engines, self.store, self.outlets = app, name, list(engines), store, outlets
        self.sender = name.removeprefix(f"{app.name}/")
        """What it calls itself in marks."""
        self.counters, self.sinks, self.broker, self.topics, self.epoch = counters, sinks, broker, topics or {}, epoch
        self._staging = [sink for sink in sinks.values() if isinstance(sink, Staging)]
        self._early: dict[str, list[Outgoing]] = {}
        """By topic, what was sent early since the last commit."""
        self._repeated: dict[str, deque[Outgoing]] = {}
        """What had been sent before the task went back, and is not to be sent again."""
        # Asked once: a step may be a single event, and to ask what a broker can takes some µs.
        self._sends_early: SendsEarly | None = None
        if isinstance(broker, SendsEarly) and broker.guarantee == "at least once":
            self._sends_early = broker
        self.commit_every, self.commit_interval = commit_every, commit_interval
        self.new_id, self.hook = new_id, hook
        self.meter = meter or Meter()
        self.counters.tally.measured = self.meter.measured
        self.feed: Feed
        self.since_commit = 0
        self.careful = False
        self._went_back = False
        """True if everything since the last commit went carefully."""
        self.commits = 0
        self.last_commit = time.monotonic()
        self.schemas: dict[str, Any] = {}
        self._dirty = False
        self._counted = 0
        """How many records there were at the last commit."""
        self._slice = 512
        self._round_robin = 0
        self._inflight: asyncio.Task[None] | None = None
        self._delivering, self._delivering_since = "", 0.0
        """The sink that is being delivered to, and since when (monotonic seconds)."""
        self._waiting = self._dropped = False
        """True while nothing goes on before the commit under way is through; and once it is not waited for any more."""
        self._letters: list[DeadLetter] = []
        """What destinations will never take, for the next commit."""
        self._would_repeat = False
        """True while who opens this task next would deliver something again that can be seen twice."""
        self._marked: dict[str, tuple[int, int]] = {}
        """By group: the last (watermark, standing) that those were told who take its hops."""

    # Life

    async def recover(self) -> dict[str, Any]:
        """Decide what the store left undecided and complete its hand-offs; the meta of the last frame that counts.

        To cancel that breaks off what sinks are being sent, and nothing else.
        """
        await whole(self._decide())
        meta = dict(self.store.meta)
        for name, sink in self.sinks.items():
            saved = meta.get("sinks", {}).get(name)
            if isinstance(sink, Staging):
                sink.attach(self.store, f"sink {name}")
            await sink.open(None if saved is None else saved[0])
            if saved is not None:
                await self._deliver(name, saved[1])
        await whole(self._migrate(meta))
        return meta

    async def _decide(self) -> None:
        store = self.store
        if store.undecided is not None:
            frame = store.undecided
            applied = True
            if self.broker is not None:
                number, commit_id = await self.broker.last_commit(self.name)
                applied = (number, commit_id) == (frame.number, frame.commit_id)
            await store.resolve(frame.commit_id, applied)
            log.info("last frame resolved", task=self.name, number=frame.number, applied=applied)
        if self.broker is not None:
            number, commit_id = await self.broker.last_commit(self.name)
            if (number, commit_id or b"") != (store.number, store.commit_id):
                raise StoreCorrupt(
                    f"task {self.name}: the broker knows commit {number}, the state directory commit {store.number}: "
                    "this is not the state that belongs to it; restore it, or start the app under another name"
                )

    async def start(self, feed: Feed, meta: dict[str, Any]) -> None:
        """Open the engines as `recover` found them, and start the agents; from here on `step` works."""
        self.feed = feed
        self._marked = {name: (mark[0], mark[1]) for name, mark in meta.get("marks", {}).items()}
        self.counters.tally.load(meta.get("counts", {}))
        for engine in self.engines:
            engine.open(meta.get("groups", {}).get(engine.group.name, {}))
        for engine in self.engines:
            await engine.start()

    async def close(self) -> None:
        """Wait for the commit under way and stop the agents. What was not committed is not lost: it comes again.

        Of a task that is dropped, what its sinks are being sent is broken off: they may be what does not answer.
        """
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            self._drop()
        async with contextlib.AsyncExitStack() as stack:
            for sink in self.sinks.values():
                stack.push_async_callback(sink.close)
            for engine in reversed(self.engines):
                stack.push_async_callback(self._stop, engine)
            with contextlib.suppress(Exception):
                await self.settled()

    async def _stop(self, engine: Engine) -> None:
        engine.bind()
        await engine.stop()

    async def _migrate(self, meta: dict[str, Any]) -> None:
        """Check stored state against what the app declares now; rewrite what is of an older version."""
        stored = meta.get("schemas", {})
        changes: list[SpaceChange] = []
        for engine in self.engines:
            for table in engine.group.tables:
                before = stored.get(table.name)
                if before is None or not check_schema(table, before):
                    continue
                space = engine.states[table.name].space
                for end in [None, *self.store.ends(space)]:
                    rows = list(self.store.scan((space, end)))
                    values: list[bytes | None] = [migrate_cell(table, data, before["version"]) for _, data in rows]
                    if rows:
                        changes.append(SpaceChange(space, end, [key for key, _ in rows], values))
                log.info("table migrated", table=table.name, old=before["version"], new=table.version)
        now = {t.name: schema_of(t) for engine in self.engines for t in engine.group.tables}
        self.schemas = stored | now
        if changes or any(stored.get(name) not in (None, schema) for name, schema in now.items()):
            meta["schemas"] = self.schemas
            frame = Frame(self.store.number + 1, self.new_id(), self.store.commit_id, self.epoch, meta, changes)
            await self._finish(frame, [], {})

    # Work

    async def step(self) -> bool:
        """Handle one piece of the feed and commit if it is time; False if there was none."""
        limit = max(1, min(self._slice, self.commit_every - self.since_commit))
        piece = await self.next(limit)
        if piece is None:
            return False
        if not isinstance(piece, Waiting):
            await self.handle(piece)
            if self._sends_early is not None:
                await self._send_early(self._sends_early)
        if self.commit_is_due():
            await self.commit()
        return True

    async def next(self, limit: int) -> Piece | Waiting | None:
        """The next piece, of at most `limit` records. What an engine has left unfinished comes before all else.

        None also while an engine has no room for more calls of async functions: then it takes results only.
        """
        for engine in self.engines:
            if engine.unfinished and not engine.calls.cuts:
                return Unfinished(engine)
            self.feed.done(engine)
        piece = await self.feed.next(limit)
        if isinstance(piece, Completed) or not any(e.calls.cuts or e.calls.no_room for e in self.engines):
            return piece
        return None

    def commit_is_due(self) -> bool:
        """True after enough records and results of windows, or enough time."""
        if self.since_commit >= self.commit_every:
            return True
        if time.monotonic() - self.last_commit < self.commit_interval:
            return False
        return self.unsettled or self._is_wanted()

    @property
    def unsettled(self) -> bool:
        """True if something is not in a commit yet, or the last one still has to be followed by another."""
        return self._dirty or self._would_repeat

    def _is_wanted(self) -> bool:
        """True if a sink that keeps records here has to write them, though nothing comes."""
        if not self._staging:
            return False
        # A firing that was cut still sends what is of a time before the watermark.
        marks = [MIN_TIME if engine.unfinished else engine.splits.floor for engine in self.engines]
        return any([sink.look(min(marks, default=MIN_TIME)) for sink in self._staging])  # noqa: C419  each is to look

    async def handle(self, piece: Piece) -> None:
        """Run one piece; if an agent raises, go back to the last commit and come again carefully."""
        engine = piece.engine
        engine.bind()  # other tasks, or other engines of this one, may have run in this asyncio task
        engine.allow(self.commit_every - self.since_commit)
        self.meter.enter(BUSY)
        started, handled = time.perf_counter(), engine.firing.handled + engine.calls.handled
        leases = lease_all(self.app)
        try:
            count = await self._run(piece)
        except EventFailed as failed:
            if self.careful:
                raise failed.error from failed
            engine.step.failures[failed.key] = (failed.driver, failed.error)
            failed.driver.abandon()
            self.counters.failed += 1
            log.debug("an agent raised: going back to the last commit, then carefully", agent=failed.driver.name)
            await self.rollback()
            return
        finally:
            for lease in leases:
                lease.release()
        if not isinstance(piece, Unfinished):
            self.feed.taken(piece, count)
        self._dirty = True
        self.since_commit += count + engine.firing.handled + engine.calls.handled - handled
        if count:
            if self.meter.tracing is not None and isinstance(piece, Records):
                split = piece.split
                self.meter.traced(self.name, split.topic, split.name, count, time.perf_counter() - started)
            # A slice of about 50 ms, so that commits, stops and the event loop never wait long for slow agents.
            took = time.perf_counter() - started
            self._slice = max(
                1, min(100_000, self._slice * 2 if took < 0.025 else self._slice // 2 if took > 0.1 else self._slice)
            )

    async def _run(self, piece: Piece) -> int:
        engine = piece.engine
        match piece:
            case Records():
                return await engine.process(
                    piece.topic, piece.split, piece.decoded, piece.start, piece.stop, careful=self.careful
                )
            case Marks():
                engine.hear(piece.split, piece.marks)
            case Ended():
                await engine.end_split(piece.split, self.careful)
                if engine.unfinished:
                    return 0
            case Idle():
                engine.watermark()  # it came so far before it fell idle, and others are told that
                piece.split.idle = True
            case Found():
                piece.split.idle = False
            case ClockMark():
                engine.splits.floor = max(engine.splits.floor, piece.watermark)
                engine.splits.by_clock = True
            case Completed():
                await engine.take_done(piece.calls, self.careful)
                if engine.unfinished:
                    return 0
            case Tick():
                await engine.tick(piece.at, self.careful)
            case Drained():
                await engine.drain(careful=self.careful)
                return 0
            case Finished():
                await engine.finish(careful=self.careful)
                return 0
            case Unfinished():
                await engine.resume(self.careful)
                return 0
        await engine.advance(self.careful)
        return 0

    async def rollback(self) -> None:
        """Take back everything since the last commit; what follows, until the next, goes carefully."""
        await self.settled()
        groups = self.store.meta.get("groups", {})
        for engine in self.engines:
            await engine.rollback(groups.get(engine.group.name, {}))
        for outlet in self.outlets.values():
            outlet.records.clear()
        for name, records in self._early.items():
            self._repeated[name] = deque([*records, *self._repeated.get(name, ())])
        self._early = {}
        self.counters.tally.rollback()
        self.meter.rollbacks += 1
        await self.feed.rewind()
        self.since_commit = 0
        self.careful = self._went_back = True

    # Commit

    async def commit(self, *, final: bool = False, always: bool = False) -> bool:
        """Cut a frame and start to commit it; processing may go on. Waits for the commit before it.

        If nothing has been done since, there is none, unless it is `final` (nothing will follow) or made `always`, or
        the last one has handed over what its successor should not hand over again.

        False if there is something that cannot be saved: the task has gone back to the last commit, to find out,
        carefully, which event made it. Raises what the commit before failed with: Fenced, OutcomeUnknown,
        StorePoisoned, or a sink's error.
        """
        await self.settled()
        wanted = self._is_wanted()
        if not (self.unsettled or wanted or final or always):
            return True
        changes: list[SpaceChange] = []
        drops: list[tuple[str, int | None]] = []
        groups: dict[str, Any] = {}
        try:
            for engine in self.engines:
                changed, dropped, groups[engine.group.name] = engine.cut()
                changes += changed
                drops += dropped
        except Exception:
            if self._went_back:
                raise
            for engine in self.engines:
                engine.forget()
            await self.rollback()
            return False
        fed = self.feed.commit()
        letters, self._letters = self._letters, []
        for letter in letters:
            self.outlets[self.app.dead_letters.name].emit(letter, None, letter.time or 0)
        marks = self._marks()
        outs, staged = self._stage(final)
        self._early = {}
        if not self.feed.replaying:
            self._repeated = {}
        for sink in self._staging:
            changes += sink.changes()
            drops += sink.drops()
        counts = self.counters.tally.cut()
        outs += marks
        meta = {
            "app": self.app.name,
            "groups": groups,
            "sinks": staged,
            "schemas": self.schemas,
            "counts": counts,
            **fed,
        }
        if self._marked:
            meta["marks"] = {name: list(mark) for name, mark in self._marked.items()}
        frame = Frame(self.store.number + 1, self.new_id(), self.store.commit_id, self.epoch, meta, changes, drops)
        handoffs = {name: handoff for name, (_, handoff) in staged.items() if handoff is not None}
        records, self._counted = self.counters.records - self._counted, self.counters.records
        watch = CommitWatch(self.meter, self.name, frame.number, records, self.store)
        self._inflight = asyncio.create_task(self._finish(frame, outs, handoffs, watch), name=f"commit {self.name}")
        self.since_commit, self._dirty, self.careful, self._went_back = 0, False, False, False
        self._would_repeat = False
        self.last_commit = time.monotonic()
        if final:
            await self.settled()
            if self._letters or self._would_repeat:  # of the last delivery
                return await self.commit(final=True)
        return True

    def _stage(self, final: bool) -> tuple[list[Out], dict[str, Any]]:
        """Everything emitted since the last commit, for the broker and for the sinks (state and hand-off)."""
        outs: list[Out] = []
        staged: dict[str, Any] = {}
        for name, outlet in self.outlets.items():
            records, outlet.records = outlet.records, []
            self.counters.tally.gave(name, records)
            records = self._unsent(name, records)
            outlet.total += len(records)
            if name in self.sinks:
                handoff = self.sinks[name].stage(records, final)
                staged[name] = (self.sinks[name].state(), handoff)
            elif name in self.topics:
                outs += self._placed(name, records)
        return outs, staged

    def _placed(self, topic: str, records: Sequence[Outgoing]) -> list[Out]:
        """Records with their partitions."""
        partitions = self.topics[topic]
        outs = []
        for key, value, at, *_ in records:
            if key is None:
                self._round_robin += 1
                partition = self._round_robin % partitions
            else:
                partition = partition_of(key, partitions)
            outs.append(Out(topic, partition, key, value, at))
        return outs

    async def _send_early(self, broker: SendsEarly) -> None:
        """At least once, what was emitted need not wait for the commit: it is sent again if the commit never comes."""
        outs: list[Out] = []
        for name in self.topics:
            outlet = self.outlets.get(name)
            if outlet is not None and outlet.records:
                records, outlet.records = outlet.records, []
                self.counters.tally.gave(name, records)
                records = self._unsent(name, records)
                self._early.setdefault(name, []).extend(records)
                outlet.total += len(records)
                outs += self._placed(name, records)
        if outs:
            await broker.send(self.name, self.epoch, outs)

    def _unsent(self, topic: str, records: list[Outgoing]) -> list[Outgoing]:
        """Those that were not sent early before the task went back: an event that fails repeats nothing outside.

        Compared one by one, since an agent that has more than tables in mind may send something else this time.
        """
        sent = self._repeated.get(topic)
        if not sent or not self.feed.replaying:
            return records
        same = 0
        while same < len(records) and sent and records[same] == sent[0]:
            self._early.setdefault(topic, []).append(sent.popleft())
            same += 1
        if same < len(records):
            del self._repeated[topic]
        return records[same:]

    def _marks(self) -> list[Out]:
        """How far the engines are, if that has changed, for all partitions of the internal topics that they send into.

        Where such a topic is a sink they stand in its outlet without a key, which is to all.
        They come after the events of the same commit, which they must not overtake.
        """
        outs: list[Out] = []
        for engine in self.engines:
            group = engine.group
            mark = engine.mark() if group.hops else None
            if mark is None or mark == self._marked.get(group.name):
                continue
            self._marked[group.name] = mark
            # A broker's time is of years, and tells nothing here.
            time = mark[0] if EARLIEST <= mark[0] <= LATEST else 0
            value = encode_mark(self.sender, *mark)
            for hop in group.hops:
                topic = hop.topic.name
                if topic in self.sinks:
                    self.outlets[topic].records.append(Outgoing(None, value, time))
                    continue
                outs += [Out(topic, partition, None, value, time) for partition in range(self.topics[topic])]
        return outs

    async def _finish(
        self, frame: Frame, outs: list[Out], handoffs: dict[str, Any], watch: CommitWatch | None = None
    ) -> None:
        try:
            await self._carry_out(frame, outs, handoffs)
        except BaseException as error:
            if watch is not None:
                watch.done(error)
            raise
        self.commits += 1
        if watch is not None:
            watch.done()

    async def _carry_out(self, frame: Frame, outs: list[Out], handoffs: dict[str, Any]) -> None:
        await self.hook("cut")
        await self.store.prepare(frame)
        await self.hook("prepared")
        if self.broker is not None:
            positions = frame.meta.get("positions", {})
            try:
                await self.broker.commit(self.name, self.epoch, frame.number, frame.commit_id, positions, outs, frame)
            except Fenced:
                await self.store.resolve(frame.commit_id, False)
                raise
            await self.hook("decided")
        await self.store.resolve(frame.commit_id, True)
        await self.hook("resolved")
        for name, handoff in handoffs.items():
            await self._deliver(name, handoff)
            await self.hook("delivered")

    async def _deliver(self, name: str, handoff: Any) -> None:
        """Complete a hand-off; what the destination will never take is a dead letter of the next commit."""
        if self._dropped:
            raise asyncio.CancelledError
        self._delivering, self._delivering_since = name, time.monotonic()
        try:
            rejected = await self.sinks[name].deliver(handoff)
        finally:
            self._delivering = ""
        self._would_repeat |= handoff is not None and self.sinks[name].repeats
        for record in rejected:
            self._reject(name, record)

    def _reject(self, name: str, record: Rejected) -> None:
        if name == self.app.dead_letters.name:
            again = letter_again(record, self.engines[0].step.clock.now_ms())
            if again is None:
                log.error("dead letter lost: its destination refuses it", error=record.error, reason=record.reason)
                return
            log.warning("dead letter refused: sent in another form", error=record.error, reason=record.reason)
            self._letters.append(again)
            self._dirty = True
            return
        letter = DeadLetter(
            name, SENT, 0, f"sent to {name}", record.key, record.value, record.time, record.error, record.reason
        )
        self.counters.dead += 1
        self.counters.tally.dead[(name, "")] += 1
        log.warning("dead letter", sink=name, error=record.error, reason=record.reason)
        self._letters.append(letter)
        self._dirty = True

    async def settled(self) -> None:
        """Wait until the commit under way is through.

        To cancel that breaks off what sinks are being sent, which whoever goes on does again; nothing that is before
        it. A sink may hang for as long as its service does, and a task must not be held by it when it is to end.
        """
        if self._inflight is None:
            return
        self._waiting = True
        try:
            with self.meter.held_up():
                await asyncio.wait([self._inflight])
                self._inflight.result()
        except asyncio.CancelledError:
            self._drop()
            with contextlib.suppress(Exception):
                await whole(self._inflight)
            raise
        finally:
            self._inflight, self._waiting = None, False

    def _drop(self) -> None:
        self._dropped = True
        if self._delivering and self._inflight is not None:
            self._inflight.cancel()

    def held_up(self) -> tuple[str, float] | None:
        """The sink without which nothing goes on, and for how many seconds it has had what it was handed last."""
        if not self._delivering or (self._inflight is not None and not self._waiting):
            return None
        return self._delivering, time.monotonic() - self._delivering_since

    def committing(self) -> float:
        """For how many seconds the commit under way has been going on; 0 if there is none."""
        if self._delivering:  # that tells of itself, and to begin again would not make it quicker
            return 0.0
        busy = self._inflight is not None and not self._inflight.done()
        return time.monotonic() - self.last_commit if busy else 0.0

    def failed(self) -> bool:
        """True if the commit under way has failed already: the next `commit` will say how."""
        return self._inflight is not None and self._inflight.done() and self._inflight.exception() is not None
