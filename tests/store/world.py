"""What the store's tests share: tiny stores, a plain model of them, and a way to look at all that one holds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowkit.store import Budget, CompactionOptions, Frame, Inline, LsmStore, Reading, Space, SpaceChange, StoreOptions
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Disk, DiskWriter, Files, Writer
from flowkit.store.frame import BEGINNING
from flowkit.store.jobs import Done, Job
from flowkit.store.opening import Look, look
from flowkit.store.options import Durability

KEY = StoreKey(bytes(range(32)))

SPACES: list[Space] = [("t", None), ("u", None), ("w", 10), ("w", 20)]


class _Hasty(DiskWriter):
    def sync(self) -> None:
        pass


class Hasty(Disk):
    """The operating system's files, never synced: for tests in which no power fails."""

    def create(self, path: Path) -> Writer:
        return _Hasty(path, os.O_CREAT | os.O_EXCL)

    def open(self, path: Path) -> Writer:
        return _Hasty(path, 0)

    def sync_directory(self, path: Path) -> None:
        pass


Cell = bytes | tuple[int, bytes]
"""A value, or (expiry, value)."""


def tiny(durability: Durability = "commit", **changes: Any) -> StoreOptions:
    """Options with which some commits make a flush, and some flushes a compaction."""
    options: dict[str, Any] = {
        "durability": durability,
        "sync_interval": 1,
        "log_bytes": 300,
        "block_bytes": 64,
        "table_bytes": 300,
        "max_runs": 4,
        "compaction": CompactionOptions(l0_runs=2, l1_bytes=700, multiplier=2),
    }
    return StoreOptions(**options | changes)


class Model:
    """What a store should hold: dicts."""

    def __init__(self) -> None:
        self.spaces: dict[Space, dict[bytes, Cell]] = {}
        self.now = BEGINNING

    def copy(self) -> Model:
        other = Model()
        other.spaces = {space: dict(keys) for space, keys in self.spaces.items()}
        other.now = self.now
        return other

    def apply(self, frame: Frame) -> Model:
        """Take a frame's changes; itself."""
        for table, end in frame.drops:
            self.spaces.pop((table, end), None)
        for change in frame.changes:
            keys = self.spaces.setdefault((change.table, change.end), {})
            for key, value in zip(change.keys, change.values, strict=True):
                if value is None:
                    keys.pop(key, None)
                else:
                    keys[key] = value if isinstance(value, bytes) else (value[0], value[1])
        self.now = max(self.now, frame.now)
        return self

    def rows(self, space: Space, start: bytes | None = None, stop: bytes | None = None) -> list[tuple[bytes, bytes]]:
        """What a scan gives."""
        found = []
        for key, cell in sorted(self.spaces.get(space, {}).items()):
            if (start is None or key >= start) and (stop is None or key < stop):
                if isinstance(cell, bytes):
                    found.append((key, cell))
                elif cell[0] > self.now:
                    found.append((key, cell[1]))
        return found

    def everything(self, spaces: Iterable[Space] = SPACES) -> dict[Space, list[tuple[bytes, bytes]]]:
        """All rows of all spaces that have some."""
        return {space: rows for space in spaces if (rows := self.rows(space))}


def everything(store: Reading, spaces: Iterable[Space] = SPACES) -> dict[Space, list[tuple[bytes, bytes]]]:
    """All rows of a store, as its scans tell them; its look-ups must tell the same."""
    found = {space: rows for space in spaces if (rows := list(store.scan(space)))}
    for space, rows in found.items():
        assert list(store.scan(space, reverse=True)) == rows[::-1]
        assert [store.get(space, key) for key, _ in rows] == [value for _, value in rows]
        assert store.get_many(space, [key for key, _ in rows]) == [value for _, value in rows]
    return found


class Patient(Inline):
    """Does jobs at once, but while it is held tells what came of one only when commits would have to wait for that.

    So much may happen between what a job has read and the edit that makes it count.
    """

    store: LsmStore
    held = False

    async def run(self, job: Job) -> Done:
        done = await super().run(job)
        background = self.store._background
        while self.held and not background.is_full():  # noqa: ASYNC110 - a test's loop runs in its steps only
            await asyncio.sleep(0)
        return done


def open_now(
    path: Path, *, files: Files | None = None, options: StoreOptions | None = None, key: StoreKey | None = None
) -> LsmStore:
    """A store that does its background work at once; without a lock, so that a test can drop it as kill -9 would."""
    files = files or Hasty()
    runner = Patient(files)
    runner.store = store = LsmStore(path, files, Budget(2**20), runner, options or tiny(), key)
    store.recover()
    return store


def look_now(path: Path, key: StoreKey | None = None) -> Look:
    """A look at a store that `open_now` opened."""
    return look(path, lambda: key)


def hold(store: LsmStore, held: bool) -> None:
    """Hold up the background of a store, or let it go on."""
    assert isinstance(store.runner, Patient)
    store.runner.held = held


async def kill(store: LsmStore) -> None:
    """What SIGKILL leaves of a store: nothing more is written, nothing was said."""
    ours = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not ours]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    store.budget.leave(store._journal)
    store._journal.close()
    store._core.catalog.close()


def in_the_background(store: LsmStore) -> list[asyncio.Task[None]]:
    """The tasks that make room."""
    tasks = (store._journal.turning, store._background.flushing, store._background.compacting)
    return [task for task in tasks if task is not None]


async def settle(store: LsmStore) -> None:
    """Let the background finish what there is to do."""
    if isinstance(store.runner, Patient):
        hold(store, False)
    for _ in range(200):
        tasks = [task for task in in_the_background(store) if not task.done()]
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=1)


def frame(
    store: Reading,
    puts: Mapping[Space, Mapping[bytes, Any]],
    drops: Iterable[Space] = (),
    *,
    number: int,
    now: int | None = None,
    decided: bool = False,
) -> Frame:
    """A frame that follows the store's last one; its number makes its id."""
    changes = [SpaceChange(table, end, list(keys), list(keys.values())) for (table, end), keys in puts.items()]
    then = store.now if now is None else now
    commit_id = number.to_bytes(16, "big")
    return Frame(store.number + 1, commit_id, store.commit_id, 0, {"n": number}, changes, list(drops), then, decided)
