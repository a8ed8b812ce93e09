"""Merging sorted columns: several sources, of which a newer one's value of a key hides an older one's.

Sources give chunks `(keys, values)`. Whole chunks are merged at once, by a dict and a sort, since Python does in C what
it is given in bulk: 0.3 µs a record where a heap of single records takes 1.5.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from flowkit.store.block import Columns, Value


class _Source:
    """A source and what is left of its current chunk, `[start, stop)`.

    Places move, lists do not: to slice off what is left would count references to each of its records at every step
    (0.65 for 0.74 µs a record of 8 sources, 0.80 for 1.04 of 24).
    """

    __slots__ = ("chunks", "keys", "start", "stop", "values")

    def __init__(self, chunks: Iterator[Columns]) -> None:
        self.chunks = chunks
        self.keys: list[bytes] = []
        self.values: list[Value] = []
        self.start = self.stop = 0

    def fill(self) -> bool:
        """Have at least one record; False at the end."""
        while self.start == self.stop:
            chunk = next(self.chunks, None)
            if chunk is None:
                return False
            self.keys, self.values = chunk
            self.start, self.stop = 0, len(self.keys)
        return True

    def take_up_to(self, bound: bytes) -> Columns:
        start = self.start
        self.start = bisect_right(self.keys, bound, start, self.stop)
        return self._between(start, self.start)

    def take_from(self, bound: bytes) -> Columns:
        stop = self.stop
        self.stop = bisect_left(self.keys, bound, self.start, stop)
        return self._between(self.stop, stop)

    def rest(self) -> Columns:
        return self._between(self.start, self.stop)

    def _between(self, start: int, stop: int) -> Columns:
        if stop - start == len(self.keys):
            return self.keys, self.values
        return self.keys[start:stop], self.values[start:stop]


def merge(sources: Iterable[Iterator[Columns]], *, reverse: bool = False) -> Iterator[Columns]:
    """Chunks of all sources, oldest first, as one: each key once, with its newest value (also if that is None).

    Every chunk is in ascending order. With `reverse` the chunks themselves come in descending order, there and here.
    """
    left = [_Source(chunks) for chunks in sources]
    while True:
        left = [source for source in left if source.fill()]
        if not left:
            return
        if len(left) == 1:
            yield left[0].rest()
            yield from left[0].chunks
            return
        if reverse:
            bound = max(source.keys[source.start] for source in left)
            parts = [source.take_from(bound) for source in left]
        else:
            bound = min(source.keys[source.stop - 1] for source in left)
            parts = [source.take_up_to(bound) for source in left]
        parts = [part for part in parts if part[0]]
        yield parts[0] if len(parts) == 1 else newest(parts)


def newest(parts: Iterable[Columns]) -> Columns:
    """Some columns, oldest first, as one: each key once, in order, with its newest value."""
    merged: dict[bytes, Any] = {}
    for keys, values in parts:
        merged.update(zip(keys, values, strict=True))
    keys = sorted(merged)
    return keys, list(map(merged.__getitem__, keys))


def living(chunks: Iterable[Columns], now: int) -> Iterator[Columns]:
    """The chunks without deleted and expired records, and values as plain bytes. `now` in ms."""
    for keys, values in chunks:
        kinds = set(map(type, values))
        if kinds == {bytes}:
            yield keys, values
            continue
        rows = [
            (key, value if type(value) is bytes else value[1])
            for key, value in zip(keys, values, strict=True)
            if value is not None and (type(value) is bytes or value[0] > now)
        ]
        if rows:
            some_keys, some_values = zip(*rows, strict=True)
            yield list(some_keys), list(some_values)
