"""A worker: one process, one event loop, many tasks. It joins the others of its app and takes its share of tasks."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from flowkit.app import App
from flowkit.clock import SystemClock
from flowkit.errors import BrokerError, ConfigError, Fenced, FlowkitError, StoreError
from flowkit.options import WorkerOptions
from flowkit.source import (
    Claim,
    EndsForOthers,
    KeepsFrames,
    PlacesByGroup,
    Sharded,
    check_storage_url,
    open_broker,
    open_storage,
)
from flowkit.stopping import Stop, stop_with_parent
from flowkit.store import (
    Checkpoints,
    Storage,
    Store,
    claim_directory,
    folder_of,
    keys_from_environment,
    open_directory,
    open_host,
)
from flowkit.worker.beginning import Beginning, begun_with, check_names, tell_names
from flowkit.worker.build import random_ids, tuned_collector
from flowkit.worker.checkpointing import TaskCheckpoints
from flowkit.worker.draining import Savepoints, TaskDrain, refuse_savepoints, senders_of
from flowkit.worker.health import NAME, Health, write_health
from flowkit.worker.inheriting import Inheritance, opened_for_a_while
from flowkit.worker.live import Begins, LiveTask, task_name
from flowkit.worker.meter import Meter
from flowkit.worker.ownership import Ownership
from flowkit.worker.patience import Patience
from flowkit.worker.resources import resources
from flowkit.worker.restoring import Frames
from flowkit.worker.savepoint import Requests, need_manifest
from flowkit.worker.shards import Streams
from flowkit.worker.state_home import StateHome
from flowkit.worker.tracing import Tracing, tracing_from_environment
from flowkit.worker.watchdog import LoopWatch, dump_tasks, waiting_for
from flowkit.worker.wiring import Slice, Wiring

log = structlog.get_logger("flowkit.worker")

LONGEST_SESSION = 300_000
"""No code that blocks the event loop gets a longer session (ms) than this."""

MOST_SLACK = 16
"""A task that is started again and again without a commit gets up to so many times the time to stall."""

SAY_SECONDS = 10.0
"""While the broker is away, or a sink takes nothing, that is said so often."""

LAST_SECONDS = 5.0
"""How long tasks that were dropped at the end of the grace may take to let go."""


class Worker:
    """Runs its share of an app's tasks until it is stopped.

    `binds` say where sinks lead (name to URL or path). Raises ConfigError with everything that is wrong before anything
    starts, StoreLocked if another worker uses the state directory.
    """

    def __init__(
        self,
        app: App,
        broker_url: str,
        state: str | Path,
        *,
        binds: Mapping[str, str] | None = None,
        options: WorkerOptions | None = None,
    ) -> None:
        self.app, self.broker_url, self.state = app, broker_url, Path(state)
        self.options = options or WorkerOptions.from_environment()
        self.clock = SystemClock()
        self.id = f"{app.name}/{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self.wiring = Wiring(app, app.plan(rekey=True), binds or {}, self.options.partitions)
        self.owned: dict[str, Ownership] = {}
        """The tasks that it owns or is about to, by name."""
        self.meters: dict[str, Meter] = {}
        """Of all tasks that it has owned, by name."""
        self.measured = False
        """True if someone will ask how many bytes were read."""
        self.tracing: Tracing | None = None
        self.storage: Storage | None = None
        """Where checkpoints go."""
        self.savepoints: Savepoints | None = None
        """What it hears of savepoints, where there are checkpoints."""
        self.beginning: Beginning | None = None
        """The savepoint that tasks without commits begin with."""
        self.waits_for = ""
        """Why it has not begun to work."""
        self._begun: str | None = None
        self._stopping = asyncio.Event()
        self._patience = Patience(self.options.broker_patience, self._stopping)
        self._session = self.options.lease_ttl
        """How long (ms) after its last sign of life others take its tasks."""
        self._slack: dict[str, int] = {}
        """By task that was started again and has not committed since: how many times longer it may take now."""
        self._away = ""
        """Why the broker does not answer; '' while it does."""
        self._away_since = self._away_said = 0.0
        self._fatal: BaseException | None = None
        self._look_at_resources: Callable[[], None] = _nothing
        self._placed_at = 0.0
        """When (monotonic seconds) it last heard from the broker which tasks are its own."""

    def stop(self) -> None:
        """Ask for a clean stop: do what was taken in, commit, leave."""
        self._stopping.set()
        for owned in self.owned.values():
            owned.hand_over()

    async def run(self) -> None:
        """Work until `stop`. Raises what made going on impossible, as a broker that is away and stays so."""
        try:
            await self._run()
        except BrokerError:
            if not self._stopping.is_set():
                raise
            log.info("stopped before the broker answered", worker=self.id)
        if self._fatal is not None:
            raise self._fatal

    async def _run(self) -> None:
        self.wiring.check()
        if self.options.checkpoints:
            check_storage_url(self.options.checkpoints)
        if self.options.from_savepoint:
            check_storage_url(self.options.from_savepoint)
        async with AsyncExitStack() as stack:
            open_directory(self.state, self.app.name)
            stack.enter_context(claim_directory(self.state))
            stack.enter_context(tuned_collector())
            options = self.options
            self.tracing = stack.enter_context(tracing_from_environment(self.app.name))
            host = await stack.enter_async_context(
                open_host(options.store_memory, bytes_per_second=options.compaction_rate)
            )
            self.home = StateHome(self.state, host, keys_from_environment(app=self.app.name))
            if options.checkpoints:
                self.storage = await stack.enter_async_context(open_storage(options.checkpoints))
                await self._check_storage(self.storage)
            await self._watched(stack)
            self.broker = open_broker(self.broker_url, self.clock, self.app.guarantee)
            await self._patience.have(lambda: stack.enter_async_context(self.broker))
            if options.from_savepoint:
                self.beginning = await self._read_savepoint(stack, options.from_savepoint)
            if not await self._connect():
                return
            for found in self.wiring.destinations.values():
                await stack.enter_async_context(found)
            if isinstance(self.broker, EndsForOthers):
                self.broker.writes = self.wiring.topics
            if isinstance(self.broker, PlacesByGroup):
                self.broker.home = self.home
            await self._patience.have(self._begin)
            self._look_at_resources = await stack.enter_async_context(resources(self.app, self.clock))
            await self._patience.have(self._join)
            beside: list[asyncio.Task[None]] = []
            finder = self.wiring.finder
            if finder.patterns:
                looking = finder.watch(self.broker, self.options.topic_refresh)
                beside.append(asyncio.create_task(looking, name="topics"))
            if self.savepoints is not None:
                await self.savepoints.look()
                beside.append(asyncio.create_task(self.savepoints.watch(lambda: self.owned), name="savepoints"))
            elif self.storage is not None:
                why = f"there are none on {self.broker.url} yet"
                refusing = refuse_savepoints(Requests(self.storage, self.app.name, self.clock), why)
                beside.append(asyncio.create_task(refusing, name="savepoints"))
            try:
                await self._take_part()
            finally:
                await self._end()
                await _cancelled(beside)

    async def _watched(self, stack: AsyncExitStack) -> None:
        """From here to the end the watchdog looks, and tells how it is."""

        async def over() -> None:
            await _cancelled([watch])
            (self.state / NAME).unlink(missing_ok=True)

        watch = asyncio.create_task(self._watch(), name="watchdog")
        stack.push_async_callback(over)
        # Others take this worker's tasks once its session is over: what keeps it from telling them is told by then.
        self._loop_watch = LoopWatch(min(self.options.stall_after, self.options.lease_ttl))
        stack.enter_context(self._loop_watch.running())

    async def _connect(self) -> bool:
        """Find out which tasks there are; False if it is stopped while no topic matches a pattern yet."""
        connected = await self._patience.have(lambda: self.wiring.connect(self.broker))
        while not connected:
            if not self.waits_for:
                patterns = {topic.name: topic.pattern.pattern for topic in self.wiring.finder.patterns if topic.pattern}
                log.info("no topic matches yet, so the number of tasks is not known: waiting", patterns=patterns)
                self.waits_for = f"no topic matches yet: {', '.join(map(repr, patterns.values()))}"
            self._write_health()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(5.0, self.options.topic_refresh / 1000))
            if self._stopping.is_set():
                return False
            try:
                connected = await self.wiring.connect(self.broker)
            except BrokerError as error:
                log.warning("the broker does not answer; trying again", error=str(error))
        self.waits_for = ""
        return True

    async def _check_storage(self, storage: Storage) -> None:
        try:
            await storage.check()
        except StoreError as error:  # it may come back before the first checkpoint is due
            log.warning("checkpoints cannot be published for now; trying again", error=str(error))

    async def _read_savepoint(self, stack: AsyncExitStack, url: str) -> Beginning:
        storage = await stack.enter_async_context(open_storage(url))
        manifest = await need_manifest(storage)
        self.wiring.expected = manifest.groups
        return Beginning(self.app.name, manifest, storage, self.home.keys)

    async def _begin(self) -> None:
        """Tasks and topics are known: see what the app begins with, and what savepoints will be of."""
        if self.beginning is None and not isinstance(self.broker, PlacesByGroup):
            await tell_names(self.broker, self.app.name, self.wiring.plan.groups)
        if isinstance(self.broker, Sharded):
            if self.beginning is not None:
                raise ConfigError(f"--from: a savepoint cannot be begun with on {self.broker.url} yet")
            return
        tasks = list(self.wiring.slices)
        internal = [topic.name for topic in self.wiring.plan.internals]
        if self.beginning is not None:
            await self.beginning.check(self.broker, tasks, internal)
        else:
            self._begun = await begun_with(self.broker, self.app.name)
            if isinstance(self.broker, PlacesByGroup):
                await check_names(self.broker, self.app.name, self.wiring.plan.groups)
        if self.storage is not None:
            self.savepoints = Savepoints(
                self.app.name,
                self.storage,
                tasks=tasks,
                groups={part.group.name: part.count for part in self.wiring.slices.values()},
                internal=internal,
                ledger=self.broker,
                keys=self.home.keys,
                clock=self.clock,
                stop=self.stop,
            )

    async def _join(self) -> None:
        before = self.home.predecessor()
        if before:
            # It is dead, or the directory would not be ours: its tasks need not wait until its leases run out.
            await self.broker.leave(before)
        self.home.sign(self.id)
        await self.broker.join(self.id, self._session, list(self.wiring.slices))
        self._loop_watch.longest = 0.0  # what was loaded before blocked no session
        tasks = len(self.wiring.slices)
        log.info("worker started", app=self.app.name, worker=self.id, tasks=tasks, broker=self.broker_url)

    # Taking part

    async def _take_part(self) -> None:
        """Turn about once a second until asked to stop: sign of life, leases, placement."""
        third = self.options.lease_ttl / 3000
        last_beat = -third
        while not self._stopping.is_set():
            try:
                await self._lengthen()
                if time.monotonic() - last_beat >= third:
                    await self._renew()
                    last_beat = time.monotonic()
                await self._place()
                self._placed_at = time.monotonic()
                self._answered()
            except ConfigError:
                raise
            except FlowkitError as error:
                self._unanswered(error)
            await self._pause(min(1.0, third))

    async def _pause(self, seconds: float) -> None:
        """For so long, unless it is to stop, or the tasks have been shared out anew."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._stopping.wait(), name="stopping")]
        if isinstance(self.broker, PlacesByGroup):
            waits.append(asyncio.create_task(self.broker.shared_out(), name="shared out"))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(waits)

    async def _lengthen(self) -> None:
        """Join with a longer session if code blocked the loop beyond this one, since it may do so again.

        Without that, workers would take the task of an event that needs so long from each other for ever.
        """
        blocked = round(self._loop_watch.longest * 1000)
        if blocked < self._session or self._session >= LONGEST_SESSION:
            return
        before, self._session = self._session, min(2 * blocked, LONGEST_SESSION)
        log.warning(
            "the event loop was blocked beyond the session: others have taken its tasks; joining with a longer one",
            blocked_ms=blocked,
            session_ms=before,
            longer_ms=self._session,
        )
        await self.broker.join(self.id, self._session, list(self.wiring.slices))

    def _answered(self) -> None:
        if self._away:
            log.info("the broker answers again", seconds=round(time.monotonic() - self._away_since, 1))
            self._away = ""

    def _unanswered(self, error: FlowkitError) -> None:
        now = time.monotonic()
        if not self._away:
            self._away_since, self._away_said = now, now - SAY_SECONDS
        self._away = str(error)
        if now - self._away_said >= SAY_SECONDS:
            self._away_said = now
            log.warning("the broker does not answer; trying again", error=self._away)

    async def _renew(self) -> None:
        try:
            await self.broker.heartbeat(self.id)
        except Fenced:  # it was away for so long that the others have forgotten it
            log.warning("membership lost; joining again", worker=self.id)
            await self.broker.join(self.id, self._session, list(self.wiring.slices))
        # Those that are still being claimed have no lease yet.
        held = [name for name, owned in self.owned.items() if owned.live is not None]
        for name in await self.broker.renew(self.id, held):
            if name in self.owned:
                log.warning("task lost to another worker", task=name)
                self.owned[name].job.cancel()

    async def _look_at_shards(self) -> None:
        """Streams may have been resharded: tasks come and go, and who takes what they send has to wait for others."""
        before = self.wiring.senders
        if not await self.wiring.refresh():
            return
        changed = {topic for topic, senders in self.wiring.senders.items() if senders != before.get(topic)}
        for name, owned in self.owned.items():
            part = self.wiring.slices.get(name)
            if part is not None and changed.intersection(topic.name for topic in part.group.inputs):
                log.info("task is opened again: others send to it now", task=name)
                owned.hand_over()

    def _inheritance(self, part: Slice, name: str) -> Inheritance | None:
        """What the task of a shard takes over, unless it has done so."""
        broker = self.broker
        if part.shard is None or not part.shard.parents or not isinstance(broker, Streams):
            return None
        tasks = [task_name(self.app, part.group, number) for number in part.shard.parents]
        splits = [f"{topic.name}[{part.partition}]" for topic in part.group.topics]
        assert self.wiring.shards is not None
        return Inheritance(
            name,
            part.group,
            splits,
            tasks,
            part.owns,
            self._state_of,
            ledger=broker,
            eldest=self.wiring.is_eldest(part),
            spans={task_name(self.app, part.group, n.number): n.span for n in self.wiring.shards.all[part.group.name]},
            new_id=random_ids(),
        )

    @asynccontextmanager
    async def _state_of(self, task: str) -> AsyncIterator[Store]:
        """The state of a task that has ended, as its last commit left it."""
        (lease,) = [lease for lease in await self.broker.leases(task) if lease.task == task]
        place = await asyncio.to_thread(self.home.begin, task, lease.state)
        opening = self.home.open(task, place, lease, self._frames_of(task), self._checkpoints_of(task, lease))
        async with opened_for_a_while(place, opening) as store:
            yield store

    async def _place(self) -> None:
        """Claim and release so that all workers together hold every task once, in equal shares."""
        await self._look_at_shards()
        claims, releases = await self.broker.place(self.id, list(self.wiring.slices), set(self.owned))
        for name in releases:
            if name in self.owned:
                log.info("task is handed over", task=name)
                self.owned[name].hand_over()
        for name, lease in claims.items():
            if name not in self.owned and not self._stopping.is_set():
                owned = self.owned[name] = Ownership(
                    name,
                    lease,
                    worker=self.id,
                    ledger=self.broker,
                    home=self.home,
                    make=lambda place, claim, name=name: self._make(name, place, claim),  # type: ignore[misc]
                    options=self.options,
                )
                owned.job = asyncio.create_task(owned.hold(), name=f"task {name}")
                owned.job.add_done_callback(lambda job, name=name: self._ended(name, job))  # type: ignore[misc]

    def _make(self, name: str, place: Path, claim: Claim) -> LiveTask:
        part, checkpoints = self.wiring.slices[name], self._checkpoints_of(name, claim)
        begin = None if self.beginning is None else self.beginning.of(name)
        if begin is None and self._begun is not None and not claim.number:
            raise ConfigError(
                f"task {name}: the app begins with savepoint {self._begun}, and this task has not done so yet: start "
                "the worker with --from and the place of that savepoint"
            )
        first: Begins | None = self._inheritance(part, name)
        if begin is not None and not claim.number:
            first = begin
        return LiveTask(
            self.app,
            part.group,
            part.partition,
            part.count,
            broker=self.broker,
            topics=self.wiring.topics,
            senders=self.wiring.senders,
            sinks=self.wiring.sinks(part, self.clock),
            store=self.home.open(
                name,
                place,
                claim,
                self._frames_of(name),
                checkpoints,
                wanted=lambda: self._wanted(name),
                begin=begin,
            ),
            epoch=claim.epoch,
            clock=self.clock,
            options=self.options,
            new_id=random_ids(),
            meter=self.meter_of(name),
            checkpoints=checkpoints,
            drain=self._drain_of(name),
            begin=first,
            owns=part.owns,
            finder=self.wiring.finder,
            keys_in=self.broker.keys_in if isinstance(self.broker, Sharded) else None,
        )

    def _drain_of(self, name: str) -> TaskDrain | None:
        if self.savepoints is None:
            return None
        senders = senders_of(self.app.name, self.wiring.slices[name].group.inputs, self.wiring.senders)
        return TaskDrain(name, self.savepoints, senders)

    def _wanted(self, name: str) -> bool:
        return name in self.owned and self.owned[name].wanted

    def _checkpoints_of(self, name: str, claim: Claim) -> TaskCheckpoints | None:
        if self.storage is None:
            return None
        folder = folder_of(name)
        return TaskCheckpoints(
            name,
            Checkpoints(self.storage.blobs(*folder), keys=self.home.keys, clock=self.clock),
            claim.epoch,
            where="/".join((self.storage.url, *folder)),
            leases=self.broker,
            frames=self.broker if isinstance(self.broker, KeepsFrames) else None,
            interval=self.options.checkpoint_interval,
            clock=self.clock,
            meter=self.meter_of(name),
        )

    def _frames_of(self, name: str) -> Frames | None:
        broker = self.broker
        return None if not isinstance(broker, KeepsFrames) else lambda after: broker.frames(name, after)

    def meter_of(self, name: str) -> Meter:
        """The measures of a task, which go on when it is opened again."""
        meter = self.meters.setdefault(name, Meter())
        meter.measured, meter.tracing = self.measured, self.tracing
        return meter

    def _ended(self, name: str, job: "asyncio.Task[None]") -> None:
        del self.owned[name]
        error = None if job.cancelled() else job.exception()
        part = self.wiring.slices.get(name)
        if part is not None and part.shard is not None and isinstance(self.broker, Streams):
            for topic in part.group.topics:
                self.broker.outdated(topic.name)  # it may be done, so that its children can begin
        if error is not None:
            log.error("task cannot go on: the worker stops", task=name, error=str(error))
            self._fatal = self._fatal or error
            self.stop()

    # Watching

    async def _watch(self) -> None:
        """Look for stalls and say how it goes, whatever the broker does."""
        limit = self.options.stall_after / 1000
        pause = min(1.0, limit / 4)
        while True:
            self._write_health()
            if isinstance(self.broker, PlacesByGroup):
                self.home.note({name: owned.commit for name, owned in self.owned.items() if owned.ready})
            for meter in self.meters.values():
                meter.look()
            before = time.monotonic()
            await asyncio.sleep(pause)
            if time.monotonic() - before > pause + limit / 2:
                # Not the tasks stood still but all of the process: stopped, or its event loop blocked.
                for owned in self.owned.values():
                    if owned.live is not None:
                        owned.live.excuse()
            self._look_at_resources()
            for owned in self.owned.values():
                self._look_at(owned, limit)
                if owned.live is not None and owned.live.opened:
                    owned.live.engine.calls.watch.tell_waiting(self.options.stall_after)

    def _look_at(self, owned: Ownership, limit: float) -> None:
        live = owned.live
        self._tell_waiting(owned)
        if live is not None and live.opened and live.task.commits:
            self._slack.pop(owned.name, None)
        silent = live.silent() if live is not None else 0.0
        owned.stalled = silent > limit
        if live is None or not owned.stalled or time.monotonic() - owned.told < limit:
            return
        owned.told = time.monotonic()
        where = {"seconds": round(silent), "waits_for": waiting_for(owned.job), "all_tasks": dump_tasks()}
        slack = self._slack.get(owned.name, 1)
        if not live.recovered:
            log.warning("task takes long to read its state", task=owned.name, **where)
        elif silent > slack * limit:
            log.error("task makes no progress: it is started again", task=owned.name, **where)
            self._slack[owned.name] = min(2 * slack, MOST_SLACK)
            owned.job.cancel()
        else:  # it may be an event that does take so long: started again each time, it would never be done
            log.warning(
                "task makes no progress, after it was started again: it has longer now",
                task=owned.name,
                started_again_after=round(slack * limit),
                **where,
            )

    def _tell_waiting(self, owned: Ownership) -> None:
        """Say which sink holds up a task, with all of its input, now and then while it does."""
        held, now = owned.held_up(), time.monotonic()
        if held is not None and held[1] >= SAY_SECONDS and now - owned.told >= SAY_SECONDS:
            owned.told = now
            log.warning("a sink takes nothing: its task waits", task=owned.name, sink=held[0], seconds=round(held[1]))

    def health(self) -> Health:
        """How it is just now."""
        heard = self._placed_at > 0 and time.monotonic() - self._placed_at < self._session / 1000
        owned = self.owned.items()
        return Health(
            os.getpid(),
            self.clock.now_ms(),
            heard and not self._away and not self._stopping.is_set() and all(task.ready for _, task in owned),
            [name for name, task in owned if task.stalled],
            list(self.owned),
            {name: task.failing for name, task in owned if task.failing},
            self._away or self._patience.why,
            {name: waits for name, task in owned if (waits := task.waits_for())},
        )

    def _write_health(self) -> None:
        try:
            write_health(self.state, self.health())
        except OSError as error:
            log.warning("health file not written", error=str(error))

    # Ending

    async def _end(self) -> None:
        """Drain and commit within the grace, then leave."""
        self.stop()
        jobs = [owned.job for owned in self.owned.values()]
        if jobs:
            log.info("stopping: finishing what was taken in", tasks=len(jobs), grace_ms=self.options.grace)
            _, late = await asyncio.wait(jobs, timeout=self.options.grace / 1000)
            for job in late:
                log.warning(
                    "not done within the grace: dropped; its input will come again",
                    task=job.get_name(),
                    waits_for=waiting_for(job),
                )
                job.cancel()
            if late:
                await asyncio.wait(late, timeout=LAST_SECONDS)
        try:
            await self.broker.leave(self.id)
        except FlowkitError as error:
            log.warning("could not leave; the membership will run out", error=str(error))
        log.info("worker stopped", worker=self.id)


