"""What the parts of an engine share about the step that is being taken: who takes part, where it stands, what is due.

Every unit of work has a number, (event, unit): which event since the last commit, and which part of its step. A failure
of the quick way is found again by it when the task comes carefully, so it must not depend on how the work is cut.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from flowkit.agent import Group
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.errors import FlowkitError
from flowkit.record import MIN_TIME
from flowkit.table import NEVER, Cursor, Mode, State
from flowkit.window import Splits
from flowkit.worker.drivers import Done, Driver, StreamDriver
from flowkit.worker.floors import Floors
from flowkit.worker.inlet import Inlet
from flowkit.worker.origin import Origin
from flowkit.worker.outlets import BoundOutlet
from flowkit.worker.tally import Tally

STEP_SECONDS = 0.1
"""Once agents that await, or a firing, have taken so long, the task may look around before the rest."""

BESIDE = 2**40
"""What is no part of a record's step counts its units from here on: the record that follows has the same event number.
What fires before the first record of a piece counts them from twice as many."""

Send = Callable[[str, Any, int, bool, Origin | None], Awaitable[None]]
"""Gives an event of a table (stream, event, time, carefully, where a late record came from) to its subscribers."""


Row = tuple[Driver, Any, Origin]
"""Who is given what, and where it came from."""


class EventFailed(Exception):
    """A driver raised. `key` is the number of the unit."""

    def __init__(self, key: tuple[int, int], driver: Driver, error: Exception) -> None:
        self.key, self.driver, self.error = key, driver, error
        super().__init__(str(error))


class Counters(msgspec.Struct):
    """What a task has done since it was opened, for people; `tally` says it by name, for metrics."""

    records: int = 0
    late: int = 0
    dead: int = 0
    emitted: int = 0
    fired: int = 0
    failed: int = 0
    tally: Tally = msgspec.field(default_factory=Tally)


class StepContext:
    """The present step of one engine. Plain attributes: hot loops read and write them."""

    def __init__(
        self,
        app: App,
        group: Group,
        outlets: dict[str, BoundOutlet],
        clock: Clock,
        counters: Counters,
        *,
        bounded: bool,
    ) -> None:
        self.app, self.group, self.outlets, self.clock, self.counters = app, group, outlets, clock, counters
        self.bounded = bounded
        self.cursor = Cursor()
        self.cursor.bounded = bounded
        self.splits = Splits()
        self.inlets: dict[tuple[str, int], Inlet] = {}

        self.states: dict[str, State] = {}
        self.drivers: list[Driver] = []
        self._streams: list[StreamDriver] | None = None
        self.routes: dict[str, list[Driver]] = {}
        """Who is given what, by the name of the stream, in order."""
        self.changed: list[State] = []
        """States whose changes someone takes."""
        self.moving: list[State] = []
        """States whose `due` may come nearer with any event."""
        self.clocked: list[State] = []
        """States that go by the clock."""
        self.send: Send = _not_wired

        self.event_number = 0
        self.unit = 0
        self.firing = False
        """True while windows are fired."""
        self.settled = MIN_TIME
        """The watermark up to which everything has fired."""
        self.in_piece = False
        """True while records are stepped through: what else happens is an event of its own."""
        self.failures: dict[tuple[int, int], tuple[Driver, Exception]] = {}
        """What failed in the quick way since the last commit: it counts as the first attempt."""
        self.link_hit = False
        """True once the task is to look what is next: something was emitted that this run itself must read, a piece has
        taken long, or a firing was cut."""
        self.until = 0.0
        """When (`time.perf_counter`) the piece has taken long."""

        self.next_due = NEVER
        """The least watermark at which anything is due."""
        self.floors = Floors()
        self.careful_before = MIN_TIME
        self.careful_lag = NEVER
        """The strictest of the states' own."""

        self.event_now = MIN_TIME
        """In a bounded run: the highest event time of all inputs, which stands for the clock."""
        self.idle_after: dict[str, int] = {}
        self.active: dict[str, int] = {}
        """In a bounded run, by split: how long (ms) it may be silent, and the event time at its last record."""

        self.beats = 0
        """Grows with each event that awaited something and each piece of a firing: signs of life, for the watchdog."""
        self.resting = False
        """True while a retry waits for its time."""

    def stream_drivers(self) -> list[StreamDriver]:
        """The agents that may ask for batches."""
        if self._streams is None:
            self._streams = [driver for driver in self.drivers if isinstance(driver, StreamDriver)]
        return self._streams

    def begin(self) -> None:
        """The task has turned to this engine: from now on a piece may take `STEP_SECONDS`."""
        self.link_hit, self.until = False, time.perf_counter() + STEP_SECONDS

    def new_event(self) -> None:
        """What follows is no part of a record's step: it gets its own number, by which a failure is found again."""
        self.event_number, self.unit = self.event_number + 1, BESIDE

    def now(self) -> int:
        """The clock (ms) that batches go by."""
        return self.event_now if self.bounded else self.clock.now_ms()

    def clock_due(self) -> int:
        """The reading of the clock (ms) that the states which go by it wait for."""
        return min([state.clock_due for state in self.clocked], default=NEVER)

    def read_clock(self, at: int) -> None:
        """The clock says `at` (ms): whatever is due by it fires next."""
        cursor = self.cursor
        cursor.wall = max(cursor.wall, at)
        if self.clocked and self.clock_due() <= cursor.wall:
            cursor.ready = True

    def refresh_due(self) -> None:
        """Ask all states and batches what the next watermark is that matters to them."""
        states = self.states.values()
        due, before, lag = NEVER, MIN_TIME, NEVER
        # Comparisons, not min and max: half the time, and this follows each firing.
        for state in states:
            if state.due < due:  # noqa: PLR1730
                due = state.due
            if state.careful_before > before:  # noqa: PLR1730
                before = state.careful_before
            if state.careful_lag < lag:  # noqa: PLR1730
                lag = state.careful_lag
        if self.floors:
            before = max(before, self.floors.highest + 1)
        for driver in self.stream_drivers():
            due = min(due, driver.deadline)
        self.next_due, self.careful_before, self.careful_lag = due, before, lag

    # What was farther than this task

    def turn_to(self, key: bytes | None) -> None:
        """The event to come is of this key (None: of any): what has passed for it may be more than elsewhere."""
        self.cursor.floor = self.floors.of(key)
        for state in self.states.values():
            state.refresh()

    def bind_floors(self) -> None:
        """Let tables ask for which keys windows have fired already."""
        for state in self.states.values():
            state.fired_for = self.floors.of if self.floors else None

    # Agents

    def set_modes(self, mode: Mode) -> None:
        """What may be done with any table from here on."""
        for state in self.states.values():
            state.set_mode(mode)

    async def start_agents(self) -> None:
        """Each runs until it asks for its first event."""
        self.set_modes(Mode.OUTSIDE)
        self.cursor.agent = None
        for driver in self.drivers:
            await driver.start()
        self.set_modes(Mode.WRITE)

    async def stop_agents(self) -> None:
        """Each leaves where it waits, the last one first."""
        self.set_modes(Mode.OUTSIDE)
        self.cursor.agent = None
        for driver in reversed(self.drivers):
            await driver.stop()

    async def restart_agents(self) -> None:
        """What an agent has in its local variables is no state: it starts afresh."""
        await self.stop_agents()
        await self.start_agents()

    async def end_agents(self, drivers: list[Driver]) -> None:
        """Tell these that their streams have ended."""
        self.set_modes(Mode.OUTSIDE)
        for driver in drivers:
            self.cursor.agent = driver
            await driver.end()
        self.set_modes(Mode.WRITE)

    async def feed(self, driver: Driver, event: Any) -> None:
        """Give one event to one driver, with the tables as it may see them. Raises EventFailed."""
        self.cursor.agent = driver
        for state, mode in driver.modes:
            state.set_mode(mode)
        try:
            done = driver.feed(event)
            if done is not None:
                await done
                self.waited()
        except EventFailed:
            raise
        except Exception as error:
            raise EventFailed((self.event_number, self.unit), driver, error) from error
        finally:
            for state, _ in driver.modes:
                state.set_mode(Mode.WRITE)

    def give(self, driver: Driver, event: Any) -> Done:
        """`feed` for a driver that may do anything with all tables: a call, where that is a coroutine (0.2 µs)."""
        self.cursor.agent = driver
        try:
            done = driver.feed(event)
        except EventFailed:
            raise
        except Exception as error:
            raise EventFailed((self.event_number, self.unit), driver, error) from error
        return None if done is None else self._follow(driver, done)

    async def _follow(self, driver: Driver, done: Awaitable[None]) -> None:
        try:
            await done
            self.waited()
        except EventFailed:
            raise
        except Exception as error:
            raise EventFailed((self.event_number, self.unit), driver, error) from error

    def spread(self, drivers: list[Driver], event: Any, origin: Origin) -> list[Row]:
        """What an event comes to for drivers that take batches. Raises EventFailed."""
        rows: list[Row] = []
        for driver in drivers:
            try:
                rows += driver.spread(event, origin)
            except Exception as error:
                raise EventFailed((self.event_number, self.unit), driver, error) from error
        return rows

    async def send_on(self) -> None:
        """Send what operators have made of the present event to those who subscribe to it."""
        sent, self.cursor.sent = self.cursor.sent, []
        for name, event, t in sent:
            await self.send(name, event, t, False, None)

    def waited(self) -> None:
        """An event has awaited something."""
        self.beats += 1
        if time.perf_counter() > self.until:
            self.link_hit = True

    async def rest(self, ms: int) -> None:
        """Wait before a retry."""
        self.resting = True
        try:
            await self.clock.sleep(ms)
        finally:
            self.resting = False
            self.beats += 1

    # Commit

    def save_time(self) -> list[int]:
        """How far time has come, for a commit."""
        cursor = self.cursor
        return [cursor.wall, cursor.low, cursor.high, cursor.end]

    def load_time(self, saved: list[int] | None) -> None:
        """Take up what `save_time` gave (None: nothing yet)."""
        cursor = self.cursor
        cursor.wall, cursor.low, cursor.high, cursor.end = saved or [MIN_TIME] * 4

    def save_clock(self) -> list[Any]:
        """What stands for the clock in a bounded run, for a commit."""
        return [self.event_now, dict(self.active)]

    def load_clock(self, saved: list[Any] | None) -> None:
        """Take up what `save_clock` gave (None: nothing yet)."""
        self.event_now, self.active = MIN_TIME, {}
        if saved is not None:
            self.event_now, self.active = saved[0], dict(saved[1])


def _not_wired(*_: Any) -> Awaitable[None]:
    raise FlowkitError("this engine has no subscribers yet")
