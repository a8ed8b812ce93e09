"""Keyed logic in event time, kept like a table: what joins, patterns and timers are made of.

A `Process` is the logic of one key, pure: no I/O, no clock. `ProcessTable` declares where its events come from and what
it sends; `ProcessState` is one task's part of it, a cell for each key and timers for when they want to be woken.

    event ── process.event(cell) ──┐
    watermark ── process.wake(cell)┴── what it sends ── subscribers, in the same step
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from flowkit.errors import ConfigError, FlowkitError
from flowkit.flow import By, Feed, Matches
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.table.cells import Cells, Shape, no_event
from flowkit.table.cursor import Cursor, Mode
from flowkit.table.definition import AnyTable, TableEvents
from flowkit.table.fields import value_of
from flowkit.table.state import NEVER, Open, Result, State
from flowkit.table.stored import Stored
from flowkit.table.timers import Timers

Sent = tuple[str, Any, int]
"""What a process sends: the kind ("" for the main stream), the event, and its time (ms)."""

Row = tuple[str, Any, int]
"""The same with the stream's full name."""

FAILED = "failed"
"""The kind by which a process sends what it cannot handle, as (event, error): it becomes a dead letter."""

GLANCE = 64
"""After so many keys that had nothing to send the firing may be cut."""

TIMER_BUCKET = 60_000
"""The width (ms) of the buckets in which timers are stored and dropped."""


def key_type_of(type_: Any, by: By) -> Any:
    """The type of the key `by` of events of `type_`; Any if it is not known."""
    return value_of(type_, by).type


class Process(Protocol):
    """The logic of one key. Cells are changed in place, and must survive encoding as `cell_type` at any moment."""

    cell_type: Any

    def new(self) -> Any:
        """The cell of a key that has none."""

    def event(self, key: Any, cell: Any, side: int, event: Any, t: int) -> Sequence[Sent]:
        """An event of input `side` at `t` (ms), which is later than the watermark; in order of arrival, not of time."""

    def wake(self, key: Any, cell: Any, at: int) -> Sequence[Sent]:
        """The watermark has come to `at` (ms), which is what `due` was."""

    def due(self, cell: Any) -> int:
        """The watermark (ms) at which the cell wants to be woken next; later than all time: never."""

    def over(self, cell: Any) -> bool:
        """True if there is nothing left worth keeping: the key is forgotten."""


class Sends(TableEvents[Any], Matches[Any, Any]):
    """The main stream of a process, with the others as attributes."""


class ProcessTable(AnyTable[Any, Any]):
    """A process over streams, by key. `sends` are the kinds of streams that it sends, with their types."""

    def __init__(
        self,
        name: str,
        key_type: Any,
        process: Process,
        feeds: tuple[Feed, ...],
        sends: Mapping[str, Any],
        *,
        words: str,
        signature: str = "",
        grows: str = "",
    ) -> None:
        super().__init__(name, key_type, process.cell_type)
        self.process, self.feeds, self.words = process, feeds, words
        self.signature = signature
        """What must not change while there is state."""
        self.grows = grows
        """Why its state has no bound, if it has none."""
        self.main = Sends(self, "", sends[""])
        self.sends: dict[str, TableEvents[Any]] = {"": self.main}
        for kind, type_ in sends.items():
            if kind:
                self.sends[kind] = TableEvents(self, kind, type_)
                setattr(self.main, kind, self.sends[kind])

    @property
    def streams(self) -> tuple[TableEvents[Any], ...]:
        return tuple(self.sends.values())

    def __getitem__(self, kind: str) -> TableEvents[Any]:
        return self.sends[kind]


class Sender(Protocol):
    """What a state must know of its table: the logic, and the streams by kind."""

    @property
    def process(self) -> Process: ...
    @property
    def sends(self) -> Mapping[str, TableEvents[Any]]: ...


