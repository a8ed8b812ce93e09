"""Code that hangs, blocks or is only slow: the watchdog speaks of the first two, and leaves the third alone."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from structlog.testing import capture_logs

from flowkit import App, Retry, Stream
from tests.integration.workers import Event, an_event, eventually, out_in, put, topics_in, working
from tests.jsonl import whole_lines


async def test_an_agent_that_hangs_is_told_and_started_again(tmp_path: Path) -> None:
    app = App("hanging")
    events = app.topic("events", Event)
    out = app.sink("out", Event)
    hangs = [True]

    @app.agent(events, sinks=[out])
    async def forward(stream: Stream[Event]) -> AsyncIterator[Event]:
        async for event in stream:
            if event.value == 2 and hangs:
                hangs.pop()
                await never()
            yield event

    async def never() -> None:
        await asyncio.Event().wait()

    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", *map(an_event, range(5)))
        with capture_logs() as logs:
            async with working(app, tmp_path, binds=out_in(tmp_path), stall_after=300):
                await eventually(lambda: len(whole_lines(tmp_path / "out.jsonl")) == 5, "all events, once")
        (told,) = [log for log in logs if log["event"].startswith("task makes no progress")]
    assert told["task"] == "hanging/forward/0"
    here = [place for place in told["waits_for"] if "test_worker_stalls.py" in place]
    assert ["forward" in here[0], "never" in here[1]] == [True, True]
    assert {"task hanging/forward/0", "watchdog"} <= {task["task"] for task in told["all_tasks"]}
    assert [line["value"] for line in whole_lines(tmp_path / "out.jsonl")] == [0, 1, 2, 3, 4]


async def test_an_agent_that_hangs_before_its_first_event_is_started_again(tmp_path: Path) -> None:
    app = App("hanging")
    events = app.topic("events", Event)
    out = app.sink("out", Event)
    hangs = [True]

    @app.agent(events, sinks=[out])
    async def forward(stream: Stream[Event]) -> AsyncIterator[Event]:
        if hangs:
            hangs.pop()
            await asyncio.Event().wait()
        async for event in stream:
            yield event

    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", an_event(1))
        async with working(app, tmp_path, binds=out_in(tmp_path), stall_after=300):
            await eventually(lambda: whole_lines(tmp_path / "out.jsonl") == [an_event(1)], "the event")


async def test_an_agent_that_blocks_the_event_loop_is_told_with_its_stack(tmp_path: Path) -> None:
    app = App("blocking")
    events = app.topic("events", Event)
    done: list[int] = []

    @app.each(events)
    def block(event: Event) -> None:
        threading.Event().wait(1.2)
        done.append(event.value)

    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", an_event(1))
        with capture_logs() as logs:
            async with working(app, tmp_path, stall_after=400):
                await eventually(lambda: done, "the event")
        (told,) = [log for log in logs if log["event"].startswith("the event loop is blocked")]
        assert "in block" in told["stack"]
        assert not [log for log in logs if log["event"].startswith("task makes no progress")]
    assert done == [1]


async def test_slow_agents_and_long_retries_are_no_stalls(tmp_path: Path) -> None:
    app = App("slow")
    events = app.topic("events", Event)
    out = app.sink("out", Event)
    refusals = [2, 1]

    @app.each(events, sinks=[out], retry=Retry(attempts=3, backoff=500))
    async def slowly(event: Event) -> Event:
        await asyncio.sleep(0.02)
        if event.value == 40 and refusals:
            raise OSError(f"{refusals.pop()} more")
        return event

    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", *map(an_event, range(41)))
        with capture_logs() as logs:
            async with working(app, tmp_path, binds=out_in(tmp_path), stall_after=300):
                await eventually(lambda: len(whole_lines(tmp_path / "out.jsonl")) == 41, "all events")
        assert not [log for log in logs if log["event"].startswith("task makes no progress")]
