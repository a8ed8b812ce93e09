"""One task's part of one table: what every kind of table does, and tables without windows.

The engine drives a state through `mark … keep|undo` around events that need it, `peek`/`fire`/`settle` as the
watermark moves, and `cut` or `rollback` at the end of a commit interval.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from flowkit.errors import NoEvent, ReadOnly, StateError, WindowClosed
from flowkit.record import END_OF_TIME, MIN_TIME, Change, Closed
from flowkit.store import SpaceChange
from flowkit.table.cells import Cells, Shape, no_event
from flowkit.table.cursor import Cursor, Mode
from flowkit.table.expiry import Expiry
from flowkit.table.firing import Firing
from flowkit.table.stored import Stored
from flowkit.table.timers import Timers

V = TypeVar("V")
NEVER = END_OF_TIME + 1
"""Later than every watermark."""


Result = Closed[Any, Any] | list[tuple[str, Any, int]]
"""What a firing gives: a closed window, or what an operator sends, as (stream, event, time in ms)."""


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
    changes; `moving` says that any event may bring it nearer. An event older than `careful_before`, or `careful_lag` or
    more behind the watermark, may be late or may touch a window that has fired already.
    """

    windowed = True

    def __init__(
        self, shape: Shape, cursor: Cursor, store: Stored, *, lateness: int = 0, wants_closed: bool = True
    ) -> None:
        self.shape, self.cursor, self.store = shape, cursor, store
        self.name = shape.name
        self.space = shape.space
        """What the table is called in the store."""
        self.lateness = lateness
        self.wants_closed = wants_closed
        self.watermark = MIN_TIME
        """How far windows have fired. It lags behind the task's watermark where nothing is due between."""
        self.settled = MIN_TIME
        """The watermark at the last `settle`: what lies above is new."""
        self.fired_for: Callable[[bytes], int] | None = None
        """Where some keys were farther than this before they came here: up to which watermark windows of a key have
        fired already."""
        self.firing: Firing | None = None
        """The firing that is under way."""
        self.limit = NEVER
        """Before this watermark no other table has anything to fire (set whenever this one is to)."""
        self.due = NEVER
        self.moving = False
        self.by_clock = False
        """True if it goes by the clock instead of the watermark; see `clock_due`."""
        self.careful_before = MIN_TIME
        self.careful_lag = NEVER
        self.lo = self.hi = 0
        """The times `[lo, hi)` (ms) for which `states` and `fresh` hold; none while they are equal."""
        self.states: dict[Any, Any] = {}
        """Where the quick path looks keys up: the live objects, or nothing where it must think first."""
        self.fresh: dict[Any, Any] = {}
        self.load: Callable[[Any], Any] = self.live
        """Where the quick path goes for a key that is not there: straight to the cells, if it may."""

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

    def space_at(self, t: int) -> tuple[dict[Any, Any], dict[Any, Any], Callable[[Any], Any] | None, int, int]:
        """For generated loops: (live objects, fresh ones, load, start, end) of the one window at `t`.

        `load` is None if a key that is not live is surely new.
        """
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

    def clock_now(self) -> int:
        """What expiry goes by (ms): the event's time or the watermark, whichever is later; but no end of all time."""
        cursor = self.cursor
        t, watermark = cursor.time, cursor.watermark
        if t >= END_OF_TIME - 1:
            t = MIN_TIME
        return t if watermark <= t or watermark >= END_OF_TIME - 1 else watermark

    def deadline(self, t: int) -> int:
        """The watermark (ms) by which an event at `t` must be handled to be in its first window, or NEVER."""
        return NEVER

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
        """What the event since `mark` changed, in order of window end and key bytes."""
        rows = []
        for cells in self.all_cells():
            end = cells.space[1]
            for key in cells.touched():
                old, new = self.entries(cells.before(key), end), self.entries(cells.find(key), end)
                key_bytes = self.shape.encode_key(key)
                rows += [(change.end, key_bytes, change) for change in self.compare(key, old, new, time)]
        rows.sort(key=_end_and_key)
        return [change for _, _, change in rows]

    def entries(self, cell: Any, end: int | None) -> dict[Any, tuple[Any, int, int]]:
        """The windows in a cell: value, start and end of each, by what tells them apart."""
        return {} if cell is None else {None: (self.value_of(cell), *self.bounds(end))}

    def compare(
        self, key: Any, old: dict[Any, tuple[Any, int, int]], new: dict[Any, tuple[Any, int, int]], time: int
    ) -> Iterator[Change[Any, Any]]:
        """The changes of one cell, from its old entries to the new ones."""
        for name in {**old, **new}:
            before, after = old.get(name), new.get(name)
            if before is None or after is None or self.differ(before[0], after[0]):
                yield self.change(key, before, after, time)

    def differ(self, old: Any, new: Any) -> bool:
        return bool(self.shape.encode_value(old) != self.shape.encode_value(new))

    def change(
        self, key: Any, old: tuple[Any, int, int] | None, new: tuple[Any, int, int] | None, time: int
    ) -> Change[Any, Any]:
        """From one entry to another; its window is the new one's, if there is one."""
        present = self.shape.present
        _, start, end = new or old or (None, MIN_TIME, END_OF_TIME)
        before, after = None if old is None else present(old[0]), None if new is None else present(new[0])
        return Change(key, before, after, time, start, end)

    def bounds(self, end: int | None) -> tuple[int, int]:
        return MIN_TIME, END_OF_TIME

    def value_of(self, cell: Any) -> Any:
        """The user's value inside what the cells hold."""
        return cell

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]]]:
        """What the commit saves: changed columns, and spaces dropped whole."""
        changes = [change for cells in self.all_cells() if (change := cells.cut()) is not None]
        drops: list[tuple[str, int | None]] = []
        for timers in self.all_timers():
            armed, over = timers.cut()
            changes += armed
            drops += over
        self.refresh()
        return changes, drops

    def all_timers(self) -> Iterable[Timers]:
        """The timers by which the state finds what is due; saved with its cells."""
        return ()

    def check_saved(self) -> None:
        """Raise StateError for an object handed out since `mark` that no commit could save."""
        for cells in self.all_cells():
            for key, value in cells.fresh.items():
                try:
                    self.shape.encode(value)
                except Exception as error:
                    raise StateError(
                        f"table {self.name!r}: the value of key {key!r} cannot be saved: {error}. "
                        "Keep only what its type says"
                    ) from error

    def forget(self) -> None:
        """Drop all live objects, to be read anew: a cut that broke off may have left them ahead of the store."""
        for cells in self.all_cells():
            cells.live.clear()
            cells.maybe_stored = True

    def rollback(self, meta: dict[str, Any]) -> None:
        """Go back to the last commit, whose `meta` is given."""
        self.shape.copying = False
        for cells in list(self.all_cells()):
            cells.rollback()
        self.open(meta)

    def open(self, meta: dict[str, Any]) -> None:
        """Take up what a commit left: `meta` and the store."""
        self.watermark = meta.get("watermark", MIN_TIME)
        self.settled = meta.get("settled", MIN_TIME)
        self.firing = Firing.load(meta.get("firing"))
        self.refresh()

    def meta(self) -> dict[str, Any]:
        saved = {"watermark": self.watermark, "settled": self.settled}
        return saved if self.firing is None else saved | {"firing": self.firing.save()}

    # Time

    @property
    def passed(self) -> int:
        """How far windows have fired for the key of the present event."""
        floor = self.cursor.floor
        return floor if floor > self.watermark else self.watermark  # noqa: FURB136  half the time of max

    def has_fired(self, key_bytes: bytes, end: int) -> bool:
        """True if the window of a key that ends at `end` fired before the key came here."""
        return self.fired_for is not None and end - 1 <= self.fired_for(key_bytes)

    def is_late(self, t: int) -> bool:
        """True if every window of an event at `t` is closed, whatever its key."""
        return False

    def peek(self, watermark: int) -> int | None:
        """The end of the next window to fire at `watermark`, or None."""
        return None

    @property
    def clock_due(self) -> int:
        """The reading of the clock (ms) at which something is to be fired."""
        return NEVER

    def fire(self, end: int, watermark: int) -> Iterator[Result]:
        """Results of the windows that end at `end`, in order of key bytes. Each is made when it is asked for.

        What one key of an operator sends, several events as a rule, is one result: no commit comes between them.

        Until the last was asked for the windows are being fired (`firing`). A commit may come between two results, but
        no event that changes the table.
        """
        return iter(())

    def resume(self, watermark: int) -> Iterator[Result]:
        """The results to come of the firing under way: after a commit has cut it, or at its beginning."""
        return iter(())

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        """Results of fired windows that were touched since `mark`, as (end, key bytes, result)."""
        return []

    def take_ready(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        """Results of windows that an event completed without the watermark (count windows)."""
        return []

    def settle(self, watermark: int) -> None:
        """The watermark is now here and everything due has fired: drop what is past, set `due` anew."""
        # Never back: results on their way through a call hold the watermark before the end of their own window.
        self.watermark = self.settled = max(self.watermark, watermark)

    def closed_error(self, t: int) -> WindowClosed:
        return WindowClosed(f"table {self.name!r}: the window at {t} is closed (watermark {self.watermark})", self.name)


class PlainState(State):
    """A table without windows (and, with `all_time`, one that fires at the end of all input).

    With a `ttl` a cell is `[value, time of its last use]`.
    """

    windowed = False

    def __init__(
        self,
        shape: Shape,
        cursor: Cursor,
        store: Stored,
        *,
        ttl: int | None,
        all_time: bool,
        early: int | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(shape, cursor, store, **kw)
        self.cells = Cells(shape, store, (self.space, None))
        self.expiry = None if ttl is None else Expiry(ttl, store, self.space)
        self.all_time, self.early = all_time, early
        self.fired = False
        self.moving = ttl is not None
        self.touched_early: set[Any] = set()
        """Keys that have changed since their last early result."""
        self.early_done = False
        if ttl is None:
            self.lo, self.hi = MIN_TIME, NEVER
        else:
            self.live = self.live_ttl  # type: ignore[method-assign]
        self.load = self._read

    def live(self, key: Any) -> Any:
        value = self.states.get(key)
        if value is None:
            return self.load(key)
        self.fresh[key] = value
        return value

    def _read(self, key: Any) -> Any:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        value = self.find(key)
        return self.shape.present(value if value is not None else self.value_of(self.shape.new(key)))

    def live_ttl(self, key: Any) -> Any:
        if self.shape.mode is not Mode.WRITE:
            return self._read(key)
        self.now()
        cell = self.cells.load(key)
        if self._expired(cell):
            cell = self.shape.new(key)
            self.cells.set(key, cell)
        if cell[1] == MIN_TIME:
            self._expect(self.clock_now(), key)
        cell[1] = max(cell[1], self.clock_now())
        return cell[0]

    def _expect(self, last: int, key: Any) -> None:
        assert self.expiry is not None
        self.expiry.expect(last, self.shape.encode_key(key))
        self.due = min(self.due, last + self.expiry.ttl)

    def _expired(self, cell: Any) -> bool:
        return self.expiry is not None and self.expiry.over(cell[1], self.clock_now())

    def find(self, key: Any) -> Any:
        cell = self.cells.find(key)
        return None if cell is None or self._expired(cell) else self.value_of(cell)

    def value_of(self, cell: Any) -> Any:
        return cell if self.expiry is None else cell[0]

    def put(self, key: Any, value: Any) -> None:
        self.check_write()
        if value is None:
            self.delete(key)
            return
        if key not in self.cells.fresh:
            self.shape.check_key(key)
        if self.expiry is None:
            self.cells.set(key, value)
            return
        self.now()
        known = self.cells.find(key)
        last = self.clock_now() if known is None else max(known[1], self.clock_now())
        self.cells.set(key, [value, last])
        if known is None:
            self._expect(last, key)

    def delete(self, key: Any) -> None:
        self.check_write()
        self.cells.delete(key)

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, cell in self.cells.items():
            if not self._expired(cell):
                yield key, Open(self.shape.present(self.value_of(cell)), MIN_TIME, END_OF_TIME)

    def space_at(self, t: int) -> tuple[dict[Any, Any], dict[Any, Any], Callable[[Any], Any] | None, int, int]:
        load = None if self.cells.all_live() else self.cells.load
        return self.cells.live, self.cells.fresh, load, MIN_TIME, END_OF_TIME

    def windows(self, key: Any) -> list[Open[Any]]:
        if not self.all_time:
            return super().windows(key)
        if self.shape.mode is Mode.READ and self.find(key) is None:
            return []
        return [Open(self.live(key), MIN_TIME, END_OF_TIME)]

    def refresh(self) -> None:
        quick = self.shape.mode is Mode.WRITE and not self.shape.copying
        self.states, self.fresh = (self.cells.live, self.cells.fresh) if quick else ({}, {})
        self.load = self.cells.load if self.shape.mode is Mode.WRITE else self._read

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def all_timers(self) -> Iterable[Timers]:
        return () if self.expiry is None else (self.expiry.timers,)

    def entries(self, cell: Any, end: int | None) -> dict[Any, tuple[Any, int, int]]:
        return {} if cell is None or self._expired(cell) else super().entries(cell, end)

    def keep(self) -> None:
        self._note_early()
        super().keep()

    def mark(self) -> None:
        self._note_early()
        super().mark()

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]]]:
        self._note_early()
        return super().cut()

    def _note_early(self) -> None:
        if self.early is not None:
            self.touched_early.update(self.cells.touched())

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self.fired = meta.get("fired", False)
        self.touched_early = {self.shape.decode_key(key) for key in meta.get("early", ())}
        self.early_done = meta.get("early_done", False)
        for timers in self.all_timers():
            timers.open()
        self._set_due()

    def meta(self) -> dict[str, Any]:
        return super().meta() | {
            "fired": self.fired,
            "early": sorted(map(self.shape.encode_key, self.touched_early)),
            "early_done": self.early_done,
        }

    # Time

    def _set_due(self) -> None:
        self.due = NEVER if self.expiry is None else self.expiry.due
        if self.all_time and not self.fired:
            self.due = min(self.due, END_OF_TIME - 1, self._early_point())

    def _early_point(self) -> int:
        """The watermark at which the next early results are given."""
        if self.early is None:
            return NEVER
        return next_early(MIN_TIME, self.early, self.settled)

    def deadline(self, t: int) -> int:
        return END_OF_TIME - 1 if self.all_time else NEVER

    def peek(self, watermark: int) -> int | None:
        if not self.all_time or self.fired:
            return None
        if watermark >= END_OF_TIME - 1:
            return END_OF_TIME
        if not self.early_done and self._early_point() <= watermark:
            self._note_early()
            if self.touched_early:
                return END_OF_TIME
        return None

    def fire(self, end: int, watermark: int) -> Iterator[Closed[Any, Any]]:
        self.firing = Firing(MIN_TIME, END_OF_TIME, now=self.clock_now())
        if watermark < END_OF_TIME - 1:
            self.cells.seal()
            self.refresh()
            self.firing.keys = sorted(map(self.shape.encode_key, self.touched_early))
            self.early_done = True
        else:
            self.fired = True
        self.touched_early = set()
        if not self.wants_closed:
            self.firing = None
        return self.resume(watermark)

    def resume(self, watermark: int) -> Iterator[Closed[Any, Any]]:
        firing = self.firing
        if firing is None:
            return
        present, pane = self.shape.present, firing.pane
        # What is expired by the watermark has been removed; at the end of time, nothing more expires.
        rows = self.cells.rows(firing.last) if firing.keys is None else self._early_rows(firing)
        for key_bytes, key, cell in rows:
            firing.last = key_bytes
            yield Closed(key, present(self.value_of(cell)), MIN_TIME, END_OF_TIME, pane)
        self.firing = None

    def _early_rows(self, firing: Firing) -> Iterator[tuple[bytes, Any, Any]]:
        for key_bytes in firing.left():
            key = self.shape.decode_key(key_bytes)
            cell = self.cells.find(key)
            if cell is not None and (self.expiry is None or not self.expiry.over(cell[1], firing.now)):
                yield key_bytes, key, cell

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        self.early_done = False
        if self.expiry is not None:
            for key_bytes in self.expiry.passed(watermark):
                key = self.shape.decode_key(key_bytes)
                cell = self.cells.find(key)
                if cell is None:
                    continue
                if self.expiry.over(cell[1], watermark):
                    self.cells.delete(key)
                else:
                    self.expiry.expect(cell[1], key_bytes)
        self._set_due()


def next_early(start: int, early: int, watermark: int) -> int:
    """The first `start + k * early - 1` (k >= 1) above the watermark: where a window gives its next early results."""
    return start + (max((watermark + 1 - start) // early, 0) + 1) * early - 1


def _end_and_key(row: tuple[int, bytes, Any]) -> tuple[int, bytes]:
    return row[:2]
