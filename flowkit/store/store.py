"""The store: tables in memory over a durable log of frames, with at most one frame undecided."""

import os
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from flowkit.errors import ConfigError, StoreCorrupt, StoreError, StorePoisoned
from flowkit.store.frame import HEADER, Frame, Space, SpaceChange, decode_log, encode_frame
from flowkit.store.state_dir import sync_directory

REWRITE_ABOVE = 64 * 2**20
"""A log smaller than this (bytes) is never rewritten."""

REWRITE_GROWTH = 4
"""A log this many times the size of the state in it is rewritten as one frame."""


MERGE_ABOVE = 50_000
"""So many changed keys of a space wait, unless someone reads, before they are merged into its dict."""


class _Keys:
    """The keys of one space. Changes wait in columns until someone asks: a closed window's are never merged at all."""

    __slots__ = ("_count", "_merged", "_order", "_waiting")

    def __init__(self) -> None:
        self._merged: dict[bytes, bytes] = {}
        self._waiting: list[SpaceChange] = []
        self._count = 0
        self._order: list[bytes] | None = None

    def add(self, change: SpaceChange) -> None:
        self._waiting.append(change)
        self._count += len(change.keys)
        if self._count > MERGE_ABOVE and self._count > len(self._merged):
            self.merged()

    def merged(self) -> dict[bytes, bytes]:
        for change in self._waiting:
            _update(self._merged, change)
            self._order = None
        self._waiting, self._count = [], 0
        return self._merged

    def order(self) -> list[bytes]:
        """The keys in order, kept until one changes: who scans in chunks asks often."""
        merged = self.merged()
        if self._order is None:
            self._order = sorted(merged)
        return self._order


