"""Keyed timers: one due time a key, set and cancelled by agents, a stream of those that have come.

    silence = app.timers("silence", str)          set(key, at) ── cell {at, armed}
    agent(readings, silence) ◄── Timer(key, at) ──── hint (armed, key) in `flowkit.table.timers`

A key that is set again and again, each time for later, costs no new hint: the one that there is comes early, and is put
where the key's time is by then.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

from flowkit.errors import NoEvent, ReadOnly, StateError, UndeclaredTable
from flowkit.record import EARLIEST, END_OF_TIME, MIN_TIME, Timer
from flowkit.table.cells import Shape
from flowkit.table.cursor import Cursor, Mode, current
from flowkit.table.definition import AnyTable, TableEvents
from flowkit.table.process import Process, ProcessState, Sent
from flowkit.table.state import NEVER, Open, Result
from flowkit.table.stored import Stored

K = TypeVar("K")


class Due(msgspec.Struct, array_like=True):
    """When (ms) a key's timer is due, and the hint by which that is found; NEVER: cancelled, and none."""

    at: int = NEVER
    armed: int = NEVER


class Alarm:
    """The process of a timer."""

    cell_type = Due

    def new(self) -> Due:
        return Due()

    def event(self, key: Any, cell: Due, side: int, event: Any, t: int) -> Sequence[Sent]:
        raise NotImplementedError("timers take no events: agents set them")

    def wake(self, key: Any, cell: Due, at: int) -> Sequence[Sent]:
        cell.at = cell.armed = NEVER
        return [("", Timer(key, at), at)]

    def due(self, cell: Due) -> int:
        return cell.at if cell.armed <= END_OF_TIME else NEVER

    def over(self, cell: Due) -> bool:
        return cell.at == cell.armed == NEVER


class Timers(TableEvents[Timer[K]], AnyTable[K, int], Generic[K]):
    """Timers by key, one a key; a stream of `Timer`. Made by `app.timers`.

    An agent that names them among its sources or in `tables=` may set them while it handles an event. A timer's event
    time is its due time, and it comes in the order (due time, table, key bytes), together with windows.

    With `clock="event"` it comes when the watermark reaches its time. When the input of a bounded run has ended, all
    timers that are set come; of those set from then on only those come that are due no later than the last event of the
    run, so that a timer which sets itself again comes to an end. (Flink would go on for ever.)

    It is an event like any other: for an agent that writes a table with windows it is late if the window at its due
    time is closed, which can only be so if it was set for a time that had passed.

    With `clock="wall"` it comes when the clock reaches its time; in a bounded run the highest event time stands for the
    clock, and what is due later than the last event does not come, as in Flink.
    """

    writers = "any"
    what = "timers"

    def __init__(self, name: str, key_type: Any, clock: Literal["event", "wall"]) -> None:
        AnyTable.__init__(self, name, key_type, int)
        del self.changes  # what comes of them are the timers themselves
        TableEvents.__init__(self, self, "", Timer[key_type])
        self.clock = clock
        self.process: Process = Alarm()
        self.sends: dict[str, TableEvents[Any]] = {"": self}
        self.signature = f"timers by {clock}"

    def set(self, key: K, at: int) -> None:
        """Let the timer of `key` come at `at` (ms), instead of the time for which it may be set.

        One whose time has come already comes as soon as the present event's step is done. At the end of time
        (2**63 - 1) or later it never comes. Raises NoEvent, UndeclaredTable, ReadOnly or WrongPartition as tables do,
        and StateError if a timer that has just come would be set for no later than that, for it would come for ever.
        """
        self._state().set(key, at)

    def cancel(self, key: K) -> None:
        """Let it not come; nothing happens if it is not set."""
        self._state().cancel(key)

    def get(self, key: K) -> int | None:
        """The time (ms) for which it is set, or None."""
        return self._state().due_of(key)

    def _state(self) -> "TimerState":
        state = self.bound.get(None)
        cursor = current.get(None)
        if cursor is None or cursor.agent is None:
            raise NoEvent(f"timers {self.name!r} were used outside an event: use them while an agent handles one")
        if state is None or state.cursor is not cursor:  # those of another task, which ran here before
            raise _undeclared(self.name)
        assert isinstance(state, TimerState)
        return state


