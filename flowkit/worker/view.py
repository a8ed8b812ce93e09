"""What runs in this process, as others may look at it: metrics, web pages and questions read this, and change nothing.

A `Watched` is a worker or a bounded run. It shows its tasks as `TaskView`s, those that are being opened among them.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from flowkit.agent import Group
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.errors import FlowkitError
from flowkit.record import MIN_TIME
from flowkit.store import Store
from flowkit.window import Split, Splits
from flowkit.worker.engine import Engine
from flowkit.worker.live import LiveTask
from flowkit.worker.meter import Meter
from flowkit.worker.task import Task
from flowkit.worker.worker import Worker

ENDS_EVERY = 0.5
"""The broker is asked at most so often (seconds) how long its topics are."""


@dataclass(frozen=True)
class TaskView:
    """One task. `task` is None while its state is being read; `failing` says why it could not be opened or run."""

    name: str
    groups: Sequence[Group]
    meter: Meter
    partition: int | None = None
    task: Task | None = None
    engines: Sequence[Engine] = ()
    failing: str = ""
    stalled: bool = False
    positions: dict[str, Any] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    """By split: when (ms by the clock) it last sent something."""
    late_ms: dict[str, int] = field(default_factory=dict)
    """By split whose source says it (Kinesis): how far (ms) what was read last is behind the newest record."""

    @property
    def ready(self) -> bool:
        """True while it is open and not failing."""
        return self.task is not None

    def late_splits(self) -> list[tuple[Split, int]]:
        """The splits whose source says how far they are behind, with that (ms)."""
        splits = [split for engine in self.engines for split in engine.splits.by_name.values()]
        return [(split, self.late_ms[split.name]) for split in splits if split.name in self.late_ms]

    @property
    def store(self) -> Store | None:
        return None if self.task is None else self.task.store

    @property
    def meta(self) -> dict[str, Any]:
        """What the last commit that counts left beside the data."""
        return {} if self.task is None else self.task.store.meta


class Watched(Protocol):
    """A worker, or a bounded run."""

    @property
    def app(self) -> App: ...
    @property
    def clock(self) -> Clock: ...

    def tasks(self) -> list[TaskView]:
        """All its tasks, by name."""

    def trouble(self) -> str:
        """What the watchdog has to say; '' if it is content."""

    def unready(self) -> str:
        """Why it is not ready (yet); '' if all its tasks are recovered and running."""

    async def ends(self) -> dict[str, int]:
        """By split of those topics whose broker tells it: the offset that the next record will have."""


def watermark_of(splits: Splits) -> int:
    """How far event time has come (ms), without moving anything."""
    return min(reached_of(splits), splits.hold)


def reached_of(splits: Splits) -> int:
    """How far the splits have come, whatever holds event time back besides."""
    marks = [split.watermark for split in splits.by_name.values() if split.counts]
    return max(splits.floor, min(marks, default=MIN_TIME))


def behind(view: TaskView, ends: Mapping[str, int]) -> dict[str, int]:
    """By topic, how many records there are that the task has not done, where positions are offsets."""
    found: dict[str, Any] = {}
    for engine in view.engines:
        for split in engine.splits.by_name.values():
            position = view.positions.get(split.name, 0)
            if split.name in ends and isinstance(position, int):
                topic = split.topic
                found[topic] = found.get(topic, 0) + max(0, ends[split.name] - position)
    return found


def _late_ms(live: LiveTask) -> dict[str, int]:
    told = {split.name: getattr(reader, "behind_ms", None) for _, split, reader in live.readers}
    return {name: late for name, late in told.items() if late is not None}


class WorkerView:
    """A worker's tasks."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.app, self.clock = worker, worker.app, worker.clock
        worker.measured = True
        self._ends: dict[str, int] = {}
        self._asked = -ENDS_EVERY

    def tasks(self) -> list[TaskView]:
        worker, found = self.worker, []
        for name, owned in sorted(worker.owned.items()):
            part, live = worker.wiring.slices[name], owned.live
            opened = live is not None and live.opened
            found.append(
                TaskView(
                    name,
                    [part.group],
                    worker.meter_of(name),
                    part.partition,
                    live.task if live is not None and opened else None,
                    [live.engine] if live is not None and opened else [],
                    owned.failing,
                    owned.stalled,
                    live.feed.positions if live is not None and opened else {},
                    live.feed.heard if live is not None and opened else {},
                    _late_ms(live) if live is not None and opened else {},
                )
            )
        return found

    def trouble(self) -> str:
        stalled = self.worker.health().stalled
        return f"no progress: {', '.join(stalled)}" if stalled else ""

    def unready(self) -> str:
        if self.worker.waits_for:
            return self.worker.waits_for
        health = self.worker.health()
        if health.ready:
            return ""
        if health.failing:
            return "; ".join(f"task {name}: {why}" for name, why in health.failing.items())
        if health.broker:
            return health.broker
        opening = [view.name for view in self.tasks() if not view.ready]
        if opening:
            waits = [f"; task {name}: {why}" for name, why in health.waiting.items()]
            return f"tasks are being opened: {', '.join(opening)}{''.join(waits)}"
        return "the worker has not heard from the broker which tasks are its own, or it is stopping"

    async def ends(self) -> dict[str, int]:
        now = time.monotonic()
        if now - self._asked >= ENDS_EVERY or not self._ends:
            self._asked, self._ends = now, await self._ask()
        return self._ends

    async def _ask(self) -> dict[str, int]:
        found: dict[str, int] = {}
        broker = getattr(self.worker, "broker", None)
        ask = getattr(broker, "end_offsets", None)
        if ask is None:
            return found
        engines = [engine for view in self.tasks() for engine in view.engines]
        names = {split.topic for engine in engines for split in list(engine.splits.by_name.values())}
        for name in sorted(names):
            with suppress(FlowkitError):  # a broker that does not answer: nothing is known
                found |= {f"{name}[{number}]": end for number, end in enumerate(await ask(name))}
        return found


class RunView:
    """A bounded run: one task of all groups."""

    def __init__(self, task: Task, clock: Clock) -> None:
        self.app, self.clock, self.task = task.app, clock, task
        task.meter.measured = task.counters.tally.measured = True

    def tasks(self) -> list[TaskView]:
        task = self.task
        task.meter.look()  # a run has no watchdog that looks each second
        return [TaskView("run", [engine.group for engine in task.engines], task.meter, None, task, task.engines)]

    def trouble(self) -> str:
        return ""

    def unready(self) -> str:
        return "" if hasattr(self.task, "feed") else "the state is being read"

    async def ends(self) -> dict[str, int]:
        return {}
