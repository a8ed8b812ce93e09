"""A version: the sstables that make up the store at one moment, and where each space is to be looked for.

Versions do not change; an `Edit` makes the next one. Who reads on holds on to the one it began with.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from flowkit.store.cache import BlockCache
from flowkit.store.frame import Space
from flowkit.store.sstable import Sstable
from flowkit.store.sstable_index import FileMeta

Hidden = tuple[str, str, int | None]
"""(file, table, end): the file's part of that space was dropped."""

Base = tuple[int, bytes, dict[str, Any], int]
"""(number, commit id, meta, now) of a commit."""


class Edit(msgspec.Struct, array_like=True):
    """One change of the manifest. A file that moves to another level is removed and added."""

    add: list[FileMeta] = []
    remove: list[str] = []
    hide: list[Hidden] = []
    logs_from: int | None = None
    """What logs below this number say is in sstables, or carried over to a later log."""
    base: Base | None = None
    """The last commit that is in sstables."""
    closed: tuple[int, int, bytes] | None = None
    """(number, bytes, id of the last frame) of the log when the store was closed in good order."""


class Run:
    """Sorted sstables of one space that do not overlap: at most one can have a key."""

    __slots__ = ("_firsts", "_lasts", "only", "tables")

    def __init__(self, parts: list[tuple[bytes, bytes, Sstable]]) -> None:
        parts.sort(key=_first)
        self._firsts = [first for first, _, _ in parts]
        self._lasts = [last for _, last, _ in parts]
        self.tables = [table for _, _, table in parts]
        self.only = self.tables[0] if len(parts) == 1 else None
        """The one sstable, if there is but one."""

    def table_of(self, key: bytes) -> Sstable | None:
        """The sstable that may have `key`."""
        at = bisect_right(self._firsts, key) - 1
        return self.tables[at] if at >= 0 and key <= self._lasts[at] else None

    def get_many(
        self, space: Space, keys: Sequence[bytes], left: Iterable[int], found: list[Any], cache: BlockCache
    ) -> list[int]:
        """Put the values of the keys at `left` into `found`; the places of those that are not here."""
        if self.only is not None:
            return self.only.get_many(space, keys, left, found, cache)
        firsts, tables = self._firsts, self.tables
        by_table: list[list[int]] = [[] for _ in tables]
        missing: list[int] = []
        for n in left:
            at = bisect_right(firsts, keys[n]) - 1
            (by_table[at] if at >= 0 else missing).append(n)
        for table, some in zip(tables, by_table, strict=True):
            if some:
                missing += table.get_many(space, keys, some, found, cache)
        missing.sort()
        return missing

    def within(self, start: bytes | None, stop: bytes | None) -> list[Sstable]:
        """The sstables that may have keys in `[start, stop)`, in order."""
        a = 0 if start is None else bisect_left(self._lasts, start)
        b = len(self.tables) if stop is None else bisect_left(self._firsts, stop)
        return self.tables[a:b]


class Version:
    """Files by level, with what is hidden in them."""

    __slots__ = ("__weakref__", "files", "hidden", "level_0_runs", "runs", "tables")

    def __init__(self, files: Mapping[str, FileMeta], hidden: frozenset[Hidden], tables: Mapping[str, Sstable]) -> None:
        self.files, self.hidden, self.tables = dict(files), hidden, dict(tables)
        self.level_0_runs = len({meta.run for meta in self.files.values() if meta.level == 0})
        self.runs: dict[Space, list[Run]] = {}
        """By space, newest first."""
        parts: dict[Space, dict[tuple[int, int], list[tuple[bytes, bytes, Sstable]]]] = {}
        for name, meta in self.files.items():
            # Level 0 has many runs, the newest first; any other level is one.
            place = (meta.level, -meta.run if meta.level == 0 else 0)
            for part in meta.spaces:
                if not hidden or (name, part.table, part.end) not in hidden:
                    row = (part.first, part.last, self.tables[name])
                    parts.setdefault(part.space, {}).setdefault(place, []).append(row)
        for space, by_place in parts.items():
            self.runs[space] = [Run(by_place[place]) for place in sorted(by_place)]

    def after(self, edit: Edit, tables: Mapping[str, Sstable]) -> "Version":
        """The version that `edit` makes of this one; `tables` are the readers of the files that it adds."""
        gone = set(edit.remove) - {meta.name for meta in edit.add}
        files = {name: meta for name, meta in self.files.items() if name not in gone}
        files |= {meta.name: meta for meta in edit.add}
        hidden = self.hidden
        if edit.hide or (gone and hidden):
            hidden = frozenset(row for row in hidden.union(edit.hide) if row[0] not in gone)
        readers = {name: self.tables.get(name) or tables[name] for name in files}
        return Version(files, hidden, readers)

    def holding(self, space: Space) -> Iterator[str]:
        """The files that have keys of `space`, not hidden."""
        table, end = space
        for name, meta in self.files.items():
            here = any(part.table == table and part.end == end for part in meta.spaces)
            if here and (name, table, end) not in self.hidden:
                yield name

    def is_all_hidden(self, name: str, also: frozenset[Hidden] = frozenset()) -> bool:
        """True if everything in a file was dropped."""
        hidden = self.hidden | also
        return all((name, part.table, part.end) in hidden for part in self.files[name].spaces)


def next_run(files: Iterable[FileMeta]) -> int:
    """The number of a run that is newer than all those."""
    return 1 + max((meta.run for meta in files), default=0)


def _first(part: tuple[bytes, bytes, Sstable]) -> bytes:
    return part[0]
