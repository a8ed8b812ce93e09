"""Reading every byte of a store: all that is wrong with it, not only the first thing. Its owner may go on meanwhile.

Checked are the checksums of all records and blocks, the order of keys within blocks, files and levels, the filters,
that files and manifest say the same, and that each commit in the logs follows the one before.
"""

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from flowkit.errors import StoreCorrupt, StoreError
from flowkit.store.building import check_complete
from flowkit.store.checksum import crc32
from flowkit.store.cipher import StoreKey
from flowkit.store.frame import Frame, Space, decode_frame
from flowkit.store.keys import KeyProvider, read_keys, unlock_here
from flowkit.store.log import log_number, logs
from flowkit.store.manifest import Recovered, manifests, read_manifest
from flowkit.store.progress import OnProgress, Step
from flowkit.store.records import LOG, all_records, decode_header
from flowkit.store.sstable import Sstable
from flowkit.store.sstable_index import FileMeta

TRIES = 5
_OFFSET = re.compile(r"offset (\d+)")


class Problem(NamedTuple):
    """Something that is not as it was written: the file, and where in it (bytes from its start) if that is known."""

    file: str
    offset: int | None
    message: str

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, error: StoreError, file: str) -> "Problem":
        """The problem that an error tells of; its message names file and offset."""
        found = _OFFSET.search(str(error))
        return cls(file, int(found[1]) if found else None, str(error))


class Report(NamedTuple):
    """What `verify` found: nothing is wrong if there are no problems."""

    problems: list[Problem]
    files: int
    bytes: int
    records: int
    """Records in sstables, deletes and older values included."""
    commits: int
    """Commits in logs."""


def verify(path: Path, keys: KeyProvider | None = None, progress: OnProgress | None = None) -> Report:
    """Check every file of the store in `path`. Raises StoreKeyError, or StoreCorrupt where there is no store at all."""
    check_complete(path)
    for tries_left in reversed(range(TRIES)):
        checking = _Checking(path, unlock_here(path, keys), progress)
        checking.run()
        if not checking.problems or not tries_left or not checking.has_moved():
            break
        time.sleep(0.01)  # the owner has put other files in their place
    return Report(checking.problems, checking.files, checking.done, checking.records, checking.commits)


class _Checking:
    """One pass over a store."""

    def __init__(self, path: Path, key: StoreKey | None, progress: OnProgress | None) -> None:
        self.path, self.key, self.progress = path, key, progress
        self.problems: list[Problem] = []
        self.files = self.done = self.records = self.commits = self.total = 0
        self.seen: list[tuple[str, int]] = []

    def has_moved(self) -> bool:
        """True if the store's files are not those that were begun with."""
        return self.seen != self._listing()

    def _listing(self) -> list[tuple[str, int]]:
        names = [path.name for path in (*manifests(self.path), *logs(self.path), *self.path.glob("*.sst"))]
        sizes = []
        for name in sorted(names):
            try:
                sizes.append((name, (self.path / name).stat().st_size))
            except FileNotFoundError:
                sizes.append((name, -1))
        return sizes

    def run(self) -> None:
        self.seen = self._listing()
        found = self._manifests()
        if found is None:
            found = Recovered(files={})
            names = [path.name for path in sorted(self.path.glob("*.sst"))]
        else:
            names = list(found.files)
        opened = [(name, Sstable(self.path / name, self.key)) for name in names]
        following = [path for path in logs(self.path) if log_number(path) >= found.logs_from]
        sizes = dict(self.seen)
        self.total = sum(sizes.get(name, 0) for name in [*names, *(path.name for path in following)])
        for name, table in opened:
            self._table(name, table, found.files.get(name))
        self._levels(found)
        self._logs(found, following)
        if read_keys(self.path) is not None:
            self.files += 1

    def _step(self, name: str, size: int) -> None:
        self.files += 1
        self.done += size
        if self.progress is not None:
            self.progress(Step(name, self.done, max(self.total, self.done)))

    def _tell(self, file: str, offset: int | None, what: str) -> None:
        where = "" if offset is None else f" at offset {offset}"
        self.problems.append(Problem(file, offset, f"{self.path / file}: {what}{where}"))

    def _manifests(self) -> Recovered | None:
        newest = manifests(self.path)
        if not newest:
            if logs(self.path) or any(self.path.glob("*.sst")):
                self.problems.append(Problem("manifest", None, f"{self.path}: the manifest is missing"))
                return None
            raise StoreCorrupt(f"{self.path}: is no store (there is no manifest in it)")
        try:
            found = read_manifest(newest[-1], self.key)
            size = newest[-1].stat().st_size
        except StoreCorrupt as error:
            self.problems.append(Problem.of(error, newest[-1].name))
            return None
        except FileNotFoundError:
            self.problems.append(Problem(newest[-1].name, None, f"{newest[-1]}: gone"))
            return None
        self._step(newest[-1].name, size)
        return found

    def _table(self, name: str, table: Sstable, meta: FileMeta | None) -> None:
        self.problems += _check(table, meta)
        try:
            size = table.path.stat().st_size
        except FileNotFoundError:
            size = 0
        if meta is not None:
            self.records += meta.records
        table.close()
        self._step(name, size)

    def _levels(self, found: Recovered) -> None:
        """Within a sorted run no two files may have a key in common."""
        runs: dict[tuple[int, int, Space], list[tuple[bytes, bytes, str]]] = {}
        for meta in found.files.values():
            for part in meta.spaces:
                place = (meta.level, meta.run if meta.level == 0 else 0, part.space)
                runs.setdefault(place, []).append((part.first, part.last, meta.name))
        for (level, _, (table, end)), parts in runs.items():
            for (_, last, one), (first, _, two) in pairwise(sorted(parts)):
                if first <= last:
                    self._tell(two, None, f"overlaps {one} in level {level}, table {table!r}, end {end}")

    def _logs(self, found: Recovered, following: list[Path]) -> None:
        numbers = [log_number(path) for path in following]
        if found.closed is not None and found.closed[0] not in numbers:
            self._tell(f"log-{found.closed[0]:06}", None, "missing, though it was there at the last close")
        if found.session and found.logs_from not in numbers:
            self._tell("manifest", None, f"log {found.logs_from}, which it names first, is missing, or its own end is")
        parent: bytes | None = found.base[1] if found.base else b""
        before: Frame | None = None
        for path in following:
            size = 0
            promised = found.closed[1] if found.closed is not None and found.closed[0] == log_number(path) else 0
            try:
                data = path.read_bytes()
                size = len(data)
                if size < promised:
                    self._tell(path.name, size, f"ends, but had {promised} bytes,")
                parent, before = self._log(path, data, promised, parent, before)
            except StoreError as error:
                self.problems.append(Problem.of(error, path.name))
                parent = None
            except FileNotFoundError:
                self._tell(path.name, None, "gone")
                parent = None
            self._step(path.name, size)

    def _log(
        self, path: Path, data: bytes, promised: int, parent: bytes | None, before: Frame | None
    ) -> tuple[bytes | None, Frame | None]:
        """Check a log; the commit that the next frame may follow (None: that is not known), and the last frame."""
        header = decode_header(data, LOG, str(path), self.key)
        if header is None:
            return parent, before
        for record in all_records(data, header, str(path), promised):
            if isinstance(record, StoreCorrupt):
                self.problems.append(Problem.of(record, path.name))
                parent = before = None
                continue
            try:
                frame = decode_frame(record.payload, str(path), record.start)
            except StoreCorrupt as error:
                self.problems.append(Problem.of(error, path.name))
                parent = before = None
                continue
            self.commits += 1
            after_last = before is not None and frame.parent == before.commit_id
            if parent is not None and frame.parent != parent and not after_last:
                self._tell(path.name, record.start, f"commit {frame.number} does not follow the one before,")
            parent, before = frame.parent, frame
        return parent, before


