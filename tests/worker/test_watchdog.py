"""What the watchdog tells: where code stands, and that the event loop is blocked."""

import asyncio
import threading
from collections.abc import Generator
from contextlib import suppress
from types import coroutine
from typing import Any

from structlog.testing import capture_logs

from flowkit import App, Record, Stream
from flowkit.testing import harness
from flowkit.worker.watchdog import LoopWatch, dump_tasks, waiting_for


def functions(places: list[str]) -> list[str]:
    """Their names, without where the file is."""
    return [place.split(" (")[0].rpartition(".")[2] for place in places]


async def paused(task: "asyncio.Task[Any]") -> list[str]:
    """Where a task stands once it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
    places = waiting_for(task)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return places


async def test_a_task_is_followed_down_to_what_it_awaits() -> None:
    async def outer() -> None:
        await middle()

    async def middle() -> None:
        async for _ in numbers():
            pass

    async def numbers() -> Any:
        await by_hand(asyncio.get_running_loop().create_future())
        yield 1

    @coroutine
    def by_hand(future: "asyncio.Future[None]") -> Generator[Any, Any, None]:
        yield from future

    places = await paused(asyncio.create_task(outer()))
    assert functions(places)[:4] == ["outer", "middle", "numbers", "by_hand"]
    assert all("test_watchdog.py:" in place for place in places[:4])
    assert places[4].startswith("<Future pending")


async def test_an_agent_is_followed_into_its_own_lines() -> None:
    class Event(Record):
        n: int

    app = App("app")
    events = app.topic("events", Event)

    @app.agent(events)
    async def agent(stream: Stream[Event]) -> None:
        async for _ in stream:
            await forever()

    @app.each(events)
    async def function(_: Event) -> None:
        await forever()

    async def forever() -> None:
        await asyncio.Event().wait()

    for name in ("agent", "function"):
        only = App("app")
        only.topics["events"], only.agents[name] = events, app.agents[name]
        async with harness(only) as h:
            places = await paused(asyncio.create_task(h.send(events, Event(1))))
        assert functions(places)[0] == "send"
        assert functions(places)[-4:-1] == [name, "forever", "wait"]


async def test_a_task_that_is_done_waits_for_nothing() -> None:
    async def quick() -> None:
        return

    task = asyncio.create_task(quick())
    await task
    assert waiting_for(task) == []


async def test_all_tasks_are_dumped_by_name() -> None:
    task = asyncio.create_task(asyncio.Event().wait(), name="the waiter")
    await asyncio.sleep(0)
    found = {entry["task"]: functions(entry["waits_for"]) for entry in dump_tasks()}
    assert found["the waiter"][0] == "wait"
    await paused(task)


async def test_a_blocked_loop_is_told_once_with_its_stack() -> None:
    def block() -> None:
        threading.Event().wait(0.5)

    with capture_logs() as logs, LoopWatch(100).running():
        block()
        await asyncio.sleep(0)
    (told,) = [log for log in logs if log["event"].startswith("the event loop is blocked")]
    assert "in block" in told["stack"]
    assert told["seconds"] >= 0.1


async def test_a_loop_that_turns_is_not_told() -> None:
    with capture_logs() as logs, LoopWatch(200).running():
        for _ in range(30):
            await asyncio.sleep(0.01)
    assert logs == []


async def test_each_block_is_told() -> None:
    with capture_logs() as logs, LoopWatch(50).running():
        for _ in range(2):
            threading.Event().wait(0.3)
            await asyncio.sleep(0.1)
    assert len(logs) == 2
