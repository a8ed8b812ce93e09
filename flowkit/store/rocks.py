"""The same store over RocksDB (`rocksdict`): a choice for users, and the yardstick of the benchmarks.

    DIR/rocks/      a RocksDB database
    key   := 01 table end key      table: utf-8, 00 as 00 FF, then 00 00; end: 00 if None, else 01 and u64 (end + 2^63)
    value := 00 bytes | 01 expiry:u64 bytes                          big-endian, so that bytes sort as ends do
    00 "state"      msgpack [number, commit id, meta, now]           of the last frame that counts
    00 "undecided"  a frame, as in `frame`                           prepared, and not decided

A frame is one write batch, so it is there whole or not at all. What differs from the store of our own: no encryption
and no look from another process; a dropped space is hidden at once, but RocksDB gives its room back when it next
compacts there; expired values are hidden, and go with `compact`. The binding holds the GIL while it writes, syncs and
stalls.
"""

import asyncio
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import msgspec

from flowkit.errors import ConfigError, StoreCorrupt, StoreError, StorePoisoned
from flowkit.store.block import MISSING, Columns, Value
from flowkit.store.cache import BlockCache, Budget, Rows
from flowkit.store.events import tell
from flowkit.store.files import Disk
from flowkit.store.frame import Frame, Space, SpaceChange, decode_frame, encode_frame
from flowkit.store.memtable import Memtable
from flowkit.store.merge import merge
from flowkit.store.options import StoreOptions
from flowkit.store.reading import Reading, frame_of
from flowkit.store.stats import Stats

FOLDER = "rocks"
STATE, UNDECIDED = b"\x00state", b"\x00undecided"
CHUNK = 1024
BUFFERS = 3
"""Write buffers: one that is filled, and two that are being flushed."""

_U64 = struct.Struct(">Q")
_END = struct.Struct(">BQ")
_EXPIRY_BYTES = 1 + _U64.size

_caches: "weakref.WeakKeyDictionary[Budget, Any]" = weakref.WeakKeyDictionary()
"""One block cache for the stores of a host."""


def import_rocksdict() -> Any:
    """The binding. Raises ConfigError saying how to install it."""
    try:
        import rocksdict
    except ImportError as error:
        raise ConfigError(
            "engine 'rocks' needs rocksdict, which is not installed: pip install 'flowkit[rocks]'"
        ) from error
    return rocksdict


@lru_cache(4096)
def prefix_of(space: Space) -> bytes:
    """What the keys of a space begin with. Prefixes sort as spaces do: by table, then by end, None first."""
    table, end = space
    named = b"\x01" + table.encode().replace(b"\x00", b"\x00\xff") + b"\x00\x00"
    if end is None:
        return named + b"\x00"
    if not -(2**63) <= end < 2**63:
        raise StoreError(f"table {table!r}: a window end of {end} ms: engine 'rocks' takes 64 bits with sign")
    return named + _END.pack(1, end + 2**63)


def space_of(key: bytes) -> Space:
    """The space of a stored key."""
    stop = 1
    while (stop := key.index(b"\x00", stop)) >= 0 and key[stop + 1] == 0xFF:
        stop += 2
    table = key[1:stop].replace(b"\x00\xff", b"\x00").decode()
    if key[stop + 2] == 0:
        return table, None
    _, end = _END.unpack_from(key, stop + 2)
    return table, end - 2**63