class Store:
    """Committed state of one task. Made by `open_store`.

    A frame is first *prepared* (durable, undecided: its changes can be read here but may yet be taken back), then
    *resolved*. `meta` is that of the last frame which counts.
    """

    def __init__(self, path: Path | None, disk: list[bytes] | None = None) -> None:
        self.path, self.disk = path, disk
        self.meta: dict[str, Any] = {}
        self.number = 0
        self.commit_id = b""
        self.undecided: Frame | None = None
        self.log_bytes = 0
        self._spaces: dict[Space, _Keys] = {}
        self._overlay: tuple[dict[Space, dict[bytes, bytes | None]], set[Space]] | None = None
        self._fd = -1
        self._sequence = 0
        self._base_bytes = 0
        self._poison: str | None = None

    # Reading

    def get(self, space: Space, key: bytes) -> bytes | None:
        """The value of `key`, the undecided frame's included; None if there is none."""
        if self.undecided is not None:
            pending, drops = self._pending()
            if space in pending and key in pending[space]:
                return pending[space][key]
            if space in drops:
                return None
        keys = self._spaces.get(space)
        return None if keys is None else keys.merged().get(key)

    def scan(self, space: Space, *, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """All keys from `start` on and their values, in key order. To be used up before the store changes."""
        pending, drops = self._pending()
        keys = _Keys() if space in drops or space not in self._spaces else self._spaces[space]
        merged, order, more = keys.merged(), keys.order(), pending.get(space, {})
        if more:
            order = sorted(merged.keys() | more)
        for n in range(0 if start is None else bisect_left(order, start), len(order)):
            key = order[n]
            value = more[key] if key in more else merged[key]
            if value is not None:
                yield key, value

    def has(self, space: Space) -> bool:
        """False if the space surely has no keys."""
        if space in self._spaces:
            return True
        return self.undecided is not None and space in self._pending()[0]

    def ends(self, table: str) -> list[int]:
        """The window ends of which `table` has a space, in order."""
        pending, drops = self._pending()
        spaces = (self._spaces.keys() - drops) | pending.keys()
        return sorted(end for name, end in spaces if name == table and end is not None)

    def tables(self) -> list[str]:
        """The tables that have any key."""
        return sorted({name for name, _ in self._spaces.keys() | self._pending()[0].keys()})

    def _pending(self) -> tuple[dict[Space, dict[bytes, bytes | None]], set[Space]]:
        """The undecided frame as dicts. Made when first asked for: mostly the live objects answer before."""
        if self._overlay is None:
            pending: dict[Space, dict[bytes, bytes | None]] = {}
            drops: set[Space] = set()
            if self.undecided is not None:
                for change in self.undecided.changes:
                    space = pending.setdefault((change.table, change.end), {})
                    space.update(zip(change.keys, change.values, strict=True))
                drops = {(drop[0], drop[1]) for drop in self.undecided.drops}
            self._overlay = pending, drops
        return self._overlay

    def size(self) -> int:
        """How many keys there are in all spaces."""
        return sum(len(keys.merged()) for keys in self._spaces.values())

    # Writing

    async def prepare(self, frame: Frame) -> None:
        """Make `frame` durable, undecided. At most one frame may be.

        Raises StorePoisoned after a failed write or sync: nothing later can be promised.
        """
        if self.undecided is not None:
            raise StoreError(f"frame {self.undecided.number} is still undecided")
        if self._poison:
            raise StorePoisoned(self._poison)
        self.undecided, self._overlay = frame, None
        if self.path is not None:
            record = encode_frame(frame)
            await anyio.to_thread.run_sync(self._append, record)
        elif self.disk is not None:
            self.disk.append(encode_frame(frame))

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Say whether the undecided frame counts. If not, it leaves no trace."""
        frame = self.undecided
        if frame is None or frame.commit_id != commit_id:
            raise StoreError(f"no undecided frame {commit_id.hex()}")
        if applied:
            self.apply(frame)
        else:
            self.log_bytes -= len(encode_frame(frame)) if self.path is not None else 0
            if self.path is not None:
                await anyio.to_thread.run_sync(self._truncate, self.log_bytes)
            elif self.disk is not None:
                self.disk.pop()
        self.undecided, self._overlay = None, None
        if applied and self.log_bytes > max(REWRITE_ABOVE, REWRITE_GROWTH * self._base_bytes):
            await anyio.to_thread.run_sync(self._rewrite)

    def apply(self, frame: Frame) -> None:
        """Make the frame's changes the committed state, in memory only."""
        spaces = self._spaces
        for drop in frame.drops:
            spaces.pop((drop[0], drop[1]), None)
        for change in frame.changes:
            space = (change.table, change.end)
            if space not in spaces:
                spaces[space] = _Keys()
            spaces[space].add(change)
        self.meta, self.number, self.commit_id = frame.meta, frame.number, frame.commit_id

    # The log

    def _name(self, sequence: int) -> Path:
        assert self.path is not None
        return self.path / f"log-{sequence:08}"

    def _append(self, record: bytes) -> None:
        try:
            _write_all(self._fd, record)
            os.fdatasync(self._fd)
        except OSError as error:
            self._poison = (
                f"{self._name(self._sequence)}: write failed ({error.strerror}); everything up to commit {self.number} "
                "is safe: make room or mend the disk, then start again"
            )
            raise StorePoisoned(self._poison) from error
        self.log_bytes += len(record)

    def _truncate(self, length: int) -> None:
        os.ftruncate(self._fd, length)
        os.fdatasync(self._fd)

    def _rewrite(self) -> None:
        """Put the whole state into a new log of one frame; the old log goes only once the new one is durable."""
        changes = [
            SpaceChange(table, end, list(keys.merged()), list(keys.merged().values()))
            for (table, end), keys in self._spaces.items()
        ]
        record = encode_frame(Frame(self.number, self.commit_id, b"", 0, self.meta, changes))
        try:
            self._start_log(self._sequence + 1, record)
        except OSError as error:
            self._poison = f"{self._name(self._sequence + 1)}: write failed ({error.strerror})"
            raise StorePoisoned(self._poison) from error

    def _start_log(self, sequence: int, record: bytes) -> None:
        assert self.path is not None
        draft = self.path / f".log-{sequence:08}"
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _write_all(fd, HEADER + record)
            os.fsync(fd)
            draft.rename(self._name(sequence))
            sync_directory(self.path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
            self._name(self._sequence).unlink(missing_ok=True)
        self._fd, self._sequence = fd, sequence
        self.log_bytes = self._base_bytes = len(HEADER) + len(record)

    def recover(self) -> None:
        """Read the newest log. Its last frame may be undecided: whoever opens the store resolves it."""
        assert self.path is not None
        logs = sorted(self.path.glob("log-*"))
        if not logs:
            self._start_log(1, b"")
            return
        newest = logs[-1]
        data = newest.read_bytes()
        end = self.replay(data, str(newest))
        self._sequence = int(newest.name.removeprefix("log-"))
        self._fd = os.open(newest, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        if len(data) < len(HEADER):
            os.ftruncate(self._fd, 0)
            _write_all(self._fd, HEADER)
        elif end < len(data):
            os.ftruncate(self._fd, end)
        os.fsync(self._fd)
        self.log_bytes = end
        self._base_bytes = sum(len(k) + len(v) for space in self._spaces.values() for k, v in space.merged().items())
        for old in logs[:-1]:
            old.unlink()

    def replay(self, data: bytes, name: str) -> int:
        """Apply the frames of a log but the last, which is left undecided; the offset at which it ends."""
        end, last = len(HEADER), None
        for end, frame in decode_log(data, name):  # noqa: B007  the last one is the answer
            if last is not None:
                if frame.parent != last.commit_id:
                    raise StoreCorrupt(f"{name}: commit {frame.number} does not follow commit {last.number}")
                self.apply(last)
            last = frame
        self.undecided = last
        return end

    async def adopt(self, path: Path, commit_id: bytes) -> bool:
        """Begin with the state that another store, in `path`, had at `commit_id`; False if it never had.

        What that store's owner prepared after it never counted, and is left out. Only for an empty store.
        """
        return await anyio.to_thread.run_sync(self._adopt, path, commit_id)

    def _adopt(self, path: Path, commit_id: bytes) -> bool:
        logs = sorted(path.glob("log-*"))
        if not logs:
            return False
        for _, frame in decode_log(logs[-1].read_bytes(), str(logs[-1])):
            self.apply(frame)
            if frame.commit_id == commit_id:
                self._rewrite()
                return True
        self._spaces.clear()
        self.meta, self.number, self.commit_id = {}, 0, b""
        return False

    def close(self) -> None:
        """Let go of the files. What was resolved is durable already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _update(space: dict[bytes, bytes], change: SpaceChange) -> None:
    if None in change.values:
        for key, value in zip(change.keys, change.values, strict=True):
            if value is None:
                space.pop(key, None)
            else:
                space[key] = value
    else:
        space.update(zip(change.keys, change.values, strict=True))  # type: ignore[arg-type]


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@asynccontextmanager
async def open_store(path: str | os.PathLike[str] | None, *, disk: list[bytes] | None = None) -> AsyncIterator[Store]:
    """A store in the directory `path` (None: in memory, for tests and for runs without `--state`).

    `disk` stands for a directory in tests that crash: what was written to it is found there again.

    The last frame found may be undecided (`store.undecided`): resolve it before anything else. The caller owns the
    directory (`claim_directory`). Raises StoreCorrupt, or ConfigError if the directory cannot be used.
    """
    store = Store(None if path is None else Path(path), disk)
    if disk:
        store.replay(HEADER + b"".join(disk), "memory")
    if store.path is not None:
        try:
            store.path.mkdir(parents=True, exist_ok=True)
            await anyio.to_thread.run_sync(store.recover)
        except OSError as error:
            store.close()
            raise ConfigError(f"{store.path}: cannot be used: {error.strerror}") from error
        except BaseException:
            store.close()
            raise
    try:
        yield store
    finally:
        store.close()


def read_store(path: Path) -> Store:
    """A look at a store whose owner may be running: a copy in memory of what its log says now.

    The last frame is taken to count: its owner decides that within milliseconds. Raises StoreCorrupt.
    """
    store = Store(None)
    data, name = _newest_log(path)
    for _, frame in decode_log(data, name):
        store.apply(frame)
    return store


def _newest_log(path: Path) -> tuple[bytes, str]:
    while logs := sorted(path.glob("log-*")):
        try:
            return logs[-1].read_bytes(), str(logs[-1])
        except FileNotFoundError:  # its owner has just put a shorter one in its place
            continue
    return b"", str(path)
