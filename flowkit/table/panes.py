"""Declared aggregates over overlapping windows: one update an event into its pane, panes merged when a window fires.

    Sliding(30, every=10)     |---------- w1 ----------|
                                      |---------- w2 ----------|
    panes                     |--p1--|--p2--|--p3--|--p4--|          w1 = p1+p2+p3, w2 = p2+p3+p4

The cells are those of the panes; a pane goes when the last window over it is closed.
"""

import heapq
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import groupby
from typing import Any

from flowkit.record import Change, Closed
from flowkit.table.aligned import AlignedState
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.firing import Firing
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
        self.states, self.fresh, self.load = ({} if self.shape.copying else cells.live), cells.fresh, cells.load
        self.lo, self.hi = start, end

    def _queue(self, start: int, end: int) -> None:
        """The windows over a pane are to fire."""
        for _, outer in self.window.windows(start):
            if outer - 1 > self.watermark and outer not in self.queued:
                self.queued.add(outer)
                heapq.heappush(self.unfired, outer)

    def _forget(self, end: int) -> None:
        del self.by_end[end], self.starts[end]
        self._queue_all()

    def _queue_all(self) -> None:
        self.unfired, self.queued = [], set()
        for end, start in self.starts.items():
            self._queue(start, end)

    def merged(
        self,
        start: int,
        end: int,
        keys: set[Any] | None = None,
        look: Callable[[Cells, Any], Any] = Cells.find,
    ) -> list[tuple[bytes, Any, Any]]:
        """(key bytes, key, accumulator) of the window `[start, end)`, of all keys or some, by key bytes."""
        found: dict[bytes, tuple[Any, Any]] = {}
        for pane_end in sorted(e for e, s in self.starts.items() if start <= s and e <= end):
            cells = self.by_end[pane_end]
            if keys is None:
                rows = cells.items()
            else:
                rows = [(self.shape.encode_key(k), k, v) for k in keys if (v := look(cells, k)) is not None]
            for key_bytes, key, value in rows:
                known = found.get(key_bytes)
                found[key_bytes] = (key, value if known is None else self.merge(known[1], value))
        return [(key_bytes, *found[key_bytes]) for key_bytes in sorted(found)]

    def _take_unfired(self) -> None:
        self.queued.discard(heapq.heappop(self.unfired))

    def _is_last(self, firing: Firing) -> bool:
        # The panes of a window are those of others too.
        return False

    def rows(self, firing: Firing) -> Iterator[tuple[bytes, Any, Any]]:
        """Of all panes of the window by key bytes; those of one key merged, the earlier first."""
        ends = sorted(e for e, s in self.starts.items() if firing.start <= s and e <= firing.end)
        panes = [self.by_end[end] for end in ends]
        rows: Iterator[tuple[bytes, Any, Any]]
        if firing.keys is None:
            rows = heapq.merge(*(cells.rows(firing.last) for cells in panes), key=_key_bytes)
        else:
            rows = self._rows_of(firing.left(), panes)
        for key_bytes, same in groupby(rows, key=_key_bytes):
            (_, key, value), *later = same
            yield key_bytes, key, reduce(self.merge, [value for _, _, value in later], value)

    def _rows_of(self, keys: list[bytes], panes: list[Cells]) -> Iterator[tuple[bytes, Any, Any]]:
        for key_bytes in keys:
            key = self.shape.decode_key(key_bytes)
            for cells in panes:
                value = cells.find(key)
                if value is not None:
                    yield key_bytes, key, value

    def start_of(self, end: int) -> int:
        return next(start for start, outer in self.window.windows(end - 1) if outer == end)

    def _note_early(self) -> None:
        if self.early is None:
            return
        for end, cells in self.by_end.items():
            if touched := cells.touched():
                for _, outer in self.window.windows(self.starts[end]):
                    if outer - 1 > self.watermark:
                        self.touched_early.setdefault(outer, set()).update(touched)

    def fire_late(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired: list[tuple[int, bytes, Closed[Any, Any]]] = []
        for (start, outer), keys in self._touched().items():
            if outer - 1 <= self.passed:
                fired += [
                    (outer, key_bytes, Closed(key, self.shape.present(value), start, outer, "late"))
                    for key_bytes, key, value in self.merged(start, outer, keys)
                ]
        return fired

    def _touched(self) -> dict[tuple[int, int], set[Any]]:
        """The open windows that were touched since the last boundary, and which of their keys."""
        found: dict[tuple[int, int], set[Any]] = {}
        for end, cells in self.by_end.items():
            if touched := cells.touched():
                for span in self.open_at(self.starts[end]):
                    found.setdefault(span, set()).update(touched)
        return found

    def changes(self, time: int) -> list[Change[Any, Any]]:
        """What the event since `mark` changed: windows, not panes."""
        changes = []
        for (start, end), keys in sorted(self._touched().items(), key=_by_end):
            before = {row[0]: row[2] for row in self.merged(start, end, keys, Cells.before)}
            for key_bytes, key, value in self.merged(start, end, keys):
                old = before.get(key_bytes)
                if old is None or self.differ(old, value):
                    changes.append(self.change(key, old and (old, start, end), (value, start, end), time))
        return changes

    def settle(self, watermark: int) -> None:
        self.watermark = self.settled = max(self.watermark, watermark)
        self.early_done.clear()
        closed_before = self.window.late_before(watermark + 1 - self.lateness)
        for end in [end for end in self.by_end if end <= closed_before]:
            self._drop(end)
        self._set_due()

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self._queue_all()

    def windows(self, key: Any) -> list[Open[Any]]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        rows = [(s, e, self.merged(s, e, {key})) for s, e in self.open_at(self.now())]
        return [Open(self.shape.present(found[0][2]), s, e) for s, e, found in rows if found]

    def find(self, key: Any) -> Any:
        spans = self.open_at(self.now())
        found = self.merged(*spans[0], {key}) if spans else []
        return found[0][2] if found else None

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        spans = {span for start in self.starts.values() for span in self.open_at(start)}
        for start, end in sorted(spans, key=_end_of):
            for _, key, value in self.merged(start, end):
                yield key, Open(self.shape.present(value), start, end)


def _key_bytes(row: tuple[bytes, Any, Any]) -> bytes:
    return row[0]


def _end_of(span: tuple[int, int]) -> int:
    return span[1]


def _by_end(row: tuple[tuple[int, int], set[Any]]) -> int:
    return row[0][1]
