"""One group's agents and tables, stepped event by event, as COMMIT.md says under "One event".

    1. the event passes every agent that reads it, in order of registration
    2. the watermark moves
    3. windows fire in the order (end, table, key bytes); what they send is handled in the same step

There are two ways to step. The quick one lets agents change live objects in place; if one raises, `EventFailed` tells
the task to go back to its last commit and to come again *carefully*: each event between `mark` and `keep` or `undo`,
so that a failed event leaves no trace. Events that may be late, or that touch a fired window, go carefully always.
"""

import time
from collections.abc import Awaitable, Callable
from operator import length_hint
from typing import Any

import msgspec
import structlog

from flowkit.agent import EVENT, Group
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.codec import Codec, encode_key
from flowkit.errors import NoEvent, UndeclaredSink, WindowClosed
from flowkit.record import END_OF_TIME, MIN_TIME, Closed
from flowkit.store import SpaceChange, Store
from flowkit.table import (
    NEVER,
    AnyTable,
    Cursor,
    Mode,
    State,
    TableEvents,
    compiled_of,
    current,
    make_state,
)
from flowkit.window import Split, Splits
from flowkit.worker.drivers import AggregateDriver, Driver, EachDriver, StreamDriver
from flowkit.worker.inlet import Decoded, Inlet
from flowkit.worker.origin import Origin
from flowkit.worker.outlets import BoundOutlet

log = structlog.get_logger("flowkit.engine")

STEP_SECONDS = 0.1
"""Once agents that await have taken so long over a piece, the task may look around before the rest of it."""


class EventFailed(Exception):
    """A driver raised. `key` identifies the event since the last commit: number of the record, number in its step."""

    def __init__(self, key: tuple[int, int], driver: Driver, error: Exception) -> None:
        self.key, self.driver, self.error = key, driver, error
        super().__init__(str(error))


class _Careful(Exception):
    """Ends the generated loop at an event that must be handled carefully."""