class TimerState(ProcessState):
    """The timers of one task."""

    def __init__(self, shape: Shape, cursor: Cursor, store: Stored, *, table: Timers[Any]) -> None:
        super().__init__(shape, cursor, store, table=table)
        self.by_clock = table.clock == "wall"
        self.careful_lag = NEVER  # nothing is late for timers
        self._come: tuple[Any, int] | None = None
        """The timer that agents are handling just now."""

    # Seen by agents

    def set(self, key: Any, at: int) -> None:
        """See `Timers.set`."""
        if self.shape.mode is not Mode.WRITE:
            raise self._refusal()
        if type(at) is not int or at < EARLIEST:
            raise TypeError(f"timers {self.name!r}: at={at!r}: give whole ms since the epoch, from the year 1 on")
        key_bytes = self.shape.encode_key(key)
        if self._come is not None and self._come[0] == key and at <= self._come[1]:
            raise StateError(
                f"timers {self.name!r}: the timer of {key!r} has just come, due at {self._come[1]}, and is set for "
                f"{at}: it would come again at once, for ever; set it for later"
            )
        cell, cursor = self.cells.load(key), self.cursor
        cell.at = at
        # Of the end of the input the cursor tells: calls under way may hold the watermark before it.
        ended = cursor.watermark >= END_OF_TIME or cursor.end > MIN_TIME
        beyond = ended and at > cursor.end and not self.by_clock
        if beyond or at >= END_OF_TIME:
            cell.at, cell.armed = min(at, END_OF_TIME), NEVER
        elif at < cell.armed:
            cell.armed = at
            self.timers.arm(at, key_bytes)
            if self.by_clock:
                cursor.ready = cursor.ready or at <= cursor.wall
            else:
                cursor.ready = cursor.ready or at <= cursor.watermark
                self.due = min(self.due, at)

    def cancel(self, key: Any) -> None:
        """See `Timers.cancel`."""
        if self.shape.mode is not Mode.WRITE:
            raise self._refusal()
        cell = self._known(key)
        if cell is not None and cell.armed <= END_OF_TIME:
            # It stays for its hint: what is set and cancelled in turn needs no more of them.
            self.cells.load(key).at = NEVER
        elif cell is not None:
            self.cells.delete(key)

    def due_of(self, key: Any) -> int | None:
        """See `Timers.get`."""
        if self.shape.mode is Mode.OUTSIDE:
            raise self._refusal()
        cell = self._known(key)
        return None if cell is None or cell.at > END_OF_TIME else int(cell.at)

    def _known(self, key: Any) -> Any:
        self.shape.encode_key(key)  # raises for one of another type
        cell = self.cells.find(key)
        if cell is None:
            self.shape.check_key(key)
        return cell

    def _refusal(self) -> StateError:
        if self.shape.mode is Mode.READ:
            return ReadOnly(
                f"timers {self.name!r} are only read by this agent: to set them, name them in tables= or its sources"
            )
        if self in getattr(self.cursor.agent, "states", ()):
            return NoEvent(f"timers {self.name!r} were used outside an event: use them while an agent handles one")
        return _undeclared(self.name)

    # Time

    @property
    def clock_due(self) -> int:
        return self.timers.due

    def peek(self, watermark: int) -> int | None:
        now = self.cursor.wall if self.by_clock else watermark
        while (entry := self.timers.first) is not None and entry[0] <= now:
            if self._due_of(entry[1]) <= entry[0]:
                return entry[0] + 1
            self._come_early(self.timers.pop()[1])
        return None

    def fire(self, end: int, watermark: int) -> Iterator[Result]:
        # Asked anew for each: what agents do meanwhile may bring another one forward.
        while self.peek(watermark) == end:
            key_bytes = self.timers.pop()[1]
            key = self.shape.decode_key(key_bytes)
            self.cells.delete(key)
            self._come = (key, end - 1)
            yield [(self.name, Timer(key, end - 1), end - 1)]
            self._come = None
            if self.cursor.ready:
                return  # something else has come due, and may be before the next of these: as after a commit here

    def _due_of(self, key_bytes: bytes) -> int:
        cell = self.cells.find(self.shape.decode_key(key_bytes))
        return NEVER if cell is None else self.process.due(cell)

    def _come_early(self, key_bytes: bytes) -> None:
        """A hint for a key that is due later, or not at all."""
        key = self.shape.decode_key(key_bytes)
        cell = self.cells.find(key)
        if cell is None:
            return
        if cell.at > END_OF_TIME:
            self.cells.delete(key)
        elif cell.armed <= END_OF_TIME:
            cell = self.cells.load(key)
            cell.armed = cell.at
            self.timers.arm(cell.at, key_bytes)

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        if self.by_clock:
            self.due = NEVER

    # Commit and recovery

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self._come = None
        if self.by_clock:
            self.due = NEVER

    # Seen by people

    def find(self, key: Any) -> Any:
        cell = self.cells.find(key)
        return None if cell is None or cell.at > END_OF_TIME else cell.at

    def scan(self) -> Iterator[tuple[Any, Open[Any]]]:
        for key, entry in super().scan():
            if entry.value.at <= END_OF_TIME:
                yield key, Open(entry.value.at, MIN_TIME, END_OF_TIME)


def _undeclared(name: str) -> UndeclaredTable:
    return UndeclaredTable(
        f"timers {name!r} are not declared by this agent: name them in tables=, or among its sources to be given them"
    )
