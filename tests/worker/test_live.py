"""A live task by itself: what it has promised to the broker is never more than it has done."""

from collections.abc import Sequence
from pathlib import Path

from flowkit import App, Record
from flowkit.clock import VirtualClock
from flowkit.options import Guarantee, WorkerOptions
from flowkit.source import MemoryBroker, Output, open_storage
from flowkit.store import open_store
from flowkit.worker import LiveTask, random_ids
from flowkit.worker.draining import Savepoints, TaskDrain
from flowkit.worker.feed import Idle
from flowkit.worker.savepoint import Requests
from flowkit.worker.task import Task


class Event(Record):
    n: int


async def open_task(
    app: App,
    broker: MemoryBroker,
    clock: VirtualClock,
    topics: dict[str, int] | None = None,
    disk: list[bytes] | None = None,
    drain: TaskDrain | None = None,
) -> LiveTask:
    """The only task of an app, on a broker that has its topics."""
    (group,) = app.plan().groups
    claim = await broker.claim(f"{app.name}/{group.name}/0", "")
    live = LiveTask(
        app,
        group,
        0,
        1,
        broker=broker,
        topics=topics or {"dead-letters": 1},
        sinks={},
        store=open_store(None, disk=disk),
        epoch=claim.epoch,
        clock=clock,
        options=WorkerOptions(),
        new_id=random_ids(1),
        drain=drain,
    )
    await live.open()
    return live


async def handle_next(task: Task) -> None:
    piece = await task.feed.next(1_000)
    assert piece is not None
    await task.handle(piece)  # type: ignore[arg-type]


async def test_after_going_back_positions_are_only_those_of_what_was_done_again() -> None:
    app = App("app")
    a, b = app.topic("a", Event), app.topic("b", Event)
    fails = [True]

    @app.each(a, b)
    def agent(event: Event) -> None:
        if event.n == 3 and fails:
            fails.pop()
            raise OSError("once")

    clock = VirtualClock()
    async with MemoryBroker(clock) as broker:
        for topic in ("a", "b", "dead-letters"):
            await broker.create(topic, 1)
        await broker.put("a", [(None, b'{"n": 1}', 0)] * 2)
        await broker.put("b", [(None, b'{"n": 2}', 0), (None, b'{"n": 3}', 0)])
        live = await open_task(app, broker, clock)
        await live.fetch(1)  # a piece of each
        await handle_next(live.task)
        await handle_next(live.task)
        await live.fetch(1)
        await handle_next(live.task)
        await handle_next(live.task)  # fails: everything comes again, carefully
        await handle_next(live.task)
        await live.task.commit()
        await live.task.settled()
        # Before, it was {"a[0]": 1, "b[0]": 1, …}: a crash here would have lost the first record of b.
        assert await broker.positions(live.name) == {"a[0]": 1}
        await live.close()


async def test_after_going_back_an_event_that_is_well_is_not_taken_for_the_one_that_failed() -> None:
    app = App("app")
    a, b = app.topic("a", Event, time="n"), app.topic("b", Event, time="n", idle_after=100)
    alarm = app.timers("alarm", str)
    taken = []

    @app.each(a, b, tables=[alarm])
    def agent(event: Event) -> None:
        alarm.set(str(event.n), event.n + 10)
        if event.n == 32:
            raise ValueError("always")
        taken.append(event.n)

    clock = VirtualClock()
    async with MemoryBroker(clock) as broker:
        for topic in ("a", "b", "dead-letters"):
            await broker.create(topic, 1)
        live = await open_task(app, broker, clock)

        async def handle(topic: str, *numbers: int) -> None:
            await broker.put(topic, [(None, b'{"n": %d}' % n, 0) for n in numbers])
            while await live.fetch(10):
                while await live.step():
                    pass

        async def commit() -> None:
            await live.task.commit()
            await live.task.settled()

        await handle("b", 30)
        await handle("a", 1)
        await commit()
        await handle("a", 30)  # the first timer goes off; its hint is kept with those of the others
        await commit()
        clock.advance(1_000)
        await live.fetch(10)
        live.look_at_clock()  # b is idle: nothing is due yet, but what was loaded again after going back asks first
        await handle("a", 31, 32, 33)
        await commit()
        assert taken[-2:] == [31, 33]
        letters = broker.store.topics["dead-letters"][0].columns[1]
        assert [b'"offset":3,' in (letter or b"") for letter in letters] == [True]
        await live.close()


class EarlyBroker(MemoryBroker):
    """Takes what is sent before the commit."""

    guarantee: Guarantee = "at least once"

    async def send(self, task: str, epoch: int, outputs: Sequence[Output]) -> None:
        for out in outputs:
            await self.put(out.topic, [(out.key, out.value, out.time)])


