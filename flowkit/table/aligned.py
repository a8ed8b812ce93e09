"""Tables by aligned windows: tumbling, sliding, cumulative. One space of the store a window end, dropped whole.

watermark passes end - 1                  the window fires
… and, with allowed lateness, end - 1 + lateness: its space is dropped; until then a late event fires it again
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Any

from flowkit.record import MIN_TIME, Closed
from flowkit.store import SpaceChange
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.firing import Firing
from flowkit.table.state import NEVER, Open, State, next_early
from flowkit.window import Aligned


class AlignedState(State):
    """Windows by their ends. `live` serves the one window of a tumbling table; others use `windows`."""

    def __init__(self, *args: Any, window: Aligned, early: int | None = None, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.window = window
        self.size: int = window.size  # type: ignore[attr-defined]
        self.early = early
        self.by_end: dict[int, Cells] = {}
        self.starts: dict[int, int] = {}
        self.unfired: list[int] = []
        self.opened: list[int] = []
        """Ends of the windows opened since the last mark, so that a failed event leaves none behind."""
        self.moving = early is not None
        self.due = MIN_TIME + 1
        self.touched_early: dict[int, set[Any]] = {}
        self.early_done: set[int] = set()
        self.dropped: list[tuple[str, int | None]] = []
        self.ending: Cells | None = None
        """The window that is being fired and has no more to expect: nobody sees it any more."""
        # The window of the last event, so that the next one in it costs one comparison; empty while lo == hi.
        self.lo = self.hi = 0

    # Seen by agents

    def live(self, key: Any) -> Any:
        if not self.lo <= self.cursor.time < self.hi:
            self._turn(self.now())
        value = self.states.get(key)
        if value is None:
            return self.load(key)
        self.fresh[key] = value
        return value

    def _turn(self, t: int) -> None:
        """Make the window at `t` the one that `fresh` belongs to."""
        if self.shape.mode is not Mode.WRITE:
            if self.shape.mode is Mode.OUTSIDE:
                raise no_event(self.name)
            self.states, self.load = {}, self._read
            return
        ((start, end),) = self.window.windows(t)
        if end - 1 + self.lateness <= self.passed:
            raise self.closed_error(t)
        cells = self.cells(start, end)
        self.states, self.fresh, self.load = ({} if self.shape.copying else cells.live), cells.fresh, cells.load
        self.lo, self.hi = start, end

    def cells(self, start: int, end: int) -> Cells:
        """The cells of a window, opened if need be."""
        cells = self.by_end.get(end)
        if cells is None:
            cells = self.by_end[end] = Cells(self.shape, self.store, (self.space, end))
            self.starts[end] = start
            self.opened.append(end)
            self._queue(start, end)
        return cells

    def _queue(self, start: int, end: int) -> None:
        """A window that was opened is to fire."""
        if end - 1 > self.watermark:
            heapq.heappush(self.unfired, end)

    def space_at(self, t: int) -> tuple[dict[Any, Any], dict[Any, Any], Callable[[Any], Any] | None, int, int]:
        ((start, end),) = self.window.windows(t)
        cells = self.cells(start, end)
        return cells.live, cells.fresh, None if cells.all_live() else cells.load, start, end

    def _read(self, key: Any) -> Any:
        value = self.find(key)
        return self.shape.present(value if value is not None else self.shape.new(key))

    def put(self, key: Any, value: Any) -> None:
        self.check_write()
        cells = self._here()
        if value is None:
            cells.delete(key)
            return
        if key not in cells.fresh:
            self.shape.check_key(key)
        cells.set(key, value)

    def delete(self, key: Any) -> None:
        self.check_write()
        self._here().delete(key)

    def _here(self) -> Cells:
        if not self.lo <= self.cursor.time < self.hi:
            self._turn(self.now())
        return self.by_end[self.hi]

    def find(self, key: Any) -> Any:
        for _, end in self.window.windows(self.now())[:1]:
            return self.by_end[end].find(key) if end in self.by_end else None
        return None

    def open_at(self, t: int) -> list[tuple[int, int]]:
        """The windows at `t` that are not closed."""
        closed = self.passed - self.lateness
        return [(start, end) for start, end in self.window.windows(t) if end - 1 > closed]

    def windows(self, key: Any) -> list[Open[Any]]:
        mode = self.shape.mode
        if mode is Mode.OUTSIDE:
            raise no_event(self.name)
        t = self.now()
        spans = self.open_at(t)
        if not spans and mode is Mode.WRITE and self.is_late(t):
            raise self.closed_error(t)
        if mode is Mode.READ:
            found = [(s, e, self.by_end[e].find(key)) for s, e in spans if e in self.by_end]
            return [Open(self.shape.present(value), s, e) for s, e, value in found if value is not None]
        result = []
        for start, end in spans:
            cells = self.cells(start, end)
            result.append(Open(cells.load(key), start, end))
        return result

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for end in sorted(self.by_end):
            for _, key, value in self.by_end[end].items():
                yield key, Open(self.shape.present(value), self.starts[end], end)

    def refresh(self) -> None:
        self.states, self.fresh = {}, {}
        self.lo = self.hi = 0

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        return iter(list(self.by_end.values()))

    def bounds(self, end: int | None) -> tuple[int, int]:
        assert end is not None
        return self.starts[end], end

    def keep(self) -> None:
        self._note_early()
        super().keep()

    def mark(self) -> None:
        self._note_early()
        self.opened.clear()
        super().mark()

    def undo(self) -> None:
        super().undo()
        for end in self.opened:
            self._forget(end)
        self.opened.clear()

    def _forget(self, end: int) -> None:
        """Take back that a window was opened."""
        del self.by_end[end], self.starts[end]
        if end in self.unfired:
            self.unfired.remove(end)
            heapq.heapify(self.unfired)

    def _note_early(self) -> None:
        if self.early is not None:
            for end, cells in self.by_end.items():
                if end - 1 > self.watermark and (touched := cells.touched()):
                    self.touched_early.setdefault(end, set()).update(touched)

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]]]:
        self._note_early()
        self.opened.clear()
        changes, _ = super().cut()
        if self.ending is not None and (change := self.ending.cut()) is not None:
            changes.append(change)
        dropped, self.dropped = self.dropped, []
        return changes, dropped

    def rollback(self, meta: dict[str, Any]) -> None:
        self.dropped = []
        super().rollback(meta)

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        starts = dict(meta.get("open", []))
        stored = self.store.ends(self.space)
        self.by_end = {e: self.by_end.get(e) or Cells(self.shape, self.store, (self.space, e)) for e in stored}
        self.ending = None
        if self.firing is not None and self._is_last(self.firing):
            self.ending = self.by_end.pop(self.firing.end, None) or Cells(
                self.shape, self.store, (self.space, self.firing.end)
            )
        self.starts = {end: starts[end] for end in self.by_end}
        self.unfired = [end for end in stored if end - 1 > self.watermark]
        self.opened = []
        self.early_done.clear()  # a step that broke off may have left it
        encoded = meta.get("early", [])
        self.touched_early = {end: {self.shape.decode_key(key) for key in keys} for end, keys in encoded}
        self.early_done = set(meta.get("early_done", ()))
        self._set_due()

    def meta(self) -> dict[str, Any]:
        saved = super().meta() | {"open": list(self.starts.items())}
        if self.early_done:
            saved["early_done"] = sorted(self.early_done)
        if self.touched_early:
            encode = self.shape.encode_key
            saved["early"] = [[end, sorted(map(encode, keys))] for end, keys in self.touched_early.items()]
        return saved

    # Time

    def deadline(self, t: int) -> int:
        # An event that no window covers is late by its own time.
        return min((end - 1 for _, end in self.open_at(t)), default=t + self.lateness)

    def is_late(self, t: int) -> bool:
        return t < self.window.late_before(self.passed + 1 - self.lateness)

    def peek(self, watermark: int) -> int | None:
        if self.unfired and self.unfired[0] - 1 <= watermark:
            return self.unfired[0]
        if self.early is not None and watermark > self.settled:
            self._note_early()
            changed = self.touched_early.keys() - self.early_done
            return min((end for end in changed if self._early_due(end) <= watermark), default=None)
        return None

    def _early_due(self, end: int) -> int:
        """The watermark at which the window ending at `end` gives its next early result."""
        assert self.early is not None
        point = next_early(self.start_of(end), self.early, self.settled)
        return point if point < end - 1 else NEVER

    def start_of(self, end: int) -> int:
        """The start of the window that ends at `end`."""
        return self.starts[end]

    def fire(self, end: int, watermark: int) -> Iterator[Closed[Any, Any]]:
        self.firing = Firing(self.start_of(end), end)
        keys = self.touched_early.pop(end, set())
        if end - 1 > watermark:
            for cells in self.all_cells():
                cells.seal()
            self.refresh()
            self.early_done.add(end)
            self.firing.keys = sorted(map(self.shape.encode_key, keys))
        else:
            self._take_unfired()
            self.watermark = max(self.watermark, end - 1)
            if self._is_last(self.firing):
                self.ending = self._hide(end)
        if not self.wants_closed:
            self._fired()
        return self.resume(watermark)

    def _take_unfired(self) -> None:
        heapq.heappop(self.unfired)

    def _is_last(self, firing: Firing) -> bool:
        """True if the windows go once they have fired."""
        return firing.keys is None and self.lateness == 0

    def resume(self, watermark: int) -> Iterator[Closed[Any, Any]]:
        firing, ending = self.firing, self.ending
        if firing is None:
            return
        start, end, pane = firing.start, firing.end, firing.pane
        hand_over = self.shape.present if ending is None else self.shape.final
        for key_bytes, key, value in self.rows(firing):
            firing.last = key_bytes
            if self.has_fired(key_bytes, end):
                continue
            if ending is not None:
                ending.release(key)
            yield Closed(key, hand_over(value), start, end, pane)
        self._fired()

    def rows(self, firing: Firing) -> Iterator[tuple[bytes, Any, Any]]:
        """(key bytes, key, object) of what is still to be fired, in order of key bytes."""
        cells = self.ending or self.by_end[firing.end]
        return cells.rows(firing.last) if firing.keys is None else self._early_rows(firing, cells)

    def _early_rows(self, firing: Firing, cells: Cells) -> Iterator[tuple[bytes, Any, Any]]:
        for key_bytes in firing.left():
            key = self.shape.decode_key(key_bytes)
            value = cells.find(key)
            if value is not None:
                yield key_bytes, key, value

    def _fired(self) -> None:
        """All results of the windows are given out."""
        assert self.firing is not None
        if self.ending is not None:
            self.dropped.append((self.space, self.firing.end))
        self.firing = self.ending = None

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired: list[tuple[int, bytes, Closed[Any, Any]]] = []
        for end, cells in self.by_end.items():
            if end - 1 <= self.passed:
                for key in cells.touched():
                    value = cells.find(key)
                    if value is not None:
                        late = Closed(key, self.shape.present(value), self.starts[end], end, "late")
                        fired.append((end, self.shape.encode_key(key), late))
        return fired

    def _hide(self, end: int) -> Cells:
        """The window is over: nobody finds it any more."""
        del self.starts[end]
        self.touched_early.pop(end, None)
        if self.hi == end:
            self.refresh()
        return self.by_end.pop(end)

    def _drop(self, end: int) -> None:
        self._hide(end)
        self.dropped.append((self.space, end))

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        self.early_done.clear()
        if self.lateness:
            for end in [end for end in self.by_end if end - 1 + self.lateness <= watermark]:
                self._drop(end)
        self._set_due()

    def _set_due(self) -> None:
        """Between two ends of windows nothing changes, so the engine need not ask before the next one."""
        if self.watermark == MIN_TIME:
            # Before the first watermark: come back as soon as there is one.
            self.careful_before, self.due = MIN_TIME, MIN_TIME + 1
            return
        fired, closed = self.watermark + 1, self.watermark + 1 - self.lateness
        self.due = self.window.next_end(fired) - 1
        if self.lateness:
            self.careful_before = self.window.last_end(fired)
            self.due = min(self.due, self.window.next_end(closed) - 1 + self.lateness)
            # Where windows leave gaps, a late event may lie in one.
            self.careful_before = max(self.careful_before, self.window.late_before(closed))
        else:
            self.careful_before = self.window.late_before(closed)
        if self.early is not None:
            # Every move of the watermark may pass the early point of a window that is still to be opened; and amid a
            # firing that is taken up again, early results of the same move may be still to come.
            self.due = self.settled + 1
