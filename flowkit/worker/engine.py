"""One group's agents and tables, stepped event by event, as COMMIT.md says under "One event".

    1. the event passes every agent that reads it, in order of registration        ways.py
    2. the watermark moves                                                          firing.py
    3. windows fire in the order (end, table, key bytes); what they send is         firing.py, subscribers.py
       handled in the same step

There are two ways to step. The quick one lets agents change live objects in place; if one raises, `EventFailed` tells
the task to go back to its last commit and to come again *carefully*: each event between `mark` and `keep` or `undo`,
so that a failed event leaves no trace (units.py). Events that may be late, or that touch a fired window, go carefully
always.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from flowkit.agent import Group
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.flow import Called
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.store import SpaceChange, Store
from flowkit.table import TableEvents, current
from flowkit.window import MarkedSplit, Split
from flowkit.worker.batches import Batches
from flowkit.worker.calling import Call
from flowkit.worker.calls import Calls
from flowkit.worker.drivers import Driver, StreamDriver
from flowkit.worker.firing import UNLIMITED, Firing
from flowkit.worker.floors import Floors, Owns
from flowkit.worker.inlet import Decoded, Mark
from flowkit.worker.outlets import BoundOutlet
from flowkit.worker.output import Output
from flowkit.worker.recall import Recall
from flowkit.worker.routes import make_drivers, make_routes, make_states, wanted_of
from flowkit.worker.step import BESIDE, Counters, EventFailed, StepContext
from flowkit.worker.subscribers import Subscribers
from flowkit.worker.units import Units
from flowkit.worker.ways import Ways

__all__ = ["Counters", "Engine", "EventFailed"]


class Engine:
    """The agents and tables of one group in one task. Driven by the task, in the task's asyncio task."""

    def __init__(
        self,
        app: App,
        group: Group,
        store: Store,
        outlets: dict[str, BoundOutlet],
        clock: Clock,
        *,
        owns: Callable[[bytes], bool] | None = None,
        clean_limit: int = 1_000_000,
        counters: Counters | None = None,
        bounded: bool = False,
        keys_in: Callable[[str], Owns] | None = None,
    ) -> None:
        self.app, self.group, self.outlets, self.bounded = app, group, outlets, bounded
        self.counters = counters if counters is not None else Counters()
        step = self.step = StepContext(app, group, outlets, clock, self.counters, bounded=bounded)
        step.floors = Floors(keys_in)
        self.splits, self.inlets, self.idle_after = step.splits, step.inlets, step.idle_after
        self.states = step.states = make_states(
            app, group, step.cursor, store, owns=owns, clean_limit=clean_limit, bounded=bounded
        )
        step.drivers = make_drivers(group, step.states, step.cursor)
        self.routes = step.routes = make_routes(group, step.drivers)
        wanted = wanted_of(group)
        step.changed = [state for state in step.states.values() if f"{state.name}.changes" in wanted]
        step.clocked = [state for state in step.states.values() if state.by_clock]
        step.moving = [state for state in step.states.values() if state.moving]

        output, recall = Output(step), Recall(step)
        units = Units(step, output)
        self.calls = Calls(step, output, recall)
        self.batches = Batches(step, units, output, recall, self.calls)
        Subscribers(step, units, self.batches, recall)
        self.firing = Firing(step, self.batches, recall, self.calls)
        self.ways = Ways(step, units, self.batches, self.firing, output, recall)
        self.ending = False
        """True from when the input has ended until everything that follows from it is done."""
        self.draining = False
        """True while `drain` is cut."""
        self._before = msgspec.structs.replace(self.counters)
        """The counters at the last commit."""

    # Life

    async def start(self) -> None:
        """Start the agents: each runs until it asks for its first event."""
        self.bind()
        await self.step.start_agents()
        self.step.refresh_due()

    def bind(self) -> None:
        """Make tables and sinks find this engine from here on (engines of one run share its asyncio task)."""
        current.set(self.step.cursor)
        for table in self.group.tables:
            table.bound.set(self.states[table.name])

    async def stop(self) -> None:
        """Stop the agents, without telling them that the input has ended, and break off calls."""
        await self.calls.close()
        await self.step.stop_agents()

    # Work

    @property
    def unfinished(self) -> bool:
        """True if a firing was cut: `resume` goes on with it, before anything else is done."""
        return self.firing.unfinished or self.ending or self.draining

    def allow(self, results: int) -> None:
        """Let the next piece of work fire so many results before it is cut."""
        self.firing.allow(results)

    async def process(self, topic: str, split: Split, decoded: Decoded, start: int, stop: int, *, careful: bool) -> int:
        """Step through records `[start, stop)` of one split; how many were done.

        Fewer than all are done only if the task must look first: at what was emitted, at a firing that was cut, or at
        the time. Raises EventFailed if an agent raised and `careful` is False.
        """
        split.idle = self.splits.by_clock = False
        step = self.step
        step.in_piece, step.unit = True, 2 * BESIDE
        if step.cursor.low == MIN_TIME:  # an unusable record before the first good one has no time
            step.cursor.low = next((t for t in decoded.times[start:stop] if t > MIN_TIME), MIN_TIME)
        try:
            return await self.ways.process(topic, split, decoded, start, stop, careful)
        finally:
            step.in_piece, step.unit = False, 0

    async def advance(self, careful: bool) -> None:
        """The watermark may have moved: fire what is due. It may be cut, and is `unfinished` then."""
        self.step.begin()
        await self.firing.advance(careful)

    async def resume(self, careful: bool) -> None:
        """Go on with what was cut."""
        if self.ending:
            await self.finish(careful=careful)
        elif self.draining:
            await self.drain(careful=careful)
        else:
            await self.advance(careful)

    async def end_split(self, split: Split, careful: bool) -> None:
        """A split has ended: from now on it does not hold the watermark.

        Not yet if it is the last one and calls were under way: what they give may set timers, or send into this split.
        """
        last = all(other.ended for other in self.splits.by_name.values() if other is not split)
        split.ended = not (last and self.calls.drivers and await self._end_calls(careful))

    async def _end_calls(self, careful: bool) -> bool:
        """Before the input ends: fire what is due, and end the calls under way; False if there was nothing to do."""
        self.step.begin()
        await self.firing.advance(careful)
        return self.firing.unfinished or await self.calls.drain(careful)

    @property
    def has_more(self) -> bool:
        """True if batches are not handed over, or calls."""
        return self.batches.has_any() or self.calls.has_any()

    async def drain(self, *, careful: bool) -> None:
        """All splits have ended: hand over what waits, as `finish` does, but let the agents be, who may get more of it.

        It may be cut as `advance` may.
        """
        self.bind()
        self.step.begin()
        if not self.draining:
            self.step.new_event()
            self.draining = True
        await self._drain(careful)
        self.draining = self.firing.unfinished

    async def _drain(self, careful: bool) -> None:
        """Fire what is due, and hand over all calls and batches, until nothing is left of either."""
        await self.firing.advance(careful)
        while not self.firing.unfinished and (await self.calls.drain(careful) or await self.batches.flush_all(careful)):
            await self.firing.advance(careful)

    async def finish(self, *, careful: bool) -> None:
        """The input has ended: the streams end, the watermark goes to the end of time, everything fires.

        Streams of what tables send end last: the last windows still go through them. It may be cut as `advance` may.
        """
        self.bind()
        self.step.begin()
        first = [driver for driver in self.step.drivers if not _reads_tables(self.group, driver)]
        self.calls.inline = True
        if not self.ending:
            self.step.new_event()
            if self.calls.drivers and self.splits.floor < END_OF_TIME:
                self.firing.allow(UNLIMITED)
                while await self._end_calls(careful):
                    pass
            await self.batches.flush_all(careful)
            await self.step.end_agents(first)
            for split in self.splits.by_name.values():
                split.ended = True
            self.splits.floor = END_OF_TIME
            self.ending = True
        await self._drain(careful)
        if self.firing.unfinished:
            return
        await self.step.end_agents([driver for driver in self.step.drivers if driver not in first])
        self.ending = False

    def watermark(self) -> int:
        """How far event time has come (ms)."""
        return self.splits.watermark()

    async def take_done(self, calls: Sequence[Call], careful: bool) -> None:
        """Live: these calls are done; hand over their results."""
        self.step.begin()
        await self.calls.take(calls, careful)

    def hear(self, split: MarkedSplit, marks: Iterable[Mark]) -> None:
        """What senders of an internal topic say of themselves."""
        for sender, watermark, standing in marks:
            # How far it came first: it came so far before it fell idle, and so did what waited for it alone.
            split.hear(sender, watermark)
            self.splits.watermark()
            split.hear(sender, watermark, standing)

    def mark(self) -> tuple[int, int] | None:
        """What this task says of itself to those that take its hops: watermark (ms) and standing.

        None while a firing is cut: what it still has to send has times that the watermark has passed.
        """
        return None if self.unfinished else (self.watermark(), self.splits.standing())

    def has_old_batch(self) -> bool:
        """True if an agent has waited for its batch to fill for as long as it allows."""
        return self.batches.has_old() or self.calls.has_old()

    def clock_due(self) -> int:
        """The reading of the clock (ms) that timers wait for."""
        return self.step.clock_due()

    async def tick(self, at: int, careful: bool) -> None:
        """The clock says `at` (ms): old batches are handed over, timers that are due fire with the next `advance`."""
        self.step.read_clock(at)
        await self.batches.flush_old(careful)
        await self.calls.begin_old(careful)

    # Commit and recovery

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]], dict[str, Any]]:
        """What a commit saves: changed columns, dropped spaces, and `meta`."""
        step = self.step
        changes: list[SpaceChange] = []
        drops: list[tuple[str, int | None]] = []
        for state in self.states.values():
            changed, dropped = state.cut()
            changes += changed
            drops += dropped
        meta: dict[str, Any] = {
            "splits": self.splits.save(),
            "tables": {name: state.meta() for name, state in self.states.items()},
            "time": step.save_time(),
            **self.batches.save(),
            **self.calls.save(),
        }
        firing = self.firing.save()
        if self.unfinished:
            meta["firing"], meta["ending"], meta["draining"] = firing, self.ending, self.draining
        if step.floors:
            done = MIN_TIME if self.unfinished else min(self.splits.floor, self.splits.hold)
            meta["floors"] = step.floors.save(done)
            step.bind_floors()
        if self.bounded:
            meta["clock"] = step.save_clock()
        step.event_number, step.unit = 0, 0
        step.failures.clear()
        self._before = msgspec.structs.replace(self.counters)
        return changes, drops, meta

    def open(self, meta: dict[str, Any]) -> None:
        """Take up what a commit left ({}: nothing yet)."""
        if meta:
            self.splits.load(meta["splits"])
        for name, state in self.states.items():
            state.open(meta.get("tables", {}).get(name, {}))
        self.calls.open(meta)
        self._load(meta)

    def forget(self) -> None:
        """A cut broke off: before `rollback`, drop what it may have left half done."""
        for state in self.states.values():
            state.forget()

    async def rollback(self, meta: dict[str, Any]) -> None:
        """Go back to the last commit, whose `meta` is given; the agents start afresh."""
        self.bind()
        step = self.step
        self.splits.clear()
        if meta:
            self.splits.load(meta["splits"])
        step.cursor.ready = False
        step.cursor.sent = []
        for name, state in self.states.items():
            state.rollback(meta.get("tables", {}).get(name, {}))
        step.event_number, step.unit = 0, 0
        for name in ("records", "late", "dead", "emitted", "fired"):
            setattr(self.counters, name, getattr(self._before, name))
        await step.restart_agents()
        self.calls.rollback(meta)
        self._load(meta)

    def _load(self, meta: dict[str, Any]) -> None:
        self.step.load_time(meta.get("time"))
        self.step.load_clock(meta.get("clock"))
        self.step.floors.load(meta.get("floors", ()))
        self.step.bind_floors()
        self.batches.load(meta)
        self.firing.load(meta.get("firing"))
        self.ending, self.draining = meta.get("ending", False), meta.get("draining", False)
        self.step.refresh_due()


def _reads_tables(group: Group, driver: Driver) -> bool:
    paths = [path for source in driver.sources for path in group.paths_of(source)]
    return isinstance(driver, StreamDriver) and any(isinstance(path.root, TableEvents | Called) for path in paths)
