"""When keys are to be looked at again: those that come next in memory, all of them in the store.

    entry   (time in ms, key bytes): a hint, judged when its time has come; one too many does no harm
    bucket  the entries of `[end - width, end)`, a space of the store, dropped whole once its time has passed

So a table may have any number of timers, and opening it reads those that are near. A table's cells and their timers
are saved by the same frame: a cell that is saved has its timer.
"""

import heapq
from collections.abc import Iterator
from itertools import chain, islice

from flowkit.record import END_OF_TIME
from flowkit.store import SpaceChange
from flowkit.table.stored import Stored

NEAR = 30_000
"""So many entries may lie in memory; of more, the later half is left to the store."""
_SIGN = 1 << 63

Entry = tuple[int, bytes]
NO_END: Entry = (END_OF_TIME + 2, b"")
"""Later than every entry."""


class Timers:
    """Entries in order of time, then key. `name` is their table in the store, `width` that of a bucket (ms)."""

    def __init__(self, store: Stored, name: str, width: int, *, near: int = NEAR) -> None:
        self.store, self.name, self.width, self.near = store, name, max(1, width), near
        self._heap: list[Entry] = []
        self._horizon: Entry = NO_END
        """This entry and what follows are not in the heap."""
        self._new: dict[Entry, None] = {}
        """Entries that no frame has yet; in the heap too, if they are near."""
        self._cut: dict[Entry, None] = {}
        """Those of the last frame, which the store shows only once that is prepared."""
        self._buckets: set[int] = set()
        """The ends of the buckets that the store has or will have."""

    def arm(self, time: int, key: bytes) -> None:
        """Come back to `key` at `time`; after the end of time there is nothing to come back to."""
        if time > END_OF_TIME:
            return
        entry = (time, key)
        self._new[entry] = None
        if entry < self._horizon:
            heapq.heappush(self._heap, entry)
            if len(self._heap) > self.near:
                self._narrow()

    @property
    def first(self) -> Entry | None:
        """The next entry."""
        heap = self._heap
        if heap:
            return heap[0]
        while not self._heap and self._horizon < NO_END:
            self._widen()
        return self._heap[0] if self._heap else None

    @property
    def due(self) -> int:
        """The time of the next entry; later than all time if there is none."""
        first = self.first
        return END_OF_TIME + 1 if first is None else first[0]

    def pop(self) -> Entry:
        """Take the next entry, of which there must be one."""
        first = self.first
        assert first is not None
        heapq.heappop(self._heap)
        self._new.pop(first, None)
        return first

    def drop_first(self) -> None:
        """Take the entry that `first` has just given."""
        self._new.pop(heapq.heappop(self._heap), None)

    def passed(self, time: int) -> Iterator[bytes]:
        """Take the keys of all entries up to `time`."""
        while self.due <= time:
            yield self.pop()[1]

    # Commit and recovery

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]]]:
        """What a commit saves: entries since the last one, and buckets of which nothing is to come."""
        by_bucket: dict[int, list[bytes]] = {}
        for time, key in self._new:
            by_bucket.setdefault(self._bucket_of(time), []).append(_encode(time, key))
        self._buckets |= by_bucket.keys()
        over = {end for end in self._buckets if end <= self.due and (end, b"") <= self._horizon}
        self._buckets -= over
        self._cut, self._new = self._new, {}
        changes = [SpaceChange(self.name, end, keys, [b""] * len(keys)) for end, keys in by_bucket.items()]
        return changes, [(self.name, end) for end in sorted(over)]

    def open(self) -> None:
        """Begin with what the store has."""
        self._heap, self._new, self._cut = [], {}, {}
        self._buckets = set(self.store.ends(self.name))
        self._horizon = (min(self._buckets) - self.width, b"") if self._buckets else NO_END

    # Near and far

    def _bucket_of(self, time: int) -> int:
        return (time // self.width + 1) * self.width

    def _narrow(self) -> None:
        """Leave the later half of the heap to the store."""
        self._heap.sort()
        self._horizon = self._heap[len(self._heap) // 2]
        del self._heap[len(self._heap) // 2 :]

    def _widen(self) -> None:
        """Load what comes next; the heap is empty."""
        begins = self._horizon
        recent = [entry for entries in (self._new, self._cut) for entry in entries if entry >= begins]
        ends = sorted(
            end for end in self._buckets.union(self._bucket_of(time) for time, _ in recent) if end > begins[0]
        )
        if not ends:
            self._horizon = NO_END
            return
        rows = self.store.scan((self.name, ends[0]), start=_encode(*begins))
        stored = [_decode(name) for name, _ in islice(rows, self.near + 1)]
        self._horizon = stored[-1] if len(stored) > self.near else (ends[0], b"")
        self._heap = sorted({entry for entry in chain(stored, recent) if entry < self._horizon})


def _encode(time: int, key: bytes) -> bytes:
    return (time + _SIGN).to_bytes(8, "big") + key


def _decode(name: bytes) -> Entry:
    return int.from_bytes(name[:8], "big") - _SIGN, name[8:]