class Counters(msgspec.Struct):
    """What a task has done, for people and metrics."""

    records: int = 0
    late: int = 0
    dead: int = 0
    emitted: int = 0
    fired: int = 0
    failed: int = 0


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
    ) -> None:
        self.app, self.group, self.store, self.outlets, self.clock = app, group, store, outlets, clock
        self.counters = counters if counters is not None else Counters()
        self.cursor = Cursor()
        self.cursor.emit = self.emit
        self.splits = Splits()
        self.dead_letters = outlets[app.dead_letters.name]
        self.link_hit = False
        """True once something was emitted that this run itself must read, or a piece has taken long: the task then
        looks what is next."""
        wanted = {s.name for agent in group.agents for s in agent.sources} | {
            table.source.name for table in group.tables if table.source is not None
        }
        self.states: dict[str, State] = {}
        for table in group.tables:
            closed = f"{table.name}.closed" in wanted
            self.states[table.name] = make_state(
                table,
                self.cursor,
                store,
                owns=owns,
                wants_closed=closed,
                clean_limit=clean_limit,
                space=_own_space(app, group, table) if bounded else None,
            )
        self.drivers: list[Driver] = self._make_drivers()
        self.routes: dict[str, list[Driver]] = self._make_routes()
        self.changed = [self.states[t.name] for t in group.tables if f"{t.name}.changes" in wanted]
        self.moving = [state for state in self.states.values() if state.moving]
        """States whose `due` may come nearer with any event."""
        self.inlets: dict[tuple[str, int], Inlet] = {}
        self.codecs: dict[str, Codec] = {}
        """How what tables send is encoded, by the name of the stream."""
        self.failures: dict[tuple[int, int], tuple[Driver, Exception]] = {}
        """What failed in the quick way since the last commit: it counts as the first attempt."""
        self.event_number = 0
        self.unit = 0
        self.told_elsewhere = _read_before(app, group) if bounded else frozenset()
        """Broadcast topics whose dead letters come from another group of the run, which reads them as well."""
        self.in_piece = False
        """True while records are stepped through: what else happens is an event of its own."""
        self.before = msgspec.structs.replace(self.counters)
        """The counters at the last commit."""
        self.next_due = NEVER
        self.careful_before = MIN_TIME
        self.careful_lag = NEVER
        self.driver: Driver | None = None
        self.bounded = bounded
        self.event_now = MIN_TIME
        """In a bounded run: the highest event time of all inputs, which stands for the clock."""
        self.idle_after: dict[str, int] = {}
        self.active: dict[str, int] = {}
        """In a bounded run, by split: how long (ms) it may be silent, and the event time at its last record."""
        self.beats = 0
        """Grows with each event that awaited something: signs of life within a piece, for the watchdog."""
        self.resting = False
        """True while a retry waits for its time."""
        self._until = 0.0

    # Making

    def _make_drivers(self) -> list[Driver]:
        drivers: list[Driver] = []
        for table in self.group.tables:
            compiled = compiled_of(table)
            if compiled is not None:
                drivers.append(AggregateDriver(table, compiled, self.cursor, self.states[table.name]))
        for agent in self.group.agents:
            states = [self.states[table.name] for table in agent.tables]
            driver: Driver = (EachDriver if agent.per_event else StreamDriver)(agent, self.cursor, states)
            driver.sinks = frozenset(sink.name for sink in agent.sinks)
            driver.drops_late = [
                self.states[t.name] for t in agent.tables if t.window is not None and t.late_policy == "drop"
            ]
            for table in self.group.tables:
                if table not in agent.tables:
                    mode = Mode.READ if table in agent.reads else Mode.OUTSIDE
                    driver.modes.append((self.states[table.name], mode))
            if isinstance(driver, StreamDriver):
                driver.watched = [*states, *(state for state, mode in driver.modes if mode is Mode.READ)]
            drivers.append(driver)
        for driver in drivers:
            if isinstance(driver, AggregateDriver) and driver.table.window is not None:
                driver.drops_late = driver.states
        return drivers

    def _make_routes(self) -> dict[str, list[Driver]]:
        routes: dict[str, list[Driver]] = {}
        for driver in self.drivers:
            if isinstance(driver, AggregateDriver):
                assert driver.table.source is not None
                routes.setdefault(driver.table.source.name, []).append(driver)
        for agent in self.group.agents:
            driver = next(d for d in self.drivers if d.name == agent.name and not isinstance(d, AggregateDriver))
            for source in agent.sources:
                routes.setdefault(source.name, []).append(driver)
        return {name: _writers_first(drivers) for name, drivers in routes.items()}

    # Life

    async def start(self) -> None:
        """Start the agents: each runs until it asks for its first event."""
        self.bind()
        self._set_modes(Mode.OUTSIDE)
        self.cursor.agent = None
        for driver in self.drivers:
            await driver.start()
        self._set_modes(Mode.WRITE)
        self._refresh_due()

    def bind(self) -> None:
        """Make tables and sinks find this engine from here on (engines of one run share its asyncio task)."""
        current.set(self.cursor)
        for table in self.group.tables:
            table.bound.set(self.states[table.name])

    async def stop(self) -> None:
        self._set_modes(Mode.OUTSIDE)
        self.cursor.agent = None
        for driver in reversed(self.drivers):
            await driver.stop()

    async def finish(self, *, careful: bool) -> None:
        """The input has ended: the streams end, the watermark goes to the end of time, everything fires.

        Streams of what tables send end last: the last windows still go through them.
        """
        self.bind()
        self._new_event()
        await self._flush_all(careful)
        first = [d for d in self.drivers if not self._reads_tables(d)]
        await self._end(first)
        for split in self.splits.by_name.values():
            split.ended = True
        self.splits.floor = END_OF_TIME
        await self.advance(careful)
        while await self._flush_all(careful):
            await self.advance(careful)
        await self._end([d for d in self.drivers if d not in first])

    def _reads_tables(self, driver: Driver) -> bool:
        return isinstance(driver, StreamDriver) and any(isinstance(s, TableEvents) for s in driver.spec.sources)

    async def _end(self, drivers: list[Driver]) -> None:
        self._set_modes(Mode.OUTSIDE)
        for driver in drivers:
            self.cursor.agent = driver
            await driver.end()
        self._set_modes(Mode.WRITE)

    def _set_modes(self, mode: Mode) -> None:
        for state in self.states.values():
            state.set_mode(mode)

    async def _restart_agents(self) -> None:
        self._set_modes(Mode.OUTSIDE)
        self.cursor.agent = None
        for driver in reversed(self.drivers):
            await driver.stop()
        for driver in self.drivers:
            await driver.start()
        self._set_modes(Mode.WRITE)

    # Commit and recovery

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]], dict[str, Any]]:
        """What a commit saves: changed columns, dropped spaces, and `meta`."""
        changes: list[SpaceChange] = []
        drops: list[tuple[str, int | None]] = []
        for state in self.states.values():
            changed, dropped = state.cut()
            changes += changed
            drops += dropped
        meta: dict[str, Any] = {
            "splits": self.splits.save(),
            "tables": {name: state.meta() for name, state in self.states.items()},
            "batches": {
                driver.name: [origin.save() for _, _, origin in driver.buffer]
                for driver in self.drivers
                if isinstance(driver, StreamDriver) and driver.buffer
            },
            "since": {driver.name: driver.since for driver in self.drivers if isinstance(driver, StreamDriver)},
        }
        if self.bounded:
            meta["clock"] = [self.event_now, dict(self.active)]
        self.event_number, self.unit = 0, 0
        self.failures.clear()
        self.before = msgspec.structs.replace(self.counters)
        return changes, drops, meta

    def open(self, meta: dict[str, Any]) -> None:
        """Take up what a commit left ({}: nothing yet)."""
        if meta:
            self.splits.load(meta["splits"])
        for name, state in self.states.items():
            state.open(meta.get("tables", {}).get(name, {}))
        self._load_clock(meta)
        self._load_buffers(meta)
        self._refresh_due()

    def forget(self) -> None:
        """A cut broke off: before `rollback`, drop what it may have left half done."""
        for state in self.states.values():
            state.forget()

    async def rollback(self, meta: dict[str, Any]) -> None:
        """Go back to the last commit, whose `meta` is given; the agents start afresh."""
        self.bind()
        self.splits.clear()
        if meta:
            self.splits.load(meta["splits"])
        for name, state in self.states.items():
            state.rollback(meta.get("tables", {}).get(name, {}))
        self.cursor.ready = False
        self.event_number, self.unit = 0, 0
        for name in ("records", "late", "dead", "emitted", "fired"):
            setattr(self.counters, name, getattr(self.before, name))
        await self._restart_agents()
        self._load_clock(meta)
        self._load_buffers(meta)
        self._refresh_due()

    def _load_clock(self, meta: dict[str, Any]) -> None:
        self.event_now, self.active = MIN_TIME, {}
        if "clock" in meta:
            self.event_now, self.active = meta["clock"][0], dict(meta["clock"][1])

    def _load_buffers(self, meta: dict[str, Any]) -> None:
        for driver in self.drivers:
            if isinstance(driver, StreamDriver):
                driver.since = meta.get("since", {}).get(driver.name, 0)
                driver.clear()
                for saved in meta.get("batches", {}).get(driver.name, []):
                    origin = Origin(saved[0], saved[1], None, 0, saved[6], saved)
                    # Carefully, since nobody has noted which of them need it.
                    driver.add(self._event_of(origin), saved[6], origin, careful=True)

    # Emitting

    def emit(self, outlet: Any, value: Any, key: Any, time: int | None) -> None:
        """What `yield` and `sink.emit` come to. Raises UndeclaredSink."""
        cursor = self.cursor
        agent = cursor.agent
        if agent is None:
            raise NoEvent(f"{outlet.name!r}: an agent sent something before its first event, or after it was stopped")
        if outlet.name not in agent.sinks:
            raise UndeclaredSink(f"agent {agent.name!r} emits to {outlet.name!r} without declaring it in sinks=")
        if time is None:
            time = cursor.time if cursor.batch is None else max(cursor.batch.values())[0]
        bound = self.outlets[outlet.name]
        bound.emit(value, key, time)
        self.counters.emitted += 1
        if bound.linked:
            self.link_hit = True

    def _dead_letter(self, origin: Origin, error: Exception, agent: str, attempts: int) -> None:
        if origin.topic in self.told_elsewhere:
            return
        letter = origin.letter(error, agent, attempts)
        self.counters.dead += 1
        self.dead_letters.emit(letter, None, letter.time if letter.time is not None else 0)
        if self.dead_letters.linked:
            self.link_hit = True
        log.warning(
            "dead letter", topic=letter.topic, position=letter.position, error=letter.error, reason=letter.reason,
            agent=letter.agent or None,
        )  # fmt: skip

    # Records

    async def process(self, topic: str, split: Split, decoded: Decoded, start: int, stop: int, *, careful: bool) -> int:
        """Step through records `[start, stop)` of one split; how many were done.

        Fewer than all are done only if something was emitted that the task must look at first. Raises EventFailed
        if an agent raised and `careful` is False.
        """
        split.idle = False
        drivers = self.routes.get(topic, [])
        self.in_piece, self.unit = True, 0
        try:
            return await self._process(drivers, topic, split, decoded, start, stop, careful)
        finally:
            self.in_piece, self.unit = False, 0

    async def _process(
        self, drivers: list[Driver], topic: str, split: Split, decoded: Decoded, start: int, stop: int, careful: bool
    ) -> int:
        await self.advance(careful)
        self.link_hit, self._until = False, time.perf_counter() + STEP_SECONDS
        index = start
        for limit in [*sorted(n for n in decoded.bad if start <= n < stop), stop]:
            if index < limit:
                index = await self._way(drivers, careful)(
                    drivers, split, decoded, index, limit, topic, careful or bool(self.changed)
                )
            if index < limit or index == stop or self.link_hit:
                break
            self._dead_letter(self._origin(topic, split, decoded, index), decoded.bad[index], "", 0)
            self.event_number += 1
            index += 1
            if self.link_hit:
                break
        self.counters.records += index - start
        return index - start

    def _origin(self, topic: str, split: Split, decoded: Decoded, index: int) -> Origin:
        time = None if index in decoded.bad else decoded.times[index]
        return Origin(topic, split.number, decoded.batch, index, time)

    def _way(self, drivers: list[Driver], careful: bool) -> Callable[..., Awaitable[int]]:
        """How to step through a batch: the quickest way that is right for what is subscribed."""
        if (
            careful
            or not drivers
            or len(drivers) > 1
            or self.moving
            or self.changed
            or (self.bounded and (self.idle_after or self._timed_batches()))
        ):
            return self._step
        (driver,) = drivers
        if isinstance(driver, AggregateDriver):
            return self._step_fused if driver.loop is not None else self._step
        simple = isinstance(driver, StreamDriver) and driver.need is EVENT and not driver.modes
        return self._step_one_agent if simple else self._step

    def _due_time(self, split: Split) -> int:
        """The event time in `split` from which on the task's watermark makes something due."""
        if self.next_due == NEVER or self.splits.others(split.name) < self.next_due:
            return NEVER
        return self.next_due + split.out_of_order + 1

    async def _step_one_agent(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """The hot path: one agent over decoded records. Everything in locals: one send and two comparisons an event."""
        (driver,) = drivers
        assert isinstance(driver, StreamDriver)
        cursor, times, records = self.cursor, decoded.times, decoded.records
        cursor.agent = self.driver = driver
        base = self.event_number - start
        high, due, careful_before = split.high, self._due_time(split), self.careful_before
        send, index = driver.send, start
        try:
            while index < stop:
                t = times[index]
                if t < careful_before:
                    split.high = high
                    self.event_number, self.unit = base + index, 0
                    await self._careful_event(drivers, split, decoded, index, topic)
                    cursor.agent, send = driver, driver.send
                else:
                    cursor.time = t
                    try:
                        got = send(records[index])
                    except StopIteration as stopped:
                        done = driver.emitted(stopped.value)
                        if done is not None:
                            await done
                            self._waited()
                        send = driver.send
                    except StopAsyncIteration:
                        done = driver.returned()
                        if done is not None:
                            await done
                        send = driver.send
                    else:
                        if got is not EVENT:
                            done = driver.after(got)
                            if done is not None:
                                await done
                                self._waited()
                            send = driver.send
                if t > high:
                    high = t
                    if t >= due:
                        split.high = high
                        self.event_number, self.unit = base + index, 0
                        await self.advance(False)
                        due, careful_before = self._due_time(split), self.careful_before
                        cursor.agent, send = driver, driver.send
                index += 1
                if self.link_hit or driver.need is not EVENT:
                    break
        except EventFailed:
            raise
        except Exception as error:
            raise EventFailed((base + index, 0), driver, error) from error
        split.high = high
        self.event_number = base + index
        if index < stop and not self.link_hit:
            return await self._step(drivers, split, decoded, index, stop, topic, False)
        return index

    async def _step_fused(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """A declared table alone: its generated loop, from one move of the watermark that matters to the next."""
        (driver,) = drivers
        assert isinstance(driver, AggregateDriver)
        assert driver.loop is not None
        self.driver = driver
        base, space_at = self.event_number - start, driver.state.space_at
        index = start
        while index < stop:
            whole = index == 0 and stop == len(decoded)
            rest = iter(decoded.records if whole else decoded.records[index:stop])
            times = decoded.times if whole else decoded.times[index:stop]
            due, first = self._due_time(split), index

            def switch(_event: Any, t: int, careful_before: int = self.careful_before, due: int = due) -> Any:
                if t < careful_before:
                    raise _Careful
                return *space_at(t), due

            try:
                split.high = driver.loop(zip(rest, times, strict=False), split.high, switch)
                index = stop - length_hint(rest)
                self.event_number, self.unit = base + index - 1, 0
            except _Careful:
                index = stop - length_hint(rest)
                split.high = max(split.high, max(times[: index - 1 - first], default=MIN_TIME))
                self.event_number, self.unit = base + index - 1, 0
                await self._careful_event(drivers, split, decoded, index - 1, topic)
                split.high = max(split.high, decoded.times[index - 1])
            except Exception as error:
                index = stop - length_hint(rest)
                raise EventFailed((base + index - 1, 0), driver, error) from error
            await self.advance(False)
            if self.link_hit:
                break
        self.event_number = base + index
        return index

    async def _step(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """Any agents and tables, event by event."""
        cursor, times, records, splits = self.cursor, decoded.times, decoded.records, self.splits
        base = self.event_number - start
        others, out_of_order = splits.others(split.name), split.out_of_order
        watermark = cursor.watermark = splits.watermark()
        timed = self.bounded and bool(self.idle_after or self._timed_batches())
        for index in range(start, stop):
            t = times[index]
            self.event_number, self.unit = base + index, 0
            if timed:
                await self._event_clock(split, t, careful)
                others, watermark = splits.others(split.name), splits.watermark()
            if careful or t < self.careful_before or t <= watermark - self.careful_lag:
                await self._careful_event(drivers, split, decoded, index, topic)
            else:
                cursor.time = t
                cursor.ordinal += 1
                waiting = None
                for driver in drivers:
                    if driver.need is EVENT:
                        await self._feed(driver, records[index])
                    else:
                        waiting = [*(waiting or ()), driver]
                if waiting:
                    origin = self._origin(topic, split, decoded, index)
                    await self._buffer(waiting, records[index], t, origin, careful=False)
            if t > split.high:
                split.high = t
                watermark = max(splits.floor, min(t - out_of_order - 1, others))
            for state in self.moving:
                self.next_due = min(self.next_due, state.due)
            if watermark >= self.next_due or cursor.ready:
                await self.advance(careful)
            if self.link_hit:
                self.event_number += 1
                return index + 1
            cursor.watermark = watermark
        self.event_number = base + stop
        return stop

    def _timed_batches(self) -> bool:
        return any(d.need.within is not None for d in self.drivers)

    async def _event_clock(self, split: Split, t: int, careful: bool) -> None:
        """In a bounded run what else goes by the clock goes by event time: idle splits, and batches grown old."""
        now = self.event_now = max(self.event_now, t)
        self.active[split.name] = now
        for name, after in self.idle_after.items():
            other = self.splits.by_name[name]
            if not other.idle and now - self.active.setdefault(name, now) >= after:
                other.idle = True
                await self.advance(careful)
        await self.flush_old(careful)
        if self.cursor.ready:
            await self.advance(careful)

    async def _feed(self, driver: Driver, event: Any) -> None:
        """Give one event to one driver, with the tables as it may see them."""
        self.driver = self.cursor.agent = driver
        for state, mode in driver.modes:
            state.set_mode(mode)
        try:
            done = driver.feed(event)
            if done is not None:
                await done
                self._waited()
        except EventFailed:
            raise
        except Exception as error:
            raise EventFailed((self.event_number, self.unit), driver, error) from error
        finally:
            for state, _ in driver.modes:
                state.set_mode(Mode.WRITE)

    def _waited(self) -> None:
        """An event has awaited something."""
        self.beats += 1
        if time.perf_counter() > self._until:
            self.link_hit = True

    async def _rest(self, ms: int) -> None:
        """Wait before a retry."""
        self.resting = True
        try:
            await self.clock.sleep(ms)
        finally:
            self.resting = False
            self.beats += 1

    # Carefully

    async def _careful_event(
        self, drivers: list[Driver], split: Split, decoded: Decoded, index: int, topic: str
    ) -> None:
        """One record as a unit that leaves no trace if it fails, judged for lateness first."""
        t = decoded.times[index]
        cursor = self.cursor
        cursor.watermark = self.splits.watermark()
        cursor.ordinal += 1
        for state in self.states.values():
            state.watermark = max(state.watermark, cursor.watermark)
        late: dict[str, None] = {}
        takers: list[Driver] = []
        for driver in drivers:
            closed = [state.name for state in driver.drops_late if state.is_late(t)]
            late.update(dict.fromkeys(closed))
            if not closed:
                takers.append(driver)
        origin = self._origin(topic, split, decoded, index)
        inlet = self.inlets[(topic, split.number)]

        def again() -> Any:
            return inlet.codec.decode(decoded.batch.values[index])  # type: ignore[arg-type]

        await self._unit(takers, decoded.records[index], again, t, origin, late)
        for name in late:
            self.counters.late += 1
            log.debug("late record", table=name, topic=topic, time=t, watermark=cursor.watermark)
            await self._send(f"{name}.late", again(), t, True, origin)

    async def _unit(
        self,
        drivers: list[Driver],
        event: Any,
        again: Callable[[], Any],
        t: int,
        origin: Origin,
        late: dict[str, None],
    ) -> None:
        """One event for some drivers: kept whole, or without a trace. Names of tables it is late for go to `late`."""
        failed = self.failures.pop((self.event_number, self.unit), None)
        attempt = 0
        left = list(drivers)
        # An agent that waits for a batch is given the event afterwards.
        while takers := [driver for driver in left if driver.need is EVENT]:
            if failed is None:
                failed = await self._try(takers, event, t)
                if failed is None:
                    await self._kept(t)
                    break
            driver, error = failed
            failed = None
            event = again()
            if isinstance(error, WindowClosed):
                late[error.table] = None
                left.remove(driver)
                continue
            attempt += 1
            wait = driver.retry.wait(attempt, error)
            if wait is None:
                self._dead_letter(origin, error, driver.name, attempt)
                return
            await self._rest(wait)
        waiting = [driver for driver in left if driver not in takers]
        if waiting:
            await self._buffer(waiting, event, t, origin, careful=True)

    async def _try(self, takers: list[Driver], event: Any, t: int) -> tuple[Driver, Exception] | None:
        """Run the event; None if all went well (the marks are still set), else what failed, all of it undone."""
        cursor = self.cursor
        cursor.time = t
        emitted = [(outlet, len(outlet.records)) for outlet in self.outlets.values()]
        link_hit, count, ready = self.link_hit, self.counters.emitted, cursor.ready
        for state in self.states.values():
            state.mark()
        try:
            for driver in takers:
                await self._feed(driver, event)
                self._check_saved(driver)
        except EventFailed as failed:
            failed.driver.abandon()
            for state in self.states.values():
                state.undo()
            for outlet, length in emitted:
                del outlet.records[length:]
            self.link_hit, self.counters.emitted, cursor.ready = link_hit, count, ready
            cursor.ordinal += 1
            if not isinstance(failed.error, WindowClosed):
                self.counters.failed += 1
            await self._restart_agents()
            return failed.driver, failed.error
        return None

    def _check_saved(self, driver: Driver) -> None:
        """What cannot be saved is the failure of the event that made it, not of the commit."""
        try:
            for state in driver.states:
                state.check_saved()
        except Exception as error:
            raise EventFailed((self.event_number, self.unit), driver, error) from error

    async def _kept(self, t: int) -> None:
        """The unit went well: keep it, and send what follows from it (changes, results of windows fired already)."""
        changes: list[tuple[str, Any]] = []
        fired: list[tuple[int, int, bytes, str, Closed[Any, Any]]] = []
        for state in self.changed:
            changes += [(f"{state.name}.changes", change) for change in state.changes(t)]
        for order, state in enumerate(self.states.values()):
            if state.lateness:
                fired += [(end, order, key, f"{state.name}.closed", event) for end, key, event in state.fire_late()]
            state.keep()
        for name, change in changes:
            await self._send(name, change, t, True)
        fired.sort(key=_firing_order)
        for _, _, _, name, closed in fired:
            self.counters.fired += 1
            await self._send(name, closed, closed.end - 1, True)

    # What tables send

    async def _send(self, name: str, event: Any, t: int, careful: bool, origin: Origin | None = None) -> None:
        """Give an event of a table to those who subscribed to it, as a part of the present step.

        `origin` is where a late record came from.
        """
        drivers = self.routes.get(name)
        if not drivers:
            return
        self.unit += 1
        cursor = self.cursor
        late = [state for driver in drivers for state in driver.drops_late if state.is_late(t)]
        cautious = careful or self.changed or t < self.careful_before or t <= cursor.watermark - self.careful_lag
        if cautious or late:
            source = origin or self._table_origin(name, t, event)
            closed = dict.fromkeys(state.name for state in late)
            takers = [driver for driver in drivers if not any(state in late for state in driver.drops_late)]
            await self._unit(takers, event, lambda: self._event_of(source), t, source, closed)
            for table in closed:
                self.counters.late += 1
                await self._send(f"{table}.late", self._event_of(source), t, True, source)
            return
        cursor.time = t
        cursor.ordinal += 1
        waiting = []
        for driver in drivers:
            if driver.need is EVENT:
                await self._feed(driver, event)
            else:
                waiting.append(driver)
        if waiting:
            await self._buffer(waiting, event, t, origin or self._table_origin(name, t, event), careful=False)

    def _table_origin(self, name: str, t: int, event: Any) -> Origin:
        """Where an event of a table came from. Encoded now: its value may change before it is needed."""
        key = getattr(event, "key", None)
        where = f"{name} key {key!r} at {t}"
        key_bytes = None if key is None else encode_key(key)
        return Origin(name, 0, None, 0, t, [name, -1, 0, where, key_bytes, self._codec(name).encode(event), t])

    def _codec(self, name: str) -> Codec:
        """The codec of what a table sends under `name`."""
        if name not in self.codecs:
            sources = [source for agent in self.group.agents for source in agent.sources]
            sources += [table.source for table in self.group.tables if table.source is not None]
            self.codecs[name] = Codec("msgpack", next(source.type for source in sources if source.name == name))
        return self.codecs[name]

    def _event_of(self, origin: Origin) -> Any:
        """The event anew from its bytes: an agent may have changed it before it failed."""
        saved = origin.save()
        inlet = self.inlets.get((saved[0], saved[1]))
        if inlet is not None:
            return inlet.codec.decode(saved[5])
        return self._codec(saved[0]).decode(saved[5])

    def _take_ready(self) -> list[tuple[int, int, bytes, str, Closed[Any, Any]]]:
        """The results of count windows that this event has filled."""
        self.cursor.ready = False
        return [
            (end, order, key, f"{state.name}.closed", event)
            for order, state in enumerate(self.states.values())
            for end, key, event in state.take_ready()
        ]

    # The watermark

    def watermark(self) -> int:
        """How far event time has come (ms)."""
        return self.splits.watermark()

    async def advance(self, careful: bool) -> None:
        """The watermark may have moved, or count windows are full: fire and drop what is due, if anything is."""
        watermark = self.cursor.watermark = self.splits.watermark()
        if watermark < self.next_due and not self.cursor.ready:
            return
        if not self.in_piece:
            self._new_event()
        states = list(self.states.values())
        full: list[tuple[int, int, bytes, str, Closed[Any, Any]]] = []
        while True:
            if self.cursor.ready:
                full = sorted([*full, *self._take_ready()], key=_firing_order)
            ends = [(end, n) for n, state in enumerate(states) if (end := state.peek(watermark)) is not None]
            first = min(ends, default=None)
            batch = self._batch_before(watermark, None if first is None else (first[0], states[first[1]]))
            if batch is not None:
                await self._flush(batch, careful)
            elif full and (first is None or full[0][:2] <= first):
                _, _, _, name, closed = full.pop(0)
                self.counters.fired += 1
                await self._send(name, closed, closed.end - 1, careful)
            elif first is not None:
                state = states[first[1]]
                for closed in state.fire(first[0], watermark):
                    self.counters.fired += 1
                    await self._send(f"{state.name}.closed", closed, closed.end - 1, careful)
            else:
                break
        for state in states:
            state.settle(watermark)
        self._refresh_due()

    def _batch_before(self, watermark: int, first: tuple[int, State] | None) -> StreamDriver | None:
        """An agent whose unfinished batch belongs into the window that fires next, or into one not opened yet."""
        for driver in self.drivers:
            if not isinstance(driver, StreamDriver) or not driver.buffer:
                continue
            opens_first = first is None or driver.deadline < first[0]
            if (driver.deadline <= watermark and opens_first) or (first is not None and first[1] in driver.watched):
                return driver
        return None

    def _refresh_due(self) -> None:
        states = self.states.values()
        self.next_due = min((state.due for state in states), default=NEVER)
        for driver in self.drivers:
            if isinstance(driver, StreamDriver):
                self.next_due = min(self.next_due, driver.deadline)
        self.careful_before = max((state.careful_before for state in states), default=MIN_TIME)
        self.careful_lag = min((state.careful_lag for state in states), default=NEVER)

    def _new_event(self) -> None:
        """What follows is no part of a record's step: it gets its own number, by which a failure is found again."""
        self.event_number, self.unit = self.event_number + 1, 0

    def _now(self) -> int:
        return self.event_now if self.bounded else self.clock.now_ms()

    # Batches

    async def _buffer(self, drivers: list[Driver], event: Any, t: int, origin: Origin, *, careful: bool) -> None:
        """Add an event to the batches of agents; hand over those that are full."""
        for driver in drivers:
            assert isinstance(driver, StreamDriver)
            if not driver.buffer:
                driver.since = self._now()
            driver.add(event, t, origin, careful=careful)
            self.next_due = min(self.next_due, driver.deadline)
            if len(driver.buffer) >= (driver.need.size or 1):
                await self._flush(driver, careful)

    async def _flush_all(self, careful: bool) -> bool:
        """Hand over all unfinished batches; False if there were none."""
        waiting = [driver for driver in self.drivers if isinstance(driver, StreamDriver) and driver.buffer]
        for driver in waiting:
            await self._flush(driver, careful)
        return bool(waiting)

    def has_old_batch(self) -> bool:
        """True if an agent has waited for its batch to fill for as long as it allows."""
        now = self._now()
        return any(
            isinstance(d, StreamDriver) and d.buffer and d.need.within is not None and now - d.since >= d.need.within
            for d in self.drivers
        )

    async def flush_old(self, careful: bool) -> None:
        """Hand over the batches that have waited for as long as their agents allow."""
        if not self.in_piece:
            self._new_event()
        now = self._now()
        for driver in self.drivers:
            if not isinstance(driver, StreamDriver) or not driver.buffer or driver.need.within is None:
                continue
            if now - driver.since >= driver.need.within:
                await self._flush(driver, careful)

    async def _flush(self, driver: StreamDriver, careful: bool) -> None:
        """Give a batch to its agent; carefully, a batch that fails is tried event by event."""
        batch, careful = driver.buffer, careful or driver.careful or bool(self.changed)
        driver.clear()
        self.unit += 1
        cursor = self.cursor
        before = cursor.time
        if careful:
            await self._careful_batch(driver, batch)
        else:
            cursor.time = NEVER
            self._number(batch)
            try:
                await self._feed(driver, [event for event, _, _ in batch])
            finally:
                cursor.batch = None
        cursor.time = before

    def _number(self, batch: list[tuple[Any, int, Origin]]) -> None:
        """Make the events of a batch known to `table.at`."""
        cursor = self.cursor
        cursor.batch = {id(event): (t, cursor.ordinal + n) for n, (event, t, _) in enumerate(batch, 1)}
        cursor.ordinal += len(batch)

    async def _careful_batch(self, driver: StreamDriver, batch: list[tuple[Any, int, Origin]]) -> None:
        cursor = self.cursor
        rows = [(self._event_of(origin), t, origin) for _, t, origin in batch]
        failed = self.failures.pop((self.event_number, self.unit), None)
        attempt = 0
        while True:
            if failed is None:
                self._number(rows)
                try:
                    failed = await self._try([driver], [event for event, _, _ in rows], NEVER)
                finally:
                    cursor.batch = None
            if failed is None:
                await self._kept(max(t for _, t, _ in rows))
                return
            error, failed = failed[1], None
            rows = [(self._event_of(origin), t, origin) for _, t, origin in batch]
            attempt += 1
            wait = None if isinstance(error, WindowClosed) else driver.retry.wait(attempt, error)
            if wait is None:
                break
            await self._rest(wait)
        if len(batch) > 1:
            for row in batch:
                await self._careful_batch(driver, [row])
        elif isinstance(error, WindowClosed):
            self.counters.late += 1
            event, t, origin = rows[0]
            await self._send(f"{error.table}.late", event, t, True, origin)
        else:
            self._dead_letter(rows[0][2], error, driver.name, attempt)


def _writers_first(drivers: list[Driver]) -> list[Driver]:
    """Each before those who only read what it writes; otherwise, and in a circle, in order of registration."""
    done: list[Driver] = []
    left = list(drivers)
    while left:
        written = {id(state): driver for driver in left for state in driver.states}
        free = [d for d in left if not any(mode is Mode.READ and id(state) in written for state, mode in d.modes)]
        done.append((free or left)[0])
        left.remove(done[-1])
    return done


def _read_before(app: App, group: Group) -> frozenset[str]:
    """The broadcast topics of a group that another group of the app, before it, reads too."""
    names: set[str] = set()
    if group.broadcast_topics:
        for other in app.plan().groups:
            if other.name == group.name:
                break
            names |= {topic.name for topic in other.broadcast_topics}
    return frozenset(names & {topic.name for topic in group.broadcast_topics})


def _own_space(app: App, group: Group, table: AnyTable[Any, Any]) -> str | None:
    """Groups of one run keep copies of a broadcast table each, in one store: all but the first under another name."""
    if not table.broadcast:
        return None
    first = next(other for other in app.plan().groups if any(t is table for t in other.tables))
    return None if first.name == group.name else f"{table.name}@{group.name}"


def _firing_order(row: tuple[int, int, bytes, str, Any]) -> tuple[int, int, bytes]:
    return row[:3]
