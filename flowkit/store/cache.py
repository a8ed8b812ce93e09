"""What a worker's stores keep in memory, under one budget: memtables, blocks, single rows, indexes.

Both caches forget by generations: what is used moves to the young one; when that is full, it becomes the old one, and
what was still in the old one is gone. Nothing is kept in order, so a hit in the young generation is one look into a
dict.
"""

import weakref
from collections.abc import KeysView
from typing import Any, Protocol

from flowkit.store.frame import Space

ROW_OVERHEAD = 180
"""Bytes that Python takes for a cached row beside key and value: two bytes objects and a place in a dict."""
BLOCK_OVERHEAD = 250
LIKELY_BLOCK = 4096


class Member(Protocol):
    """The journal of a store, as the budget sees it."""

    memtable_bytes: int

    def make_room(self) -> None:
        """Begin to write the memtable to disk, as soon as that can be."""


class Budget:
    """The memory (bytes) that all stores of a worker share: half for memtables, half for rows and blocks.

    Indexes and filters come on top: about four bytes a key.
    """

    def __init__(self, total: int = 256 * 2**20) -> None:
        self.total = total
        self.memtables = total // 4
        """The most that active memtables may take; while they are written out as much again may be in use."""
        self.rows = total * 3 // 8
        self.blocks = BlockCache(total // 8)
        self._members: weakref.WeakSet[Any] = weakref.WeakSet()

    def join(self, member: Member) -> None:
        """Take part in the budget until the member is gone."""
        self._members.add(member)

    def leave(self, member: Member) -> None:
        """End to take part."""
        self._members.discard(member)

    def rows_each(self) -> int:
        """What one store's rows may take (bytes)."""
        return self.rows // max(1, len(self._members))

    def check(self) -> None:
        """A memtable has grown: if all are too large together, the largest goes to disk."""
        if sum(member.memtable_bytes for member in self._members) > self.memtables:
            max(self._members, key=_memtable_bytes).make_room()


def _memtable_bytes(member: Member) -> int:
    return member.memtable_bytes


class BlockCache:
    """Raw blocks by place: an integer, unique in the process. Its size is in bytes.

    A block is kept when it is missed for the second time, not long after the first: what is read once drives nothing
    out, and is read into memory that the last one left (8.6 -> 8.1 µs a read where nearly all miss).
    `young` may be looked into directly: a call less, where every tenth of a microsecond counts. What is found there is
    a hit all the same, for whoever looks to count.
    """

    __slots__ = ("_asked", "_half", "_most_asked", "_old", "_young_bytes", "hits", "misses", "young")

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._asked: set[int] = set()
        """Places that were missed lately, and not kept."""
        self._most_asked = size // LIKELY_BLOCK
        self.young: dict[int, bytes] = {}
        self._old: dict[int, bytes] = {}
        self._young_bytes = 0
        self.hits = self.misses = 0

    def get(self, place: int) -> bytes | None:
        """The block at `place`, or None."""
        block = self.young.get(place)
        if block is not None:
            self.hits += 1
            return block
        block = self._old.pop(place, None)
        if block is None:
            self.misses += 1
            return None
        self.hits += 1
        self.put(place, block)
        return block

    def offer(self, place: int, block: bytes) -> None:
        """Keep a block that was missed, if it was missed before."""
        asked = self._asked
        if place in asked:
            asked.remove(place)
            self.put(place, block)
        elif len(asked) < self._most_asked:
            asked.add(place)
        else:
            self._asked = {place}

    def put(self, place: int, block: bytes) -> None:
        """Keep a block."""
        self.young[place] = block
        self._young_bytes += len(block) + BLOCK_OVERHEAD
        if self._young_bytes > self._half:
            self._old, self.young, self._young_bytes = self.young, {}, 0

    def __len__(self) -> int:
        return len(self.young) + len(self._old)


def block_cache(store: object) -> BlockCache | None:
    """The cache of a store's blocks, which it may share with others; None of a kind of store that tells nothing."""
    cache = getattr(store, "blocks", None)
    return cache if isinstance(cache, BlockCache) else None


class Rows:
    """Single values that were read from disk, by space and key: the quickest answer for keys that are asked for again.

    What is written since is in the memtable, which is asked first; so a row is stale only once that has gone to disk,
    and `forget` is called then.
    """

    __slots__ = ("_bytes", "_old", "limit", "young")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.young: dict[Space, dict[bytes, Any]] = {}
        self._old: dict[Space, dict[bytes, Any]] = {}
        self._bytes = 0

    def older(self, space: Space, key: bytes) -> Any:
        """The value if it is not in `young`, where it should be looked for first; None if it is nowhere."""
        rows = self._old.get(space)
        if rows is None:
            return None
        value = rows.pop(key, None)
        if value is not None:
            self.put(space, key, value)
        return value

    def put(self, space: Space, key: bytes, value: bytes) -> None:
        """Keep a value that was read from disk."""
        rows = self.young.get(space)
        if rows is None:
            rows = self.young[space] = {}
        rows[key] = value
        self._bytes += len(key) + len(value) + ROW_OVERHEAD
        if self._bytes > self.limit // 2:
            self._old, self.young, self._bytes = self.young, {}, 0

    def forget(self, space: Space, keys: KeysView[bytes]) -> None:
        """The values of `keys` are no longer the newest on disk."""
        for generation in (self.young, self._old):
            rows = generation.get(space)
            if rows:
                for key in rows.keys() & keys:
                    del rows[key]

    def drop(self, space: Space) -> None:
        """The whole space is gone."""
        self.young.pop(space, None)
        self._old.pop(space, None)
