"""Our store and RocksDB under one stopwatch: equal durability, equal memory, each driven by its own quickest calls.

KEYS keys of 16 bytes (even numbers: the odd ones are what `readmissing` asks for), values of 100 bytes that compress to
half, as LevelDB's db_bench has them. Commits have BATCH changes; one is a write batch on the other side. What keys and
values cost to make is not timed.
"""

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import rocksdict

from flowkit.store import Budget, Host, LsmStore, SpaceChange, Store, StoreOptions, open_host, open_store
from flowkit.store.runner import Helper

KEYS = int(os.environ.get("FLOWKIT_BENCH_KEYS", "300000"))
ROUNDS = int(os.environ.get("FLOWKIT_BENCH_ROUNDS", "3" if KEYS <= 1_000_000 else "1"))
BATCH = 5000
MEMORY = 256 * 2**20
RECORD = 116
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PLAIN = ("t", None)

_noise = random.Random(7).randbytes(2**20)

Batch = tuple[list[bytes], list[bytes]]


def key_of(number: int) -> bytes:
    """The key of a record."""
    return b"%016d" % (2 * number)


def value_of(number: int) -> bytes:
    """100 bytes that compress to about half."""
    at = number * 7919 % (2**20 - 64)
    return _noise[at : at + 50] * 2


class Shuffled:
    """0 … count - 1, each once, in an order without any locality; nothing is kept in memory for it."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.total, self.seed, self.bits = count, seed, max(4, (count - 1).bit_length())

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, at: slice) -> list[int]:
        return [self._mixed(n) for n in range(*at.indices(self.total))]

    def _mixed(self, number: int) -> int:
        mask, half = (1 << self.bits) - 1, self.bits // 2
        while True:  # each step turns a number of so many bits into another one; those that are too large go on
            number = (number * 0x9E3779B1 + self.seed) & mask
            number ^= number >> half
            number = (number * 0x85EBCA6B + 1) & mask
            number ^= number >> half
            if number < self.total:
                return number


def batches(numbers: Sequence[int] | Shuffled, size: int = BATCH) -> Iterator[Batch]:
    """Records in the order of `numbers`, as one commit after the other."""
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        yield [key_of(n) for n in some], [value_of(n + start) for n in some]


class Took(NamedTuple):
    """Seconds for a number of operations; `cpu` with all threads, and the helper process."""

    wall: float
    cpu: float
    ops: int


class Stopwatch:
    """Adds up what stands inside its `with` blocks."""

    def __init__(self, helper: Callable[[], float] = float) -> None:
        self.wall = self.cpu = 0.0
        self._helper = helper
        self._helper_before = helper()

    def __enter__(self) -> None:
        self._from = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._from[0]
        self.cpu += time.process_time() - self._from[1]

    def took(self, ops: int) -> Took:
        """What it showed; the helper works outside the blocks too, and all of that is counted."""
        return Took(self.wall, self.cpu + self._helper() - self._helper_before, ops)


def process_seconds(pid: int | None) -> float:
    """The CPU time of another process so far."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    return 0.0


def resident(pid: int | str | None) -> int:
    """The resident memory (bytes) of a process."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def helper_of(host: Host) -> int | None:
    """The pid of a host's helper process, once there is one."""
    process = host.runner._process if isinstance(host.runner, Helper) else None
    return None if process is None else process.pid


def bytes_under(path: Path) -> int:
    """What the files of a directory take."""
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


# --- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """Our store, with the helper process that it has in production."""

    name = "ours"

    def __init__(self, store: Store, host: Host) -> None:
        assert isinstance(store, LsmStore)
        self.db, self.host = store, host

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, sync: bool = False, memory: int = MEMORY) -> AsyncIterator["Ours"]:
        options = StoreOptions(durability="commit" if sync else "os", idle=1_000)
        async with open_host(memory) as host, open_store(path / cls.name, host=host, options=options) as store:
            yield cls(store, host)

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(lambda: process_seconds(helper_of(self.host)))

    async def write(self, keys: list[bytes], values: Sequence[bytes | None]) -> None:
        await self.db.commit([SpaceChange("t", None, keys, values)])  # type: ignore[arg-type]
        await asyncio.sleep(0)  # what works in the background has its turn, as between two commits of a worker

    async def write_window(self, parts: Sequence[tuple[int, Batch]], drops: Sequence[int]) -> None:
        changes = [SpaceChange("w", end, keys, values) for end, (keys, values) in parts]
        await self.db.commit(changes, [("w", end) for end in drops])
        await asyncio.sleep(0)

    @staticmethod
    def keys_of_window(end: int, keys: list[bytes]) -> list[bytes]:
        return keys

    async def settle(self, *, idle: bool = False) -> None:
        """Flush, and wait until there is nothing left to compact; with `idle` also of what is done when it is quiet."""
        await self.db.flush()
        background = self.db._background
        while (
            (idle and self.db.version.level_0_runs > 1) or background.choice() is not None or background.is_compacting()
        ):
            background.work()
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.005)  # the last merge has let go of its inputs, which go beside everything else
        await self.db._core.catalog.settled()

    def read(self, keys: list[bytes]) -> int:
        get, found = self.db.get, 0
        for key in keys:
            if get(PLAIN, key) is not None:
                found += 1
        return found

    def read_many(self, keys: list[bytes]) -> int:
        return len(keys) - self.db.get_many(PLAIN, keys).count(None)

    def scan(self, *, reverse: bool = False) -> int:
        count = 0
        for _key, _value in self.db.scan(PLAIN, reverse=reverse):
            count += 1
        return count


