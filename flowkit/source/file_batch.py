"""Consecutive records of one file, and where each of them lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[int, int]
"""A point between two records: how many bytes (decompressed) and how many physical lines lie before it."""


@dataclass(frozen=True, slots=True)
class Index:
    """Where records lie that are not simply one line each (blank lines or CRLF between them, quoted newlines)."""

    numbers: list[int]
    """The 1-based number of each record's first line."""

    after: list[Place]
    """Where each record ends, its line end included."""


class FileBatch:
    """A `Batch` of records as they stand in the file, without their line ends.

    `oversize` has the indices of records that were longer than the source allows: of those only the first KiB is
    there, enough to recognise them by. They are no data.
    """

    keys: Sequence[bytes | None] | None = None
    times: Sequence[int] | None = None

    def __init__(
        self,
        name: str,
        values: list[bytes],
        start: Place,
        end: Place,
        index: Index | None = None,
        oversize: frozenset[int] = frozenset(),
    ) -> None:
        self.values: Sequence[bytes | None] = values
        self.oversize = oversize
        self.start = start
        self.end = end
        self._name = name
        self._lines = values
        self._index = index

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, count: int) -> Place:
        """The point after the first `count` records."""
        if count <= 0:
            return self.start
        if count >= len(self._lines):
            return self.end
        if self._index is not None:
            return self._index.after[count - 1]
        offset, line = self.start
        return offset + sum(map(len, self._lines[:count])) + count, line + count

    def position(self, count: int) -> Any:
        """Where to go on after the first `count` records: [bytes, lines] before that point."""
        return list(self.place(count))

    def offset(self, index: int) -> int:
        """The 0-based number of the line that record `index` begins in."""
        return self._line(index) - 1

    def where(self, index: int) -> str:
        """`FILE:LINE`, 1-based, as editors and compilers count."""
        return f"{self._name}:{self._line(index)}"

    def part(self, begin: int, count: int, start: Place) -> "FileBatch":
        """At most `count` records from record `begin`, which lies at `start` (the end of the part before)."""
        if begin == 0 and count >= len(self._lines):
            return self
        stop = min(begin + count, len(self._lines))
        values = self._lines[begin:stop]
        index = None
        if self._index is not None:
            end = self._index.after[stop - 1]
            index = Index(self._index.numbers[begin:stop], self._index.after[begin:stop])
        else:
            end = (start[0] + sum(map(len, values)) + len(values), start[1] + len(values))
        if stop == len(self._lines):
            end = self.end  # the last line of a file may lack its line end
        oversize = frozenset(at - begin for at in self.oversize if begin <= at < stop)
        return FileBatch(self._name, values, start, end, index, oversize)

    def _line(self, index: int) -> int:
        if self._index is not None:
            return self._index.numbers[index]
        return self.start[1] + index + 1
