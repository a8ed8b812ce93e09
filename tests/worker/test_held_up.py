"""A task whose sink does not take what it was handed: it waits, says so, is no stall, and can be ended."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowkit import App, Record
from flowkit.clock import VirtualClock
from flowkit.options import WorkerOptions
from flowkit.sink import Rejected
from flowkit.source import MemoryBroker, open_storage
from flowkit.store import open_store
from flowkit.worker import LiveTask, random_ids
from flowkit.worker.draining import Savepoints, TaskDrain
from flowkit.worker.savepoint import Requests


class Event(Record):
    n: int


class Hanging:
    """A sink that takes nothing until `free`."""

    codec: str | None = None
    repeats = True

    def __init__(self) -> None:
        self.free, self.asked = asyncio.Event(), asyncio.Event()
        self.taken: list[Any] = []
        self.broken_off = 0

    async def open(self, state: Any) -> None:
        pass

    def stage(self, records: Sequence[Any], final: bool) -> Any:
        return [record.value for record in records] or None

    def state(self) -> Any:
        return None

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        if handoff is None:
            return ()
        self.asked.set()
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        self.taken += handoff
        return ()

    async def close(self) -> None:
        pass


class Held:
    """A task with such a sink, and one event that it has worked on."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker, self.disk, self.sink = broker, list[bytes](), Hanging()

    async def made(self) -> LiveTask:
        app = App("app")
        events, out = app.topic("events", Event), app.sink("out", Event)

        @app.each(events, sinks=[out])
        def copy(event: Event) -> Event:
            return event

        (group,) = app.plan().groups
        claim = await self.broker.claim("app/copy/0", "")
        return LiveTask(
            app,
            group,
            0,
            1,
            broker=self.broker,
            topics={"dead-letters": 1},
            sinks={"out": self.sink},
            store=open_store(None, disk=self.disk),
            epoch=claim.epoch,
            clock=VirtualClock(),
            options=WorkerOptions(),
            new_id=random_ids(1),
        )

    async def waiting(self) -> "tuple[LiveTask, asyncio.Task[Any]]":
        """The task, and what waits for its commit."""
        live = await self.made()
        await live.open()
        await live.fetch(10)
        while await live.step():
            pass
        await live.task.commit()
        await self.sink.asked.wait()
        job = asyncio.create_task(live.task.settled())
        await asyncio.sleep(0)
        return live, job


@pytest.fixture
async def broker() -> Any:
    async with MemoryBroker(VirtualClock()) as made:
        for topic in ("events", "dead-letters"):
            await made.create(topic, 1)
        await made.put("events", [(None, b'{"n": 1}', 0)])
        yield made


async def test_it_says_what_it_waits_for_and_is_no_stall(broker: MemoryBroker) -> None:
    held = Held(broker)
    live, job = await held.waiting()
    live.progress -= 1_000
    name, seconds = live.held_up() or ("", -1.0)
    assert (name, 0 <= seconds < 100) == ("out", True)
    assert live.silent() < 100
    held.sink.free.set()
    await job
    assert live.held_up() is None
    live.progress -= 1_000
    assert live.silent() >= 1_000
    await live.close()


async def test_while_it_works_on_the_next_commit_a_sink_excuses_nothing(broker: MemoryBroker) -> None:
    held = Held(broker)
    live, job = await held.waiting()
    held.sink.free.set()
    await job
    held.sink.free.clear()
    held.sink.asked.clear()
    await broker.put("events", [(None, b'{"n": 2}', 0)])
    await live.fetch(10)
    await live.step()
    await live.task.commit()
    await held.sink.asked.wait()
    live.progress -= 1_000
    assert (live.held_up(), live.silent() >= 1_000) == (None, True)
    held.sink.free.set()
    await live.close()


