"""One app with everything in it. What it computes means nothing; that it is always the same is what counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from flowkit import App, Change, Closed, DeadLetter, Record, Stream
from flowkit import agent as agents
from flowkit import table as aggregates
from flowkit.window import Count, Session, Sliding, Tumbling
from tests.model.apps import Event, Fired, Trouble, Values


class Rate(Record):
    name: str
    at: int
    rate: int


class Line(Record):
    who: str
    what: list[Any]


def zoo(trouble: Trouble, *, out_of_order: int = 0, lateness: int = 0, idle_after: int | None = None) -> App:
    """Topics "events" and "rates". Everything that happens is told in one of the sinks."""
    app = App("zoo", retry=agents.Retry(attempts=2, backoff=1))
    events = app.topic("events", Event, key="key", time="at", out_of_order=out_of_order, idle_after=idle_after)
    rates = app.topic("rates", Rate, key="name", time="at", out_of_order=out_of_order)
    middle = app.topic("middle", Event, key="key", time="at", out_of_order=out_of_order)
    ends = app.topic("ends", Fired, key="key")
    told = app.sink("told", Line)
    told_too = app.sink("told-too", Line)

    windows = app.table("windows", str, Values, window=Tumbling(20), allowed_lateness=lateness, early=7)
    sessions = app.table("sessions", str, Values, window=Session(9), merge=_joined, allowed_lateness=lateness)
    recent = app.table("recent", str, Values, ttl=25)
    totals = app.table("totals", str, int)
    rate_of = app.table("rates-by-name", str, int, broadcast=True)
    counted = app.table("counted", str, Values, window=Count(3, every=2))
    sums = app.table(
        "sums", of=events, by="key", window=Sliding(20, 5), allowed_lateness=lateness, total=aggregates.Sum("value")
    )

    @app.agent(events, tables=[windows, recent], sinks=[middle, told])
    async def first(stream: Stream[Event]) -> AsyncIterator[Event | Line]:
        async for event in stream:
            windows[event.key].values.append(event.value)
            seen = recent[event.key]
            seen.values.append(event.value)
            yield Line("first", [event.value, list(windows[event.key].values), list(seen.values)])
            if event.value % 3 == 0:
                yield Event(event.key, event.at, event.value)
            if event.value % 7 == 0:
                del recent[event.key]
            trouble(event.value)

    @app.agent(middle, tables=[sessions], reads=[rate_of], sinks=[told_too])
    async def second(stream: Stream[Event]) -> AsyncIterator[Line]:
        async for event in stream:
            sessions[event.key].values.append(event.value)
            yield Line("second", [event.value, list(sessions[event.key].values), rate_of.get("a")])
            trouble(event.value + 1)

    @app.agent(rates, tables=[rate_of])
    async def keep_rates(stream: Stream[Rate]) -> None:
        async for rate in stream:
            rate_of[rate.name] += rate.rate

    @app.agent(events, tables=[totals], sinks=[told])
    async def batched(stream: Stream[Event]) -> AsyncIterator[Line]:
        async for batch in stream.batches(4, within=15):
            for event in batch:
                trouble(event.value + 2)
                totals.at(event)[event.key] += event.value
            yield Line("batched", [[event.value for event in batch], dict(totals.scan())])

    @app.each(windows.closed, sinks=[ends])
    async def end(w: Closed[str, Values]) -> Fired:
        trouble(-sum(w.value.values))
        return Fired(w.pane, w.key, w.start, w.end, w.value.values)

    @app.agent(ends, tables=[counted], sinks=[told_too])
    async def count(stream: Stream[Fired]) -> AsyncIterator[Line]:
        async for fired in stream:
            for window in counted.windows(fired.key):
                window.value.values.append(len(fired.values))
            yield Line("count", [fired.pane, fired.key, fired.start, fired.values])

    @app.each(counted.closed, sessions.closed, sinks=[told_too])
    def closed(w: Closed[str, Values]) -> Line:
        return Line("closed", [w.pane, w.key, w.start, w.end, w.value.values])

    @app.each(sums.closed, sinks=[told])
    def summed(w: Closed[str, Any]) -> Line:
        return Line("summed", [w.pane, w.key, w.start, w.end, w.value.total])

    @app.each(totals.changes, reads=[rate_of], sinks=[told])
    def changed(c: Change[str, int]) -> Line:
        return Line("changed", [c.key, c.old, c.new, c.time, rate_of.get("a")])

    @app.each(windows.late, sums.late, sinks=[told])
    def late(event: Event) -> Line:
        return Line("late", [event.value])

    @app.each(sessions.late, sinks=[told_too])
    def late_too(event: Event) -> Line:
        return Line("late", [event.value])

    @app.each(app.dead_letters, sinks=[told])
    def dead(letter: DeadLetter) -> Line:
        return Line("dead", [letter.agent, letter.position, letter.reason])

    return app


def _joined(a: Values, b: Values) -> Values:
    return Values([*a.values, *b.values])