# --- theirs ----------------------------------------------------------------------------------------------------------


class Theirs:
    """RocksDB through its Python binding, without anything of ours between."""

    name = "theirs"

    def __init__(self, db: Any, write: Any) -> None:
        self.db, self._how = db, write

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, sync: bool = False, memory: int = MEMORY) -> AsyncIterator["Theirs"]:
        how = rocksdict.WriteOptions()
        how.sync = sync
        options = rocks_options(memory)
        # Named twice: else a database that is opened again has the default cache, and no filters.
        db = rocksdict.Rdict(str(path / cls.name), options, column_families={"default": options})
        try:
            yield cls(db, how)
        finally:
            db.close()

    def stopwatch(self) -> Stopwatch:
        return Stopwatch()

    async def write(self, keys: list[bytes], values: Sequence[bytes | None]) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        if values[0] is None:
            for key in keys:
                batch.delete(key)
        else:
            put = batch.put
            for key, value in zip(keys, values, strict=True):
                put(key, value)
        self.db.write(batch, self._how)

    async def write_window(self, parts: Sequence[tuple[int, Batch]], drops: Sequence[int]) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        put = batch.put
        for _, (keys, values) in parts:
            for key, value in zip(keys, values, strict=True):
                put(key, value)
        for end in drops:
            batch.delete_range(end.to_bytes(8, "big"), (end + 1).to_bytes(8, "big"))
        self.db.write(batch, self._how)

    @staticmethod
    def keys_of_window(end: int, keys: list[bytes]) -> list[bytes]:
        prefix = end.to_bytes(8, "big")
        return [prefix + key for key in keys]

    async def settle(self, *, idle: bool = False) -> None:
        """As ours; with `idle` merged to one run, which RocksDB does when it is told to."""
        self.db.flush()
        if idle and (self.db.property_int_value("rocksdb.num-files-at-level0") or 0) > 0:
            self.db.compact_range(None, None)
        busy = ("num-running-compactions", "compaction-pending", "num-running-flushes", "mem-table-flush-pending")
        while any(self.db.property_int_value(f"rocksdb.{name}") for name in busy):  # noqa: ASYNC110  it tells no one
            await asyncio.sleep(0.005)

    def read(self, keys: list[bytes]) -> int:
        get, found = self.db.get, 0
        for key in keys:
            if get(key) is not None:
                found += 1
        return found

    def read_many(self, keys: list[bytes]) -> int:
        found: list[bytes | None] = self.db.get(keys)
        return len(keys) - found.count(None)

    def scan(self, *, reverse: bool = False) -> int:
        count = 0
        for _key, _value in self.db.items(backwards=reverse):
            count += 1
        return count


def rocks_options(memory: int) -> Any:
    """Half the budget for caches, half for memtables, as ours has it; the filters that RocksDB's guide names, and lz4
    everywhere, which is what ours packs levels 0 and 1 with.

    Indexes and filters are outside of the cache, on top of the budget: RocksDB's default, and ours. In the cache, whose
    64 parts had 2 MiB each, two filters of 1.3 MiB drove each other out at every read: 70 to 500 µs of CPU each.
    """
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(rocksdict.Cache(memory // 2))
    blocks.set_block_size(4096)
    blocks.set_bloom_filter(10, False)
    blocks.set_cache_index_and_filter_blocks(False)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(memory // 4)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_bottommost_compression_type(rocksdict.DBCompressionType.lz4())
    return options


# --- telling ---------------------------------------------------------------------------------------------------------

Side = Ours | Theirs
SIDES: tuple[type[Ours], type[Theirs]] = (Ours, Theirs)


async def in_turn(work: Callable[[Any, Path], Awaitable[Took]], path: Path, rounds: int = ROUNDS) -> tuple[Took, Took]:
    """The best of both sides, in new directories, one after the other, round by round."""
    seen: dict[str, list[Took]] = {side.name: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            place = path / f"{side.name}-{turn}"
            place.mkdir(parents=True)
            seen[side.name].append(await work(side, place))
            shutil.rmtree(place)
    ours, theirs = (best(seen[side.name]) for side in SIDES)
    return ours, theirs


def best(took: Sequence[Took]) -> Took:
    """The least of each."""
    return Took(min(t.wall for t in took), min(t.cpu for t in took), took[0].ops)


def compare(name: str, ours: Took, theirs: Took, target: float | None = None) -> str:
    """One line: operations a second, and ours over theirs."""
    wall, cpu = theirs.wall / max(1e-9, ours.wall), theirs.cpu / max(1e-9, ours.cpu)
    line = (
        f"{name:<22} ours {ours.ops / ours.wall:>10,.0f}/s {ours.cpu / ours.ops * 1e6:>7.2f} µs CPU   "
        f"rocksdict {theirs.ops / theirs.wall:>10,.0f}/s {theirs.cpu / theirs.ops * 1e6:>7.2f} µs CPU   "
        f"{wall:>6.2f}x wall {cpu:>6.2f}x CPU"
    )
    if target is None:
        return line
    return f"{line}   ≥ {target:g}x {'reached' if wall >= target else 'not reached'}"


def against(name: str, found: float, limit: float, unit: str) -> str:
    """One line: a figure and what it must stay under."""
    return f"{name:<52} {found:>10,.2f} {unit:<6} < {limit:g} {'reached' if found < limit else 'not reached'}"


__all__ = ["BATCH", "KEYS", "MEMORY", "Budget", "Ours", "Theirs", "Took"]
