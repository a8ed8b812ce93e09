"""The committed front: a frame is prepared into the log, and resolved into the memtable or out of the log again.

prepare   the frame is in the log, as durable as `durability` says, undecided
resolve   it counts: the memtable takes it. Or it does not: the log is cut
"""

import asyncio
from pathlib import Path

from flowkit.errors import StoreError, StorePoisoned
from flowkit.store.background import Background
from flowkit.store.cache import Budget
from flowkit.store.core import Core
from flowkit.store.events import tell
from flowkit.store.frame import Frame, Space
from flowkit.store.journal import Journal
from flowkit.store.log import Log, cut_log
from flowkit.store.recovery import Found
from flowkit.store.turns import Turns
from flowkit.store.version import Edit
from flowkit.store.whole import whole


class Commits:
    """At most one frame is undecided; one is prepared or resolved at a time."""

    def __init__(self, core: Core, journal: Journal, background: Background, turns: Turns, budget: Budget) -> None:
        self.core, self.view, self.journal, self.background, self.turns, self.budget = (
            core, core.view, journal, background, turns, budget,
        )  # fmt: skip
        self.syncing: asyncio.Task[None] | None = None
        self._undecided_in: tuple[Log | Path, int] | None = None

    def begin(self, found: Found) -> None:
        """Go on with the frame that was found undecided."""
        if found.undecided is not None:
            self.view.show(found.undecided)
            assert found.undecided_log is not None
            self._undecided_in = (found.undecided_log, found.undecided_at)

    async def prepare(self, frame: Frame) -> None:
        """Put `frame` into the log, undecided."""
        turns = self.turns
        if turns.busy:
            await turns.free()
        turns.busy = self.core.preparing = True
        try:
            await self._prepare(frame)
        finally:
            self.core.preparing = False
            turns.leave()

    async def _prepare(self, frame: Frame) -> None:
        core, journal, background = self.core, self.journal, self.background
        self.turns.must_be_decided()
        core.check()
        if background.is_full():
            await background.wait_for_room()
        if journal.turning is not None and not journal.turning.done():
            # The log is full. A caller that never lets others run would fill it, and the memory, without end.
            await asyncio.wait([journal.turning])
        if journal.next is not None and (not journal.claims or core.key is not None):
            await journal.turn()
        if background.flushing is not None and not background.flushing.done():
            await asyncio.sleep(0)  # likewise: the flush takes its turns on the event loop
        log = journal.log
        at = log.size
        if core.options.durability == "commit":
            try:
                await core.guarded(log.path, log.append_and_sync, frame)
            except asyncio.CancelledError:
                # It was not promised: so it must not be found, nor stand before the next one.
                await whole(self._take_back(log, at))
                raise
        else:
            # A write into the page cache: less than a thread's turn takes.
            try:
                log.append(frame)
            except OSError as error:
                raise core.poisoned(log.path, error) from error
            if core.options.durability == "interval":
                self._sync_later()
        self.view.show(frame)
        self._undecided_in = (log, at)
        core.counts.commits += 1
        core.counts.logged += log.size - at

    def _sync_later(self) -> None:
        if self.syncing is None or self.syncing.done():
            self.syncing = asyncio.create_task(self._sync_soon(), name=f"sync {self.core.path.name}")

    async def _sync_soon(self) -> None:
        await asyncio.sleep(self.core.options.sync_interval / 1000)
        log = self.journal.log
        try:
            await self.core.guarded(log.path, log.sync)
        except StorePoisoned as error:
            tell("error", "log not synced", error=str(error))  # the next commit raises it

    async def resolve(self, commit_id: bytes, applied: bool) -> None:
        """Say whether the undecided frame counts."""
        turns = self.turns
        if turns.busy:
            await turns.free()
        turns.busy = True
        try:
            await self._resolve(commit_id, applied)
        finally:
            if turns.at_rest and self.view.undecided is None:
                await turns.let_rest()
            turns.leave()

    async def _resolve(self, commit_id: bytes, applied: bool) -> None:
        view, journal = self.view, self.journal
        frame = view.undecided
        if frame is None or frame.commit_id != commit_id or self._undecided_in is None:
            raise StoreError(f"no undecided frame {commit_id.hex()}")
        where, at = self._undecided_in
        view.show(None)
        self._undecided_in = None
        if not applied:
            await whole(self._take_back(where, at))
            return
        size = journal.log.size - at if where is journal.log else 0
        if frame.drops:
            await whole(self._take_dropping(frame, size))
        else:
            view.take(frame, size)
        journal.memtable_bytes = view.memtable.bytes()
        if journal.bytes() > self.core.options.log_bytes:
            journal.make_room(in_log=True)
        else:
            self.budget.check()

    async def _take_back(self, where: Log | Path, at: int) -> None:
        core = self.core
        if isinstance(where, Log):
            await core.guarded(where.path, where.cut, at)
            if core.key is not None:
                await self.journal.leave()  # no offset of an encrypted log is written twice, since it is the nonce
        else:
            await core.guarded(where, cut_log, core.files, where, at)

    async def _take_dropping(self, frame: Frame, size: int) -> None:
        """Take a frame that drops spaces, and hide them in the files; a file with nothing else goes at once."""
        core, view, log = self.core, self.view, self.journal.log
        in_files = any((table, end) in view.version.runs for table, end in frame.drops)
        if log.synced < log.size and (in_files or self.journal.set_aside):
            # Files, also those that are being written, must not lose what a power failure could bring back: the frame
            # comes first.
            await core.guarded(log.path, log.sync)
        view.take(frame, size)
        edit = self._hiding([(table, end) for table, end in frame.drops])
        if edit.hide:
            await core.change(edit)

    def _hiding(self, drops: list[Space]) -> Edit:
        # In a function of its own: who holds on to a version while the next one is made keeps the removed files. The
        # version may have changed since the drop began, but not from here on: `change` turns it before it awaits.
        version = self.view.version
        hide = [(name, *space) for space in dict.fromkeys(drops) for name in version.holding(space)]
        hidden = frozenset(hide)
        names = dict.fromkeys(name for name, _, _ in hide)
        return Edit(remove=[name for name in names if version.is_all_hidden(name, hidden)], hide=hide)
