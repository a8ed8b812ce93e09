"""Declared aggregates over overlapping windows: one update an event into its pane, panes merged when a window fires.

    Sliding(30, every=10)     |---------- w1 ----------|
                                      |---------- w2 ----------|
    panes                     |--p1--|--p2--|--p3--|--p4--|          w1 = p1+p2+p3, w2 = p2+p3+p4

The cells are those of the panes; a pane goes when the last window over it is closed.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Any

from flowkit.record import Closed, Pane
from flowkit.table.aligned import AlignedState
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.state import Open
from flowkit.window import Tumbling


class PaneState(AlignedState):
    """`merge(a, b)` makes a new accumulator of two, the earlier pane's first."""

    def __init__(self, *args: Any, pane: int, merge: Callable[[Any, Any], Any], **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.grid = Tumbling(pane, self.window.offset)  # type: ignore[attr-defined]
        self.merge = merge
        self.queued: set[int] = set()

    def _turn(self, t: int) -> None:
        if self.shape.mode is not Mode.WRITE:
            super()._turn(t)
            return
        if self.is_late(t):
            raise self.closed_error(t)
        ((start, end),) = self.grid.windows(t)
        cells = self.cells(start, end)
        self.states, self.fresh = ({} if self.shape.copying else cells.live), cells.fresh
        self.lo, self.hi = start, end

    def cells(self, start: int, end: int) -> Cells:
        cells = self.by_end.get(end)
        if cells is None:
            cells = self.by_end[end] = Cells(self.shape, self.store, (self.name, end))
            self.starts[end] = start
            self._queue(start)
        return cells

    def _queue(self, start: int) -> None:
        """The windows over a pane are to fire."""
        for _, end in self.window.windows(start):
            if end - 1 > self.watermark and end not in self.queued:
                self.queued.add(end)
                heapq.heappush(self.unfired, end)

    def merged(self, start: int, end: int, keys: set[Any] | None = None) -> list[tuple[bytes, Any, Any]]:
        """(key bytes, key, accumulator) of the window `[start, end)`, of all keys or some, by key bytes."""
        found: dict[bytes, tuple[Any, Any]] = {}
        for pane_end in sorted(e for e, s in self.starts.items() if start <= s and e <= end):
            cells = self.by_end[pane_end]
            if keys is None:
                rows = cells.items()
            else:
                rows = [(self.shape.encode_key(k), k, v) for k in keys if (v := cells.find(k)) is not None]
            for key_bytes, key, value in rows:
                known = found.get(key_bytes)
                found[key_bytes] = (key, value if known is None else self.merge(known[1], value))
        return [(key_bytes, *found[key_bytes]) for key_bytes in sorted(found)]

    def _present(self, start: int, end: int, pane: Pane, keys: set[Any] | None = None) -> list[Closed[Any, Any]]:
        present = self.shape.present
        return [Closed(key, present(value), start, end, pane) for _, key, value in self.merged(start, end, keys)]

    def results(self, end: int, pane: Pane) -> list[Closed[Any, Any]]:
        return self._present(end - self._length(end), end, pane)

    def _length(self, end: int) -> int:
        start, _ = next(span for span in self.window.windows(end - 1) if span[1] == end)
        return end - start

    def fire(self, end: int, watermark: int) -> list[Closed[Any, Any]]:
        if end - 1 > watermark:
            self._note_early()
            for cells in self.all_cells():
                cells.seal()
            self.refresh()
            self.early_done.add(end)
            keys = self.touched_early.pop(end, set())
            return self._present(end - self._length(end), end, "early", keys) if self.wants_closed else []
        heapq.heappop(self.unfired)
        self.queued.discard(end)
        self.touched_early.pop(end, None)
        self.watermark = max(self.watermark, end - 1)
        return self.results(end, "on_time") if self.wants_closed else []

    def start_of(self, end: int) -> int:
        return end - self._length(end)

    def _note_early(self) -> None:
        if self.early is None:
            return
        for end, cells in self.by_end.items():
            if touched := cells.touched():
                for _, outer in self.window.windows(self.starts[end]):
                    if outer - 1 > self.watermark:
                        self.touched_early.setdefault(outer, set()).update(touched)

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired = []
        for end, cells in self.by_end.items():
            keys = set(cells.touched())
            if keys:
                for start, outer in self.open_at(self.starts[end]):
                    if outer - 1 <= self.watermark:
                        for late in self._present(start, outer, "late", keys):
                            fired.append((outer, self.shape.encode_key(late.key), late))
        return fired

    def settle(self, watermark: int) -> None:
        self.watermark = watermark
        self.early_done.clear()
        closed_before = self.window.late_before(watermark + 1 - self.lateness)
        for end in [end for end in self.by_end if end <= closed_before]:
            self._drop(end)
        self._set_due()

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self.unfired, self.queued = [], set()
        for start in self.starts.values():
            self._queue(start)
        self._set_due()

    def windows(self, key: Any) -> list[Open[Any]]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        rows = [(s, e, self.merged(s, e, {key})) for s, e in self.open_at(self.now())]
        return [Open(self.shape.present(found[0][2]), s, e) for s, e, found in rows if found]

    def find(self, key: Any) -> Any:
        spans = self.open_at(self.cursor.time)
        found = self.merged(*spans[0], {key}) if spans else []
        return found[0][2] if found else None

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for end in sorted(self.queued):
            start = end - self._length(end)
            for _, key, value in self.merged(start, end):
                yield key, Open(self.shape.present(value), start, end)
