"""What goes on beside commits: flush what was set aside, compact what `compaction.choose` says, merge when it is quiet;
and back-pressure, when commits are quicker than that.

All of it are tasks on the event loop that wait for jobs done elsewhere.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from flowkit.errors import StoreError, StorePoisoned
from flowkit.store.cache import Budget
from flowkit.store.compaction import Choice, choose
from flowkit.store.core import Core
from flowkit.store.events import tell
from flowkit.store.journal import Journal, SetAside
from flowkit.store.upkeep import compact, flush_oldest

RETRY_SECONDS = 1.0


class Background:
    """At most one flush and one compaction at a time."""

    def __init__(self, core: Core, journal: Journal, budget: Budget) -> None:
        self.core, self.view, self.journal, self.budget = core, core.view, journal, budget
        self.flushing: asyncio.Task[None] | None = None
        self.compacting: asyncio.Task[None] | None = None
        self.idling: asyncio.Task[None] | None = None
        self._clock = asyncio.get_running_loop().time

    def work(self) -> None:
        """See to it that what is to be done is being done."""
        name = self.core.path.name
        if self.journal.set_aside and (self.flushing is None or self.flushing.done()):
            self.flushing = asyncio.create_task(self._keep_on(self._flush_next), name=f"flush {name}")
        if not self.is_compacting() and self.choice() is not None:
            self.compacting = asyncio.create_task(self._keep_on(self._compact_next), name=f"compact {name}")
        if self.view.version.level_0_runs > 1 and (self.idling is None or self.idling.done()):
            self.idling = asyncio.create_task(self._merge_when_idle(), name=f"idle {name}")

    def is_compacting(self) -> bool:
        """True while a compaction is under way."""
        return self.compacting is not None and not self.compacting.done()

    def choice(self) -> Choice | None:
        """What is to be compacted."""
        return choose(self.view.version.files, self.core.options.compaction, self.core.stale)

    # Back-pressure

    def is_full(self) -> bool:
        """True if there are more unwritten memtables or runs than can be borne."""
        set_aside, options = self.journal.set_aside, self.core.options
        if set_aside and self.journal.memtable_bytes > self.budget.memtables:
            return True
        runs = max(options.max_runs, 2 * options.compaction.l0_runs)  # fewer need not be merged
        return len(set_aside) >= 2 or self.view.version.level_0_runs >= runs

    async def wait_for_room(self) -> None:
        """Wait until it is not full. Raises StorePoisoned, StoreError."""
        core = self.core
        started = self._clock()
        while self.is_full():
            core.check()
            if core.trouble is not None:
                raise StoreError(f"{core.path}: no room for more commits: {core.trouble}")
            await self._come_on()
        core.counts.waited_seconds += self._clock() - started

    async def flushed(self, those: Sequence[SetAside]) -> None:
        """Wait until those memtables are, and their logs are gone. Raises StorePoisoned, StoreError."""
        await self._until(
            lambda: (
                not (
                    self.core.letting_go or any(kept is waiting for kept in those for waiting in self.journal.set_aside)
                )
            )
        )
        self.core.check()

    async def _until(self, done: Callable[[], bool]) -> None:
        core = self.core
        while not done():
            core.check()
            if core.trouble is not None:
                raise StoreError(str(core.trouble))
            await self._come_on()

    async def _come_on(self) -> None:
        self.core.moved.clear()
        self.work()
        await self.core.moved.wait()

    # The tasks

    async def _keep_on(self, step: Callable[[], Awaitable[bool]]) -> None:
        """Steps until there is nothing to do. A failure is told, and tried again: room may come back."""
        core = self.core
        while True:
            try:
                more = await step()
                core.trouble = None
            except StorePoisoned as error:
                tell("error", "store poisoned", error=str(error))  # the next commit raises it
                core.moved.set()
                return
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not let commits wait for ever
                core.fail(error if isinstance(error, StoreError) else StoreError(f"{core.path}: {error!r}"))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            core.moved.set()
            if not more:
                return

    async def _flush_next(self) -> bool:
        if not self.journal.set_aside:
            return False
        await flush_oldest(self.core, self.journal)
        self.work()
        return bool(self.journal.set_aside)

    async def _compact_next(self) -> bool:
        choice = self.choice()
        if choice is None:
            return False
        await compact(self.core, choice)
        return True

    async def _merge_when_idle(self) -> None:
        """Runs that lie in level 0 when nothing is committed any more only make reading slower: merge them."""
        core, view = self.core, self.view
        while view.version.level_0_runs > 1 and core.poison is None:
            commits = core.counts.commits
            await asyncio.sleep(core.options.idle / 1000)
            # A commit that waits makes no quiet: on a busy machine a flush, or a sync, may take longer than `idle`.
            quiet = commits == core.counts.commits and not self.journal.set_aside and not core.preparing
            if quiet and not self.is_compacting():
                choice = choose(view.version.files, core.options.compaction, idle=True)
                if choice is not None:
                    with contextlib.suppress(StoreError):  # told by whoever asks for room next
                        await asyncio.shield(self.begin(choice))

    def begin(self, choice: Choice) -> asyncio.Task[None]:
        """Compact what was chosen; no other compaction begins beside it."""
        self.compacting = asyncio.create_task(compact(self.core, choice), name=f"compact {self.core.path.name}")
        return self.compacting

    async def compact_all(self) -> None:
        """Merge all into one level, whatever it costs."""
        while self.is_compacting():
            await self._until(lambda: not self.is_compacting())
        choice = choose(self.view.version.files, self.core.options.compaction, all_of_it=True)
        if choice is not None:
            await self.begin(choice)
