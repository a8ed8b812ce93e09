"""Keyed logic in event time, kept like a table: what joins, patterns and timers are made of.

A `Process` is the logic of one key, pure: no I/O, no clock. `ProcessTable` declares where its events come from and what
it sends; `ProcessState` is one task's part of it, a cell for each key and timers for when they want to be woken.

    event ── process.event(cell) ──┐
    watermark ── process.wake(cell)┴── what it sends ── subscribers, in the same step
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flowkit.errors import ConfigError, FlowkitError
from flowkit.flow import By, Events
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.table.cells import Cells, Shape, no_event
from flowkit.table.cursor import Cursor, Mode
from flowkit.table.definition import AnyTable, TableEvents
from flowkit.table.state import Open, Result, State
from flowkit.table.stored import Stored
from flowkit.table.timers import Timers

Sent = tuple[str, Any, int]
"""What a process sends: the kind ("" for the main stream), the event, and its time (ms)."""

Row = tuple[str, Any, int]
"""The same with the stream's full name."""

TIMER_BUCKET = 60_000
"""The width (ms) of the buckets in which timers are stored and dropped."""


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


@dataclass(frozen=True)
class FeedOf:
    """One input of a process: a stream, and the key by which its events are given."""

    stream: Events[Any]
    by: By


class ProcessTable(AnyTable[Any, Any]):
    """A process over streams, by key. `sends` are the kinds of streams that it sends, with their types."""

    def __init__(
        self,
        name: str,
        key_type: Any,
        process: Process,
        feeds: tuple[FeedOf, ...],
        sends: Mapping[str, Any],
        *,
        words: str,
        signature: str = "",
    ) -> None:
        super().__init__(name, key_type, process.cell_type)
        self.process, self.feeds = process, feeds
        self.words = words
        """What it does, for people."""
        self.signature = signature
        """What must not change while there is state."""
        self.sends = {kind: TableEvents(self, kind, type_) for kind, type_ in sends.items()}

    @property
    def sources(self) -> tuple[Events[Any], ...]:
        return tuple(feed.stream for feed in self.feeds)

    @property
    def streams(self) -> tuple[TableEvents, ...]:
        return tuple(self.sends.values())

    def __getitem__(self, kind: str) -> TableEvents:
        return self.sends[kind]


class ProcessState(State):
    """A process in one task. An event is late if it comes after the watermark has passed its time."""

    def __init__(self, shape: Shape, cursor: Cursor, store: Stored, *, table: ProcessTable) -> None:
        super().__init__(shape, cursor, store)
        self.process = table.process
        self.cells = Cells(shape, store, (self.space, None))
        self.timers = Timers(store, f"{self.space}!due", TIMER_BUCKET)
        self.names = {kind: stream.name for kind, stream in table.sends.items()}
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
        process = self.process
        if process.over(cell):
            self.cells.delete(key)
            return
        due = process.due(cell)
        if due < before:  # else the timer that there is comes early, and is set again then
            self.timers.arm(due, self.shape.encode_key(key))
            self.due = min(self.due, due)

    # Time

    def is_late(self, t: int) -> bool:
        return t <= self.watermark

    def peek(self, watermark: int) -> int | None:
        while (entry := self.timers.first) is not None and entry[0] <= watermark:
            due = self._due_of(entry[1])
            if due <= entry[0]:
                return entry[0] + 1
            self.timers.pop()
            if due <= END_OF_TIME:
                self.timers.arm(due, entry[1])
        return None

    def _due_of(self, key_bytes: bytes) -> int:
        cell = self.cells.find(self.shape.decode_key(key_bytes))
        return END_OF_TIME + 1 if cell is None else self.process.due(cell)

    def fire(self, end: int, watermark: int) -> Iterator[Result]:
        """What the processes send that are due at `end - 1`: for each key a list, which no commit may cut."""
        self.watermark = max(self.watermark, end - 1)
        return self._wake(end - 1)

    def resume(self, watermark: int) -> Iterator[Result]:
        """After a commit the timers tell what is left."""
        return iter(())

    def _wake(self, at: int) -> Iterator[Result]:
        timers, process, names = self.timers, self.process, self.names
        while (entry := timers.first) is not None and entry[0] == at:
            key_bytes = timers.pop()[1]
            key = self.shape.decode_key(key_bytes)
            if self._due_of(key_bytes) > at:
                if self.cells.find(key) is not None:
                    self.expect(key, self.cells.find(key), END_OF_TIME + 1)
                continue
            cell = self.cells.load(key)
            sent = process.wake(key, cell, at)
            if process.due(cell) <= at and not process.over(cell):
                raise FlowkitError(f"{self.name!r}: woken at {at}, and wants to be woken at {process.due(cell)} again")
            self.expect(key, cell, END_OF_TIME + 1)
            yield [(names[kind], value, t) for kind, value, t in sent]

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

    def refresh(self) -> None:
        """There is no quick path: cells are only reached through `give` and the firing."""
