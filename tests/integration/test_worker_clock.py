"""What the clock brings to a worker: idle topics, windows that close by it, batches that have waited."""

import asyncio
import time
from pathlib import Path
from typing import Any

from flowkit import App, Closed, Stream, Sum, Tumbling
from flowkit.worker import Worker
from tests.integration.workers import Event, Total, an_event, eventually, out_in, put, topics_in, totals, working


async def test_an_idle_topic_no_longer_holds_the_watermark(tmp_path: Path) -> None:
    app = App("idle")
    busy = app.topic("busy", Event, key="key", time="at")
    quiet = app.topic("quiet", Event, key="key", time="at", idle_after=300)
    out = app.sink("out", Total)
    sums = app.table("sums", str, int, window=Tumbling(100))

    @app.each(busy, quiet, tables=[sums])
    def add(event: Event) -> None:
        sums[event.key] += event.value

    @app.each(sums.closed, sinks=[out])
    def closed(w: Closed[str, int]) -> Total:
        return Total(w.key, w.value)

    async with topics_in(tmp_path, busy=1, quiet=1) as broker, working(app, tmp_path, binds=out_in(tmp_path)):
        await put(broker, "quiet", an_event(1, at=5))
        await put(broker, "busy", an_event(2, at=10), an_event(3, at=500))
        await eventually(lambda: totals(tmp_path) == [3], "the window closes without the quiet topic")


async def test_a_topic_with_more_to_read_is_not_idle_however_slow_the_agent_is(tmp_path: Path) -> None:
    app = App("behind")
    a = app.topic("a", Event, key="key", time="at", idle_after=150)
    b = app.topic("b", Event, key="key", time="at", idle_after=150)
    late: list[int] = []
    done: list[int] = []
    sums = app.table("sums", str, int, window=Tumbling(100))

    @app.each(a, b, tables=[sums])
    async def add(event: Event) -> None:
        await asyncio.sleep(0.03)
        sums[event.key] += event.value
        done.append(event.at)

    @app.each(sums.late)
    def too_late(event: Event) -> None:
        late.append(event.at)

    async with topics_in(tmp_path, a=1, b=1) as broker:
        # In step with each other: each is behind the other by a batch at most.
        await put(broker, "a", *(an_event(at=100 * n) for n in range(40)))
        await put(broker, "b", *(an_event(at=100 * n + 50) for n in range(40)))
        async with working(app, tmp_path, batch_size=8):
            await eventually(lambda: len(done) + len(late) >= 80, "all events")
    assert late == []


async def test_windows_close_by_the_clock_when_everything_is_quiet(tmp_path: Path) -> None:
    app = App("closing")
    events = app.topic("events", Event, key="key", time="at", close_after_idle=200)
    out = app.sink("out", Total)
    app.table("sums", of=events, by="key", window=Tumbling(400), total=Sum("value"))

    @app.each(app.tables["sums"].closed, sinks=[out])  # type: ignore[attr-defined]
    def closed(w: Closed[str, Any]) -> Total:
        return Total(w.key, w.value.total)

    async with topics_in(tmp_path, events=1) as broker, working(app, tmp_path, binds=out_in(tmp_path)):
        await put(broker, "events", an_event(3, at=10), an_event(4, at=20))
        begun = time.monotonic()
        await eventually(lambda: totals(tmp_path) == [7], "the window closes")
        assert time.monotonic() - begun > 0.3  # 380 ms of event time were left


async def test_a_partial_batch_is_handed_over_by_the_clock(tmp_path: Path) -> None:
    app, batches = batching(within=300)
    async with topics_in(tmp_path, events=1) as broker, working(app, tmp_path):
        await put(broker, "events", an_event(1), an_event(2))
        await eventually(lambda: batches == [[1, 2]], "the batch")


async def test_a_partial_batch_survives_a_restart(tmp_path: Path) -> None:
    app, batches = batching(within=None)
    async with topics_in(tmp_path, events=1) as broker:
        async with working(app, tmp_path) as worker:
            await put(broker, "events", an_event(1), an_event(2))
            await eventually(lambda: worker.owned and is_committed(worker, {"events[0]": 2}), "committed")
        assert batches == []
        async with working(app, tmp_path):
            await put(broker, "events", an_event(3), an_event(4))
            await eventually(lambda: batches == [[1, 2, 3]], "a full batch")
    app, batches = batching(within=300)
    async with working(app, tmp_path):
        await eventually(lambda: batches == [[4]], "the rest, by the clock")


def batching(within: int | None) -> tuple[App, list[list[int]]]:
    app = App("batching")
    events = app.topic("events", Event)
    batches: list[list[int]] = []

    @app.agent(events)
    async def gather(stream: Stream[Event]) -> None:
        async for batch in stream.batches(3, within=within):
            batches.append([event.value for event in batch])  # noqa: PERF401  as a user would write it

    return app, batches


def is_committed(worker: Worker, positions: dict[str, int]) -> bool:
    """Whether the only task of a worker has committed these positions."""
    (owned,) = worker.owned.values()
    return owned.live is not None and owned.ready and owned.live.task.store.meta.get("positions") == positions
