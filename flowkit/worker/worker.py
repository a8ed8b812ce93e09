"""A worker: one process, one event loop, many tasks. It joins the others of its app and takes its share of tasks."""

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog

from flowkit.agent import Group, Topic
from flowkit.app import App
from flowkit.clock import SystemClock
from flowkit.codec import fields_of
from flowkit.errors import ConfigError, Fenced, FlowkitError, OutcomeUnknown, StoreCorrupt
from flowkit.options import WorkerOptions
from flowkit.sink import FileSink, Sink
from flowkit.source import open_broker
from flowkit.store import claim_directory, open_directory
from flowkit.worker.build import random_ids, resources, tuned_collector
from flowkit.worker.health import Health, write_health
from flowkit.worker.live import LiveTask, partitions_of, task_name
from flowkit.worker.placement import share
from flowkit.worker.state_home import StateHome
from flowkit.worker.watchdog import LoopWatch, dump_tasks, waiting_for

log = structlog.get_logger("flowkit.worker")

MAX_BACKOFF = 30.0
"""A task that fails is opened again after 1, 2, 4 … seconds, at most this many."""


class Running:
    """A task of this worker: its asyncio task, and how to end it."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.live: LiveTask | None = None
        self.job: asyncio.Task[None]
        self.stalled = False


class Worker:
    """Runs its share of an app's tasks until it is stopped.

    `binds` say where sinks lead (name to path). Raises ConfigError with everything that is wrong before anything
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
        self.binds = dict(binds or {})
        self.options = options or WorkerOptions.from_environment()
        self.plan = app.plan()
        self.clock = SystemClock()
        self.id = f"{app.name}/{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self.running: dict[str, Running] = {}
        self.groups: dict[str, tuple[Group, int, int]] = {}
        """By task name: its group, partition, and the group's partition count."""
        self.topics: dict[str, int] = {}
        self._stopping = asyncio.Event()
        self._fatal: BaseException | None = None

    def stop(self) -> None:
        """Ask for a clean stop: do what was taken in, commit, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`. Raises what made going on impossible."""
        self._check_binds()
        async with AsyncExitStack() as stack:
            open_directory(self.state, self.app.name)
            stack.enter_context(claim_directory(self.state))
            stack.enter_context(tuned_collector())
            self.home = StateHome(self.state)
            self.broker = open_broker(self.broker_url, self.clock)
            await stack.enter_async_context(self.broker)
            await self._prepare_topics()
            await stack.enter_async_context(resources(self.app))
            watch = LoopWatch(self.options.stall_after)
            stack.enter_context(watch.running())
            await self.broker.join(self.id, self.options.lease_ttl)
            log.info("worker started", worker=self.id, tasks=len(self.groups), broker=self.broker_url)
            try:
                await self._live(watch)
            finally:
                await self._end()
        if self._fatal is not None:
            raise self._fatal

    # What it runs on

    def _check_binds(self) -> None:
        problems = []
        known = {**self.app.topics, **self.app.sinks}
        written = {outlet.name: outlet for group in self.plan.groups for outlet in group.outlets}
        if not self.plan.groups:
            problems.append(f"app {self.app.name!r} has no agents and no declared tables: there is nothing to run")
        for name, url in self.binds.items():
            if name not in known:
                problems.append(f"--bind {name}={url}: app {self.app.name!r} has no topic or sink {name!r}")
            elif name not in written:
                problems.append(f"--bind {name}={url}: no agent writes {name!r}; bounded inputs are for `flowkit run`")
            elif "://" in url and not url.startswith("file://"):
                problems.append(f"--bind {name}={url}: only files can be bound (a path, or file://PATH)")
        for name, outlet in written.items():
            if not isinstance(outlet, Topic) and name not in self.binds:
                problems.append(f"sink {name!r} leads nowhere: bind it with --bind {name}=FILE")
        if problems:
            raise ConfigError(*problems)

    async def _prepare_topics(self) -> None:
        """Find the topics, make those that are missing, and tell which tasks there are."""
        for group in self.plan.groups:
            counts = {topic.name: await self.broker.partitions(topic.name) for topic in group.inputs}
            given = [counts[topic.name] for topic in group.topics if counts[topic.name]]
            for name, count in counts.items():
                if not count:
                    made = max(given, default=self.options.partitions)
                    log.info("topic made", topic=name, partitions=made)
                    await self.broker.create(name, made)
        outlets = {outlet for group in self.plan.groups for outlet in group.outlets if isinstance(outlet, Topic)}
        for outlet in sorted({*outlets, self.app.dead_letters}, key=lambda outlet: outlet.name):
            if outlet.name in self.binds:
                continue
            if not await self.broker.partitions(outlet.name):
                log.info("topic made", topic=outlet.name, partitions=self.options.partitions)
                await self.broker.create(outlet.name, self.options.partitions)
            self.topics[outlet.name] = await self.broker.partitions(outlet.name)
        problems: list[str] = []
        for group in self.plan.groups:
            try:
                count = await partitions_of(self.broker, group)
            except ConfigError as error:
                problems += error.problems
                continue
            for partition in range(count):
                self.groups[task_name(self.app, group, partition)] = (group, partition, count)
        if problems:
            raise ConfigError(*problems)

    def _sinks(self, group: Group, partition: int, count: int) -> dict[str, Sink]:
        sinks: dict[str, Sink] = {}
        for outlet in group.outlets:
            if outlet.name in self.binds:
                path = self.binds[outlet.name].removeprefix("file://")
                if "{partition}" in path:
                    path = path.replace("{partition}", str(partition))
                elif count > 1:
                    raise ConfigError(
                        f"--bind {outlet.name}={path}: {count} tasks write it, and a file has one writer: put "
                        "{partition} into the name"
                    )
                sinks[outlet.name] = FileSink(path, fields_of(outlet.element))
        return sinks

    # Running

    async def _live(self, watch: LoopWatch) -> None:
        """Turn about once a second until asked to stop: membership, placement, watchdog, health."""
        beat = min(1.0, self.options.lease_ttl / 3000)
        last_beat = 0.0
        while not self._stopping.is_set() and self._fatal is None:
            watch.turn()
            try:
                if time.monotonic() - last_beat >= self.options.lease_ttl / 3000:
                    await self._renew()
                    last_beat = time.monotonic()
                await self._place()
            except FlowkitError as error:
                if isinstance(error, ConfigError):
                    raise
                log.warning("the broker does not answer; trying again", error=str(error))
            self._look_for_stalls()
            self._write_health()
            try:
                await asyncio.wait_for(self._stopping.wait(), beat)
            except TimeoutError:
                continue

    async def _renew(self) -> None:
        await self.broker.heartbeat(self.id)
        for name in await self.broker.renew(self.id, list(self.running)):
            log.warning("task lost to another worker", task=name)
            self._drop(name)

    def _drop(self, name: str) -> None:
        running = self.running.get(name)
        if running is not None:
            running.job.cancel()

    async def _place(self) -> None:
        """Claim and release so that all workers together hold every task once, in equal shares."""
        leases = await self.broker.leases(f"{self.app.name}/")
        members = await self.broker.members(f"{self.app.name}/")
        claims, releases = share(list(self.groups), members, self.id, leases, self.clock.now_ms())
        for name in releases:
            if name in self.running:
                log.info("task is handed over", task=name)
                self.running[name].stop.set()
        by_name = {lease.task: lease for lease in leases}
        for name in claims:
            if name not in self.running:
                running = self.running[name] = Running()
                lease = by_name.get(name)
                running.job = asyncio.create_task(self._hold(name, running, lease), name=f"task {name}")

    async def _hold(self, name: str, running: Running, lease: Any) -> None:
        """Own a task from claim to release."""
        epoch = None
        try:
            backoff = 1.0
            while not running.stop.is_set() and not self._stopping.is_set():
                before = "" if lease is None else lease.state
                place = self.home.begin(name, before)
                claim = await self.broker.claim(
                    name, str(place), worker=self.id, seen=0 if lease is None else lease.epoch
                )
                epoch = claim.epoch
                opened = time.monotonic()
                try:
                    await self._run_task(name, running, place, claim)
                    break
                except OutcomeUnknown as error:
                    log.warning("outcome of a commit unknown: opening the task again", task=name, error=str(error))
                except (Fenced, ConfigError, StoreCorrupt):
                    raise
                except Exception as error:
                    log.exception("task failed; opening it again", task=name, error=str(error), wait=backoff)
                    if time.monotonic() - opened > 60:
                        backoff = 1.0
                    await self._pause(running, backoff)
                    backoff = min(backoff * 2, MAX_BACKOFF)
                (lease,) = await self.broker.leases(name)
        except Fenced as error:
            log.warning("task is another worker's now", task=name, error=str(error))
        except asyncio.CancelledError:
            log.warning("task dropped", task=name)
            if self._stopping.is_set():
                raise
        except BaseException as error:
            # Whatever it is, the worker cannot go on with it in silence: `run` raises it.
            self._fatal = error
            self._stopping.set()
        finally:
            self.running.pop(name, None)
            if epoch is not None:
                try:
                    await self.broker.release(name, epoch)
                except FlowkitError as error:
                    log.warning("lease not released; it will run out", task=name, error=str(error))

    async def _pause(self, running: Running, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not running.stop.is_set() and not self._stopping.is_set():
            await asyncio.sleep(0.05)  # noqa: ASYNC110  two events and a deadline end it

    async def _run_task(self, name: str, running: Running, place: Path, claim: Any) -> None:
        group, partition, count = self.groups[name]
        live = LiveTask(
            self.app,
            group,
            partition,
            count,
            broker=self.broker,
            topics=self.topics,
            sinks=self._sinks(group, partition, count),
            store=self.home.open(name, place, claim),
            epoch=claim.epoch,
            clock=self.clock,
            options=self.options,
            new_id=random_ids(),
        )
        await live.open()
        running.live = live
        try:
            seen: int | None = None
            while not running.stop.is_set() and not self._stopping.is_set():
                found = await live.fetch(self.options.batch_size)
                while await live.step():
                    await asyncio.sleep(0)  # give way: other tasks, heartbeats, signals
                    if running.stop.is_set() or self._stopping.is_set():
                        break
                live.look_at_clock()
                await live.commit_if_due()
                if not found:
                    live.progress = time.monotonic()
                    seen = await self.broker.wait(min(100, self.options.commit_interval), seen)
            await live.finish()
        except BaseException:
            await live.close()
            raise
        finally:
            running.live = None

    # Watching

    def _look_for_stalls(self) -> None:
        limit = self.options.stall_after / 1000
        for name, running in self.running.items():
            silent = time.monotonic() - running.live.progress if running.live is not None else 0.0
            running.stalled = silent > limit
            if running.stalled:
                log.error(
                    "task makes no progress: it is started again",
                    task=name,
                    seconds=round(silent),
                    waits_for=waiting_for(running.job),
                    all_tasks=dump_tasks(),
                )
                running.job.cancel()

    def _write_health(self) -> None:
        names = list(self.running)
        ready = all(running.live is not None for running in self.running.values())
        stalled = [name for name, running in self.running.items() if running.stalled]
        try:
            write_health(self.state, Health(os.getpid(), self.clock.now_ms(), ready, stalled, names))
        except OSError as error:
            log.warning("health file not written", error=str(error))

    # Ending

    async def _end(self) -> None:
        """Drain and commit within the grace, then leave."""
        self._stopping.set()
        jobs = [running.job for running in self.running.values()]
        if jobs:
            log.info("stopping: finishing what was taken in", tasks=len(jobs), grace_ms=self.options.grace)
            _, late = await asyncio.wait(jobs, timeout=self.options.grace / 1000)
            for job in late:
                log.warning("not done within the grace: dropped; its input will come again", task=job.get_name())
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        try:
            await self.broker.leave(self.id)
        except FlowkitError as error:
            log.warning("could not leave; the membership will run out", error=str(error))
        (self.state / "health.json").unlink(missing_ok=True)
        log.info("worker stopped", worker=self.id)


async def serve(
    app: App,
    broker_url: str,
    binds: Mapping[str, str] | None = None,
    *,
    state: str | Path,
    options: WorkerOptions | None = None,
) -> None:
    """Run a worker until SIGTERM or SIGINT, then stop cleanly."""
    import signal

    worker = Worker(app, broker_url, state, binds=binds, options=options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    try:
        await worker.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
