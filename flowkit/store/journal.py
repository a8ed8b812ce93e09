"""From the log that is being written to the next: the active memtable with its logs, and those set aside for a flush.

make_room   a new log is begun, beside everything else
turn        the memtable is set aside with its logs, and commits go on in the new log and an empty memtable;
or, if most of a full log is dead, what lives is carried over to the new one, and nothing is flushed
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from flowkit.errors import StoreError
from flowkit.store.core import Core
from flowkit.store.frame import Frame
from flowkit.store.log import Log, log_number
from flowkit.store.memtable import Memtable
from flowkit.store.recovery import Found
from flowkit.store.version import Base, Edit
from flowkit.store.whole import in_thread, whole


class SetAside(msgspec.Struct):
    """A memtable that is to be flushed, with all that its flush must know."""

    memtable: Memtable
    logs: list[Path]
    base: Base


class Journal:
    """A member of the memory budget: `memtable_bytes` is what the active memtable takes."""

    def __init__(self, core: Core) -> None:
        self.core, self.view = core, core.view
        self.memtable_bytes = 0
        self.log: Log
        """The open one."""
        self.logs: list[Path] = []
        """Those whose frames are in the active memtable; the last one is open."""
        self.next: Log | None = None
        self.turning: asyncio.Task[None] | None = None
        """Begins the next log."""
        self.set_aside: list[SetAside] = []
        """Oldest first; `view.frozen` has their memtables."""
        self.on_set_aside: Callable[[], None]
        """Is told when there is more to flush."""
        self.claims = 0
        """How many are about to turn the log themselves: the next frame leaves it to them."""
        self.held: Counter[Path] = Counter()
        """Logs that a pin still reads; those of them that were flushed meanwhile are in `_left`."""
        self._left: set[Path] = set()
        self._older_bytes = 0
        """Bytes of the active memtable's logs but for the open one."""
        self._may_carry_over = False

    def begin(self, found: Found) -> None:
        """Begin a log after those that were found. Raises OSError."""
        number = 1 + max(map(log_number, found.logs), default=0)
        self.logs = [path for path in found.logs if path in found.ends]
        self._older_bytes = sum(found.ends.values())
        self.log = Log(self.core.files, self.core.path, number, self.core.key)
        self.logs.append(self.log.path)
        self.core.logs_from = log_number(self.logs[0])
        self.memtable_bytes = self.view.memtable.bytes()

    def bytes(self) -> int:
        """What must be read again after kill -9, beside what is being flushed."""
        return self._older_bytes + self.log.size - self.log.begins

    def close(self) -> None:
        """Let go of the files."""
        if self.next is not None:
            self.next.close()
        self.log.close()

    # To the next log

    def make_room(self, *, in_log: bool = False) -> None:
        """Begin to write the memtable to disk: a new log first, and at the next commit the memtable is set aside.

        If only the log is full (`in_log`), and most of it is dead, what lives is carried over to the new one.
        """
        if self.next is not None or (self.turning is not None and not self.turning.done()):
            self._may_carry_over = self._may_carry_over and in_log
        elif self.core.poison is None:
            self._may_carry_over = in_log
            self.turning = asyncio.create_task(self._begin_next(), name=f"new log {self.core.path.name}")

    async def _begin_next(self) -> None:
        core = self.core
        try:
            self.next = await in_thread(Log, core.files, core.path, self.log.number + 1, core.key)
            core.trouble = None
        except OSError as error:
            core.fail(StoreError(f"{core.path}: a new log cannot be begun: {error.strerror}"))

    async def turn(self) -> None:
        """Set the memtable aside, with its logs. Nothing is undecided, so all their frames count."""
        core, view = self.core, self.view
        assert view.undecided is None
        if self.log.synced < self.log.size:
            await core.guarded(self.log.path, self.log.sync)  # no later log may outlive what is before it
        assert self.next is not None
        if self._may_carry_over and not self.set_aside and view.memtable.live_bytes() < core.options.log_bytes // 4:
            await whole(self._carry_over(self.next))
            return
        logs = self._go_on_in(self.next)
        self.set_aside.append(SetAside(view.memtable, logs, core.now()))
        view.frozen.insert(0, view.memtable)
        view.memtable = Memtable()
        self.memtable_bytes = 0
        self.on_set_aside()

    async def turn_now(self) -> None:
        """Set aside what is in memory, with no commit to wait for. While nothing is undecided, prepared or resolved."""
        self.core.check()
        if self.is_empty():
            return
        self.make_room()
        if self.turning is not None:
            await asyncio.wait([self.turning])
        if self.next is None:
            raise StoreError(str(self.core.trouble or f"{self.core.path}: a new log cannot be begun"))
        await self.turn()

    def is_empty(self) -> bool:
        """True if there is nothing to set aside."""
        return not self.view.memtable.spaces and not self.view.memtable.dropped

    async def _carry_over(self, after: Log) -> None:
        """Most of the log is dead (windows dropped, keys written again): what lives goes to the next log as one frame.

        That frame says again what the last one of the old log did: who finds both takes either.
        """
        core, view = self.core, self.view
        view.memtable.dropped.clear()  # nothing older is anywhere but in files, where it is hidden
        parent = b"" if core.base is None else core.base[1]
        changes = view.memtable.columns()
        frame = Frame(view.number, view.commit_id, parent, 0, view.meta, changes, [], view.now, decided=True)
        if view.number and view.commit_id != parent:
            await core.guarded(self.log.path, after.append_and_sync, frame)
            after.begins = after.size
        gone = self._go_on_in(after)
        core.logs_from = after.number
        await core.change(Edit(logs_from=after.number))
        await in_thread(core.remove, gone)

    def _go_on_in(self, after: Log) -> list[Path]:
        """The logs before."""
        before, self.log, self.next = self.log, after, None
        before.close()
        logs, self.logs = self.logs, [after.path]
        self._older_bytes = 0
        return logs

    async def leave(self) -> None:
        """Go on in another log, but with the same memtable."""
        core, before = self.core, self.log
        if self.turning is not None:
            await asyncio.wait([self.turning])
        if self.next is None:  # else the next frame goes there
            self.log = await core.guarded(before.path, Log, core.files, core.path, before.number + 1, core.key)
            self.logs.append(self.log.path)
            self._older_bytes += before.size
            before.close()

    # Logs that pins read

    def hold(self, logs: Sequence[Path]) -> None:
        """Keep logs, even if they are flushed, until they are released."""
        self.held.update(logs)

    def release(self, logs: Sequence[Path]) -> list[Path]:
        """The logs that can be removed now."""
        self.held.subtract(logs)
        gone = [path for path in self._left if self.held[path] <= 0]
        self._left.difference_update(gone)
        return gone

    def not_held(self, logs: Sequence[Path]) -> list[Path]:
        """Of logs that are flushed, those that can be removed now; the others when they are released."""
        held = {path for path in logs if self.held[path] > 0}
        self._left |= held
        return [path for path in logs if path not in held]
