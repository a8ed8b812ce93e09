"""Flush and compaction: from logs or sstables to new sstables. Pure work on files, done wherever a runner does it.

A job is a generator: between two steps the runner may look around, wait (a rate limit), or do something more urgent.
Its inputs do not change, and its outputs are not part of the store until the owner says so; so a job that is broken off
leaves only files that the next opening removes.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from flowkit.store.block import Columns, Value, size_of
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.frame import BEGINNING, Space
from flowkit.store.log import read_log
from flowkit.store.memtable import Memtable, order_of
from flowkit.store.merge import merge
from flowkit.store.replay import Replay
from flowkit.store.sstable import Sstable
from flowkit.store.sstable_index import FileMeta
from flowkit.store.sstable_writer import SstableWriter

BATCH_RECORDS = 1024
BATCH_BYTES = 1024 * 1024
OWN_FILE_BYTES = 1024 * 1024
"""A window that has so much gets a file of its own, so that its end frees the space at once; others share files."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and with what.

    `logs` are flushed, or `runs` (file names, the oldest run first) are merged. `hidden` parts of inputs are left out.
    `bottom` spaces have nothing older elsewhere: deletes of theirs need not be kept. Outputs are called `prefix` and a
    number from `first_number` on.
    """

    directory: str
    prefix: str
    first_number: int
    level: int
    run: int
    block_bytes: int
    table_bytes: int
    logs: list[str] = []
    runs: list[list[str]] = []
    hidden: list[tuple[str, str, int | None]] = []
    bottom: list[tuple[str, int | None]] = []
    now: int = BEGINNING
    key: bytes | None = None
    packing: int = 1
    urgent: bool = False


class Done(msgspec.Struct, frozen=True):
    """What came of a job: new files (durable, but for their directory entries), and how much was read and written."""

    files: list[FileMeta]
    read: int
    written: int
    seconds: float = 0.0


def work(job: Job, files: Files, memtable: Memtable | None = None) -> Generator[int, None, Done]:
    """Do a job; yields the number of bytes handled since the last step. Raises StoreError, OSError.

    A `memtable` is written as if it had been read from logs.
    """
    key = None if job.key is None else StoreKey(job.key)
    directory = Path(job.directory)
    bottom = {(table, end) for table, end in job.bottom}
    output = _Output(job, files, directory, key)
    inputs = job.logs or [name for run in job.runs for name in run]
    try:
        read = sum((directory / name).stat().st_size for name in inputs)
        spaces: Iterator[tuple[Space, int, Iterator[Columns]]]
        if memtable is not None:
            spaces = _from_memtable(memtable)
        else:
            spaces = _from_logs(job, directory, key) if job.logs else _from_tables(job, directory, key)
        for space, size, chunks in spaces:
            output.begin(space, size)
            for keys, values in _batches(_cleaned(chunks, job.now, drop=space in bottom)):
                yield output.add(space, keys, values)
        done = output.finish()
    except BaseException:
        output.abandon()
        raise
    return Done(done, read, sum(meta.bytes for meta in done))


def finished(steps: Generator[int, None, Done], each: Callable[[int], object] | None = None) -> Done:
    """Do all steps of a job; `each` is told of the bytes handled in one, and may wait or do something else."""
    while True:
        try:
            handled = next(steps)
        except StopIteration as stopped:
            done: Done = stopped.value
            return done
        if each is not None:
            each(handled)


def _from_logs(job: Job, directory: Path, key: StoreKey | None) -> Iterator[tuple[Space, int, Iterator[Columns]]]:
    replay = Replay()
    for name in job.logs:
        for logged in read_log(directory / name, key):
            replay.apply(logged.frame)
    for space in sorted(replay.spaces, key=order_of):
        # Let go of what has been written, space by space.
        changes = replay.spaces.pop(space)
        yield space, changes.size(), changes.chunks()


def _from_memtable(memtable: Memtable) -> Iterator[tuple[Space, int, Iterator[Columns]]]:
    for space in sorted(memtable.spaces, key=order_of):
        keys = memtable.spaces[space]
        yield space, keys.bytes, keys.scan(None, None)


def _from_tables(job: Job, directory: Path, key: StoreKey | None) -> Iterator[tuple[Space, int, Iterator[Columns]]]:
    hidden = {(name, table, end) for name, table, end in job.hidden}
    runs = [[Sstable(directory / name, key) for name in run] for run in job.runs]
    holders: dict[Space, list[list[Sstable]]] = {}
    sizes: dict[Space, int] = {}
    for number, run in enumerate(runs):
        for table in run:
            for meta in table.spaces():
                if (table.path.name, meta.table, meta.end) not in hidden:
                    by_run = holders.setdefault(meta.space, [[] for _ in runs])
                    by_run[number].append(table)
                    sizes[meta.space] = sizes.get(meta.space, 0) + meta.bytes
    for space in sorted(holders, key=order_of):
        sources = [_one_after_the_other(tables, space) for tables in holders[space] if tables]
        yield space, sizes[space], merge(sources)


def _one_after_the_other(tables: Iterable[Sstable], space: Space) -> Iterator[Columns]:
    ordered = sorted(tables, key=lambda table: next(m.first for m in table.spaces() if m.space == space))
    return chain.from_iterable(table.scan(space) for table in ordered)


def _cleaned(chunks: Iterable[Columns], now: int, *, drop: bool) -> Iterator[Columns]:
    """Expired values become deletes; deletes go where nothing lies beneath them."""
    for keys, values in chunks:
        kinds = set(map(type, values))
        if list in kinds:
            values = [None if type(value) is list and value[0] <= now else value for value in values]
            kinds = set(map(type, values))
        if drop and type(None) in kinds:
            rows = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            keys, values = [key for key, _ in rows], [value for _, value in rows]
        if keys:
            yield keys, values


def _batches(chunks: Iterable[Columns]) -> Iterator[Columns]:
    """The same records in batches large enough to be cut into blocks, small enough to be held."""
    keys: list[bytes] = []
    values: list[Value] = []
    size = 0
    for more_keys, more_values in chunks:
        if len(more_keys) > BATCH_RECORDS:
            if keys:
                yield keys, values
                keys, values, size = [], [], 0
            for at in range(0, len(more_keys), BATCH_RECORDS):
                yield more_keys[at : at + BATCH_RECORDS], more_values[at : at + BATCH_RECORDS]
            continue
        keys += more_keys
        values += more_values
        size += sum(map(size_of, more_values)) if len(more_values) < 64 else 0
        if len(keys) >= BATCH_RECORDS or size > BATCH_BYTES:
            yield keys, values
            keys, values, size = [], [], 0
    if keys:
        yield keys, values


class _Output:
    """The files that a job writes, one after the other."""

    def __init__(self, job: Job, files: Files, directory: Path, key: StoreKey | None) -> None:
        self.job, self.files, self.directory, self.key = job, files, directory, key
        self.done: list[FileMeta] = []
        self.writer: SstableWriter | None = None
        self.number = job.first_number
        self.large = False

    def begin(self, space: Space, size: int) -> None:
        """Another space follows, of about `size` bytes: windows that are worth it get files of their own."""
        large = space[1] is not None and size >= OWN_FILE_BYTES
        if self.writer is not None and (large or self.large):
            self._end()
        self.large = large

    def add(self, space: Space, keys: list[bytes], values: list[Value]) -> int:
        if self.writer is None:
            path = self.directory / f"{self.job.prefix}{self.number:06}.sst"
            self.number += 1
            self.files.unlink(path)  # a process that was killed in this very job may have left it
            cipher = None if self.key is None else self.key.new_cipher()
            self.writer = SstableWriter(
                self.files, path, packing=self.job.packing, block_bytes=self.job.block_bytes, cipher=cipher
            )
        before = self.writer.size
        self.writer.add(space, keys, values)
        grown = self.writer.size - before
        if self.writer.size >= self.job.table_bytes:
            self._end()
        return grown

    def _end(self) -> None:
        assert self.writer is not None
        self.done.append(self.writer.finish(self.job.level, self.job.run))
        self.writer = None

    def finish(self) -> list[FileMeta]:
        if self.writer is not None:
            self._end()
        return self.done

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.abandon()
        for path in self.directory.glob(f"{self.job.prefix}*.sst"):
            number = int(path.stem.rpartition("-")[2])
            if self.job.first_number <= number < self.number:
                self.files.unlink(path)
