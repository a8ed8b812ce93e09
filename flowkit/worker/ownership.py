"""Owning a task, from claim to release: run, opened again if it fails, handed over cleanly, dropped if it is lost.

    begin      a directory for its state, told to the broker with the claim
    claim      the task's next epoch: whoever owned it before is fenced
    run        recover, read, step, commit, until it is to be released
    release    after the last commit; whoever claims next goes on from there

If the process dies at any point, the lease runs out and the next owner finds what the last commit left.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from flowkit.errors import (
    BrokerError,
    CommitError,
    ConfigError,
    Fenced,
    FlowkitError,
    StoreCorrupt,
    StoreError,
)
from flowkit.options import WorkerOptions
from flowkit.source import Claim, Known
from flowkit.worker.live import LiveTask
from flowkit.worker.meter import IDLE
from flowkit.worker.restoring import BrokenOff
from flowkit.worker.state_home import StateHome
from flowkit.worker.whole import whole

log = structlog.get_logger("flowkit.worker")

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""A task that fails is opened again after 1, 2, 4 … seconds, at most 30."""

LONGEST_AWAY = 4.0
"""At most so many if it is the broker that fails: it goes on soon after that is back."""

LONG = 60.0
"""A task that ran for so many seconds before it failed begins with the first wait again."""

LOOK_MS = 100
CALLS_LOOK_MS = 20
"""While calls are under way, the inputs are looked at as often."""
"""How long (ms) a task without input waits for some before it looks at the clock."""


class Ledger(Protocol):
    """What is asked of a broker here."""

    async def claim(self, task: str, state: str, *, worker: str | None = None, seen: int | None = None) -> Claim: ...
    async def release(self, task: str, epoch: int) -> None: ...
    async def leases(self, prefix: str = "") -> Sequence[Known]: ...
    async def wait(self, timeout_ms: float, seen: int | None = None) -> int: ...