def _after(prefix: bytes) -> bytes:
    """The least bytes that sort after everything that begins with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])


def _stored(value: Value) -> bytes:
    if type(value) is bytes:
        return b"\x00" + value
    expiry, data = value
    if not 0 <= expiry < 2**64:
        raise StoreError(f"an expiry of {expiry} ms: engine 'rocks' takes times from 1970 on")
    expiring: bytes = b"\x01" + _U64.pack(expiry) + data
    return expiring


def _value(stored: bytes) -> Value:
    if not stored[0]:
        return stored[1:]
    return [_U64.unpack_from(stored, 1)[0], stored[_EXPIRY_BYTES:]]


class RocksStore(Reading):
    """Made by `open_store(path, engine="rocks")`. The methods are those of `LsmStore`, and mean the same."""

    def __init__(self, directory: Path, budget: Budget, options: StoreOptions) -> None:
        super().__init__(Memtable(), BlockCache(0), Rows(0))
        self.path, self.budget, self.options = directory, budget, options
        self.counts = Stats()
        self._rocks = import_rocksdict()
        self._poison: str | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._walks: weakref.WeakSet[_Walk] = weakref.WeakSet()
        self._lazily = self._rocks.WriteOptions()
        self._safely = self._rocks.WriteOptions()
        self._safely.sync = options.durability == "commit"
        self._db: Any = None

    # Opening and closing

    def recover(self) -> None:
        """Open the database and find its last commit. Raises StoreCorrupt; ConfigError if it is of another engine."""
        files = Disk()
        files.make_directory(self.path / FOLDER)
        files.sync_directory(self.path)
        try:
            options = self._rocks_options()
            # Named as the column family's too: else rocksdict reopens with those of before, without cache and filters.
            self._db = self._rocks.Rdict(str(self.path / FOLDER), options, column_families={"default": options})
            state, undecided = self._db.get(STATE), self._db.get(UNDECIDED)
        except Exception as error:
            raise StoreCorrupt(f"{self.path / FOLDER}: RocksDB cannot open it: {error}") from error
        if state is not None:
            try:
                self.number, self.commit_id, self.meta, self.now = msgspec.msgpack.decode(state)
            except (msgspec.MsgspecError, ValueError, TypeError) as error:
                raise StoreCorrupt(f"{self.path / FOLDER}: unreadable state of the last commit: {error}") from error
        if undecided is not None:
            frame = decode_frame(undecided, str(self.path / FOLDER), 0)
            self.show(frame)
            if frame.decided:
                self._apply(frame)

    def _rocks_options(self) -> Any:
        rocks, total = self._rocks, self.budget.total
        cache = _caches.get(self.budget)
        if cache is None:
            cache = _caches[self.budget] = rocks.Cache(total // 2)
        blocks = rocks.BlockBasedOptions()
        blocks.set_block_cache(cache)
        blocks.set_block_size(self.options.block_bytes)
        blocks.set_bloom_filter(10, False)
        blocks.set_cache_index_and_filter_blocks(True)  # so that the budget holds them too
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options = rocks.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(max(2**20, min(self.options.log_bytes, total // (2 * BUFFERS))))
        options.set_max_write_buffer_number(BUFFERS)
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(2)
        packings = {"none": rocks.DBCompressionType.none, "lz4": rocks.DBCompressionType.lz4}
        packings["zstd"] = rocks.DBCompressionType.zstd
        options.set_compression_type(packings[self.options.packing]())
        options.set_bottommost_compression_type(packings[self.options.cold_packing]())
        return options

    async def close(self) -> None:
        """Let go of everything. What was resolved is durable."""
        if self._syncing is not None:
            self._syncing.cancel()
        if self._db is None:
            return
        # An iterator would hold the database open, and the next opening of this process would be refused.
        for walk in list(self._walks):
            walk.end()
        try:
            if self._poison is None:
                self._db.flush_wal(sync=True)
            self._db.close()
        except Exception as error:  # noqa: BLE001  rocksdict raises nothing narrower
            tell("warning", "store not closed in good order", path=str(self.path), error=str(error))
        self._db = None

    # Commits

    async def prepare(self, frame: Frame) -> None:
        """Keep `frame` beside the data, undecided. At most one may be."""
        self._refuse_second()
        batch = self._rocks.WriteBatch(raw_mode=True)
        self._batch_of(frame)  # what RocksDB cannot take is refused before anything is promised
        record = encode_frame(frame)
        batch.put(UNDECIDED, record)
        self._write(batch, self._safely)
        self.show(frame)
        self.counts.commits += 1
        self.counts.logged += len(record)

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Say whether the undecided frame counts. If not, it leaves no trace."""
        frame = self.undecided
        if frame is None or frame.commit_id != commit_id:
            raise StoreError(f"no undecided frame {commit_id.hex()}")
        if applied:
            self._apply(frame)
            return
        batch = self._rocks.WriteBatch(raw_mode=True)
        batch.delete(UNDECIDED)
        self._write(batch, self._safely)
        self.show(None)

    def _apply(self, frame: Frame) -> None:
        batch = self._batch_of(frame)
        batch.delete(UNDECIDED)
        # Not synced: the undecided frame was, and is found again if this is lost.
        self._write(batch, self._lazily)
        self.show(None)
        self.take(frame)

    async def commit(
        self,
        puts: Mapping[Space, Mapping[bytes, bytes | None]] | Sequence[SpaceChange] = (),
        drops: Sequence[Space] = (),
        *,
        expires: int | None = None,
        now: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> int:
        """Change keys, all or nothing, as `LsmStore.commit` does. The commit's number."""
        self._refuse_second()
        frame = frame_of(self, puts, drops, expires=expires, now=now, meta=meta)
        batch = self._batch_of(frame)
        size = batch.size_in_bytes()
        self._write(batch, self._safely)
        self.counts.commits += 1
        self.counts.logged += size
        self.take(frame)
        return frame.number

    def _refuse_second(self) -> None:
        if self.undecided is not None:
            raise StoreError(f"frame {self.undecided.number} is still undecided")

    def _batch_of(self, frame: Frame) -> Any:
        batch = self._rocks.WriteBatch(raw_mode=True)
        for table, end in frame.drops:
            prefix = prefix_of((table, end))
            batch.delete_range(prefix, _after(prefix))
        put, delete = batch.put, batch.delete
        for change in frame.changes:
            prefix = prefix_of((change.table, change.end))
            for key, value in zip(change.keys, change.values, strict=True):
                if value is None:
                    delete(prefix + key)
                else:
                    put(prefix + key, _stored(value))
        now = max(self.now, frame.now)
        batch.put(STATE, msgspec.msgpack.encode([frame.number, frame.commit_id, frame.meta, now]))
        return batch

    def _write(self, batch: Any, how: Any) -> None:
        if self._poison is not None:
            raise StorePoisoned(self._poison)
        try:
            self._open().write(batch, how)
        except StoreError:
            raise
        except Exception as error:
            self._poison = (
                f"{self.path}: write failed ({error}); everything up to commit {self.number} is safe: make room or "
                "mend the disk, then start again"
            )
            raise StorePoisoned(self._poison) from error
        if self.options.durability == "interval" and (self._syncing is None or self._syncing.done()):
            self._syncing = asyncio.create_task(self._sync_soon(), name=f"sync {self.path.name}")

    async def _sync_soon(self) -> None:
        await asyncio.sleep(self.options.sync_interval / 1000)
        try:
            self._open().flush_wal(sync=True)
        except Exception as error:  # noqa: BLE001  rocksdict raises nothing narrower
            self._poison = f"{self.path}: sync failed ({error}): mend the disk, then start again"
            tell("error", "log not synced", error=self._poison)  # the next commit raises it

    def _open(self) -> Any:
        if self._db is None:
            raise StoreError(f"{self.path}: this store is closed")
        return self._db

    def take(self, frame: Frame, size: int = 0) -> None:
        """The frame's changes are in the database: now it is the last commit."""
        self.meta, self.number, self.commit_id = frame.meta, frame.number, frame.commit_id
        self.now = max(self.now, frame.now)

    # Reading

    def get(self, space: Space, key: bytes) -> bytes | None:
        value: Value = MISSING if self.undecided is None else self._undecided_value(space, key)
        if value is MISSING:
            stored = self._open().get(prefix_of(space) + key)
            value = None if stored is None else _value(stored)
        if type(value) is list:
            return value[1] if value[0] > self.now else None
        return value  # type: ignore[no-any-return]

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        if self.undecided is not None:
            return [self.get(space, key) for key in keys]
        prefix, now = prefix_of(space), self.now
        found: list[bytes | None] = []
        for stored in self._open().get([prefix + key for key in keys]):
            value = None if stored is None else _value(stored)
            if type(value) is list:
                value = value[1] if value[0] > now else None
            found.append(value)
        return found

    def _chunks(self, space: Space, start: bytes | None, stop: bytes | None, reverse: bool) -> Iterator[Columns]:
        sources: list[Iterator[Columns]] = []
        pending, drops = self._pending()
        if space not in drops and not (start is not None and stop is not None and start >= stop):
            walk = _Walk(self._open(), self._rocks, prefix_of(space), start, stop, reverse)
            self._walks.add(walk)
            sources.append(walk)
        rows = pending.get(space, {})
        keys = sorted(k for k in rows if (start is None or k >= start) and (stop is None or k < stop))
        if keys:
            sources.append(iter([(keys, [rows[key] for key in keys])]))
        return merge(sources, reverse=reverse)

    def has(self, space: Space) -> bool:
        pending, drops = self._pending()
        if space in pending:
            return True
        if space in drops:
            return False
        prefix = prefix_of(space)
        first = next(self._open().keys(from_key=prefix), b"")
        return bool(first.startswith(prefix))

    def _spaces(self) -> set[Space]:
        pending, drops = self._pending()
        return (set(self._stored_spaces()) - drops) | pending.keys()

    def _stored_spaces(self) -> Iterator[Space]:
        """One look into the database a space: from each the search goes on behind it."""
        at = b"\x01"
        while (key := next(self._open().keys(from_key=at), None)) is not None:
            space = space_of(key)
            yield space
            at = _after(prefix_of(space))

    def spaces(self) -> list[Space]:
        """All spaces that have keys."""
        return sorted(self._spaces(), key=prefix_of)

    # The background, which is RocksDB's own

    async def flush(self) -> None:
        """Write everything that is in memory to sstables."""
        self._refuse_second()
        await anyio.to_thread.run_sync(self._open().flush)

    async def compact(self) -> None:
        """Remove what has expired, then merge everything to the last level, whatever that costs."""
        await self.flush()
        for space in self._stored_spaces():
            self._purge(prefix_of(space))
        await anyio.to_thread.run_sync(self._open().compact_range, None, None)

    def _purge(self, prefix: bytes) -> None:
        walk = _Walk(self._open(), self._rocks, prefix, None, None, reverse=False)
        for keys, values in walk:
            gone = [k for k, v in zip(keys, values, strict=True) if type(v) is list and v[0] <= self.now]
            if gone:
                batch = self._rocks.WriteBatch(raw_mode=True)
                for key in gone:
                    batch.delete(prefix + key)
                self._write(batch, self._lazily)

    def stats(self) -> Stats:
        """What it has done since it was opened, and how large it is."""
        db = self._open()
        levels: dict[int, list[int]] = {}
        for file in db.live_files():
            level = levels.setdefault(file["level"], [0, 0])
            level[0] += 1
            level[1] += file["size"]
        return msgspec.structs.replace(
            self.counts,
            memtable=db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0,
            tables=sum(files for files, _ in levels.values()),
            table_bytes=sum(size for _, size in levels.values()),
            records=max(0, (db.property_int_value("rocksdb.estimate-num-keys") or 0) - bool(self.number)),
            levels=dict(sorted(levels.items())),
            runs=levels.get(0, [0])[0],
        )


class _Walk:
    """A space's records in chunks, as they were when this was made."""

    def __init__(
        self, db: Any, rocks: Any, prefix: bytes, start: bytes | None, stop: bytes | None, reverse: bool
    ) -> None:
        self._prefix, self._reverse = prefix, reverse
        self._first = prefix + (start or b"")
        # Kept as long as the iterator, which looks into it.
        self._bounds = bounds = rocks.ReadOptions()
        # The lower bound is not used: rocksdict 0.3.29 sets the upper one in its place.
        bounds.set_iterate_upper_bound(_after(prefix) if stop is None else prefix + stop)
        if reverse:
            self._items = db.items(backwards=True, read_opt=bounds)
        else:
            self._items = db.items(from_key=self._first, read_opt=bounds)

    def __iter__(self) -> Iterator[Columns]:
        return self

    def __next__(self) -> Columns:
        if self._items is None:
            raise StoreError("this scan's store is closed")
        rows = list(islice(self._items, CHUNK))
        if self._reverse:
            if rows and rows[-1][0] < self._first:
                rows = [row for row in rows if row[0] >= self._first]
                self._items = iter(())
            rows.reverse()
        if not rows:
            raise StopIteration
        cut = len(self._prefix)
        return [key[cut:] for key, _ in rows], [_value(stored) for _, stored in rows]

    def end(self) -> None:
        """Let go of the database."""
        self._items = None


def is_rocks(directory: Path) -> bool:
    """True if the directory holds a store of this engine."""
    return (directory / FOLDER).is_dir()


__all__ = ["RocksStore", "import_rocksdict", "is_rocks"]