async def test_who_drops_it_waits_for_no_sink_and_who_goes_on_hands_the_same_over_again(broker: MemoryBroker) -> None:
    held = Held(broker)
    live, job = await held.waiting()
    job.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await job
        await live.close()
    assert (held.sink.broken_off, held.sink.taken) == (1, [])

    again = await held.made()
    opening = asyncio.create_task(again.open())
    held.sink.asked.clear()
    await held.sink.asked.wait()
    assert (again.recovered, (again.held_up() or ("",))[0]) == (False, "out")
    opening.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert held.sink.broken_off == 2

    held.sink.free.set()
    third = await held.made()
    await third.open()
    await third.close()
    assert held.sink.taken == [b'{"n":1}']


async def test_a_task_that_is_dropped_elsewhere_breaks_off_too(broker: MemoryBroker) -> None:
    """Not while it waits for the commit, but in the middle of its work."""
    held = Held(broker)
    live, waits = await held.waiting()
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits

    other = Held(broker)
    other.disk = held.disk
    other.sink.free.set()
    live = await other.made()
    await live.open()
    other.sink.free.clear()
    other.sink.asked.clear()
    await broker.put("events", [(None, b'{"n": 3}', 0)])

    async def work() -> None:
        try:
            await live.fetch(10)
            await live.step()
            await live.task.commit()
            await asyncio.Event().wait()
        finally:
            await live.close()

    job = asyncio.create_task(work())
    await other.sink.asked.wait()
    job.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await job
    assert other.sink.broken_off == 1


async def test_what_was_delivered_before_a_clean_stop_is_not_delivered_by_who_comes_after(broker: MemoryBroker) -> None:
    held = Held(broker)
    held.sink.free.set()
    live = await held.made()
    await live.open()
    await live.fetch(10)
    await live.finish(1.0)
    await live.close()
    again = await held.made()
    await again.open()
    await again.finish(1.0)
    await again.close()
    assert len(held.sink.taken) == 1


async def test_what_was_delivered_is_not_delivered_again_after_a_kill_once_it_has_been_quiet(
    broker: MemoryBroker,
) -> None:
    held = Held(broker)
    held.sink.free.set()
    live, job = await held.waiting()
    await job
    live.task.last_commit -= 1_000
    await live.commit_if_due()
    await live.task.settled()
    live.task.last_commit -= 1_000
    assert not live.task.commit_is_due()  # nothing is left to do: no commit after another for nothing
    again = await held.made()  # of the disk as it is now
    await again.open()
    assert len(held.sink.taken) == 1
    await again.close()
    await live.close()


async def test_what_comes_again_after_a_kill_comes_again_once(broker: MemoryBroker) -> None:
    held = Held(broker)
    held.sink.free.set()
    live, job = await held.waiting()
    await job
    for _ in range(2):
        again = await held.made()
        await again.open()
        await again.finish(1.0)
        await again.close()
    assert len(held.sink.taken) == 2
    await live.close()


async def test_a_task_rests_for_a_savepoint_when_nothing_is_left_of_its_last_delivery(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    held = Held(broker)
    held.sink.free.set()
    live = await held.made()
    await live.open()
    await live.fetch(10)
    while await live.step():
        pass
    async with open_storage(str(tmp_path / "kept")) as kept:
        savepoints = Savepoints(
            "app",
            kept,
            tasks=[live.name],
            groups={"copy": 1},
            internal=[],
            ledger=broker,
            keys=None,
            clock=VirtualClock(),
            stop=lambda: None,
        )
        await Requests(kept, "app", VirtualClock()).ask(str(tmp_path / "to"), stop=False, within=60_000)
        await savepoints.look()
        drain = TaskDrain(live.name, savepoints, [])
        assert drain.holding
        for _ in range(3):
            await drain.attend(live, [])
        assert drain.resting
        sealed = live.task.store.number
        live.task.last_commit -= 1_000
        await live.commit_if_due()
        await live.task.settled()
        assert (sealed, live.task.store.number) == (2, 2)  # what was handed over, and nothing: no other after the seal
        await drain.close()
    await live.close()
