"""The store on disk: log and memtable in front, sstables behind, flushed and compacted in the background.

    prepare   the frame is in the log, as durable as `durability` says, undecided
    resolve   it counts: the memtable takes it. Or it does not: the log is cut
    flush     a memtable that has grown is set aside with its logs; a job makes sstables of them
    compact   a job merges sstables, as `compaction.choose` says

What a crash leaves is always the logs and what the manifest names; everything else is removed at the next opening.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from flowkit.errors import StoreError, StorePoisoned
from flowkit.store.adopt import adopt
from flowkit.store.block import PACKINGS
from flowkit.store.cache import Budget, Rows
from flowkit.store.catalog import Catalog, fresh_state, remove_strangers
from flowkit.store.cipher import KEY_BYTES, StoreKey
from flowkit.store.compaction import Choice, by_level, choose
from flowkit.store.events import tell
from flowkit.store.files import Files
from flowkit.store.frame import BEGINNING, Frame, Space, SpaceChange
from flowkit.store.jobs import Job
from flowkit.store.keys import KeyProvider, encode_keys, keys_of, unlock, write_keys
from flowkit.store.log import Log, log_number
from flowkit.store.manifest import Manifest
from flowkit.store.memtable import Memtable
from flowkit.store.options import StoreOptions
from flowkit.store.progress import OnProgress
from flowkit.store.reading import Reading
from flowkit.store.recovery import Found, hidden_by_logs, readers, recover
from flowkit.store.runner import Runner
from flowkit.store.snapshot import Pinned, snapshot
from flowkit.store.sstable import FileMeta
from flowkit.store.version import Base, Edit, Hidden, Version
from flowkit.store.whole import in_thread, whole

T = TypeVar("T")

FILES_A_JOB = 10_000
"""So many names are set aside for the outputs of one job."""
SMALL_LOG = 8 * 2**20
"""A log up to this size (bytes) is left as it is at a clean close: reading it again takes some 50 ms."""
RETRY_SECONDS = 1.0


class Set(msgspec.Struct):
    """A memtable set aside, with all that its flush must know."""

    memtable: Memtable
    logs: list[Path]
    base: Base


class Stats(msgspec.Struct):
    """What a store has done since it was opened (bytes, seconds), and what it is."""

    commits: int = 0
    logged: int = 0
    flushes: int = 0
    flushed: int = 0
    compactions: int = 0
    compaction_read: int = 0
    compacted: int = 0
    background_seconds: float = 0.0
    waited_seconds: float = 0.0
    memtable: int = 0
    tables: int = 0
    table_bytes: int = 0
    records: int = 0
    levels: dict[int, list[int]] = {}
    """By level: [files, bytes]; level 0 also counts its runs."""
    runs: int = 0
    block_misses: int = 0


class LsmStore(Reading):
    """Made by `open_store`. One owner; everything but `get`, `scan` and the like is called by one asyncio task at a
    time.
    """

    def __init__(
        self,
        directory: Path,
        files: Files,
        budget: Budget,
        runner: Runner,
        options: StoreOptions,
        key: StoreKey | None = None,
        keys: KeyProvider | None = None,
    ) -> None:
        super().__init__(Memtable(), budget.blocks, Rows(budget.rows))
        self.keys = keys
        self.path, self.files, self.budget, self.runner, self.options, self.key = (
            directory, files, budget, runner, options, key,
        )  # fmt: skip
        self.counts = Stats()
        self.memtable_bytes = 0
        self._older_logs = 0
        """Bytes of the active memtable's logs but for the open one."""
        self._logs: list[Path] = []
        """The logs whose frames are in the active memtable; the last one is open."""
        self._set_aside: list[Set] = []
        """Oldest first; `frozen` has their memtables."""
        self._poison: str | None = None
        self._trouble: StoreError | None = None
        """What the background could not do; commits that would have to wait for it raise it."""
        self._moved = asyncio.Event()
        self._next_log: Log | None = None
        self._may_carry_over = False
        self._turning: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._compacting: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._idling: asyncio.Task[None] | None = None
        self._undecided_in: tuple[Log | Path, int] | None = None
        self._busy = False
        """A frame is being prepared or resolved, or the log turns. (A lock would cost a commit of one key a fifth.)"""
        self._queue: list[asyncio.Future[None]] = []
        """Who waits for that."""
        self._at_rest: list[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = []
        """What waits for the undecided frame to be decided."""
        self._pins = 0
        """How many are about to turn the log: the next frame leaves it to them."""
        self._held: Counter[Path] = Counter()
        """Logs that a pin still reads; those of them that were flushed meanwhile are in `_left`."""
        self._left: set[Path] = set()
        self._log: Log
        self._catalog: Catalog
        self._clock = asyncio.get_running_loop().time

    # Opening and closing

    def recover(self) -> None:
        """Read what is there, and begin a manifest and a log. Raises StoreCorrupt, StoreKeyError, OSError."""
        self.files.make_directory(self.path)
        found = recover(self.path, self.key)
        tables = readers(self.path, found, self.key)
        session = found.manifest.session + 1
        if session == 1:
            self.files.sync_directory(self.path.parent)
        hidden = found.manifest.hidden | set(hidden_by_logs(found))
        version = Version(found.manifest.files, hidden, tables)
        self._make_logs_durable(found)
        self.memtable, self.number, self.commit_id = found.memtable, found.number, found.commit_id
        self.meta, self.now = found.meta, found.now
        self._logs = [path for path in found.logs if path in found.ends]
        self._older_logs = sum(found.ends.values())
        if found.undecided is not None:
            self.show(found.undecided)
            assert found.undecided_log is not None
            self._undecided_in = (found.undecided_log, found.undecided_at)
        self._base = found.manifest.base
        number = max(map(log_number, found.logs), default=0) + 1
        self._logs_from = log_number(self._logs[0]) if self._logs else number
        # The log before the manifest: the first log that a manifest names is always there.
        self._log = Log(self.files, self.path, number, self.key)
        self._logs.append(self._log.path)
        state = fresh_state(version.files, hidden, self._logs_from, self._base)
        try:
            manifest = Manifest.begin(self.files, self.path, session, state, self.key)
        except OSError:
            self._log.close()
            raise
        self.version = version
        self._catalog = Catalog(self.files, self.path, self.key, version, manifest, session)
        self._catalog.show = self._show_version
        self._catalog.state = self._whole_state
        try:
            remove_strangers(self.files, self.path, version, session, self._logs)
        except OSError:
            self._log.close()
            manifest.close()
            raise
        self.memtable_bytes = self.memtable.bytes()
        self.rows.limit = self.budget.rows_each()
        self.budget.join(self)

    def _make_logs_durable(self, found: Found) -> None:
        """What a killed owner left may be in the page cache only: nothing may be built on it before this."""
        for path, end in found.ends.items():
            writer = self.files.open(path)
            try:
                if path.stat().st_size > end:
                    writer.truncate(end)
                writer.sync()
            finally:
                writer.close()

    def _show_version(self, version: Version) -> None:
        self.version = version

    def _whole_state(self) -> Edit:
        version = self.version
        return fresh_state(version.files, version.hidden, self._logs_from, self._base)

    async def _trust(self, keys: bytes) -> None:
        """Be able to read files under `keys` (32 bytes each), and under our own; durable when it returns."""
        assert self.key is not None
        assert self.keys is not None
        ring = StoreKey(self.key.raw[:KEY_BYTES] + keys)
        data = await encode_keys(ring.raw, self.keys)
        await self._guarded(write_keys, self.files, self.path, data)
        self.key = self._catalog.key = ring

    async def close(self) -> None:
        """Stop the background and let go of everything. What was resolved is durable; a long log is flushed first."""
        with contextlib.suppress(StoreError):
            if self._poison is None and self.undecided is None and self._log_bytes() > SMALL_LOG:
                await self.flush()
        self.budget.leave(self)
        for _, waiting in (row for row in self._at_rest if not row[1].done()):
            waiting.set_exception(StoreError(f"{self.path}: closed meanwhile"))
        for task in (self._turning, self._flushing, self._compacting, self._syncing, self._idling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StoreError):
                    await task
        if self._poison is None:
            try:
                await in_thread(self._say_closed)
            except OSError as error:
                tell("warning", "store not closed in good order", path=str(self.path), error=str(error))
        if self._next_log is not None:
            self._next_log.close()
        self._log.close()
        await self._catalog.settled()
        self._catalog.close()
        for table in self.version.tables.values():
            table.close()
        self._poison = self._poison or f"{self.path}: closed: open it again"
        self._moved.set()

    def _say_closed(self) -> None:
        self._log.sync()
        commit_id = self.commit_id if self.undecided is None else self.undecided.commit_id
        self._catalog.manifest.append(Edit(closed=(self._log.number, self._log.size, commit_id)))

    # Commits

    async def prepare(self, frame: Frame) -> None:
        """Put `frame` into the log, undecided. At most one frame may be.

        Raises StorePoisoned after a failed write or sync: nothing later can be promised. Raises StoreError if there is
        no room for more changes because what came before cannot be written out.
        """
        if self._busy:
            await self._free()
        self._busy = True
        try:
            await self._prepare(frame)
        finally:
            self._leave()

    async def _prepare(self, frame: Frame) -> None:
        if self.undecided is not None:
            raise StoreError(f"frame {self.undecided.number} is still undecided")
        self._check()
        await self._wait_for_room()
        if self._turning is not None and not self._turning.done():
            # The log is full. A caller that never lets others run would fill it, and the memory, without end.
            await asyncio.wait([self._turning])
        if self._next_log is not None and (not self._pins or self.key is not None):
            await self._turn()
        if self._flushing is not None and not self._flushing.done():
            await asyncio.sleep(0)  # likewise: the flush takes its turns on the event loop
        at = self._log.size
        if self.options.durability == "commit":
            try:
                await self._guarded(self._append_and_sync, frame, self._log)
            except asyncio.CancelledError:
                # It was not promised: so it must not be found, nor stand before the next one.
                await whole(self._take_back(self._log, at))
                raise
        else:
            # A write into the page cache: less than a thread's turn takes.
            try:
                self._log.append(frame)
            except OSError as error:
                raise self._poisoned(self._log.path, error) from error
            self._sync_later()
        self.show(frame)
        self._undecided_in = (self._log, at)
        self.counts.commits += 1
        self.counts.logged += self._log.size - at

    def _append_and_sync(self, frame: Frame, into: Log) -> None:
        into.append(frame)
        into.sync()

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Say whether the undecided frame counts. If not, it leaves no trace."""
        if self._busy:
            await self._free()
        self._busy = True
        try:
            await self._resolve(commit_id, applied)
        finally:
            if self._at_rest and self.undecided is None:
                await self._let_rest()
            self._leave()

    async def _free(self) -> None:
        while self._busy:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(waiting)
            await waiting

    def _leave(self) -> None:
        self._busy = False
        if self._queue:
            for waiting in self._queue:
                if not waiting.done():
                    waiting.set_result(None)
            self._queue.clear()

    async def _resolve(self, commit_id: bytes, applied: bool) -> None:
        frame = self.undecided
        if frame is None or frame.commit_id != commit_id or self._undecided_in is None:
            raise StoreError(f"no undecided frame {commit_id.hex()}")
        where, at = self._undecided_in
        self.show(None)
        self._undecided_in = None
        if not applied:
            await whole(self._take_back(where, at))
            return
        size = self._log.size - at if where is self._log else 0
        if frame.drops:
            await whole(self._take_dropping(frame, size))
        else:
            self.take(frame, size)
        self.memtable_bytes = self.memtable.bytes()
        if self._log_bytes() > self.options.log_bytes:
            self.make_room(in_log=True)
        else:
            self.budget.check()

    async def _take_back(self, where: Log | Path, at: int) -> None:
        if isinstance(where, Log):
            await self._guarded(where.cut, at)
            if self.key is not None:
                await self._leave_log()
        else:
            await self._guarded(self._cut, where, at)

    def _cut(self, path: Path, at: int) -> None:
        writer = self.files.open(path)
        try:
            writer.truncate(at)
            writer.sync()
        finally:
            writer.close()

    async def _leave_log(self) -> None:
        """Go on in another log: no offset of an encrypted one is written twice, since it is the nonce."""
        if self._turning is not None:
            await asyncio.wait([self._turning])
        if self._next_log is None:  # else the next frame goes there
            before = self._log
            self._log = await self._guarded(Log, self.files, self.path, before.number + 1, self.key)
            self._logs.append(self._log.path)
            self._older_logs += before.size
            before.close()

    async def _take_dropping(self, frame: Frame, size: int) -> None:
        """Take a frame that drops spaces, and hide them in the files; a file with nothing else goes at once."""
        in_files = any((table, end) in self.version.runs for table, end in frame.drops)
        if self._log.synced < self._log.size and (in_files or self._set_aside):
            # Files, also those that are being written, must not lose what a power failure could bring back: the frame
            # comes first.
            await self._guarded(self._log.sync)
        self.take(frame, size)
        # The version may have changed meanwhile, but not from here on: `change` turns it before it awaits anything.
        drops = dict.fromkeys((table, end) for table, end in frame.drops)
        hide = [(name, table, end) for table, end in drops for name in self.version.holding((table, end))]
        if hide:
            hidden = frozenset(hide)
            names = dict.fromkeys(row[0] for row in hide)
            remove = [name for name in names if self.version.is_all_hidden(name, hidden)]
            await self._change(Edit(remove=remove, hide=hide))

    async def commit(
        self,
        puts: Mapping[Space, Mapping[bytes, bytes | None]] | Sequence[SpaceChange] = (),
        drops: Sequence[Space] = (),
        *,
        expires: int | None = None,
        now: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> int:
        """Change keys, all or nothing: None deletes one, `drops` are whole spaces (done first). The commit's number.

        With `expires` (ms) the values are gone once `now`, of this or a later commit, has reached it. `meta` replaces
        what was kept beside the data. Raises as `prepare`.
        """
        frame = frame_of(self, puts, drops, expires=expires, now=now, meta=meta)
        await self.prepare(frame)
        await self.resolve(frame.commit_id, applied=True)
        return frame.number

    async def adopt(self, other: Path, commit_id: bytes) -> bool:
        """Begin with the state that the store in `other` had at `commit_id`; False if it never had. Only while empty.

        What that store's owner prepared after it is left out. Raises StoreCorrupt; StoreError if it cannot be copied.
        """
        if self.number or self.undecided is not None:
            raise StoreError(f"{self.path}: not empty: it is at commit {self.number}")
        key = await unlock(other, self.keys)
        if key is not None:
            await self._trust(key.raw)  # before its files come; those of its keys that none is under go after
        job = self._job(level=0, run=0, packing=PACKINGS[self.options.packing])
        try:
            adopted = await in_thread(adopt, job, self.files, other, commit_id)
        except OSError as error:
            raise StoreError(f"{other}: cannot be copied to {self.path}: {error.strerror}") from error
        if adopted is None:
            return False
        edit, found = adopted
        self._base = edit.base
        await self._change(edit)
        self.number, self.commit_id, self.meta, self.now = found.number, found.commit_id, found.meta, found.now
        if self.key is not None:
            await self._trust(await in_thread(keys_of, self.path, list(self.version.files), self.key))
        return True

    # What can go wrong

    def _check(self) -> None:
        if self._poison is not None:
            raise StorePoisoned(self._poison)

    def _poisoned(self, path: Path, error: OSError) -> StorePoisoned:
        self._poison = (
            f"{path}: write failed ({error.strerror or error}); everything up to commit {self.number} is safe: make "
            "room or mend the disk, then start again"
        )
        return StorePoisoned(self._poison)

    async def _guarded(self, write: Callable[..., T], *args: Any) -> T:
        """Write in a thread; a failure poisons the store."""
        self._check()
        try:
            return await in_thread(write, *args)
        except OSError as error:
            raise self._poisoned(self._log.path, error) from error

    async def _change(self, edit: Edit) -> None:
        try:
            await self._catalog.change(edit)
        except OSError as error:
            raise self._poisoned(self._catalog.manifest.path, error) from error

    async def _wait_for_room(self) -> None:
        """Back-pressure: not more unwritten memtables or runs than can be borne."""
        if not self._is_full():
            return
        started = self._clock()
        while self._is_full():
            self._check()
            if self._trouble is not None:
                raise StoreError(f"{self.path}: no room for more commits: {self._trouble}")
            self._moved.clear()
            self._work()
            await self._moved.wait()
        self.counts.waited_seconds += self._clock() - started

    def _is_full(self) -> bool:
        if self._set_aside and self.memtable_bytes > self.budget.memtables:
            return True
        runs = max(self.options.max_runs, self.options.compaction.l0_runs)  # fewer would never be merged
        return len(self._set_aside) >= 2 or self._run_count() >= runs

    def _run_count(self) -> int:
        return len({meta.run for meta in self.version.files.values() if meta.level == 0})

    def _sync_later(self) -> None:
        if self.options.durability == "interval" and (self._syncing is None or self._syncing.done()):
            self._syncing = asyncio.create_task(self._sync_soon(), name=f"sync {self.path.name}")

    async def _sync_soon(self) -> None:
        await asyncio.sleep(self.options.sync_interval / 1000)
        try:
            await self._guarded(self._log.sync)
        except StorePoisoned as error:
            tell("error", "log not synced", error=str(error))  # the next commit raises it

    # Turning to a new log and memtable

    def _log_bytes(self) -> int:
        """What must be read again after kill -9, beside what is being flushed."""
        return self._older_logs + self._log.size - self._log.begins

    def make_room(self, *, in_log: bool = False) -> None:
        """Begin to write the memtable to disk: a new log first, and at the next commit the memtable is set aside.

        If only the log is full (`in_log`), and most of it is dead, what lives is carried over to the new one.
        """
        if self._next_log is not None or (self._turning is not None and not self._turning.done()):
            self._may_carry_over = self._may_carry_over and in_log
        elif self._poison is None:
            self._may_carry_over = in_log
            self._turning = asyncio.create_task(self._open_next_log(), name=f"new log {self.path.name}")

    async def _open_next_log(self) -> None:
        number = self._log.number + 1
        try:
            self._next_log = await in_thread(Log, self.files, self.path, number, self.key)
            self._trouble = None
        except OSError as error:
            self._fail(StoreError(f"{self.path}: a new log cannot be begun: {error.strerror}"))

    async def _turn(self) -> None:
        """Set the memtable aside, with its logs. Nothing is undecided, so all their frames count."""
        assert self.undecided is None
        if self._log.synced < self._log.size:
            await self._guarded(self._log.sync)  # no later log may outlive what is before it
        assert self._next_log is not None
        if self._may_carry_over and not self._set_aside and self.memtable.live_bytes() < self.options.log_bytes // 4:
            await whole(self._carry_over(self._next_log))
            return
        before, self._log, self._next_log = self._log, self._next_log, None
        before.close()
        base = (self.number, self.commit_id, self.meta, self.now)
        self._set_aside.append(Set(self.memtable, self._logs, base))
        self.frozen.insert(0, self.memtable)
        self.memtable, self._logs = Memtable(), [self._log.path]
        self.memtable_bytes = self._older_logs = 0
        self._work()

    async def _carry_over(self, after: Log) -> None:
        """Most of the log is dead (windows dropped, keys written again): what lives goes to the next log as one frame.

        That frame says again what the last one of the old log did: who finds both takes either.
        """
        self.memtable.dropped.clear()  # nothing older is anywhere but in files, where it is hidden
        parent = b"" if self._base is None else self._base[1]
        changes = self.memtable.columns()
        frame = Frame(self.number, self.commit_id, parent, 0, self.meta, changes, [], self.now, decided=True)
        if self.number and self.commit_id != parent:
            await self._guarded(self._append_and_sync, frame, after)
            after.begins = after.size
        before, self._log, self._next_log = self._log, after, None
        before.close()
        gone, self._logs = self._logs, [after.path]
        self._older_logs = 0
        self._logs_from = after.number
        await self._change(Edit(logs_from=after.number))
        await in_thread(self._remove, gone)

    async def flush(self) -> None:
        """Write everything that is in memory to sstables. Not while a frame is undecided."""
        self._check()
        await self._free()
        if self.undecided is not None:
            raise StoreError(f"frame {self.undecided.number} is still undecided")
        self._busy = True
        try:
            await self._turn_now()
        finally:
            self._leave()
        await self._flushed(list(self._set_aside))

    async def _turn_now(self) -> None:
        """Set aside what is in memory. At rest only."""
        self._check()
        if not self.memtable.spaces and not self.memtable.dropped:
            return
        self.make_room()
        if self._turning is not None:
            await asyncio.wait([self._turning])
        if self._next_log is None:
            raise StoreError(str(self._trouble or f"{self.path}: a new log cannot be begun"))
        await self._turn()

    async def _flushed(self, those: Sequence[Set]) -> None:
        await self._until(lambda: not any(kept is waiting for kept in those for waiting in self._set_aside))
        self._check()

    # As of one commit

    async def snapshot(self, path: str | os.PathLike[str], progress: OnProgress | None = None) -> None:
        """Make another store in `path`, which must be empty or not there: this one as it is now, by hard links.

        Commits go on meanwhile. Waits until the undecided frame is decided: nothing undecided is in it. On another file
        system the files are copied. Raises StoreError.
        """
        async with self.pin() as pinned:
            await snapshot(self.files, pinned, Path(path), self.keys, progress)

    @asynccontextmanager
    async def pin(self) -> AsyncIterator[Pinned]:
        """The store as of a commit, in sstables alone, which stay where they are as long as this context lasts.

        Commits go on meanwhile. Waits until the undecided frame is decided. Raises StoreError.
        """
        # Twice: what is in memory now is flushed for good, so that what is written for the pin alone is little.
        await self._once_at_rest(self._turn_now)
        await self._flushed(list(self._set_aside))
        pinned, logs = await self._once_at_rest(self._seal)
        extra: list[FileMeta] = []
        try:
            if logs:
                run = 1 + max((meta.run for meta in pinned.files.values()), default=0)
                packing = PACKINGS[self.options.packing]
                job = self._job(level=0, run=run, logs=[path.name for path in logs], packing=packing, urgent=True)
                extra = (await self.runner.run(job)).files
                pinned.files |= {meta.name: meta for meta in extra}
            yield pinned
        finally:
            self._release(logs, extra)

    async def _seal(self) -> tuple[Pinned, list[Path]]:
        await self._turn_now()
        logs = [path for kept in self._set_aside for path in kept.logs]
        self._held.update(logs)
        version = self.version
        base = (self.number, self.commit_id, self.meta, self.now)
        pinned = Pinned(self.path, dict(version.files), version.hidden, base, self._catalog.session, self.key, version)
        return pinned, logs

    def _release(self, logs: Sequence[Path], extra: Sequence[FileMeta]) -> None:
        self._held.subtract(logs)
        gone = [path for path in self._left if self._held[path] <= 0]
        self._left.difference_update(gone)
        self._remove([*gone, *(self.path / meta.name for meta in extra)])

    async def _once_at_rest(self, do: Callable[[], Awaitable[T]]) -> T:
        """Do something at a moment when no frame is being prepared, or undecided."""
        self._pins += 1
        try:
            if self.memtable.spaces or self.memtable.dropped:
                # Beforehand, so that commits wait for no file to be made.
                self.make_room()
                if self._turning is not None:
                    await asyncio.wait([self._turning])
            await self._free()
            if self.undecided is None:
                self._busy = True
                try:
                    return await do()
                finally:
                    self._leave()
            waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._at_rest.append((do, waiting))
            return await waiting
        finally:
            self._pins -= 1

    async def _let_rest(self) -> None:
        """Before the next frame comes: under steady load there may be no other moment."""
        while self._at_rest:
            do, waiting = self._at_rest.pop(0)
            if waiting.done():
                continue
            try:
                waiting.set_result(await do())
            except StoreError as error:
                waiting.set_exception(error)

    async def compact(self, *, flush: bool = True) -> None:
        """Flush (which cannot be while a frame is undecided), then merge all into one level, whatever it costs."""
        if flush:
            await self.flush()
        while self._compacting is not None and not self._compacting.done():
            await self._until(lambda: self._compacting is None or self._compacting.done())
        choice = choose(self.version.files, self.options.compaction, all_of_it=True)
        if choice is not None:
            # Under the same name: no other may begin beside it.
            self._compacting = asyncio.create_task(self._compact(choice), name=f"compact {self.path.name}")
            await self._compacting

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._check()
            if self._trouble is not None:
                raise StoreError(str(self._trouble))
            self._moved.clear()
            self._work()
            await self._moved.wait()

    # The background

    def _work(self) -> None:
        """See to it that what is to be done is being done."""
        if self._set_aside and (self._flushing is None or self._flushing.done()):
            self._flushing = asyncio.create_task(self._keep_on(self._flush_next), name=f"flush {self.path.name}")
        if (self._compacting is None or self._compacting.done()) and self._choice() is not None:
            self._compacting = asyncio.create_task(self._keep_on(self._compact_next), name=f"compact {self.path.name}")

        if self._run_count() > 1 and (self._idling is None or self._idling.done()):
            self._idling = asyncio.create_task(self._merge_when_idle(), name=f"idle {self.path.name}")

    async def _merge_when_idle(self) -> None:
        """Runs that lie in level 0 when nothing is committed any more only make reading slower: merge them."""
        while self._run_count() > 1 and self._poison is None:
            commits = self.counts.commits
            await asyncio.sleep(self.options.idle / 1000)
            quiet = commits == self.counts.commits and not self._set_aside
            if quiet and (self._compacting is None or self._compacting.done()):
                choice = choose(self.version.files, self.options.compaction, idle=True)
                if choice is not None:
                    self._compacting = asyncio.create_task(self._compact(choice), name=f"compact {self.path.name}")
                    with contextlib.suppress(StoreError):  # told by whoever asks for room next
                        await asyncio.shield(self._compacting)

    def _choice(self) -> Choice | None:
        return choose(self.version.files, self.options.compaction)

    async def _keep_on(self, step: Callable[[], Awaitable[bool]]) -> None:
        """Steps until there is nothing to do. A failure is told, and tried again: room may come back."""
        while True:
            try:
                more = await step()
                self._trouble = None
            except StorePoisoned as error:
                tell("error", "store poisoned", error=str(error))  # the next commit raises it
                self._moved.set()
                return
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not let commits wait for ever
                self._fail(error if isinstance(error, StoreError) else StoreError(f"{self.path}: {error!r}"))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._moved.set()
            if not more:
                return

    def _fail(self, error: StoreError) -> None:
        tell("error", "the store's background cannot go on; trying again", path=str(self.path), error=str(error))
        self._trouble = error
        self._moved.set()

    async def _flush_next(self) -> bool:
        if not self._set_aside:
            return False
        kept = self._set_aside[0]
        spaces = set(kept.memtable.spaces)
        older = self.version.runs
        run = 1 + max((meta.run for meta in self.version.files.values()), default=0)
        job = self._job(
            level=0,
            run=run,
            logs=[path.name for path in kept.logs],
            now=kept.base[3],
            bottom=[space for space in spaces if space not in older],
            packing=PACKINGS[self.options.packing],
            urgent=True,
        )
        done = await self.runner.run(job)
        # What was dropped since it was set aside is no longer in the memtable, but still in the job's logs.
        hide = [row for row in _parts_of(done.files) if (row[1], row[2]) not in kept.memtable.spaces]
        add, hide = _without_hidden(done.files, hide)
        logs_from = log_number(self._set_aside[1].logs[0] if len(self._set_aside) > 1 else self._logs[0])
        self._logs_from, self._base = logs_from, kept.base
        del self._set_aside[0]
        self.frozen.remove(kept.memtable)
        for space, keys in kept.memtable.spaces.items():
            self.rows.forget(space, keys.merged().keys())
        await self._change(Edit(add, [], hide, logs_from, kept.base))
        held = {path for path in kept.logs if self._held[path] > 0}
        self._left |= held
        gone = [path for path in kept.logs if path not in held]
        gone += [self.path / meta.name for meta in done.files if meta not in add]
        await in_thread(self._remove, gone)
        await kept.memtable.let_go()
        self.counts.flushes += 1
        self.counts.flushed += done.written
        self.counts.background_seconds += done.seconds
        self._work()
        return bool(self._set_aside)

    def _remove(self, paths: Sequence[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                self.files.unlink(path)

    async def _compact_next(self) -> bool:
        choice = self._choice()
        if choice is None:
            return False
        await self._compact(choice)
        return True

    async def _compact(self, choice: Choice) -> None:
        names = [meta.name for meta in choice.inputs]
        if choice.moves:
            moved = [msgspec.structs.replace(meta, level=choice.level, run=0) for meta in choice.inputs]
            await self._change(Edit(moved, names))
            return
        before = self.version.hidden
        run = max(meta.run for meta in choice.inputs) if choice.level == 0 else 0
        cold = self.options.cold_packing if choice.level > 1 else self.options.packing
        job = self._job(
            level=choice.level,
            run=run,
            runs=_runs_of(choice.inputs),
            hidden=[row for row in before if row[0] in set(names)],
            # What expired by a later clock could be alive again if a power failure takes the commits that moved it.
            now=BEGINNING if self._base is None else self._base[3],
            bottom=self._bottom(choice),
            packing=PACKINGS[cold],
        )
        done = await self.runner.run(job)
        since = {(table, end) for name, table, end in self.version.hidden - before if name in set(names)}
        for meta in choice.inputs:
            if meta.name not in self.version.files:  # all of it was dropped
                since |= {part.space for part in meta.spaces if (meta.name, part.table, part.end) not in before}
        add, hide = _without_hidden(done.files, [row for row in _parts_of(done.files) if (row[1], row[2]) in since])
        await self._change(Edit(add, names, hide))
        await in_thread(self._remove, [self.path / meta.name for meta in done.files if meta not in add])
        self.counts.compactions += 1
        self.counts.compaction_read += done.read
        self.counts.compacted += done.written
        self.counts.background_seconds += done.seconds
        tell(
            "debug", "compacted", path=str(self.path), to_level=choice.level, inputs=len(names), outputs=len(done.files)
        )

    def _bottom(self, choice: Choice) -> list[Space]:
        """The spaces of the inputs that no older file has."""
        names = {meta.name for meta in choice.inputs}
        oldest = min((meta.run for meta in choice.inputs if meta.level == 0), default=0)
        older = {
            part.space
            for meta in self.version.files.values()
            if meta.name not in names
            and (meta.level > choice.level or (choice.level == 0 and (meta.level > 0 or meta.run < oldest)))
            for part in meta.spaces
        }
        # In the target level, what is not an input does not overlap; but its deletes may stand above deeper levels
        # only.
        return [space for space in {part.space for meta in choice.inputs for part in meta.spaces} if space not in older]

    def _job(self, **fields: Any) -> Job:
        return Job(
            directory=str(self.path),
            prefix=self._catalog.prefix,
            first_number=self._catalog.reserve(FILES_A_JOB),
            key=None if self.key is None else self.key.raw,
            block_bytes=self.options.block_bytes,
            table_bytes=self.options.table_bytes,
            **fields,
        )

    # Looking at it

    def stats(self) -> Stats:
        """What it has done since it was opened, and how large it is."""
        files = self.version.files.values()
        levels = {level: [len(metas), sum(m.bytes for m in metas)] for level, metas in sorted(by_level(files).items())}
        return msgspec.structs.replace(
            self.counts,
            memtable=self.memtable_bytes,
            tables=len(files),
            table_bytes=sum(meta.bytes for meta in files),
            records=sum(meta.records for meta in files),
            levels=levels,
            runs=self._run_count(),
            block_misses=self.blocks.misses,
        )


def _runs_of(inputs: Sequence[FileMeta]) -> list[list[str]]:
    """Names by sorted run, in the order given (oldest first)."""
    runs: dict[tuple[int, int], list[str]] = {}
    for meta in inputs:
        runs.setdefault((meta.level, meta.run if meta.level == 0 else 0), []).append(meta.name)
    return list(runs.values())


def _parts_of(files: Sequence[FileMeta]) -> list[Hidden]:
    return [(meta.name, part.table, part.end) for meta in files for part in meta.spaces]


def _without_hidden(files: Sequence[FileMeta], hide: list[Hidden]) -> tuple[list[FileMeta], list[Hidden]]:
    """New files but for those in which everything was dropped while they were being written."""
    if not hide:
        return list(files), []
    hidden = set(hide)
    kept = [meta for meta in files if any((meta.name, part.table, part.end) not in hidden for part in meta.spaces)]
    names = {meta.name for meta in kept}
    return kept, [row for row in hide if row[0] in names]


def frame_of(
    store: Reading,
    puts: Mapping[Space, Mapping[bytes, bytes | None]] | Sequence[SpaceChange],
    drops: Sequence[Space],
    *,
    expires: int | None,
    now: int | None,
    meta: dict[str, Any] | None,
) -> Frame:
    """The frame that follows the store's last one, and counts as soon as it is durable."""
    if isinstance(puts, Mapping):
        changes = [SpaceChange(table, end, list(kv), list(kv.values())) for (table, end), kv in puts.items()]
    else:
        changes = list(puts)
    if expires is not None:
        for change in changes:
            change.values = [None if value is None else [expires, value] for value in change.values]
    return Frame(
        store.number + 1,
        os.urandom(16),
        store.commit_id,
        0,
        store.meta if meta is None else meta,
        changes,
        list(drops),
        store.now if now is None else now,
        decided=True,
    )