def check_table(path: Path, key: StoreKey | None, meta: FileMeta | None = None) -> Iterator[Problem]:
    """All that is wrong with an sstable, which should be as `meta` says."""
    table = Sstable(path, key)
    try:
        yield from _check(table, meta)
    finally:
        table.close()


def _check(table: Sstable, meta: FileMeta | None) -> Iterator[Problem]:
    name = table.path.name
    try:
        spaces = table.spaces()
    except StoreError as error:
        yield Problem.of(error, name)
        return

    def problem(what: str, offset: int | None = None) -> Problem:
        return Problem(name, offset, f"{table.path}: {what}" + ("" if offset is None else f" at offset {offset}"))

    size = table.path.stat().st_size
    if meta is not None and (meta.bytes != size or meta.records != table.numbers[-1] or meta.spaces != spaces):
        yield problem(f"is not the file that the manifest names ({size} bytes, {table.numbers[-1]} records)")
    at = 0
    for part in spaces:
        if part.first_block != at:
            yield problem(f"table {part.table!r}, end {part.end}: begins with block {part.first_block}, not {at}")
        at = part.first_block + part.blocks
    if at != table.blocks():
        yield problem(f"has {table.blocks()} blocks, but its tables have {at}")
        return
    for part in spaces:
        last: bytes | None = None
        records = 0
        for block in range(part.first_block, part.first_block + part.blocks):
            offset = table.offset_of(block)
            try:
                keys, values = table.read_block(block)
            except StoreError as error:
                yield Problem.of(error, name)
                last = None
                records += table.numbers[block + 1] - table.numbers[block]
                continue
            records += len(keys)
            yield from (problem(what, offset) for what in _in_block(table, block, keys, values, last))
            last = keys[-1] if keys else last
        if last is not None and (records, last) != (part.records, part.last):
            yield problem(
                f"table {part.table!r}, end {part.end}: has not the {part.records} records that it should have"
            )


def _in_block(table: Sstable, block: int, keys: list[bytes], values: list[Any], last: bytes | None) -> Iterator[str]:
    first, stop = table.numbers[block], table.numbers[block + 1]
    if len(keys) != stop - first or len(values) != len(keys):
        yield f"a block of {len(keys)} keys, {len(values)} values, not {stop - first},"
        return
    if keys[0] != table.firsts[block]:
        yield "a block that begins with another key than the index says,"
    if any(a >= b for a, b in pairwise(keys)) or (last is not None and last >= keys[0]):
        yield "keys out of order,"
    sums = [crc32(key) for key in keys]
    low, high = bytes(n & 255 for n in sums), bytes(n >> 8 & 255 for n in sums)
    if low != table.low[first:stop] or high != table.high[first:stop] or not all(map(table.may_have, sums)):
        yield "a filter that does not fit its block,"
    for value in values:
        if not _is_value(value):
            yield f"a value of type {type(value).__name__},"
            return


def _is_value(value: Any) -> bool:
    if value is None or type(value) is bytes:
        return True
    return type(value) is list and len(value) == 2 and type(value[0]) is int and type(value[1]) is bytes
