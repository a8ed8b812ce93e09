"""A worker's part in a savepoint: it hears that one is asked for, its tasks drain and seal, one writes the manifest.

`savepoint` says how it goes. Whatever goes wrong with the storage is told and tried again until the time is over.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import structlog

from flowkit.agent import Internal
from flowkit.clock import Clock
from flowkit.errors import ConfigError, Fenced, FlowkitError, StoreError
from flowkit.source import open_storage
from flowkit.store import Checkpoints, KeyProvider, LsmStore, Storage, folder_of
from flowkit.worker.savepoint import FORMAT, Manifest, Parts, Request, Requests, Seal
from flowkit.worker.task import Task

log = structlog.get_logger("flowkit.savepoint")

LOOK_SECONDS, QUICK_SECONDS = 2.0, 0.2
"""How often the request is looked at; more often while one is under way."""
MARGIN = 10.0
"""Seconds beyond its time after which workers end a request themselves: who asked is gone."""
KEPT = 1_000_000
"""Nothing in a savepoint is ever deleted."""


class Ledger(Protocol):
    """What is asked of a broker here."""

    async def last_commit(self, task: str) -> tuple[int, bytes | None]: ...
    async def end_offsets(self, topic: str) -> Sequence[int]: ...


class Savepoints:
    """What a worker knows of the savepoint that is under way, if any, and does for it.

    `tasks` are all of the app's, with the partitions of each group in `groups`. `stop` is called after one by which the
    app is to stop.
    """

    def __init__(
        self,
        app: str,
        checkpoints: Storage,
        *,
        tasks: Sequence[str],
        groups: Mapping[str, int],
        internal: Sequence[str],
        ledger: Ledger,
        keys: KeyProvider | None,
        clock: Clock,
        stop: Callable[[], None],
    ) -> None:
        self.app, self.tasks, self.groups, self.internal = app, sorted(tasks), dict(groups), list(internal)
        self.ledger, self.keys, self.clock = ledger, keys, clock
        self.request: Request | None = None
        """The one that is under way."""
        self.parts: Parts
        self.storage: Storage
        self.sealed: set[str] = set()
        self.stopped = False
        """True once one has been taken by which the app is to stop."""
        self.requests = Requests(checkpoints, app, clock)
        self._stop = stop
        self._since = 0.0
        self._over: set[str] = set()
        self._stack = AsyncExitStack()
        self._turn = asyncio.Lock()

    # Hearing

    async def watch(self, owned: Callable[[], Mapping[str, object]]) -> None:
        """Look again and again, until cancelled. `owned` are the tasks that this worker has."""
        try:
            while True:
                await self.look()
                if self.request is not None:
                    await self._try("savepoint not ended; trying again", lambda: self._forward(owned()))
                if self.request is not None and self._waited() > 2 * MARGIN:
                    # Nor can it be given up, it seems. What commits from here is found out when it is verified.
                    await self._end(None)
                await asyncio.sleep(LOOK_SECONDS if self.request is None else QUICK_SECONDS)
        finally:
            await self._stack.aclose()

    async def look(self) -> None:
        """See whether one is asked for, or what has become of it. Whoever opens a task looks before it reads."""
        async with self._turn:
            await self._try("cannot see whether a savepoint is asked for", self._look)

    async def _try(self, failed: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except ConfigError as error:
            if self.request is None:
                log.warning(failed, error=str(error))
            else:
                await self.fail(str(error))
        except FlowkitError as error:
            log.warning(failed, error=str(error))
        except Exception:  # nobody waits for this job, and without it no savepoint would be heard of
            log.exception(failed)

    async def _look(self) -> None:
        now = await self.requests.last()
        if self.request is not None and (now is None or now.id != self.request.id or now.state != "asked"):
            await self._end(now)
        if now is None or now.state != "asked" or now.id in self._over:
            return
        if self.request is None:
            await self._begin(now)
        elif len(self.sealed) < len(self.tasks):
            self.sealed = await self.parts.sealed(self.tasks)

    async def _begin(self, request: Request) -> None:
        try:
            self.storage = await self._stack.enter_async_context(open_storage(request.to))
            await self.storage.check()
            self.parts = Parts(self.storage, request.id)
            await self.parts.put_plan(self.tasks)
        except FlowkitError as error:
            await self._stack.aclose()
            if not isinstance(error, ConfigError):
                raise
            await self.requests.end(request, "failed", str(error))
            return
        log.info("savepoint asked for: sources stop", app=self.app, id=request.id, to=request.to, stop=request.stop)
        self.sealed, self._since = set(), time.monotonic()
        self.request = request

    async def _end(self, now: Request | None) -> None:
        assert self.request is not None
        request, self.request = self.request, None
        self._over.add(request.id)
        if now is not None and now.id == request.id and now.state == "done":
            log.info("savepoint taken", app=self.app, id=request.id, to=request.to, stop=request.stop)
            if request.stop:
                self.stopped = True
                self._stop()
        else:
            why = now.why if now is not None and now.id == request.id else "nobody has ended it in time"
            log.warning("savepoint failed: going on", app=self.app, id=request.id, why=why)
        await self._stack.aclose()

    async def fail(self, why: str) -> None:
        """Give the one under way up."""
        if self.request is not None:
            with contextlib.suppress(FlowkitError):
                await self.requests.end(self.request, "failed", why)

    # Ending

    async def _forward(self, owned: Mapping[str, object]) -> None:
        request = self.request
        assert request is not None
        missing = [task for task in self.tasks if task not in self.sealed]
        if self._waited() > MARGIN:
            left = f"{len(missing)} of {len(self.tasks)} tasks had not sealed" if missing else "not verified"
            await self.fail(f"not done within {request.timeout / 1000:g} s: {left} ({', '.join(missing[:5])})")
        # One is enough to ask the broker for all tasks; if it dies, another one has its first task.
        elif not missing and self.tasks[0] in owned:
            await self._verify(request)

    def _waited(self) -> float:
        """Seconds beyond the time of the one under way."""
        assert self.request is not None
        return time.monotonic() - self._since - self.request.timeout / 1000

    async def _verify(self, request: Request) -> None:
        seals = []
        for task in self.tasks:
            seal = await self.parts.seal(task)
            if seal is None:
                return
            number, commit_id = await self.ledger.last_commit(task)
            if (number, (commit_id or b"").hex()) != (seal.commit, seal.commit_id):
                await self.fail(f"task {task} went on to commit {number} after it had sealed {seal.commit}: ask again")
                return
            seals.append(seal)
        manifest = Manifest(
            format=FORMAT,
            id=request.id,
            app=self.app,
            at=self.clock.now_ms(),
            groups=self.groups,
            internal=self.internal,
            seals=seals,
        )
        if await self.parts.put_manifest(manifest):
            await self.requests.end(request, "done")
        else:
            await self.fail(f"{request.to}: there is another savepoint already")


async def refuse_savepoints(requests: Requests, why: str) -> None:
    """Tell who asks for one why it cannot be, until cancelled: else they would wait for their time-out."""
    while True:
        try:
            asked = await requests.last()
            if asked is not None and asked.state == "asked":
                log.warning("savepoint refused", app=requests.app, id=asked.id, to=asked.to, why=why)
                await requests.end(asked, "failed", why)
        except FlowkitError as error:
            log.warning("cannot see whether a savepoint is asked for", error=str(error))
        await asyncio.sleep(LOOK_SECONDS)


class Readable(Protocol):
    """What is asked of a live task here."""

    task: Task

    def caught_up(self, ends: Mapping[tuple[str, int], int]) -> bool: ...
    def save_starts(self) -> None: ...


class TaskDrain:
    """One task's way through a savepoint. `senders` are the tasks that send into its internal topics.

    `attend` is called at each turn of the task; `inputs` are its internal topics' partitions.
    """

    def __init__(self, task: str, savepoints: Savepoints, senders: Sequence[str]) -> None:
        self.task, self.savepoints, self.senders = task, savepoints, set(senders)
        self.request: Request | None = None
        """The one that it takes part in."""
        self.resting = False
        """True once it has sealed, or is about to: it must do nothing more."""
        self._ends: dict[tuple[str, int], int] | None = None
        self._job: asyncio.Task[None] | None = None

    async def opened(self, task: Task) -> None:
        """Before the first record is read: what is sealed already stays as it is. Raises nothing."""
        await self.savepoints.look()
        if (request := self.savepoints.request) is None:
            return
        try:
            seal = await self.savepoints.parts.seal(self.task)
        except FlowkitError as error:
            await self.savepoints.fail(f"task {self.task}: {error}")
            return
        self.request = request
        if seal is None:
            return
        if (seal.commit, seal.commit_id) == (task.store.number, task.store.commit_id.hex()):
            self.resting = True
        else:
            await self.savepoints.fail(f"task {self.task} was opened by another worker in the midst: ask again")

    @property
    def holding(self) -> bool:
        """True while sources are to be left alone."""
        request = self.savepoints.request
        if request is None or (self.request is not None and self.request.id != request.id):
            self._reset()
        self.request = request
        return request is not None

    def _reset(self) -> None:
        self.resting, self._ends = False, None
        if self._job is not None:
            self._job.cancel()
            self._job = None

    async def attend(self, live: Readable, inputs: Sequence[tuple[str, int]]) -> None:
        """Go as far as can be gone now. Raises what a commit raises."""
        if self.resting:
            return
        if not self.senders <= self.savepoints.sealed:
            return
        if self._ends is None:
            found = {topic: await self.savepoints.ledger.end_offsets(topic) for topic in {name for name, _ in inputs}}
            self._ends = {(topic, number): found[topic][number] for topic, number in inputs}
        if not live.caught_up(self._ends):
            return
        live.save_starts()
        if not await live.task.commit(always=True):
            return
        await live.task.settled()
        if live.task.unsettled:  # by what its sinks did with the last hand-offs: once more, at the next look
            return
        if self.holding:  # it may have ended meanwhile
            self.resting = True
            request = self.savepoints.request
            assert request is not None
            self._job = asyncio.create_task(self._seal(live.task, request), name=f"savepoint of {self.task}")

    async def _seal(self, task: Task, request: Request) -> None:
        wait = 0.5
        while self.savepoints.request is request:
            try:
                await self._put(task, request)
            except (StoreError, Fenced) as error:
                log.warning("state not saved; trying again", task=self.task, to=request.to, error=str(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, 10.0)
            except Exception as error:
                log.exception("state cannot be saved", task=self.task, to=request.to)
                await self.savepoints.fail(f"task {self.task}: {str(error) or type(error).__name__}")
                return
            else:
                return

    async def _put(self, task: Task, request: Request) -> None:
        savepoints, store = self.savepoints, task.store
        assert isinstance(store, LsmStore)
        blobs = savepoints.storage.blobs(*folder_of(self.task))
        checkpoints = Checkpoints(blobs, keys=savepoints.keys, keep=KEPT, clock=savepoints.clock)
        await checkpoints.claim()
        done = await checkpoints.publish(store)
        if done.commit_id != store.commit_id.hex():
            raise StoreError(f"checkpoint {done.name} is not of commit {store.number}")
        seal = Seal(
            task=self.task,
            commit=done.commit,
            commit_id=done.commit_id,
            name=done.name,
            bytes=done.bytes,
            positions=store.meta.get("positions", {}),
        )
        if not await savepoints.parts.put_seal(seal):
            await savepoints.fail(f"task {self.task} was opened by another worker in the midst: ask again")
            return
        log.info("task sealed for the savepoint", task=self.task, commit=done.commit, bytes=done.bytes, id=request.id)

    async def close(self) -> None:
        """Leave what is under way."""
        job = self._job
        self._reset()
        if job is not None:
            with contextlib.suppress(asyncio.CancelledError, FlowkitError):
                await job


def senders_of(app: str, inputs: Sequence[object], senders: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks that send into those of some topics that are internal."""
    return [f"{app}/{name}" for topic in inputs if isinstance(topic, Internal) for name in senders[topic.name]]
