"""The store on disk: log and memtable in front, sstables behind, flushed and compacted in the background.

    commits     prepare: a frame is in the log, undecided; resolve: it counts, and the memtable takes it
    journal     a log that is full, or a memtable that is large: both are set aside with others in their place
    background  what was set aside is flushed, and sstables are compacted, by jobs done elsewhere (`upkeep`, `jobs`)
    pinning     the store as of one commit, for snapshots and checkpoints
    core        what all of them share: the state that is read, the files, what has gone wrong

What a crash leaves is always the logs and what the manifest names; everything else is removed at the next opening.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from flowkit.errors import StoreError
from flowkit.store.adopt import begin_with
from flowkit.store.background import Background
from flowkit.store.cache import Budget, Rows
from flowkit.store.catalog import Catalog, remove_strangers
from flowkit.store.cipher import StoreKey
from flowkit.store.commits import Commits
from flowkit.store.compaction import by_level
from flowkit.store.core import Core
from flowkit.store.events import tell
from flowkit.store.files import Files
from flowkit.store.frame import Frame, Space, SpaceChange
from flowkit.store.journal import Journal
from flowkit.store.keys import KeyProvider
from flowkit.store.manifest import Manifest
from flowkit.store.memtable import Memtable
from flowkit.store.options import StoreOptions
from flowkit.store.pinning import Pinned, Pins
from flowkit.store.progress import OnProgress
from flowkit.store.reading import Reading, frame_of
from flowkit.store.recovery import hidden_by_logs, make_durable, readers, recover
from flowkit.store.runner import Runner
from flowkit.store.snapshot import snapshot
from flowkit.store.stats import Stats
from flowkit.store.turns import Turns
from flowkit.store.version import Edit, Version
from flowkit.store.whole import in_thread

SMALL_LOG = 8 * 2**20
"""A log up to this size (bytes) is left as it is at a clean close: reading it again takes some 50 ms."""


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
        self.path, self.budget, self.runner, self.options, self.keys = directory, budget, runner, options, keys
        self._core = Core(self, directory, files, runner, options, key)
        self._journal = Journal(self._core)
        self._background = Background(self._core, self._journal, budget)
        self._journal.on_set_aside = self._background.work
        self._turns = Turns(self)
        self._commits = Commits(self._core, self._journal, self._background, self._turns, budget)
        self._pins = Pins(self._core, self._journal, self._background, self._turns)

    # Opening and closing

    def recover(self) -> None:
        """Read what is there, and begin a manifest and a log. Raises StoreCorrupt, StoreKeyError, OSError."""
        core, files = self._core, self._core.files
        files.make_directory(self.path)
        found = recover(self.path, core.key)
        tables = readers(self.path, found, core.key)
        session = found.manifest.session + 1
        if session == 1:
            files.sync_directory(self.path.parent)
        make_durable(files, found)
        self.memtable, self.number, self.commit_id = found.memtable, found.number, found.commit_id
        self.meta, self.now = found.meta, found.now
        self.version = Version(found.manifest.files, found.manifest.hidden | set(hidden_by_logs(found)), tables)
        core.base = found.manifest.base
        self._commits.begin(found)
        with contextlib.ExitStack() as undo:
            # The log before the manifest: the first log that a manifest names is always there.
            self._journal.begin(found)
            undo.callback(self._journal.close)
            manifest = Manifest.begin(files, self.path, session, core.state(), core.key)
            undo.callback(manifest.close)
            core.begin(Catalog(files, self.path, core.key, self.version, manifest, session))
            remove_strangers(files, self.path, self.version, session, self._journal.logs)
            undo.pop_all()
        self.rows.limit = self.budget.rows_each()
        self.budget.join(self._journal)

    async def close(self) -> None:
        """Stop the background and let go of everything. What was resolved is durable; a long log is flushed first."""
        core, journal, background = self._core, self._journal, self._background
        with contextlib.suppress(StoreError):
            if core.poison is None and self.undecided is None and journal.bytes() > SMALL_LOG:
                await self.flush()
        self.budget.leave(journal)
        self._turns.close(StoreError(f"{self.path}: closed meanwhile"))
        for task in (journal.turning, background.flushing, background.compacting, self._commits.syncing,
                     background.idling):  # fmt: skip
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StoreError):
                    await task
        if core.poison is None:
            try:
                await in_thread(self._say_closed)
            except OSError as error:
                tell("warning", "store not closed in good order", path=str(self.path), error=str(error))
        journal.close()
        await core.catalog.settled()
        core.catalog.close()
        for table in self.version.tables.values():
            table.close()
        core.poison = core.poison or f"{self.path}: closed: open it again"
        core.moved.set()

    def _say_closed(self) -> None:
        log = self._journal.log
        log.sync()
        commit_id = self.commit_id if self.undecided is None else self.undecided.commit_id
        self._core.catalog.manifest.append(Edit(closed=(log.number, log.size, commit_id)))

    # Commits

    async def prepare(self, frame: Frame) -> None:
        """Put `frame` into the log, undecided. At most one frame may be.

        Raises StorePoisoned after a failed write or sync: nothing later can be promised. Raises StoreError if there is
        no room for more changes because what came before cannot be written out.
        """
        await self._commits.prepare(frame)

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Say whether the undecided frame counts. If not, it leaves no trace."""
        await self._commits.resolve(commit_id, applied)

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
        await self._commits.prepare(frame)
        await self._commits.resolve(frame.commit_id, applied=True)
        return frame.number

    async def adopt(self, other: Path, commit_id: bytes) -> bool:
        """Begin with the state that the store in `other` had at `commit_id`; False if it never had. Only while empty.

        What that store's owner prepared after it is left out. Raises StoreCorrupt; StoreError if it cannot be copied.
        """
        if self.number or self.undecided is not None:
            raise StoreError(f"{self.path}: not empty: it is at commit {self.number}")
        return await begin_with(self._core, self.keys, other, commit_id)

    # Memory and files

    @property
    def memtable_bytes(self) -> int:
        """What is in memory and in no sstable yet, but for what is being flushed."""
        return self._journal.memtable_bytes

    def make_room(self) -> None:
        """Begin to write the memtable to disk, as soon as that can be."""
        self._journal.make_room()

    async def flush(self) -> None:
        """Write everything that is in memory to sstables. Not while a frame is undecided."""
        self._core.check()
        async with self._turns.between_frames():
            await self._journal.turn_now()
        await self._background.flushed(list(self._journal.set_aside))

    async def compact(self, *, flush: bool = True) -> None:
        """Flush (which cannot be while a frame is undecided), then merge all into one level, whatever it costs."""
        if flush:
            await self.flush()
        await self._background.compact_all()

        # As of one commit
        await self._core.catalog.settled()  # what it was merged from is gone when this returns

    def pin(self) -> AbstractAsyncContextManager[Pinned]:
        """The store as of a commit, in sstables alone, which stay where they are as long as this context lasts.

        Commits go on meanwhile. Waits until the undecided frame is decided. Raises StoreError.
        """
        return self._pins.pin()

    async def snapshot(self, path: str | os.PathLike[str], progress: OnProgress | None = None) -> None:
        """Make another store in `path`, which must be empty or not there: this one as it is now, by hard links.

        Commits go on meanwhile. Waits until the undecided frame is decided: nothing undecided is in it. On another file
        system the files are copied. Raises StoreError.
        """
        async with self.pin() as pinned:
            await snapshot(self._core.files, pinned, Path(path), self.keys, progress)

    # Looking at it

    @property
    def key(self) -> StoreKey | None:
        """What its files are encrypted with. None if they are not."""
        return self._core.key

    @property
    def counts(self) -> Stats:
        """What it has done since it was opened, without its sizes: costs nothing to ask."""
        return self._core.counts

    def stats(self) -> Stats:
        """What it has done since it was opened, and how large it is."""
        files = self.version.files.values()
        levels = {level: [len(metas), sum(m.bytes for m in metas)] for level, metas in sorted(by_level(files).items())}
        return msgspec.structs.replace(
            self._core.counts,
            memtable=self.memtable_bytes,
            tables=len(files),
            table_bytes=sum(meta.bytes for meta in files),
            records=sum(meta.records for meta in files),
            levels=levels,
            runs=self.version.level_0_runs,
            block_misses=self.blocks.misses,
        )