class Ownership:
    """A task that this worker owns, or is about to. `make` makes the task from its directory and claim.

    `hold` runs in an asyncio task of its own, `job`; to cancel that is to drop the task.
    """

    def __init__(
        self,
        name: str,
        lease: Known | None,
        *,
        worker: str,
        ledger: Ledger,
        home: StateHome,
        make: Callable[[Path, Claim], LiveTask],
        options: WorkerOptions,
    ) -> None:
        self.name, self.worker, self.options = name, worker, options
        self.job: asyncio.Task[None]
        self.live: LiveTask | None = None
        self.failing = ""
        """Why it could not be opened or run the last time; '' while it runs."""
        self.stalled = False
        self.told = 0.0
        """When the watchdog last spoke up about it."""
        self._seen, self._before = (0, "") if lease is None else (lease.epoch, lease.state)
        self._ledger, self._home, self._make = ledger, home, make
        self._leaving = asyncio.Event()
        self._epoch: int | None = None

    def hand_over(self) -> None:
        """Ask for a clean end: do what was taken in, commit, release."""
        self._leaving.set()

    @property
    def wanted(self) -> bool:
        """False once it is to be handed over, or has been dropped."""
        return not self._leaving.is_set() and not self.job.cancelling()

    @property
    def ready(self) -> bool:
        """True while it is open and not failing."""
        return self.live is not None and self.live.opened

    def held_up(self) -> tuple[str, float] | None:
        """The sink without which nothing goes on, and for how many seconds that has been so."""
        return None if self.live is None else self.live.held_up()

    def waits_for(self) -> str:
        """Which sink holds it up, for a person; '' if none has done so for a second."""
        held = self.held_up()
        if held is None or held[1] < 1:
            return ""
        return f"sink {held[0]!r} has not taken what it was handed {held[1]:.0f} s ago"

    @property
    def commit(self) -> int:
        """The number of the last commit of its state, once it is `ready`."""
        return 0 if self.live is None else self.live.task.store.number

    async def hold(self) -> None:
        """Claim the task and run it until it is handed over, lost or dropped.

        Raises what nobody but a person can mend: ConfigError, SchemaChanged, StoreCorrupt.
        """
        try:
            await self._hold()
        except Fenced as error:
            log.warning("task is another worker's now", task=self.name, error=str(error))
        except asyncio.CancelledError:
            log.warning("task dropped", task=self.name)
            raise
        finally:
            if self._epoch is not None:
                try:
                    await whole(self._ledger.release(self.name, self._epoch))
                except FlowkitError as error:
                    log.warning("lease not released; it will run out", task=self.name, error=str(error))

    async def _hold(self) -> None:
        wait = FIRST_WAIT
        place: Path | None = None
        used = doubted = False
        while not self._leaving.is_set():
            started = time.monotonic()
            try:
                used = place is not None
                if place is None:
                    place = await whole(asyncio.to_thread(self._home.begin, self.name, self._before))
                # Again for each try: what a failed one may have left under way is fenced. The directory stays the same,
                # for a full disk has no room for one more copy of the state.
                claim = await whole(self._ledger.claim(self.name, str(place), worker=self.worker, seen=self._seen))
                self._epoch = self._seen = claim.epoch
                await self._run(place, claim)
                return
            except Fenced:
                raise
            except BrokenOff as error:
                log.info("task is handed over before it was open", task=self.name, why=str(error))
                return
            except Exception as error:
                await self._check_ours()
                if isinstance(error, StoreCorrupt) and used and place is not None:
                    # Another worker has had it meanwhile: from what is there nothing may lead to where it is now.
                    self._before, place = str(place), None
                elif isinstance(error, StoreCorrupt) and not doubted:
                    # One that stood still since its claim finds what its successor has left there, and may hear of it
                    # later than it wakes: only what is found once more, under a new claim, is believed.
                    doubted, place = True, None
                elif isinstance(error, ConfigError | StoreCorrupt):
                    raise
                away = isinstance(error, BrokerError | CommitError)  # which passes, and nobody has to do anything
                wait = FIRST_WAIT if time.monotonic() - started > LONG else wait
                wait = min(wait, LONGEST_AWAY if away else LONGEST_WAIT)
                self.failing = str(error) or type(error).__name__
                (log.warning if away else log.error)(
                    "task failed; opening it again",
                    task=self.name,
                    error=self.failing,
                    wait=wait,
                    exc_info=not isinstance(error, FlowkitError),
                )
            await self._pause(wait)
            wait *= 2

    async def _check_ours(self) -> None:
        """Raise Fenced if another worker has the task: then whatever failed is no concern of ours.

        One that stood still between claim and opening finds its successor at work, and the state moved on.
        """
        with contextlib.suppress(BrokerError, StoreError):  # one that does not answer: nothing is known
            for lease in await self._ledger.leases(self.name):
                if lease.task == self.name and lease.epoch > self._seen:
                    raise Fenced(f"{lease.owner or 'another worker'} claimed it under epoch {lease.epoch}")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    async def _run(self, place: Path, claim: Claim) -> None:
        live = self.live = self._make(place, claim)
        try:
            await live.open()
            self.failing = ""
            swept = False
            seen: int | None = None
            while not self._leaving.is_set():
                if await live.rests():
                    seen = await self._ledger.wait(LOOK_MS, seen)
                    continue
                if live.ended:
                    await live.end()
                    return
                found = await live.fetch(self.options.batch_size)
                while not self._leaving.is_set() and await live.step():  # noqa: ASYNC110
                    await asyncio.sleep(0)  # give way: other tasks, heartbeats, signals
                live.look_at_clock()
                await live.commit_if_due()
                if not swept and live.task.commits:
                    swept = await self._sweep(place)
                if live.waits_for_calls and (not found or live.has_no_room):
                    await live.wait_for_calls(CALLS_LOOK_MS)
                elif not found:
                    live.progress = time.monotonic()
                    live.meter.enter(IDLE)
                    seen = await self._ledger.wait(min(LOOK_MS, self.options.commit_interval), seen)
            await live.finish(self.options.grace / 2000)
            if not swept:
                await self._sweep(place)
        finally:
            await live.close()
            self.live = None

    async def _sweep(self, place: Path) -> bool:
        """A commit in `place` counts: what its state came from is needed no more."""
        await whole(asyncio.to_thread(self._home.sweep, place))
        return True
