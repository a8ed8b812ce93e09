"""Operators on streams: a chain of them in front of an agent or a table is what the agent would do by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Record, Retry, Session, Stream, Tumbling, WindowClosed
from flowkit import table as aggregates
from flowkit.flow import Events, Feed
from flowkit.table import ProcessTable
from tests.depth import examples
from tests.model import flink
from tests.model.apps import Broken, Event, Values, records
from tests.model.strategies import events as event_streams
from tests.model.test_engine import Cuts, cuts, numbered
from tests.model.world import World, lines, play, with_crash

Taker = Literal["stream", "each", "batches", "tumbling", "session"]
TAKERS: list[Taker] = ["stream", "each", "batches", "tumbling", "session"]

STEPS: dict[str, Callable[[Events[Event]], Events[Event]]] = {
    "odd": lambda stream: stream.filter(lambda event: event.value % 2),
    "small": lambda stream: stream.filter(lambda event: event.value % 5 < 3),
    "bump": lambda stream: stream.map(bump),
    "some": lambda stream: stream.flat_map(some),
    "boom": lambda stream: stream.map(boom),
    "by": lambda stream: stream.group_by("key"),
}


def bump(event: Event) -> Event:
    return Event(event.key, event.at, event.value * 3 + 1)


def some(event: Event) -> list[Event]:
    return [Event(event.key, event.at, event.value + 1000 * n) for n in range(event.value % 3)]


def boom(event: Event) -> Event:
    if event.value % 7 == 3:
        raise Broken(f"value {event.value}")
    return event


def applied(steps: list[str], event: Event) -> list[Event]:
    """What a chain makes of an event, by hand. Raises what its functions raise."""
    values = [event]
    for step in steps:
        if step == "odd":
            values = [value for value in values if value.value % 2]
        elif step == "small":
            values = [value for value in values if value.value % 5 < 3]
        elif step == "bump":
            values = list(map(bump, values))
        elif step == "boom":
            values = list(map(boom, values))
        elif step == "some":
            values = [made for value in values for made in some(value)]
    return values


class Out(Record):
    what: str
    values: list[int]
    start: int = 0


def with_operators(steps: list[str], taker: Taker, out_of_order: int, *, merged: bool) -> App:
    """The chain by operators, and behind it an agent or a table."""
    app = App("operators", retry=Retry(attempts=2, backoff=1))
    topic = app.topic("events", Event, key="key", time="at", out_of_order=out_of_order)
    out = app.sink("out", Out)
    stream: Events[Event] = topic
    for step in steps:
        stream = STEPS[step](stream)
    if merged:
        stream = stream.merge(topic.filter(lambda event: event.value % 4 == 0).map(bump))
    behind(app, stream, taker, out)
    return app


def behind(app: App, stream: Events[Event], taker: Taker, out: Any) -> None:
    if taker == "stream":

        @app.agent(stream, sinks=[out])
        async def read(events: Stream[Event]) -> AsyncIterator[Out]:
            async for event in events:
                yield Out("seen", [event.value])

    elif taker == "each":

        @app.each(stream, sinks=[out])
        def one(event: Event) -> Out:
            return Out("seen", [event.value])

    elif taker == "batches":

        @app.agent(stream, sinks=[out])
        async def many(events: Stream[Event]) -> AsyncIterator[Out]:
            async for batch in events.batches(3):
                for event in batch:
                    yield Out("seen", [event.value])

    else:
        kept = aggregates.Custom(list, listed, list.__add__, same)
        table: Any = app.table("t", of=stream, by="key", window=WINDOWS[taker], values=kept)
        closed_and_late(app, table, out)


def closed_and_late(app: App, table: Any, out: Any) -> None:
    @app.each(table.closed, sinks=[out])
    def closed(window: Closed[str, Any]) -> Out:
        return Out(f"{window.pane} {window.key}", window.value.values, window.start)

    @app.each(table.late, sinks=[out])
    def late(event: Event) -> Out:
        return Out("late", [event.value], event.at)


WINDOWS: dict[str, Any] = {"tumbling": Tumbling(10), "session": Session(5)}


def listed(values: list[int], event: Event) -> list[int]:
    return [*values, event.value]


def same(values: list[int]) -> list[int]:
    return values


def joined(a: Values, b: Values) -> Values:
    return Values(a.values + b.values)


def by_hand(steps: list[str], taker: Taker, out_of_order: int, *, merged: bool) -> App:
    """The same without operators: whoever reads the topic applies the chain."""
    app = App("operators", retry=Retry(attempts=2, backoff=1))
    topic = app.topic("events", Event, key="key", time="at", out_of_order=out_of_order)
    out = app.sink("out", Out)

    def made(event: Event) -> list[Event]:
        more = [bump(event)] if merged and event.value % 4 == 0 else []
        return [*applied(steps, event), *more]

    if taker in ("stream", "each", "batches"):

        @app.agent(topic, sinks=[out])
        async def read(events: Stream[Event]) -> AsyncIterator[Out]:
            async for event in events:
                for value in made(event):
                    yield Out("seen", [value.value])

        return app
    merge = joined if taker == "session" else None
    table: Any = app.table("t", str, Values, window=WINDOWS[taker], merge=merge, late="deliver")  # type: ignore[call-overload]

    @app.agent(topic, tables=[table], sinks=[out])
    async def keep(events: Stream[Event]) -> AsyncIterator[Out]:
        async for event in events:
            values = made(event)
            try:
                for value in values:
                    table[value.key].values.append(value.value)
            except WindowClosed:
                for value in values:
                    yield Out("late", [value.value], value.at)

    @app.each(table.closed, sinks=[out])
    def closed(window: Closed[str, Any]) -> Out:
        return Out(f"{window.pane} {window.key}", window.value.values, window.start)

    return app


@pytest.mark.parametrize("taker", TAKERS)
@examples(150)
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), max_size=5),
    events=event_streams(),
    out_of_order=st.sampled_from([0, 5, 30]),
    merged=st.booleans(),
    cut=cuts(),
    crash=st.sampled_from([0, 0, 1, 2, 3, 5, 8]),
)
def test_a_chain_of_operators_is_what_an_agent_would_do(
    taker: Taker, steps: list[str], events: list[flink.Event], out_of_order: int, merged: bool, cut: Cuts, crash: int
) -> None:
    if merged and "boom" in steps and taker in ("batches", "tumbling", "session"):
        merged = False  # two ways into one taker are two units of one event: each fails by itself
    given = [("events", lines(records(numbered(events))))]
    ours, theirs = World(given), World(given)
    with_crash(ours, with_operators(steps, taker, out_of_order, merged=merged), cut._asdict(), crash)
    play(theirs.run(by_hand(steps, taker, out_of_order, merged=merged)))
    assert ours.out("out", Out) == theirs.out("out", Out)
    assert [(x.position, x.error, x.reason) for x in ours.letters()] == [
        (x.position, x.error, x.reason) for x in theirs.letters()
    ]


# --- a process ------------------------------------------------------------------------------------------------------


class Waiting(msgspec.Struct):
    events: list[tuple[int, Event]] = []


class Delay:
    """Sends each event on at once, and again `by` ms later."""

    cell_type = Waiting

    def __init__(self, by: int) -> None:
        self.by = by

    def new(self) -> Waiting:
        return Waiting()

    def event(self, key: str, cell: Waiting, side: int, event: Event, t: int) -> list[tuple[str, Any, int]]:
        cell.events.append((t + self.by, event))
        return [("", Out(f"echo {key} {side}", [event.value], t), t)]

    def wake(self, key: str, cell: Waiting, at: int) -> list[tuple[str, Any, int]]:
        due = [event for t, event in cell.events if t <= at]
        cell.events = [(t, event) for t, event in cell.events if t > at]
        return [("again", Out(f"again {key}", [event.value], at), at) for event in due]

    def due(self, cell: Waiting) -> int:
        return min((t for t, _ in cell.events), default=2**63)

    def over(self, cell: Waiting) -> bool:
        return not cell.events


def delaying(by: int, out_of_order: int) -> App:
    app = App("delaying")
    topic = app.topic("events", Event, key="key", time="at", out_of_order=out_of_order)
    out = app.sink("out", Out)
    feeds = (Feed(topic, "key"), Feed(topic.filter(lambda event: event.value % 2), "key"))
    table = ProcessTable("delay", str, Delay(by), feeds, {"": Out, "again": Out, "late": Any}, words="", signature="")
    app.add_operator(table)

    @app.each(table[""], sinks=[out])
    def at_once(event: Out) -> Out:
        return event

    @app.each(table["again"].filter(lambda _: True), sinks=[out])
    def again(event: Out) -> Out:
        return event

    @app.each(table["late"], sinks=[out])
    def late(event: Event) -> Out:
        return Out("late", [event.value], event.at)

    return app


def delayed(events: list[flink.Event], by: int, out_of_order: int) -> list[Out]:
    """What comes out, by a loop over the events."""
    out: list[Out] = []
    waiting: list[tuple[int, bytes, int, flink.Event]] = []
    watermark = high = -(2**63)

    def fire() -> None:
        due = sorted(row for row in waiting if row[0] <= watermark)
        waiting[:] = [row for row in waiting if row[0] > watermark]
        out.extend(Out(f"again {key.decode()}", [int(event[2])], at) for at, key, _, event in due)

    for n, event in enumerate(events):
        key, t, value = event
        sides = [0, 1] if int(value) % 2 else [0]
        if t <= watermark:
            out += [Out("late", [int(value)], t) for _ in sides]
        else:
            out += [Out(f"echo {key} {side}", [int(value)], t) for side in sides]
            waiting += [(t + by, key.encode(), 2 * n + side, event) for side in sides]
        high = max(high, t)
        watermark = max(watermark, high - out_of_order - 1)
        fire()
    watermark = 2**63 - 1
    fire()
    return out


@examples(200)
@given(events=event_streams(), by=st.integers(0, 40), out_of_order=st.sampled_from([0, 5, 30]), cut=cuts())
def test_a_process_is_woken_when_the_watermark_says_so(
    events: list[flink.Event], by: int, out_of_order: int, cut: Cuts
) -> None:
    events = numbered(events)
    world = World([("events", lines(records(events)))])
    play(world.run(delaying(by, out_of_order), **cut._asdict()))
    assert world.letters() == []
    assert world.out("out", Out) == delayed(events, by, out_of_order)
