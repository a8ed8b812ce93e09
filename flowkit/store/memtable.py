"""A memtable: what was committed since the last flush, by space. Changes wait in columns until someone asks for a key.

So a closed window, which is dropped whole, costs a list append a commit, and is not merged or sorted at all unless it
has tens of thousands of changes.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import Any

from flowkit.store.block import MISSING, Columns, Value
from flowkit.store.frame import Frame, Space, SpaceChange

ENTRY_BYTES = 150
"""What Python takes for a key and its value beside their bytes: two bytes objects and a place in a dict."""
WAITING, WAITING_IN_WINDOW = 4_000, 80_000
"""So many changes of a space wait, unless someone reads: more where the whole space may be dropped before. Beyond that
the oldest are merged, commit by commit: all at once held up the event loop for 10 ms."""
CHUNK = 4096


class Keys:
    """One space's keys."""

    __slots__ = ("_merged", "_sorted", "_waiting", "_waiting_count", "bytes", "keep_deletes", "waiting")

    def __init__(self, *, keep_deletes: bool, waiting: int = WAITING) -> None:
        self.keep_deletes, self.waiting = keep_deletes, waiting
        self.bytes = 0
        """What they take in memory, about."""
        self._merged: dict[bytes, Value] = {}
        self._sorted: list[bytes] | None = None
        self._waiting: deque[SpaceChange] = deque()
        self._waiting_count = 0

    def add(self, change: SpaceChange, size: int) -> None:
        """Take a change, whose keys and values have `size` bytes together."""
        self._waiting.append(change)
        self._waiting_count += len(change.keys)
        self.bytes += size + ENTRY_BYTES * len(change.keys)
        while self._waiting_count > self.waiting:
            self._merge(self._waiting.popleft())

    def merged(self) -> dict[bytes, Value]:
        """All keys with their newest values; None for a deleted one."""
        while self._waiting:
            self._merge(self._waiting.popleft())
        return self._merged

    def _merge(self, change: SpaceChange) -> None:
        merged, before = self._merged, len(self._merged)
        count = before + self._waiting_count
        merged.update(zip(change.keys, change.values, strict=True))
        if not self.keep_deletes and None in change.values:
            for key in change.keys:
                if merged.get(key, MISSING) is None:
                    del merged[key]
            self._sorted = None
        elif len(merged) != before:
            self._sorted = None
        self._waiting_count -= len(change.keys)
        # Of what was written twice only the last is kept.
        self.bytes = self.bytes * (len(merged) + self._waiting_count) // max(1, count)

    def ordered(self) -> list[bytes]:
        """The keys in order. Kept until one is added."""
        merged = self.merged()
        if self._sorted is None:
            self._sorted = sorted(merged)
        return self._sorted

    def scan(self, start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[Columns]:
        """Keys in `[start, stop)` as they are now, in chunks; the chunks in descending order if `reverse`."""
        keys = self.ordered()
        a = 0 if start is None else bisect_left(keys, start)
        b = len(keys) if stop is None else bisect_left(keys, stop)
        keys = keys[a:b]
        if len(keys) <= CHUNK:
            # The values are taken at once: what is committed while the scan goes on is no part of it.
            return iter([(keys, list(map(self._merged.__getitem__, keys)))] if keys else [])
        values = list(map(self._merged.__getitem__, keys))
        places = range(0, len(keys), CHUNK)
        return ((keys[n : n + CHUNK], values[n : n + CHUNK]) for n in (reversed(places) if reverse else places))

    async def let_go(self) -> None:
        """Forget everything, bit by bit."""
        merged, self._sorted = self.merged(), None
        while merged:
            for _ in range(min(len(merged), CHUNK)):
                merged.popitem()
            await asyncio.sleep(0)

    def purge(self, now: int) -> None:
        """Forget what has expired. Only where nothing older lies beneath."""
        for key in [k for k, v in self.merged().items() if type(v) is list and v[0] <= now]:
            del self._merged[key]
            self._sorted = None


class Memtable:
    """Spaces of keys, changed by frames."""

    def __init__(self, *, keep_deletes: bool = True) -> None:
        self.keep_deletes = keep_deletes
        self.spaces: dict[Space, Keys] = {}
        self.dropped: set[Space] = set()
        """Spaces that were dropped since: what is older than this memtable does not count for them."""

    def apply(self, frame: Frame, size: int = 0) -> None:
        """Take a frame that counts; `size` is that of its record (bytes)."""
        for table, end in frame.drops:
            self.drop((table, end))
        total = sum(len(change.keys) for change in frame.changes)
        for change in frame.changes:
            if not change.keys:
                continue
            space = (change.table, change.end)
            keys = self.spaces.get(space)
            if keys is None:
                waiting = WAITING if change.end is None else WAITING_IN_WINDOW
                keys = self.spaces[space] = Keys(keep_deletes=self.keep_deletes, waiting=waiting)
            keys.add(change, size * len(change.keys) // total)

    def drop(self, space: Space) -> None:
        """Forget a space, here and beneath."""
        self.spaces.pop(space, None)
        if self.keep_deletes:
            self.dropped.add(space)

    def get(self, space: Space, key: bytes) -> Value:
        """The newest value, None if it is deleted, MISSING if it is not here."""
        keys = self.spaces.get(space)
        return MISSING if keys is None else keys.merged().get(key, MISSING)

    def columns(self) -> list[SpaceChange]:
        """Everything as changes."""
        everything = [(space, keys.merged()) for space, keys in self.spaces.items()]
        return [
            SpaceChange(table, end, list(merged), list(merged.values()))
            for (table, end), merged in everything
            if merged
        ]

    async def let_go(self) -> None:
        """Forget everything, some thousand keys at a time: to free them all at once would hold up the event loop."""
        for keys in self.spaces.values():
            await keys.let_go()
        self.spaces = {}

    def bytes(self) -> int:
        """What it takes in memory, about."""
        return sum(keys.bytes for keys in self.spaces.values())

    def live_bytes(self) -> int:
        """The same, once only the newest value of each key is kept."""
        for keys in self.spaces.values():
            keys.merged()
        return self.bytes()


def order_of(space: Space) -> tuple[Any, ...]:
    """Sorts spaces as files hold them: by table, then by end, with those that have none first."""
    table, end = space
    return (table, end is not None, end or 0)
