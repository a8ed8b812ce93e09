"""A bounded run: inputs to their end, all windows closed, everything written. `flowkit run` and services call it.

With a state directory a run that was killed goes on from its last commit, and its output files then equal, byte for
byte, those of an unbroken one.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from flowkit.agent import Topic
from flowkit.app import App
from flowkit.clock import SystemClock
from flowkit.errors import InputError
from flowkit.options import WorkerOptions
from flowkit.sink import FileSink, Rejected, Sink, SinkTask
from flowkit.source import FileReader, FileSource, Remembers
from flowkit.store import claim_directory, keys_from_environment, open_directory, open_host, open_store
from flowkit.worker.bounded_feed import BoundedFeed
from flowkit.worker.build import make_engine, make_inlet, make_outlets, random_ids, tuned_collector
from flowkit.worker.engine import Counters, Engine
from flowkit.worker.heads import Head, LinkHead
from flowkit.worker.meter import Meter
from flowkit.worker.resources import resources
from flowkit.worker.run_places import dead_letters_path, places_of
from flowkit.worker.task import Hook, Task, _no_hook
from flowkit.worker.tracing import tracing_from_environment
from flowkit.worker.watchdog import told_stalls

if TYPE_CHECKING:
    from flowkit.source import BoundedTopic, S3Topic
    from flowkit.worker.run_places import Source

log = structlog.get_logger("flowkit.run")


@dataclass
class Progress:
    """How far a run has come. `watermark` in ms; `read` and `size` in bytes of input (size None: not known)."""

    records: int
    watermark: int
    read: int
    size: int | None
    seconds: float


@dataclass
class Summary:
    """What a bounded run did."""

    counters: Counters
    seconds: float
    commits: int
    emitted: dict[str, int] = field(default_factory=dict)
    dead_letters: str = ""
    """Where dead letters were written, if there were any."""
    resumed: bool = False
    already_done: bool = False
    stopped: bool = False
    """True if `should_stop` ended it before the end of the input. What was done is committed."""


class Signs:
    """Signs of life of a run, for the watchdog."""

    def __init__(self, task: Task, engines: Sequence[Engine], limit_ms: int) -> None:
        self.task, self.engines, self.limit, self.steps = task, engines, limit_ms, 0

    def __call__(self) -> tuple[int, ...] | None:
        """What changes while it lives; None while it waits for a reason."""
        if self.task.held_up() is not None:
            return None
        if any(engine.step.resting for engine in self.engines):
            return None
        waiting = [engine.calls.watch for engine in self.engines if engine.calls.watch.waiting]
        for watch in waiting:
            watch.tell_waiting(self.limit)
        if waiting:
            return None
        return (self.steps, self.task.commits, *(engine.step.beats for engine in self.engines))


class LazySink:
    """A sink that touches the outside only once there is something to write."""

    guarantee = "exactly once"

    def __init__(self, sink: FileSink) -> None:
        self.sink = sink
        self.codec, self.repeats = sink.codec, sink.repeats
        self._opened = False
        self._staged = False

    async def open(self, state: Any) -> None:
        if state is not None and state.get("opened"):
            self._staged = True
            await self.sink.open(state["inner"])
            self._opened = True

    def stage(self, records: Sequence[Any], final: bool) -> Any:
        if not records and not self._staged:
            return None
        self._staged = True
        return self.sink.stage(records, final)

    def state(self) -> Any:
        return {"opened": self._staged, "inner": self.sink.state()}

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        if not self._opened:
            # Not as a new file: its first hand-off is staged already, and the second has to go behind it.
            await self.sink.open(self.sink.state())
            self._opened = True
        return await self.sink.deliver(handoff)

    async def close(self) -> None:
        if self._opened:
            await self.sink.close()


async def run(
    app: App,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[tuple[str, str]] = (),
    *,
    state: str | Path | None = None,
    options: WorkerOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = bool,
    hook: Hook = _no_hook,
    beside: Callable[[Task], AbstractAsyncContextManager[object]] | None = None,
) -> Summary:
    """Run `app` over `inputs` (topic, file) to their end and write `outputs` (topic or sink, file).

    Instead of a file, kafka://HOST:PORT/TOPIC is a topic of a cluster, to where it ends now; for a topic with a pattern
    kafka://HOST:PORT is all that match; s3://BUCKET/PREFIX is objects, those that are there when the run begins. The
    same topic may be given several files: they are its splits, merged by time. `beside` makes what is to go on as long
    as the run does, such as a server that shows it. Raises ConfigError with everything that is wrong before anything
    starts; InputError if an input cannot be read.
    """
    options = options or WorkerOptions.from_environment()
    plan = app.plan()
    sources, destinations = places_of(app, plan.groups, inputs, outputs, sync=state is not None)
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        for source in sources.values():
            if not isinstance(source, FileSource):
                stack.push_async_callback(source.close)
        for found in destinations.values():
            await stack.enter_async_context(found)
        stack.enter_context(tuned_collector())
        store_path = None
        if state is not None:
            open_directory(Path(state), app.name)
            stack.enter_context(claim_directory(Path(state)))
            store_path = Path(state) / "run"
        host = await stack.enter_async_context(
            open_host(options.store_memory, bytes_per_second=options.compaction_rate)
        )
        store = await stack.enter_async_context(
            open_store(store_path, host=host, keys=keys_from_environment(app=app.name))
        )
        part = SinkTask(app.name, "run", 0, 1, SystemClock(), bounded=True)
        sinks: dict[str, Sink] = {name: found.sink(part) for name, found in destinations.items()}
        letters = dict(outputs).get(app.dead_letters.name) or dead_letters_path(app, state)
        if app.dead_letters.name not in sinks:
            sinks[app.dead_letters.name] = LazySink(FileSink(letters, sync=state is not None))
        outlets = make_outlets(app, plan.groups, sinks)
        counters, meter = Counters(), Meter()
        meter.tracing = stack.enter_context(tracing_from_environment(app.name))
        engines = [
            make_engine(
                app, group, store, outlets, SystemClock(), counters, bounded=True, clean_limit=options.live_objects
            )
            for group in plan.groups
        ]
        task = Task(
            app,
            app.name,
            engines,
            store,
            outlets,
            counters=counters,
            sinks={name: sink for name, sink in sinks.items() if name in outlets},
            commit_every=options.commit_every,
            commit_interval=options.commit_interval / 1000,
            new_id=random_ids(),
            hook=hook,
            meter=meter,
        )
        if beside is not None:
            await stack.enter_async_context(beside(task))
        look = await stack.enter_async_context(resources(app, SystemClock()))
        stack.push_async_callback(task.close)
        feed = BoundedFeed(engines, outlets)
        stack.push_async_callback(feed.close)
        fresh = not store.number and store.undecided is None
        if fresh:  # an input that cannot be read is to be told before the outputs are emptied
            await _open_heads(feed, sources, {}, options.batch_size)
        meta = await task.recover()
        if not fresh:
            await _open_heads(feed, sources, meta, options.batch_size)
        feed.restore(meta)
        signs = Signs(task, engines, options.stall_after)
        await stack.enter_async_context(told_stalls(signs, options.stall_after))
        await task.start(feed, meta)
        already_done = len(feed.finished) == len(engines) and not any(engine.unfinished for engine in engines)

        def report() -> Progress:
            return _progress(counters, engines, feed.heads, time.monotonic() - started)

        stopped, broken_off = False, None
        while True:
            try:
                stopped = await _work(task, signs, look, should_stop, on_progress, report)
            except InputError as error:  # an input breaks off: what was read before that is not lost
                broken_off = error
            if already_done or await task.commit(final=True):
                break
        if broken_off is not None:
            raise broken_off
        if on_progress is not None:
            on_progress(report())
        emitted = {name: outlet.total for name, outlet in outlets.items()}
        has_letters = emitted[app.dead_letters.name] > 0
        return Summary(
            counters,
            time.monotonic() - started,
            task.commits,
            emitted,
            letters if has_letters else "",
            resumed=bool(meta),
            already_done=already_done,
            stopped=stopped,
        )


async def _work(
    task: Task,
    signs: Signs,
    look: Callable[[], None],
    should_stop: Callable[[], bool],
    on_progress: Callable[[Progress], None] | None,
    report: Callable[[], Progress],
) -> bool:
    """Step to the end of the input; True if `should_stop` ended it before."""
    next_report = 0.0
    while await task.step():
        signs.steps += 1
        look()
        now = time.monotonic()
        if on_progress is not None and now >= next_report:
            on_progress(report())
            next_report = now + 0.1
        if should_stop():
            return True
    return False


async def _open_heads(feed: BoundedFeed, sources: dict[str, "Source"], meta: dict[str, Any], batch_size: int) -> None:
    """A head for every input of every engine, in order of declaration, read on from where the last commit left it."""
    for engine in feed.engines:
        order = [*engine.app.topics, engine.app.dead_letters.name]
        for topic in sorted(engine.group.inputs, key=lambda t: order.index(t.name)):
            if topic.name in engine.outlets:
                split = engine.splits.add(f"{topic.name}[-1]", topic.out_of_order, -1)
                feed.add(LinkHead(engine, topic.name, split, make_inlet(engine, topic, -1)))
            if topic.name not in sources:
                continue
            given = sources[topic.name]
            if isinstance(given, Remembers):
                given.remember(_positions(topic.name, meta))
            named = await given.sources() if hasattr(given, "sources") else [(topic.name, given)]
            for name, source in named:
                for number in await source.splits():
                    await _open_head(feed, engine, topic, name, source, number, meta, batch_size)


async def _open_head(
    feed: BoundedFeed,
    engine: Engine,
    topic: Topic[Any],
    name: str,
    source: "FileSource | BoundedTopic | S3Topic",
    number: int,
    meta: dict[str, Any],
    batch_size: int,
) -> None:
    """The head of one split. `name` is that of the topic outside, which may be one of many that match a pattern."""
    split = engine.splits.add(f"{name}[{number}]", topic.out_of_order, number)
    reader = await source.open(number, feed.position(engine, split, meta))
    try:
        inlet = make_inlet(engine, topic, number, source.codec, reader.fields)
    except BaseException:
        await reader.close()
        raise
    head = Head(engine, topic.name, split, inlet, reader, batch_size)
    feed.add(head)
    if topic.idle_after is not None:
        engine.idle_after[split.name] = topic.idle_after


def _positions(topic: str, meta: dict[str, Any]) -> list[Any]:
    """Where an earlier run stood in the splits of a topic, whoever read it."""
    rows = [row for heads in meta.get("heads", {}).values() for row in heads.items()]
    return [saved[0] for split, saved in rows if split.rpartition("[")[0] == topic and not split.endswith("[-1]")]


def _progress(counters: Counters, engines: Sequence[Engine], heads: Sequence[Head], seconds: float) -> Progress:
    readers = [head.reader for head in heads if isinstance(head.reader, FileReader)]
    sizes = [reader.size for reader in readers]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    marks = [engine.splits.floor for engine in engines]
    return Progress(counters.records, min(marks, default=0), sum(reader.read for reader in readers), total, seconds)