def _nothing() -> None:
    return None


async def _cancelled(jobs: "Sequence[asyncio.Task[Any]]") -> None:
    for job in jobs:
        job.cancel()
    if jobs:
        await asyncio.wait(jobs)


async def serve(
    app: App,
    broker_url: str,
    binds: Mapping[str, str] | None = None,
    *,
    state: str | Path,
    options: WorkerOptions | None = None,
    beside: "Callable[[Worker], AbstractAsyncContextManager[object]] | None" = None,
) -> bool:
    """Run a worker until SIGTERM or SIGINT, then stop cleanly; a second signal ends the process at once.

    True if it has stopped because of a savepoint by which all workers were to stop.

    So does the end of the grace if it is still not at rest: an agent may compute for ever.

    `beside` makes what is to go on as long as the worker runs, such as a server that shows it.
    """
    worker = Worker(app, broker_url, state, binds=binds, options=options)
    loop = asyncio.get_running_loop()
    patience = worker.options.grace / 1000 + LAST_SECONDS
    stop = Stop(patience, lambda: loop.call_soon_threadsafe(worker.stop))
    stop_with_parent()
    try:
        async with contextlib.nullcontext() if beside is None else beside(worker):
            await worker.run()
    finally:
        stop.over()
    return worker.savepoints is not None and worker.savepoints.stopped
