"""One task's part of one table: what every kind of table does, and tables without windows.

The engine drives a state through `mark … keep|undo` around events that need it, `peek`/`fire`/`settle` as the
watermark moves, and `cut` or `rollback` at the end of a commit interval.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from flowkit.errors import NoEvent, ReadOnly, WindowClosed
from flowkit.record import END_OF_TIME, MIN_TIME, Change, Closed
from flowkit.store import SpaceChange, Store
from flowkit.table.cells import Cells, Shape, no_event
from flowkit.table.cursor import Cursor, Mode

V = TypeVar("V")
NEVER = END_OF_TIME + 1
"""Later than every watermark."""


class Open(Generic[V]):
    """A window that is open for a key: `[start, end)` in ms, and its live value."""

    __slots__ = ("end", "start", "value")

    def __init__(self, value: V, start: int, end: int) -> None:
        self.value, self.start, self.end = value, start, end

    def __repr__(self) -> str:
        return f"Open({self.value!r}, {self.start}, {self.end})"


class State:
    """What the engine asks of every kind of table.

    `due` is the least watermark (ms) at which something is to be fired or dropped, or at which `careful_before`
    changes; `moving` says that any event may bring it nearer. An event older than `careful_before`, or `careful_lag` or more behind the watermark, may be late or may
    touch a window that has fired already.
    """

    windowed = True

    def __init__(
        self, shape: Shape, cursor: Cursor, store: Store, *, lateness: int = 0, wants_closed: bool = True
    ) -> None:
        self.shape, self.cursor, self.store = shape, cursor, store
        self.name = shape.name
        self.lateness = lateness
        self.wants_closed = wants_closed
        self.watermark = MIN_TIME
        self.due = NEVER
        self.moving = False
        self.careful_before = MIN_TIME
        self.careful_lag = NEVER
        self.states: dict[Any, Any] = {}
        """Where the quick path looks keys up: the live objects, or nothing where it must think first."""
        self.fresh: dict[Any, Any] = {}

    # Seen by agents, through the table

    def live(self, key: Any) -> Any:
        raise NotImplementedError

    def put(self, key: Any, value: Any) -> None:
        raise NotImplementedError

    def delete(self, key: Any) -> None:
        raise NotImplementedError

    def find(self, key: Any) -> Any:
        """The object of `key` at this event's time, or None; not to be handed out."""
        raise NotImplementedError

    def get(self, key: Any) -> Any:
        """A copy of the value of `key` at this event's time, or None."""
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        value = self.find(key)
        return None if value is None else self.shape.present(value)

    def space_at(self, t: int) -> tuple[dict[Any, Any], dict[Any, Any], Callable[[Any], Any], int, int]:
        """For generated loops: (live objects, fresh ones, load, start, end) of the one window at `t`."""
        raise NotImplementedError

    def windows(self, key: Any) -> list[Open[Any]]:
        raise TypeError(f"table {self.name!r} has no windows")

    def scan(self) -> Iterator[tuple[Any, Open[Any]]]:
        """Every entry as (key, Open) pairs; without a window, start and end are those of all time."""
        raise NotImplementedError

    def now(self) -> int:
        """The event's time (ms). Raises NoEvent inside a batch, whose events have many."""
        t = self.cursor.time
        if t == NEVER:
            raise NoEvent(f"table {self.name!r}: a batch has many times: use table.at(event)[key]")
        return t

    def check_write(self) -> None:
        if self.shape.mode is Mode.READ:
            raise ReadOnly(f"table {self.name!r} is only read by this agent: declare it in tables= to write it")
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)

    def set_mode(self, mode: Mode) -> None:
        """Let the next code that runs write, only read, or not use the table at all."""
        self.shape.mode = mode
        self.refresh()

    def refresh(self) -> None:
        """Point the fast path at the right dict, or away from it where `live` must think first."""
        raise NotImplementedError

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        raise NotImplementedError

    def mark(self) -> None:
        """From here on objects are handed out as copies, until `keep` or `undo`."""
        self.shape.copying = True
        for cells in self.all_cells():
            cells.seal()
        self.refresh()

    def keep(self) -> None:
        self.shape.copying = False
        for cells in self.all_cells():
            cells.seal()
        self.refresh()

    def undo(self) -> None:
        self.shape.copying = False
        for cells in self.all_cells():
            cells.undo()
        self.refresh()

    def changes(self, time: int) -> list[Change[Any, Any]]:
        """What the event since `mark` changed, in order of window and key bytes."""
        found = []
        for cells in self.all_cells():
            end = cells.space[1]
            start, end = self.bounds(end)
            rows = []
            for key in cells.touched():
                old, new = self.value_of(cells.before(key)), self.value_of(cells.find(key))
                encode = self.shape.encode
                old_cell, new_cell = cells.before(key), cells.find(key)
                if (old_cell is None) != (new_cell is None) or (
                    old_cell is not None and encode(old_cell) != encode(new_cell)
                ):
                    new = None if new is None else self.shape.present(new)
                    old = None if old is None else self.shape.present(old)
                    rows.append((self.shape.encode_key(key), Change(key, old, new, time, start, end)))
            rows.sort(key=lambda row: row[0])
            found += [change for _, change in rows]
        return found

    def bounds(self, end: int | None) -> tuple[int, int]:
        return MIN_TIME, END_OF_TIME

    def value_of(self, cell: Any) -> Any:
        """The user's value inside what the cells hold."""
        return cell

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]]]:
        """What the commit saves: changed columns, and spaces dropped whole."""
        changes = [change for cells in self.all_cells() if (change := cells.cut()) is not None]
        self.refresh()
        return changes, []

    def rollback(self, meta: dict[str, Any]) -> None:
        """Go back to the last commit, whose `meta` is given."""
        self.shape.copying = False
        for cells in list(self.all_cells()):
            cells.rollback()
        self.open(meta)

    def open(self, meta: dict[str, Any]) -> None:
        """Take up what a commit left: `meta` and the store."""
        self.watermark = meta.get("watermark", MIN_TIME)
        self.refresh()

    def meta(self) -> dict[str, Any]:
        return {"watermark": self.watermark}

    # Time

    def is_late(self, t: int) -> bool:
        """True if every window of an event at `t` is closed, whatever its key."""
        return False

    def peek(self, watermark: int) -> int | None:
        """The end of the next window to fire at `watermark`, or None."""
        return None

    def fire(self, end: int, watermark: int) -> list[Closed[Any, Any]]:
        """Results of the windows that end at `end`, in order of key bytes."""
        return []

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        """Results of fired windows that were touched since `mark`, as (end, key bytes, result)."""
        return []

    def take_ready(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        """Results of windows that an event completed without the watermark (count windows)."""
        return []

    def settle(self, watermark: int) -> None:
        """The watermark is now here and everything due has fired: drop what is past, set `due` anew."""
        self.watermark = watermark

    def closed_error(self, t: int) -> WindowClosed:
        return WindowClosed(f"table {self.name!r}: the window at {t} is closed (watermark {self.watermark})", self.name)


class PlainState(State):
    """A table without windows (and, with `all_time`, one that fires at the end of all input).

    With a `ttl` a cell is `[value, time of its last use]`. A key is expired once `ttl` ms have passed since then, by
    the event's time or the watermark, whichever is later; so what an event sees never depends on when the key is
    physically removed.
    """

    windowed = False

    def __init__(
        self, shape: Shape, cursor: Cursor, store: Store, *, ttl: int | None, all_time: bool, **kw: Any
    ) -> None:
        super().__init__(shape, cursor, store, **kw)
        self.cells = Cells(shape, store, (shape.name, None))
        self.ttl = ttl
        self.all_time = all_time
        self.fired = False
        self.expiry: list[tuple[int, bytes]] = []
        self.moving = ttl is not None
        if ttl is not None:
            self.live = self.live_ttl  # type: ignore[method-assign]

    def live(self, key: Any) -> Any:
        try:
            value = self.states[key]
        except KeyError:
            return self.load(key)
        self.fresh[key] = value
        return value

    def load(self, key: Any) -> Any:
        if self.shape.mode is not Mode.WRITE:
            return self._read(key)
        return self.cells.load(key)

    def _read(self, key: Any) -> Any:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        value = self.find(key)
        return self.shape.present(value) if value is not None else self.value_of(self.shape.new(key))

    def live_ttl(self, key: Any) -> Any:
        if self.shape.mode is not Mode.WRITE:
            return self._read(key)
        t = self.now()
        cell = self.cells.load(key)
        if self._expired(cell):
            cell = self.shape.new(key)
            self.cells.set(key, cell)
        if cell[1] == MIN_TIME:
            self._expect(t, key)
        cell[1] = max(cell[1], t)
        return cell[0]

    def _expect(self, t: int, key: Any) -> None:
        assert self.ttl is not None
        due = t + self.ttl
        heapq.heappush(self.expiry, (due, self.shape.encode_key(key)))
        self.due = min(self.due, due)

    def _expired(self, cell: Any) -> bool:
        assert self.ttl is not None
        now = max(self.cursor.time, self.cursor.watermark)
        return bool(cell[1] != MIN_TIME and cell[1] + self.ttl <= now)

    def find(self, key: Any) -> Any:
        cell = self.cells.find(key)
        if self.ttl is None or cell is None:
            return cell
        return None if self._expired(cell) else cell[0]

    def value_of(self, cell: Any) -> Any:
        return cell if self.ttl is None or cell is None else cell[0]

    def put(self, key: Any, value: Any) -> None:
        self.check_write()
        if value is None:
            self.delete(key)
            return
        if key not in self.cells.fresh:
            self.shape.check_key(key)
        if self.ttl is None:
            self.cells.set(key, value)
        else:
            self.cells.set(key, [value, self.now()])
            self._expect(self.now(), key)

    def delete(self, key: Any) -> None:
        self.check_write()
        self.cells.delete(key)

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, cell in self.cells.items():
            if self.ttl is None or not self._expired(cell):
                yield key, Open(self.shape.present(self.value_of(cell)), MIN_TIME, END_OF_TIME)

    def space_at(self, t: int) -> tuple[dict[Any, Any], dict[Any, Any], Callable[[Any], Any], int, int]:
        return self.cells.live, self.cells.fresh, self.cells.load, MIN_TIME, END_OF_TIME

    def windows(self, key: Any) -> list[Open[Any]]:
        if not self.all_time:
            return super().windows(key)
        return [Open(self.live(key), MIN_TIME, END_OF_TIME)]

    def refresh(self) -> None:
        quick = self.shape.mode is Mode.WRITE and not self.shape.copying
        self.states, self.fresh = (self.cells.live, self.cells.fresh) if quick else ({}, {})

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self.fired = meta.get("fired", False)
        if self.ttl is not None:
            self.expiry = [(cell[1] + self.ttl, key_bytes) for key_bytes, _, cell in self.cells.items()]
            heapq.heapify(self.expiry)
        self._set_due()

    def meta(self) -> dict[str, Any]:
        return {"watermark": self.watermark, "fired": self.fired}

    def _set_due(self) -> None:
        self.due = self.expiry[0][0] if self.expiry else NEVER
        if self.all_time and not self.fired:
            self.due = min(self.due, END_OF_TIME)

    def peek(self, watermark: int) -> int | None:
        return END_OF_TIME if self.all_time and not self.fired and watermark >= END_OF_TIME - 1 else None

    def fire(self, end: int, watermark: int) -> list[Closed[Any, Any]]:
        self.fired = True
        if not self.wants_closed:
            return []
        return [
            Closed(key, self.shape.final(self.value_of(cell)), MIN_TIME, END_OF_TIME)
            for _, key, cell in self.cells.items()
            if self.ttl is None or not self._expired(cell)
        ]

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        while self.expiry and self.expiry[0][0] <= watermark < END_OF_TIME:
            _, key_bytes = heapq.heappop(self.expiry)
            key = self.shape.decode_key(key_bytes)
            cell = self.cells.find(key)
            if cell is None:
                continue
            assert self.ttl is not None
            if cell[1] + self.ttl <= watermark:
                self.cells.delete(key)
            else:
                heapq.heappush(self.expiry, (cell[1] + self.ttl, key_bytes))
        self._set_due()
