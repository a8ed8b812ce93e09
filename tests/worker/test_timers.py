"""Timers and periodic agents in live tasks and in a worker: readings of the clock are inputs, kept until the commit."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowkit import App, Record, Tick, Timer, seconds
from flowkit.clock import VirtualClock
from flowkit.options import WorkerOptions
from flowkit.source import MemoryBroker, open_broker
from flowkit.store import open_store
from flowkit.worker import LiveTask, Worker, random_ids


class Event(Record):
    key: str
    at: int = 0


class Note(Record):
    text: str


TOPICS = {"events": 1, "notes": 1, "dead-letters": 1}


class Tasks:
    """The only task of an app, opened again and again on one disk."""

    def __init__(self, broker: MemoryBroker, clock: VirtualClock) -> None:
        self.broker, self.clock, self.disk = broker, clock, list[bytes]()

    async def open(self, app: App) -> LiveTask:
        (group,) = app.plan().groups
        claim = await self.broker.claim(f"{app.name}/{group.name}/0", "")
        live = LiveTask(
            app,
            group,
            0,
            1,
            broker=self.broker,
            topics=TOPICS,
            sinks={},
            store=open_store(None, disk=self.disk),
            epoch=claim.epoch,
            clock=self.clock,
            options=WorkerOptions(),
            new_id=random_ids(1),
        )
        await live.open()
        return live

    async def notes(self, live: LiveTask) -> list[str]:
        await live.task.commit(final=True)
        await live.task.settled()
        return notes_of(self.broker)


def notes_of(broker: Any) -> list[str]:
    log = broker.store.topics["notes"][0]
    return [msgspec.json.decode(value)["text"] for value in log.columns[1]]


async def turn(live: LiveTask) -> None:
    """What a worker does again and again."""
    await live.fetch(100)
    while await live.step():
        pass
    live.look_at_clock()
    while await live.step():
        pass


async def with_tasks(test: Callable[[Tasks, MemoryBroker, VirtualClock], Any]) -> None:
    clock = VirtualClock(seconds(100) + 1)
    async with MemoryBroker(clock) as broker:
        for topic in TOPICS:
            await broker.create(topic, 1)
        await test(Tasks(broker, clock), broker, clock)


def ticking(period: int = 30) -> App:
    app = App("ticking")
    notes = app.topic("notes", Note)

    @app.timer(seconds(period), sinks=[notes])
    def tick(t: Tick) -> Note:
        return Note(f"{t.at // 1000}")

    return app


async def test_of_the_ticks_that_were_missed_the_latest_comes_and_then_those_on_time() -> None:
    async def story(tasks: Tasks, broker: MemoryBroker, clock: VirtualClock) -> None:
        live = await tasks.open(ticking())
        await turn(live)
        assert await tasks.notes(live) == []  # 90 was before it was opened
        clock.reach(seconds(121))
        await turn(live)
        await turn(live)
        assert await tasks.notes(live) == ["120"]
        await live.close()
        clock.reach(seconds(310))  # the app is down for a while
        live = await tasks.open(ticking())
        await turn(live)
        assert await tasks.notes(live) == ["120", "300"]
        clock.reach(seconds(329))
        await turn(live)
        clock.reach(seconds(330))
        await turn(live)
        assert await tasks.notes(live) == ["120", "300", "330"]
        await live.close()

    await with_tasks(story)


async def test_under_another_period_the_ticks_begin_anew() -> None:
    async def story(tasks: Tasks, broker: MemoryBroker, clock: VirtualClock) -> None:
        live = await tasks.open(ticking())
        await turn(live)
        assert await tasks.notes(live) == []
        await live.close()
        clock.reach(seconds(125))
        live = await tasks.open(ticking(period=70))
        await turn(live)
        assert await tasks.notes(live) == []  # neither 120 of the old one nor 70
        clock.reach(seconds(140))
        await turn(live)
        assert await tasks.notes(live) == ["140"]
        await live.close()

    await with_tasks(story)


async def test_a_tick_that_was_not_committed_comes_again_and_one_that_was_does_not() -> None:
    async def story(tasks: Tasks, broker: MemoryBroker, clock: VirtualClock) -> None:
        live = await tasks.open(ticking())
        await turn(live)
        assert await tasks.notes(live) == []
        clock.reach(seconds(125))
        await turn(live)  # 120, not committed
        await live.close()
        live = await tasks.open(ticking())
        await turn(live)
        assert await tasks.notes(live) == ["120"]
        await live.close()
        live = await tasks.open(ticking())
        await turn(live)
        assert await tasks.notes(live) == ["120"]
        await live.close()

    await with_tasks(story)


async def test_after_going_back_the_clock_reads_what_it_read_before() -> None:
    """After a failure the task comes again from its last commit, with the same readings though time has gone on."""
    failing = [True]
    app = App("app")
    events = app.topic("events", Event, key="key", time="at")
    notes = app.topic("notes", Note)
    timers = app.timers("timers", str, clock="wall")
    clock = VirtualClock()

    @app.each(events, timers, sinks=[notes])
    def agent(event: Event | Timer[str]) -> Note | None:
        if isinstance(event, Event):
            timers.set(event.key, event.at)
            return None
        if failing and event.key == "b":
            failing.pop()
            clock.reach(1_000)  # while it goes back, time goes on
            raise OSError("once")
        return Note(f"{event.key} {event.at} {timers.get('c')}")

    async def story(tasks: Tasks, broker: MemoryBroker, _: VirtualClock) -> None:
        tasks.clock = clock
        rows = [Event("a", 10), Event("b", 20), Event("c", 500)]
        await broker.put("events", [(row.key.encode(), msgspec.json.encode(row), 0) for row in rows])
        live = await tasks.open(app)
        clock.reach(100)
        await turn(live)
        # b has one attempt and is a dead letter; c is not due by the reading of 100.
        assert await tasks.notes(live) == ["a 10 500"]
        assert live.counters.dead == 1
        await turn(live)
        assert await tasks.notes(live) == ["a 10 500", "c 500 None"]
        await live.close()

    await with_tasks(story)


async def test_timers_by_the_clock_outlive_their_task() -> None:
    def app_of() -> App:
        app = App("app")
        events = app.topic("events", Event, key="key", time="at")
        notes = app.topic("notes", Note)
        timers = app.timers("timers", str, clock="wall")

        @app.each(events, timers, sinks=[notes])
        def agent(event: Event | Timer[str]) -> Note | None:
            if isinstance(event, Event):
                timers.set(event.key, event.at)
                return None
            return Note(f"{event.key} {event.at}")

        return app

    async def story(tasks: Tasks, broker: MemoryBroker, clock: VirtualClock) -> None:
        now = clock.now_ms()
        rows = [Event("a", now + 50), Event("b", now + 20), Event("c", now + 5_000)]
        await broker.put("events", [(row.key.encode(), msgspec.json.encode(row), 0) for row in rows])
        live = await tasks.open(app_of())
        await turn(live)
        assert await tasks.notes(live) == []
        await live.close()
        clock.advance(100)
        live = await tasks.open(app_of())
        await turn(live)
        assert await tasks.notes(live) == [f"b {now + 20}", f"a {now + 50}"]
        await live.close()

    await with_tasks(story)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_worker_runs_timers_and_periodic_agents_and_stops_cleanly(tmp_path: Path, partitions: int) -> None:
    """By the real clock: the agents themselves stop the worker once they have seen enough."""
    app = App("app")
    notes = app.topic("notes", Note)
    beats = app.topic("beats", Event, key="key")
    timers = app.timers("timers", str, clock="wall")
    came: list[int] = []

    @app.timer(20, sinks=[beats])  # a group without topics: one task
    async def beat(t: Tick) -> Event:
        return Event(f"k{t.at // 20 % 4}", t.at)

    @app.each(beats, timers, sinks=[notes])
    def agent(event: Event | Timer[str]) -> Note | None:
        if isinstance(event, Event):
            timers.set(event.key, event.at + 30)
            return None
        came.append(event.at)
        if len(came) == 3:
            worker.stop()
        return Note(f"{event.key} {event.at}")

    broker_url = f"memory://{tmp_path.name}"
    options = WorkerOptions(commit_interval=50, lease_ttl=3000, partitions=partitions)
    worker = Worker(app, broker_url, tmp_path / "state", options=options)
    await asyncio.wait_for(worker.run(), 30)
    assert len(came) >= 3
    broker = open_broker(broker_url, VirtualClock())
    logs = broker.store.topics  # type: ignore[union-attr]
    sent = [msgspec.json.decode(v or b"")["at"] for log in logs["beats"] for v in log.columns[1]]
    assert sent
    assert all(at % 20 == 0 for at in sent)
    assert len(set(sent)) == len(sent)
    told = sorted(
        int(msgspec.json.decode(v or b"")["text"].split()[1]) for log in logs["notes"] for v in log.columns[1]
    )
    assert told == sorted(came)  # nothing failed, so each was done once, and what was done is committed
