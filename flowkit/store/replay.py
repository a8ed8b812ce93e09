"""What some logs say, space by space and in key order: what a flush writes.

A memtable would do, but hundreds of thousands of keys in one dict are in no processor's cache: to put them there, to
sort them and to look each one up again took 1.1 of 2.3 µs a record. So the changes of some commits are sorted as soon
as they are read, while they are in the cache; and the sorted ones are merged piece by piece, in ranges of keys that fit
into it (2.0 µs).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from flowkit.store.block import Columns, Value, size_of
from flowkit.store.frame import Frame, Space, SpaceChange
from flowkit.store.merge import newest

SORTED = 2**14
"""So many keys are sorted together. A hot set of fewer is never sorted before the end (0.7 for 1.0 µs a change)."""
PIECE = 1024
"""So many changes, about, are merged at once."""
HELD = 2**19
"""More changes of a space are merged before more are read: what was written again must not take memory."""


class Replay:
    """Spaces of changes, as frames make them."""

    def __init__(self) -> None:
        self.spaces: dict[Space, Changes] = {}

    def apply(self, frame: Frame) -> None:
        """Take a frame that counts."""
        for table, end in frame.drops:
            self.spaces.pop((table, end), None)
        for change in frame.changes:
            if change.keys:
                space = (change.table, change.end)
                changes = self.spaces.get(space)
                if changes is None:
                    changes = self.spaces[space] = Changes()
                changes.add(change)


class Changes:
    """One space's changes: sorted columns, of which a later one's value of a key hides an earlier one's."""

    __slots__ = ("_held", "_limit", "_recent", "_sorted")

    def __init__(self) -> None:
        self._sorted: list[Columns] = []
        self._held = 0
        self._limit = HELD
        self._recent: dict[bytes, Value] = {}

    def add(self, change: SpaceChange) -> None:
        """Take a change that follows all others."""
        self._recent.update(zip(change.keys, change.values, strict=True))
        if len(self._recent) >= SORTED:
            self._sort()
            if self._held > self._limit:
                self._fold()

    def _sort(self) -> None:
        if self._recent:
            keys = sorted(self._recent)
            self._sorted.append((keys, list(map(self._recent.__getitem__, keys))))
            self._held += len(keys)
            self._recent = {}

    def _fold(self) -> None:
        keys, values = [], []
        for more_keys, more_values in self.chunks():
            keys += more_keys
            values += more_values
        self._sorted, self._held = [(keys, values)], len(keys)
        self._limit = max(HELD, 2 * len(keys))  # mostly distinct keys: to merge them again and again would not help

    def size(self) -> int:
        """The bytes of keys and values once each key is there once, about: as the first thousands are, so are all."""
        self._sort()
        keys, values = next(self.chunks(), ([], []))
        if not keys:
            return 0
        last = keys[-1]
        count = sum(bisect_right(some, last) for some, _ in self._sorted)
        size = sum(map(len, keys)) + sum(map(size_of, values))
        return size * self._held // count

    def chunks(self) -> Iterator[Columns]:
        """Every key once, with its newest value, in order."""
        self._sort()
        columns, starts = self._sorted, [0] * len(self._sorted)
        for bound in [*self._bounds(), None]:
            stops = [
                len(keys) if bound is None else bisect_left(keys, bound, start)
                for (keys, _), start in zip(columns, starts, strict=True)
            ]
            parts = [
                (keys[start:stop], values[start:stop])
                for (keys, values), start, stop in zip(columns, starts, stops, strict=True)
                if start < stop
            ]
            starts = stops
            if parts:
                yield parts[0] if len(parts) == 1 else newest(parts)

    def _bounds(self) -> list[bytes]:
        """Keys that cut all of it into pieces of about one size."""
        if self._held <= 2 * PIECE:
            return []
        each = max(1, PIECE // 16)
        some = sorted(key for keys, _ in self._sorted for key in keys[each // 2 :: each])
        return some[PIECE // each :: PIECE // each]
