"""Calls of async functions by themselves: bounds, order, time-outs, retries, batches, and what waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from flowkit import App, Closed, ConfigError, Count, NoEvent, Record, Retry, Session, Stream, Tumbling
from flowkit.clock import VirtualClock
from flowkit.source import MemoryBroker
from flowkit.testing import harness
from flowkit.worker import LiveTask
from tests.model.world import Crash, World, lines
from tests.worker.test_live import open_task


class Event(Record):
    n: int
    at: int = 0
    key: str = "a"


class Result(Record):
    n: int
    at: int = 0
    key: str = "a"


class Service:
    """An async function whose calls end when the test says so."""

    def __init__(self) -> None:
        self.called: list[int] = []
        self._gates: dict[int, asyncio.Event] = {}
        self.broken: dict[int, list[Exception]] = {}

    def gate(self, n: int) -> asyncio.Event:
        return self._gates.setdefault(n, asyncio.Event())

    def let(self, *numbers: int) -> None:
        for n in numbers:
            self.gate(n).set()

    async def __call__(self, event: Event) -> Result:
        self.called.append(event.n)
        await self.gate(event.n).wait()
        if self.broken.get(event.n):
            raise self.broken[event.n].pop(0)
        return Result(event.n, event.at, event.key)


def an_app(service: Any, **options: Any) -> App:
    app = App("app")
    source = app.topic("events", Event, key="key", time="at", out_of_order=100)
    sink = app.sink("out", Result)

    @app.each(source.map_async(service, name="scored", **options), sinks=[sink])
    def tell(result: Result) -> Result:
        return result

    return app


def numbers(h: Any) -> list[int]:
    return [result.n for result in h.sent(h.app.sinks["out"])]


def some(count: int) -> list[Event]:
    return [Event(n, n) for n in range(count)]


async def test_no_more_calls_are_under_way_than_allowed_and_no_more_input_is_taken() -> None:
    service = Service()
    async with harness(an_app(service, concurrency=3)) as h:
        await h.send(h.app.topics["events"], *some(10))
        assert service.called == [0, 1, 2]
        (task,) = h._tasks.values()
        assert task.counters.records == 3
        service.let(1)
        await h.settle()
        assert (service.called, numbers(h)) == ([0, 1, 2], [])
        service.let(0)
        await h.settle()
        assert (service.called, numbers(h)) == ([0, 1, 2, 3, 4], [0, 1])
        service.let(*range(10))
        await h.drain()
        assert numbers(h) == list(range(10))


async def test_results_come_as_they_are_ready_if_order_does_not_matter() -> None:
    service = Service()
    async with harness(an_app(service, concurrency=3, ordered=False)) as h:
        await h.send(h.app.topics["events"], *some(4))
        service.let(2)
        await h.settle()
        assert (service.called, numbers(h)) == ([0, 1, 2, 3], [2])
        service.let(0, 1, 3)
        await h.drain()
        assert sorted(numbers(h)) == [0, 1, 2, 3]


@pytest.mark.parametrize("ordered", [True, False])
async def test_the_watermark_stays_behind_the_oldest_event_under_way(ordered: bool) -> None:
    service = Service()
    async with harness(an_app(service, ordered=ordered)) as h:
        await h.send(h.app.topics["events"], Event(0, 1000), Event(1, 990), Event(2, 2000))
        assert h.watermark() == 989
        service.let(1)
        await h.settle()
        assert h.watermark() == (989 if ordered else 999)
        service.let(0)
        await h.settle()
        assert h.watermark() == 2000 - 101
        service.let(2)
        await h.drain()


async def test_what_is_under_way_at_a_crash_is_called_again_and_counts_once() -> None:
    service = Service()
    async with harness(an_app(service, concurrency=3)) as h:
        await h.send(h.app.topics["events"], *some(3))
        service.let(0)
        await h.settle()
        assert numbers(h) == [0]
        await h.crash()
        assert service.called == [0, 1, 2, 1, 2]
        service.let(1, 2)
        await h.drain()
        assert numbers(h) == [0, 1, 2]


async def test_a_call_that_fails_is_tried_again_and_then_its_event_is_a_dead_letter() -> None:
    service = Service()
    service.let(0, 1)
    service.broken = {0: [OSError("down")], 1: [OSError("down"), OSError("still down"), OSError("no more tries")]}
    async with harness(an_app(service, retry=Retry(attempts=2, backoff=5_000))) as h:
        await h.send(h.app.topics["events"], *some(2))
        await h.drain()
        assert numbers(h) == [0]
        (letter,) = h.sent(h.app.dead_letters)
        assert (letter.topic, letter.offset, letter.agent, letter.attempts) == ("events", 1, "scored", 2)
        assert (letter.error, letter.reason) == ("OSError", "still down")
        assert "raise self.broken" in letter.traceback
        assert "flowkit/worker" not in letter.traceback
    assert service.called == [0, 1, 0, 1]


async def test_an_error_that_no_retry_names_is_not_tried_again() -> None:
    service = Service()
    service.let(0)
    service.broken = {0: [KeyError("what")] * 2}
    async with harness(an_app(service, retry=Retry(attempts=9, errors=(OSError,)))) as h:
        await h.send(h.app.topics["events"], Event(0))
        await h.drain()
        assert [d.attempts for d in h.sent(h.app.dead_letters)] == [1]


async def test_a_call_that_takes_too_long_by_the_clock_is_an_error() -> None:
    service = Service()
    async with harness(an_app(service, timeout=500, retry=Retry(attempts=2, backoff=0))) as h:
        await h.send(h.app.topics["events"], *some(2))
        await h.advance(499, event_time=False)
        assert service.called == [0, 1]
        service.let(1)
        await h.settle()
        await h.advance(1, event_time=False)
        await h.settle()
        assert (service.called, numbers(h)) == ([0, 1, 0], [])
        await h.advance(500, event_time=False)
        await h.drain()
        assert numbers(h) == [1]
        (letter,) = h.sent(h.app.dead_letters)
        assert (letter.error, letter.reason, letter.attempts) == ("TimeoutError", "no answer within 500 ms", 2)
        assert "await self.gate" in letter.traceback


async def test_in_a_bounded_run_a_call_that_takes_too_long_is_an_error() -> None:
    async def hang(event: Event) -> Result:
        if event.n == 1:
            await asyncio.Event().wait()
        return Result(event.n)

    world = World([("events", lines(some(3)))])
    await world.run(an_app(hang, timeout=30))
    assert [result.n for result in world.out("out", Result)] == [0, 2]
    assert [letter.error for letter in world.letters()] == ["TimeoutError"]


async def test_a_function_that_cancels_itself_has_failed() -> None:
    async def cancelled(event: Event) -> Result:
        raise asyncio.CancelledError

    world = World([("events", lines(some(1)))])
    await world.run(an_app(cancelled))
    assert [letter.reason for letter in world.letters()] == ["the call was cancelled from within"]


async def test_none_is_passed_on_and_an_unknown_type_is_allowed() -> None:
    app = App("app")
    source, sink = app.topic("events", Event), app.sink("out", Event)

    async def maybe(event: Event):  # type: ignore[no-untyped-def]
        return event if event.n else None

    seen: list[Any] = []
    once = [True]

    @app.each(source.map_async(maybe), sinks=[sink], retry=Retry(attempts=2, backoff=0))
    def take(event: Any) -> Any:
        if once:
            once.pop()
            raise OSError("once: it comes again, made anew")
        seen.append(event)
        return event

    await World([("events", lines(some(2)))]).run(app)
    assert seen[-2:] == [None, Event(1, 1)]


async def test_tables_and_sinks_cannot_be_used_inside_a_call() -> None:
    app = App("app")
    source, sink = app.topic("events", Event, key="key"), app.sink("out", Event)
    table = app.table("table", str, Result, default=Result(0))
    errors: list[str] = []

    async def peek(event: Event) -> Event:
        uses: list[Callable[[], object]] = [lambda: table["a"], lambda: table.get("a"), lambda: sink.emit(event)]
        for use in uses:
            with pytest.raises(NoEvent) as raised:
                use()
            errors.append(str(raised.value))
        return event

    @app.each(source.map_async(peek), tables=[table], sinks=[sink])
    def keep(event: Event) -> None:
        table[event.key].n += 1

    world = World([("events", lines(some(1)))])
    await world.run(app)
    assert world.letters() == []
    assert len(errors) == 3


# --- batches ----------------------------------------------------------------------------------------------------------


def batching(function: Any, **options: Any) -> App:
    app = App("app")
    source = app.topic("events", Event, key="key", time="at")
    sink = app.sink("out", Result)

    @app.each(source.map_async_batches(function, **options), sinks=[sink])
    def tell(result: Result) -> Result:
        return result

    return app


class Model:
    """Takes batches; refuses some numbers."""

    def __init__(self, *refused: int) -> None:
        self.batches: list[list[int]] = []
        self.refused = set(refused)

    async def __call__(self, events: list[Event]) -> Sequence[Result]:
        self.batches.append([event.n for event in events])
        if self.refused & {event.n for event in events}:
            raise ValueError("poison")
        return [Result(event.n, event.at) for event in events]


async def test_only_the_event_that_makes_a_batch_fail_goes_to_the_dead_letters() -> None:
    model = Model(2)
    world = World([("events", lines(some(8)))])
    await world.run(batching(model, size=8))
    assert [result.n for result in world.out("out", Result)] == [0, 1, 3, 4, 5, 6, 7]
    assert [(letter.offset, letter.reason) for letter in world.letters()] == [(2, "poison")]
    assert model.batches == [[*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]


async def test_a_batch_of_another_length_is_an_error_that_names_both() -> None:
    async def short(events: list[Event]) -> list[Result]:
        return [Result(0)] * (len(events) - 1) if len(events) > 1 else []

    world = World([("events", lines(some(1)))])
    await world.run(batching(short))
    (letter,) = world.letters()
    assert letter.reason == "'events.map_async_batches': gave 0 results for a batch of 1 events"


async def test_a_batch_begins_when_it_is_full_old_or_at_the_end() -> None:
    model = Model()
    world = World([("events", lines([Event(n, at) for n, at in enumerate((0, 1, 2, 3, 4, 50, 51))]))])
    await world.run(batching(model, size=3, within=40))
    assert model.batches == [[0, 1, 2], [3, 4], [5, 6]]


async def test_live_a_batch_begins_once_it_is_old_by_the_clock() -> None:
    model = Model()
    async with harness(batching(model, size=10, within=1000)) as h:
        await h.send(h.app.topics["events"], *some(2))
        await h.advance(999, event_time=False)
        assert model.batches == []
        await h.crash()
        await h.advance(1, event_time=False)
        await h.drain()
        assert (model.batches, numbers(h)) == ([[0, 1]], [0, 1])


async def test_a_batch_begins_when_a_window_waits_for_it() -> None:
    model = Model()
    app = App("app")
    source, sink = app.topic("events", Event, key="key", time="at"), app.sink("out", Result)
    counts: Any = app.table("n", of=source.map_async_batches(model), by="key", window=Tumbling(10), n=Count())

    @app.each(counts.closed, sinks=[sink])
    def tell(w: Closed[str, Any]) -> Result:
        return Result(w.value.n, w.end)

    async with harness(app) as h:
        await h.send(source, Event(0, 1), Event(1, 2))
        assert model.batches == []
        await h.send(source, Event(2, 15))
        await h.drain()
        # Of three events, two were in the window: all begin, since a batch is one call.
        assert model.batches == [[0, 1, 2]]
        assert h.sent(sink) == [Result(2, 10)]


# --- what else there is -----------------------------------------------------------------------------------------------


async def test_results_of_one_stream_go_to_several_agents_from_one_call() -> None:
    app = App("app")
    source = app.topic("events", Event)
    called: list[int] = []

    async def look(event: Event) -> Result:
        called.append(event.n)
        return Result(event.n)

    looked = source.map_async(look)
    one, two = app.sink("one", Result), app.sink("two", Result)

    @app.each(looked, sinks=[one])
    def first(result: Result) -> Result:
        return result

    @app.agent(looked.filter(lambda result: result.n % 2), sinks=[two])
    async def second(stream: Stream[Result]) -> AsyncIterator[Result]:
        async for batch in stream.batches(2):
            for result in batch:
                yield result

    world = World([("events", lines(some(5)))])
    await world.run(app, commit_every=1, batch_size=1)
    assert called == [0, 1, 2, 3, 4] or len(called) >= 5
    assert [result.n for result in world.out("one", Result)] == [0, 1, 2, 3, 4]
    assert [result.n for result in world.out("two", Result)] == [1, 3]


async def test_a_live_task_stops_cleanly_with_calls_under_way_which_the_next_one_makes_again() -> None:
    service = Service()
    app = App("app")
    source, sink = app.topic("events", Event), app.topic("out", Result)

    @app.each(source.map_async(service), sinks=[sink])
    def tell(result: Result) -> Result:
        return result

    clock = VirtualClock()
    disk: list[bytes] = []
    async with MemoryBroker(clock) as broker:
        for topic in ("events", "out", "dead-letters"):
            await broker.create(topic, 1)
        await broker.put("events", [(None, b'{"n": 1}', 0), (None, b'{"n": 2}', 0)])
        live = await open_task(app, broker, clock, topics={"dead-letters": 1, "out": 1}, disk=disk)
        await live.fetch(10)
        while await live.step():
            pass
        service.let(1)
        await live.finish(0.2)  # one ends within the grace, the other does not
        await live.close()
        assert len(broker.store.topics["out"][0].columns[1]) == 1
        service.let(2)
        live = await open_task(app, broker, clock, topics={"dead-letters": 1, "out": 1}, disk=disk)
        await live.finish(10)
        await live.close()
        assert service.called == [1, 2, 2]
        assert list(broker.store.topics["out"][0].columns[1]) == [
            b'{"n":1,"at":0,"key":"a"}',
            b'{"n":2,"at":0,"key":"a"}',
        ]


async def test_events_under_way_are_not_lost_when_their_stream_gets_another_name() -> None:
    committed = asyncio.Event()

    async def hang(event: Event) -> Result:
        await committed.wait()
        return Result(event.n)

    async def stop(step: str) -> None:
        if step == "resolved":
            committed.set()
            raise Crash

    world = World([("events", lines(some(5)))])
    with pytest.raises(Crash):
        await world.run(an_app(hang), commit_every=3, batch_size=3, hook=stop)
    with pytest.raises(ConfigError, match="stream 'scored' had 3 calls under way at the last commit"):
        await world.run(renamed(hang))


def renamed(service: Any) -> App:
    app = App("app")
    source = app.topic("events", Event, key="key", time="at", out_of_order=100)

    @app.each(source.map_async(service, name="other"))
    def tell(result: Result) -> None: ...

    return app


async def test_a_call_that_takes_long_is_told_with_its_age_and_is_no_stall() -> None:
    service = Service()
    async with harness(an_app(service)) as h:
        await h.send(h.app.topics["events"], *some(2))
        await h.advance(5_000, event_time=False)
        (task,) = h._tasks.values()
        with capture_logs() as logs:
            task.engine.calls.watch.tell_waiting(3_000)
            task.engine.calls.watch.tell_waiting(3_000)
        (told,) = logs
        assert told["event"] == "waiting for a call"
        assert (told["stream"], told["age_ms"], told["events"]) == ("scored", 5_000, 1)
        assert "events[0] offset 0" in told["at"]
        service.let(0, 1)
        await h.drain()


class Alone:
    """The only task of an app that reads `events`, driven by hand."""

    def __init__(self, app: App, broker: MemoryBroker, live: LiveTask) -> None:
        self.app, self.broker, self.live = app, broker, live

    async def work(self, *events: Event) -> None:
        """Do all that can be done once these have come too."""
        await self.broker.put("events", [(None, msgspec.json.encode(event), 0) for event in events])
        await self.live.fetch(10)
        while await self.live.step() or self.live.engine.calls.ready:
            pass

    async def end_calls(self) -> None:
        """Take what the calls have given that may end."""
        await self.live.wait_for_calls(10)
        await self.work()

    async def letters(self) -> list[tuple[int, str]]:
        """The dead letters, once all is done: their times and reasons."""
        await self.live.finish(1)
        await self.live.close()
        rows = self.broker.store.topics["dead-letters"][0].columns[1]
        return [(letter["time"], letter["reason"]) for letter in (msgspec.json.decode(row or b"") for row in rows)]


@asynccontextmanager
async def alone(app: App) -> AsyncIterator[Alone]:
    async with MemoryBroker(clock := VirtualClock()) as broker:
        for topic in ("events", "dead-letters"):
            await broker.create(topic, 1)
        yield Alone(app, broker, await open_task(app, broker, clock))


def with_sessions(service: Service) -> tuple[App, Any]:
    app = App("app")
    source = app.topic("events", Event, key="key", time="at", out_of_order=100)
    sessions = app.table("sessions", of=source, by="key", window=Session(3_000), n=Count())

    @app.each(source.map_async(service))
    def take(result: Result) -> None: ...

    return app, sessions


async def test_a_failure_is_that_of_its_own_event_though_a_session_that_has_grown_seemed_to_be_due() -> None:
    app, _ = with_sessions(service := Service())

    @app.each(app.topics["events"])
    def refuse(event: Event) -> None:
        if event.n == 4:
            raise ValueError("four")

    async with alone(app) as task:
        service.let(1, 2, 3)
        for event in (Event(1, 0), Event(2, 2_000), Event(3, 4_000, "b")):
            await task.work(event)  # at the last one it has seemed to be over: what begins anew thinks so again
            await task.end_calls()
            await task.live.task.commit()
        await task.work(Event(6, 4_001, "b"))
        await task.live.task.commit()
        service.let(6)
        await task.end_calls()
        await task.work(Event(7, 4_002), Event(4, 4_003), Event(5, 4_004))
        service.let(7, 5)
        assert await task.letters() == [(4_003, "four")]


async def test_a_failure_that_a_record_brings_on_is_not_that_of_what_a_call_has_brought_on_before_it() -> None:
    app, sessions = with_sessions(service := Service())

    @app.each(sessions.closed)
    def refuse(session: Closed[str, Any]) -> None:
        if session.key == "b":
            raise ValueError("b")

    async with alone(app) as task:
        await task.work(Event(1, 0, "a"), Event(2, 2_500, "b"), Event(3, 5_000, "c"))
        await task.live.task.commit()
        service.let(1, 2, 3)
        await task.end_calls()  # a's session is over
        await task.work(Event(4, 6_000, "c"))  # … and b's
        service.let(4)
        assert await task.letters() == [(5_499, "b")]
