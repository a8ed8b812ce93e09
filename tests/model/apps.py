"""Apps for comparing with the oracle: one windowed table, kept by hand or declared, and everything that it sends.

All keep the values of a window as a list, so that an event counted twice, or in the wrong window, shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from flowkit import App, Change, Closed, Record, Stream
from flowkit import agent as agents
from flowkit import table as aggregates
from flowkit.errors import WindowClosed
from flowkit.window import Count, Cumulative, Global, Session, Sliding, Tumbling
from tests.model import flink
from tests.model.flink import WindowSpec

Form = Literal["hand", "awaits", "each", "declared", "batches"]
"""How the table is kept.

By an agent over a stream, one that awaits something now and then, a function, declared aggregates, or in batches of 3.
"""

Beside = Literal["alone", "another", "reader", "changes"]
"""What else there is: nothing, an agent over the same topic, one that reads the table, one that takes its changes."""


class Event(Record):
    key: str
    at: int
    value: int = 0


class Values(Record):
    values: list[int] = []


class Fired(Record):
    pane: str
    key: str
    start: int
    end: int
    values: list[int]


class Seen(Record):
    key: str
    at: int
    value: int
    late: bool = False


class Changed(Record):
    key: str
    old: list[int] | None
    new: list[int] | None
    time: int
    start: int
    end: int


class Broken(Exception):
    """What an agent raises on purpose."""


@dataclass
class Trouble:
    """Makes agents raise: `at` every event of these values, for ever; `once` at the first run of one of those."""

    at: frozenset[int] = frozenset()
    once: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.left = set(self.once)

    def __call__(self, value: int) -> None:
        if value in self.at:
            raise Broken(f"value {value}")
        if value in self.left:
            self.left.discard(value)
            raise Broken(f"value {value}, the first time")


NONE = Trouble()


def window_of(spec: WindowSpec) -> Any:
    """The oracle's specification as flowkit's."""
    kind, *numbers = spec
    kinds: dict[Any, Callable[..., Any]] = {
        "tumbling": Tumbling,
        "sliding": Sliding,
        "cumulative": Cumulative,
        "session": Session,
        "count": Count,
        "global": Global,
    }
    return kinds[kind](*numbers)


def overlapping(spec: WindowSpec) -> bool:
    return spec[0] in ("sliding", "cumulative") or (spec[0] == "count" and int(spec[-1]) < int(spec[1]))


def app_of(
    spec: WindowSpec,
    *,
    form: Form = "hand",
    beside: Beside = "alone",
    out_of_order: int = 0,
    allowed_lateness: int = 0,
    early: int | None = None,
    late: Literal["drop", "deliver"] = "drop",
    trouble: Trouble = NONE,
    attempts: int = 1,
    topics: dict[str, int] | None = None,
) -> App:
    """Topic "events" into table "windows"; sinks "fired", "late" and "seen" say what came of it.

    `topics` instead gives several by name, and how much each is out of order (ms).
    """
    app = App("model", retry=agents.Retry(attempts=attempts, backoff=1))
    given = {"events": out_of_order} if topics is None else topics
    sources = [app.topic(name, Event, key="key", time="at", out_of_order=ms) for name, ms in given.items()]
    events = sources[0]
    fired = app.sink("fired", Fired)
    seen = app.sink("seen", Seen)
    late_sink = app.sink("late", Event)
    window = window_of(spec)
    more: dict[str, Any] = {"allowed_lateness": allowed_lateness, "early": early}
    table: Any
    if form == "declared":
        table = app.table("windows", of=events, by="key", window=window, values=_listed(trouble), **more)
    else:
        merge: Any = _merged if spec[0] == "session" else None
        table = app.table("windows", str, Values, window=window, merge=merge, late=late, **more)
        _keep(app, form, sources, table, seen, trouble, overlapping(spec))

    @app.each(table.closed, sinks=[fired])
    def closed(w: Closed[str, Any]) -> Fired:
        return Fired(w.pane, w.key, w.start, w.end, list(w.value.values))

    @app.each(table.late, sinks=[late_sink])
    def late_events(event: Event) -> Event:
        return event

    _beside(app, beside, events, table, form == "declared")
    return app


def _keep(app: App, form: Form, sources: list[Any], table: Any, seen: Any, trouble: Trouble, several: bool) -> None:
    def count(event: Event, table: Any = table) -> Seen:
        try:
            windows = [w.value for w in table.windows(event.key)] if several else [table[event.key]]
        except WindowClosed:
            return Seen(event.key, event.at, event.value, late=True)
        for value in windows:
            value.values.append(event.value)
        return Seen(event.key, event.at, event.value)

    def count_or_be_late(event: Event, table: Any = table) -> Seen:
        for value in [w.value for w in table.windows(event.key)] if several else [table[event.key]]:
            value.values.append(event.value)
        return Seen(event.key, event.at, event.value)

    keep = count if table.late_policy == "deliver" else count_or_be_late

    if form == "hand":

        @app.agent(*sources, tables=[table], sinks=[seen])
        async def by_hand(stream: Stream[Event]) -> AsyncIterator[Seen]:
            async for event in stream:
                told = keep(event)
                yield told
                trouble(event.value)

    elif form == "awaits":

        @app.agent(*sources, tables=[table], sinks=[seen])
        async def by_hand_slowly(stream: Stream[Event]) -> AsyncIterator[Seen]:
            async for event in stream:
                if event.value % 2:
                    await asyncio.sleep(0)
                told = keep(event)
                if event.value % 3:
                    await asyncio.sleep(0)
                trouble(event.value)
                yield told
                if event.value % 5 == 0:
                    await asyncio.sleep(0)

    elif form == "each":

        @app.each(*sources, tables=[table], sinks=[seen])
        async def by_event(event: Event) -> Seen:
            if event.value % 4 == 3:
                await asyncio.sleep(0)
            told = keep(event)
            trouble(event.value)
            return told

    elif form == "batches":

        @app.agent(*sources, tables=[table], sinks=[seen])
        async def by_batch(stream: Stream[Event]) -> AsyncIterator[Seen]:
            async for batch in stream.batches(3):
                for event in batch:
                    yield keep(event, table.at(event))
                    trouble(event.value)


def _beside(app: App, beside: Beside, events: Any, table: Any, declared: bool) -> None:
    if beside == "another":
        total = app.table("total", str, int)
        totals = app.sink("totals", int)

        @app.agent(events, tables=[total], sinks=[totals])
        async def another(stream: Stream[Event]) -> AsyncIterator[int]:
            async for event in stream:
                total[event.key] += event.value
                yield total[event.key]

    elif beside == "reader":
        read = app.sink("read", int)

        @app.each(events, reads=[table], sinks=[read])
        def reader(event: Event) -> int:
            return len(list(table.scan()))

    elif beside == "changes":
        changed = app.sink("changed", Changed)

        @app.each(table.changes, sinks=[changed])
        def change(c: Change[str, Any]) -> Changed:
            old = None if c.old is None else list(c.old.values)
            new = None if c.new is None else list(c.new.values)
            return Changed(c.key, old, new, c.time, c.start, c.end)


def _merged(a: Values, b: Values) -> Values:
    return Values([*a.values, *b.values])


def _listed(trouble: Trouble) -> Any:
    def step(values: list[int], event: Event) -> list[int]:
        trouble(event.value)
        return [*values, event.value]

    def initial() -> list[int]:
        return []

    def same(values: list[int]) -> list[int]:
        return values

    return aggregates.Custom(initial, step, list.__add__, same)


def records(events: list[flink.Event]) -> list[Event]:
    """The oracle's events as records."""
    return [Event(key, time, int(value)) for key, time, value in events]
