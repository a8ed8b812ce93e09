"""A world to run apps in: inputs, outputs and the state's disk in memory, and whatever a test wants to go wrong.

What runs is the real task with the real engine, feed and store; only files are replaced, because they cost more time
than everything else. A world outlives its runs: after a crash the next run finds what a real one would find.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from flowkit.app import App
from flowkit.clock import VirtualClock
from flowkit.codec import Codec
from flowkit.record import DeadLetter, Record
from flowkit.sink import Rejected
from flowkit.store import open_store
from flowkit.worker.bounded_feed import BoundedFeed
from flowkit.worker.build import make_engine, make_outlets, random_ids
from flowkit.worker.engine import Counters
from flowkit.worker.feed import Waiting
from flowkit.worker.run import _open_heads
from flowkit.worker.task import Task

T = TypeVar("T")

_runner = asyncio.Runner()


def play(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in a context of its own. Faster than an event loop for each example."""
    return _runner.run(coroutine, context=contextvars.copy_context())


class Crash(Exception):
    """The plug was pulled."""


class Lines:
    """A batch of an input in memory."""

    keys = None
    times = None

    def __init__(self, name: str, values: Sequence[bytes], first: int) -> None:
        self.name, self.values, self.first = name, values, first

    def __len__(self) -> int:
        return len(self.values)

    def position(self, count: int) -> int:
        return self.first + count

    def offset(self, index: int) -> int:
        return self.first + index

    def where(self, index: int) -> str:
        return f"{self.name}:{self.first + index + 1}"


class LinesReader:
    """Reads an input in memory; one without an end waits for more for ever."""

    fields = None

    def __init__(self, name: str, lines: Sequence[bytes], at: int, ends: bool) -> None:
        self.name, self.lines, self.at, self.ends = name, lines, at, ends

    @property
    def at_end(self) -> bool:
        return self.ends and self.at >= len(self.lines)

    async def fetch(self, max_records: int) -> Lines | None:
        lines = self.lines[self.at : self.at + max_records]
        self.at += len(lines)
        return Lines(self.name, lines, self.at - len(lines)) if lines else None

    async def close(self) -> None:
        return None


class LinesSource:
    """A topic bound to inputs in memory, one a split."""

    codec = None

    def __init__(self, name: str, ends: bool) -> None:
        self.name, self.ends = name, ends
        self.inputs: list[Sequence[bytes]] = []

    async def splits(self) -> Sequence[int]:
        return range(len(self.inputs))

    async def open(self, split: int, position: Any) -> LinesReader:
        return LinesReader(f"{self.name}-{split}", self.inputs[split], position or 0, self.ends)


class Kept:
    """A sink in memory that works as a file does: a hand-off says what stands where."""

    codec = None
    repeats = False
    guarantee = "exactly once"

    def __init__(self, lines: list[bytes]) -> None:
        self.lines, self.length = lines, 0

    async def open(self, state: Any) -> None:
        self.length = state or 0
        assert len(self.lines) >= self.length or state is not None
        del self.lines[self.length :]

    def stage(self, records: Any, final: bool) -> Any:
        start, self.length = self.length, self.length + len(records)
        return [start, [record.value for record in records]] if records else None

    def state(self) -> int:
        return self.length

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        if handoff is not None:
            start, values = handoff
            assert len(self.lines) >= start, "lines before a hand-off are missing"
            self.lines[start:] = values
        return ()

    async def close(self) -> None:
        return None


class World:
    """Inputs (topic, lines), and what runs have left behind."""

    def __init__(self, inputs: Sequence[tuple[str, Sequence[bytes]]], *, ends: bool = True) -> None:
        self.inputs, self.ends = list(inputs), ends
        self.disk: list[bytes] = []
        self.kept: dict[str, list[bytes]] = {}
        self.counters = Counters()
        self.commits = 0
        self.cut = 0
        """How many commits stood in the middle of a firing."""
        self.pieces: Counter[str] = Counter()
        """How many pieces of each kind the task was given."""

    async def run(
        self,
        app: App,
        *,
        commit_every: int = 5_000,
        batch_size: int = 5_000,
        piece: int = 512,
        lazy: int = 0,
        hook: Callable[[str], Awaitable[None]] | None = None,
        live_objects: int = 1_000_000,
    ) -> World:
        """A bounded run over all inputs (or to where they go on, if they have no end). Goes on where the last stopped.

        `piece` records at most are given to the engine at once. A commit waits `lazy` times between its steps.
        """
        plan = app.plan()
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(None, disk=self.disk))
            names = {outlet.name for group in plan.groups for outlet in group.outlets} | {app.dead_letters.name}
            sinks = {name: Kept(self.kept.setdefault(name, [])) for name in sorted(names)}
            outlets = make_outlets(app, plan.groups, sinks)  # type: ignore[arg-type]
            self.counters = Counters()
            clock = VirtualClock()
            engines = [
                make_engine(app, group, store, outlets, clock, self.counters, bounded=True, clean_limit=live_objects)
                for group in plan.groups
            ]
            task = Task(
                app,
                app.name,
                engines,
                store,
                outlets,
                counters=self.counters,
                sinks=sinks,  # type: ignore[arg-type]
                commit_every=commit_every,
                commit_interval=1e9,
                new_id=random_ids(1),
                hook=_lazy(hook, lazy),
            )
            meta = await task.recover()
            stack.push_async_callback(task.close)
            feed = BoundedFeed(engines, outlets)
            stack.push_async_callback(feed.close)
            sources: dict[str, Any] = {}
            for name, lines in self.inputs:
                sources.setdefault(name, LinesSource(name, self.ends)).inputs.append(lines)
            await _open_heads(feed, sources, meta, batch_size)
            feed.restore(meta)
            await task.start(feed, meta)
            already_done = len(feed.finished) == len(engines) and not any(engine.unfinished for engine in engines)
            while True:
                task._slice = piece
                given = await task.next(max(1, min(piece, commit_every - task.since_commit)))
                if given is None or isinstance(given, Waiting):
                    if already_done or await task.commit(final=True):
                        break
                    continue
                self.pieces[type(given).__name__] += 1
                await task.handle(given)
                if task.commit_is_due():
                    self.cut += any(engine.unfinished for engine in engines)
                    await task.commit()
            await task.settled()
            self.commits = task.commits
        return self

    def out(self, name: str, type_: type[T]) -> list[T]:
        """What was sent to a topic or sink, in order."""
        decode = Codec("json", type_).decode
        return [decode(line) for line in self.kept.get(name, [])]

    def letters(self) -> list[DeadLetter]:
        return self.out("dead-letters", DeadLetter)


def with_crash(world: World, app: App, cut: dict[str, Any], crash: int) -> None:
    """Run to the end; before that, if `crash` is not 0, a run that dies at that step of its commits."""
    left = crash

    async def pull(_step: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Crash

    if crash:
        with contextlib.suppress(Crash):
            play(world.run(app, hook=pull, **cut))
    play(world.run(app, **cut))


def _lazy(hook: Callable[[str], Awaitable[None]] | None, lazy: int) -> Callable[[str], Awaitable[None]]:
    async def wait(step: str) -> None:
        for _ in range(lazy):
            await asyncio.sleep(0)
        if hook is not None:
            await hook(step)

    return wait


def lines(records: Sequence[Record]) -> list[bytes]:
    """Records as lines of JSON."""
    encode = Codec("json", Record).encode
    return [encode(record) for record in records]
