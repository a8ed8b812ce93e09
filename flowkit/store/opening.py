"""Opening a store: on disk as its owner, on disk to look, or in memory."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio

from flowkit.errors import ConfigError, StoreCorrupt, StoreKeyError
from flowkit.store.building import check_complete
from flowkit.store.cache import BlockCache, Budget, Rows
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Disk, Files
from flowkit.store.frame import Frame
from flowkit.store.keys import KeyProvider, unlock_here, unlock_or_begin
from flowkit.store.log import logs
from flowkit.store.lsm import LsmStore
from flowkit.store.manifest import manifests
from flowkit.store.memory import MemoryStore
from flowkit.store.memtable import Memtable
from flowkit.store.options import StoreOptions
from flowkit.store.reading import Reading
from flowkit.store.recovery import hidden_by_logs, readers, recover
from flowkit.store.rocks import RocksStore, is_rocks
from flowkit.store.runner import Helper, Runner, helper
from flowkit.store.state_dir import claim_directory
from flowkit.store.version import Version

Store = LsmStore | MemoryStore | RocksStore
Engine = Literal["lsm", "rocks"]

READ_TRIES = 50


class Host:
    """What the stores of one process share: the memory budget, and the helper that flushes and compacts."""

    def __init__(self, budget: Budget | None = None, runner: Runner | None = None) -> None:
        self.budget = budget or Budget()
        self.runner = runner or Helper()

    async def close(self) -> None:
        """End the helper."""
        if isinstance(self.runner, Helper):
            await self.runner.close()


@asynccontextmanager
async def open_host(memory: int = 256 * 2**20, *, bytes_per_second: int | None = None) -> AsyncIterator[Host]:
    """A host with a budget of `memory` bytes, as long as this context lasts."""
    async with helper(bytes_per_second) as made:
        yield Host(Budget(memory), made)


@asynccontextmanager
async def open_store(
    path: str | os.PathLike[str] | None,
    *,
    host: Host | None = None,
    options: StoreOptions | None = None,
    keys: KeyProvider | None = None,
    files: Files | None = None,
    disk: list[bytes] | None = None,
    engine: Engine = "lsm",
) -> AsyncIterator[Store]:
    """A store in the directory `path` (None: in memory, for tests and for runs without `--state`), as its one owner.

    The last frame found may be undecided (`store.undecided`): resolve it before anything else. Stores of one process
    should share a `host`; without one, the store gets its own. `disk` stands for a directory in tests that crash.
    `engine` is the store of our own, or RocksDB through `rocksdict` (the extra `rocks`); a directory stays with the one
    that made it. With `keys` a store that is begun here is encrypted.

    Raises StoreLocked with the owner's pid if another process has it open, StoreCorrupt if its files are not what was
    written, StoreKeyError if it is encrypted and `keys` is missing or another's (or it is not, and `keys` is given),
    ConfigError if the directory cannot be used.
    """
    if path is None:
        yield MemoryStore(disk)
        return
    directory = Path(path)
    async with AsyncExitStack() as stack:
        try:
            await anyio.Path(directory).mkdir(parents=True, exist_ok=True)
            stack.enter_context(claim_directory(directory))
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from error
        _check_engine(directory, engine, keys, files)
        if host is None:
            host = await stack.enter_async_context(open_host())
        store: LsmStore | RocksStore
        try:
            if engine == "rocks":
                store = RocksStore(directory, host.budget, options or StoreOptions())
            else:
                check_complete(directory)
                files = files or Disk()
                key = await unlock_or_begin(files, directory, keys)
                store = LsmStore(directory, files, host.budget, host.runner, options or StoreOptions(), key, keys)
            await anyio.to_thread.run_sync(store.recover)
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from error
        stack.push_async_callback(store.close)
        yield store


def _check_engine(directory: Path, engine: Engine, keys: KeyProvider | None, files: Files | None) -> None:
    if engine == "rocks":
        if manifests(directory) or logs(directory):
            raise ConfigError(
                f"{directory}: made by engine 'lsm': open it so, or give engine 'rocks' another directory"
            )
        if keys is not None or files is not None:
            what = (
                "encrypts nothing: leave out the key" if keys is not None else "writes its own files: leave out files="
            )
            raise ConfigError(f"{directory}: engine 'rocks' {what}, or use engine 'lsm'")
    elif engine != "lsm":
        raise ConfigError(f"{directory}: no engine {engine!r}: there are 'lsm' and 'rocks'")
    elif is_rocks(directory):
        raise ConfigError(f"{directory}: made by engine 'rocks': open it so, or give engine 'lsm' another directory")


class Look(Reading):
    """A store as another process has it: nothing is locked or written. Changes to it stay in memory."""

    def __init__(self, version: Version) -> None:
        super().__init__(Memtable(), BlockCache(16 * 2**20), Rows(2**20))
        self.version = version
        """The sstables when it was opened. They can be read even after their owner has removed them."""

    async def prepare(self, frame: Frame) -> None:
        """Show `frame`, in memory only."""
        self.show(frame)

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Keep it or forget it, in memory only."""
        frame = self.undecided
        self.show(None)
        if applied and frame is not None:
            self.take(frame)


def read_store(path: Path, keys: KeyProvider | None = None, *, until: bytes | None = None) -> Look:
    """A look at a store whose owner may be running: consistent, as of its last commit (or that with the id `until`).

    The last frame is taken to count: its owner decides that within milliseconds. Raises StoreCorrupt, StoreKeyError,
    ConfigError for a store of engine 'rocks', which only its owner can read.
    """
    if is_rocks(path):
        raise ConfigError(
            f"{path}: made by engine 'rocks', which only its owner can read: use open_store(engine='rocks')"
        )
    check_complete(path)
    return look(path, lambda: unlock_here(path, keys), until)


def look(path: Path, unlocked: Callable[[], StoreKey | None], until: bytes | None = None) -> Look:
    """As `read_store`, with the store's own key."""
    key = unlocked()
    for tries_left in reversed(range(READ_TRIES)):
        try:
            found = recover(path, key, until=until)
            tables = readers(path, found, key)
            for table in tables.values():
                table.load()
        except (StoreCorrupt, StoreKeyError, FileNotFoundError):
            # Its owner may just have put others in the place of these files; real damage is still there the next time.
            if not tries_left:
                raise
            time.sleep(0.01)
            key = unlocked()
            continue
        break
    version = Version(found.manifest.files, found.manifest.hidden | set(hidden_by_logs(found)), tables)
    made = Look(version)
    made.memtable, made.meta, made.number, made.commit_id = found.memtable, found.meta, found.number, found.commit_id
    made.now = found.now
    if found.undecided is not None:
        made.take(found.undecided)
    return made