async def test_an_event_that_fails_repeats_nothing_that_was_sent_before_the_commit() -> None:
    app = App("app", guarantee="at least once")
    source, out = app.topic("a", Event), app.topic("out", Event)

    @app.each(source, sinks=[out])
    def agent(event: Event) -> Event:
        if event.n in (3, 5):
            raise ValueError("always")
        return event

    clock = VirtualClock()
    async with EarlyBroker(clock) as broker:
        for topic in ("a", "out", "dead-letters"):
            await broker.create(topic, 1)
        live = await open_task(app, broker, clock, topics={"dead-letters": 1, "out": 1})
        for n in range(1, 7):
            await broker.put("a", [(None, b'{"n": %d}' % n, 0)])
            while await live.fetch(10):
                while await live.step():
                    if live.feed.replaying:  # the rest of what comes again is still known
                        await live.task.commit()
        await live.task.commit()
        await live.task.settled()
        found = [value for value in broker.store.topics["out"][0].columns[1] if value]
        assert found == [b'{"n":1}', b'{"n":2}', b'{"n":4}', b'{"n":6}']
        await live.close()


async def test_a_split_that_was_not_looked_at_is_not_silent() -> None:
    app = App("app")
    a, b = app.topic("a", Event, idle_after=100), app.topic("b", Event, idle_after=100)

    @app.each(a, b)
    def agent(event: Event) -> None:
        pass

    clock = VirtualClock()
    async with MemoryBroker(clock) as broker:
        for topic in ("a", "b", "dead-letters"):
            await broker.create(topic, 1)
        live = await open_task(app, broker, clock)
        await live.fetch(10)
        clock.advance(1_000)  # the task was busy with something else
        await broker.put("b", [(None, b'{"n": 1}', 0)])
        live.look_at_clock()
        assert live.feed.journal == []
        await live.fetch(10)
        live.look_at_clock()
        assert [piece.split.name for piece in live.feed.journal if isinstance(piece, Idle)] == ["a[0]"]
        await live.close()


async def test_a_task_rests_for_a_savepoint_once_it_has_done_all_that_was_sent_to_it(tmp_path: Path) -> None:
    app = App("app")
    sent = app.topic("sent", Event)

    @app.each(sent)
    def agent(event: Event) -> None: ...

    clock = VirtualClock()
    async with MemoryBroker(clock) as broker, open_storage(str(tmp_path / "kept")) as kept:
        for topic in ("sent", "dead-letters"):
            await broker.create(topic, 1)
        live = await open_task(app, broker, clock)
        groups = {live.group.name: 1}
        savepoints = Savepoints(
            "app",
            kept,
            tasks=[live.name, "app/sender/0"],
            groups=groups,
            internal=[],
            ledger=broker,
            keys=None,
            clock=clock,
            stop=lambda: None,
        )
        await Requests(kept, "app", clock).ask(str(tmp_path / "to"), stop=False, within=60_000)
        await savepoints.look()
        drain = TaskDrain(live.name, savepoints, ["app/sender/0"])
        assert drain.holding

        async def rests() -> bool:
            await drain.attend(live, [("sent", 0)])
            return drain.resting

        assert not await rests()
        await broker.put("sent", [(None, b'{"n": 1}', 0), (None, b'{"n": 2}', 0)])
        savepoints.sealed.add("app/sender/0")
        assert not await rests()
        await live.fetch(1)
        await handle_next(live.task)
        assert not await rests()
        await live.fetch(1)
        assert not await rests()  # read, but not done
        await handle_next(live.task)
        assert await rests()
        assert (await broker.last_commit(live.name))[0] == 1
        assert await broker.positions(live.name) == {"sent[0]": 2}
        await drain.close()
        await live.close()


async def test_while_a_savepoint_is_taken_sources_are_left_alone(tmp_path: Path) -> None:
    app = App("app")
    events = app.topic("events", Event)

    @app.each(events)
    def agent(event: Event) -> None: ...

    clock = VirtualClock()
    async with MemoryBroker(clock) as broker, open_storage(str(tmp_path / "kept")) as kept:
        for topic in ("events", "dead-letters"):
            await broker.create(topic, 1)
        (group,) = app.plan().groups
        name = f"app/{group.name}/0"
        savepoints = Savepoints(
            "app",
            kept,
            tasks=[name, "app/sender/0"],
            groups={group.name: 1},
            internal=[],
            ledger=broker,
            keys=None,
            clock=clock,
            stop=lambda: None,
        )
        live = await open_task(app, broker, clock, drain=TaskDrain(name, savepoints, ["app/sender/0"]))
        await broker.put("events", [(None, b'{"n": 1}', 0)])
        await live.rests()
        assert await live.fetch(1)
        await handle_next(live.task)

        await broker.put("events", [(None, b'{"n": 2}', 0)])
        request = await Requests(kept, "app", clock).ask(str(tmp_path / "to"), stop=False, within=60_000)
        await savepoints.look()
        assert not await live.rests(), "it waits for who sends to it"
        assert not await live.fetch(1)
        assert live.feed.at == len(live.feed.journal), "nothing has come in"
        assert live.feed.positions == {"events[0]": 1}

        await Requests(kept, "app", clock).end(request, "failed", "of the test")
        await savepoints.look()
        await live.rests()
        assert await live.fetch(1), "it goes on"
        await live.close()