class ProcessState(State):
    """A process in one task. An event is late if it comes after the watermark has passed its time."""

    def __init__(self, shape: Shape, cursor: Cursor, store: Stored, *, table: Sender) -> None:
        super().__init__(shape, cursor, store)
        self.process = table.process
        self.cells = Cells(shape, store, (self.space, None))
        self.timers = Timers(store, f"{self.space}!due", TIMER_BUCKET)
        self.names = {FAILED: FAILED} | {kind: stream.name for kind, stream in table.sends.items()}
        self.moving = True
        self.careful_lag = 0

    def give(self, key: Any, side: int, event: Any, t: int) -> list[Row]:
        """Hand an event to the process; what it sends."""
        cell = self.cells.load(key)
        process = self.process
        before = process.due(cell)
        sent = process.event(key, cell, side, event, t)
        self.expect(key, cell, before)
        names = self.names
        return [(names[kind], value, at) for kind, value, at in sent] if sent else []

    def expect(self, key: Any, cell: Any, before: int) -> None:
        """A cell has changed, which wanted to be woken at `before`: forget it, or come back to it."""
        due = self.process.due(cell)
        if due >= NEVER and self.process.over(cell):
            self.cells.delete(key)
        elif due < before:  # else the timer that there is comes early, and is set again then
            self.timers.arm(due, self.shape.encode_key(key))
            self.due = min(self.due, due)

    # Time

    def is_late(self, t: int) -> bool:
        return t <= self.passed

    def peek(self, watermark: int) -> int | None:
        # All that are due at one time come together, also if what the first sends holds the watermark from then on.
        watermark, timers = max(watermark, self.watermark), self.timers
        while (entry := timers.first) is not None and entry[0] <= watermark:
            cell = self.cells.find(self.shape.decode_key(entry[1]))
            due = NEVER if cell is None else self.process.due(cell)
            if due <= entry[0]:
                return entry[0] + 1
            timers.drop_first()
            if due < NEVER:
                timers.arm(due, entry[1])
        return None

    def fire(self, end: int, watermark: int) -> Iterator[Result]:
        """What the first process sends that is due and has something to send: a list, which no commit may cut."""
        # Another table may be due at the very same time: what is due now is woken all the same.
        return self._wake(max(end - 1, min(max(watermark, self.watermark), self.limit - 1)))

    def resume(self, watermark: int) -> Iterator[Result]:
        """After a commit the timers tell what is left."""
        return iter(())

    def _wake(self, until: int) -> Iterator[Result]:
        """Wake those that are due, in order, until one sends something: that may make others due in between.

        Most have only something to forget, and no one sees when. Going on to the next of these without a look at other
        tables: 4 µs each.
        """
        timers, process, names, cells = self.timers, self.process, self.names, self.cells
        decode_key = self.shape.decode_key
        silent = 0
        while (entry := timers.first) is not None and (at := entry[0]) <= until:
            timers.drop_first()
            key_bytes = entry[1]
            key = decode_key(key_bytes)
            cell = cells.find(key)
            due = NEVER if cell is None else process.due(cell)
            if due > at:
                if due < NEVER:
                    timers.arm(due, key_bytes)
                continue
            # Calls under way may hold the watermark before this: what comes of this time from here on is late.
            self.watermark = max(self.watermark, at)
            self.careful_before = self.watermark + 1
            cell = cells.load(key)
            sent = process.wake(key, cell, at)
            due = process.due(cell)
            if due <= at:
                raise FlowkitError(f"{self.name!r}: woken at {at}, and wants to be woken at {due} again")
            if due < NEVER:
                timers.arm(due, key_bytes)
            elif process.over(cell):
                cells.delete(key)
            if sent:
                yield [(names[kind], value, t) for kind, value, t in sent]
                return
            silent += 1
            if silent % GLANCE == 0:
                yield []

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        self.due = self.timers.due

    # Commit and recovery

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def all_timers(self) -> Iterable[Timers]:
        return (self.timers,)

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self.careful_before = MIN_TIME if self.careful_lag == NEVER else self.watermark + 1
        self.timers.open()
        self.due = self.timers.due

    # Seen by people

    def find(self, key: Any) -> Any:
        return self.cells.find(key)

    def scan(self) -> Iterator[tuple[Any, Open[Any]]]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, cell in self.cells.items():
            yield key, Open(self.shape.present(cell), MIN_TIME, END_OF_TIME)

    def live(self, key: Any) -> Any:
        raise ConfigError(f"{self.name!r} keeps what an operator needs: it cannot be changed by [] or read by get")

    def set_mode(self, mode: Mode) -> None:
        self.shape.mode = mode

    def refresh(self) -> None:
        """There is no quick path: cells are only reached through `give` and the firing."""
