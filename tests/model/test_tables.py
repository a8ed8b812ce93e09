"""Tables without windows against a dict: ttl, deletion, copies, scans; who may read what an agent writes, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Record, Stream
from flowkit import agent as agents
from flowkit import table as aggregates
from flowkit.window import Count, Global, Tumbling
from tests.depth import examples
from tests.model import flink
from tests.model.apps import Event, Trouble, Values, records
from tests.model.strategies import events as event_streams
from tests.model.strategies import out_of_order
from tests.model.test_engine import Cuts, cuts, numbered
from tests.model.test_resume import broken, crash_plans, cut_plans, same, unbroken
from tests.model.world import World, lines, play

OPERATIONS = ("add", "set", "get", "copy", "delete", "in", "scan", "pop and add")


class Told(Record):
    value: int
    what: Any


def table_app(
    *, ttl: int | None, disorder: int, operations: list[str], trouble: Trouble, form: str, window: Any = None
) -> App:
    app = App("tables", retry=agents.Retry(attempts=2, backoff=1))
    events = app.topic("events", Event, key="key", time="at", out_of_order=disorder)
    told = app.sink("told", Told)
    more = {} if window is None else {"window": window}
    table: Any = app.table("table", str, Values, ttl=ttl, **more)

    def act(event: Event, table: Any, scan: Any) -> Told:
        key, operation = event.key, operations[event.value % len(operations)]
        what: Any = None
        if operation == "add":
            table[key].values.append(event.value)
            what = list(table[key].values)
        elif operation == "set":
            table[key] = Values([event.value])
        elif operation == "get":
            found = table.get(key)
            what = None if found is None else found.values
        elif operation == "copy":
            found = table.get(key)
            if found is not None:
                found.values.append(-1)  # a copy: nobody sees it
        elif operation == "delete":
            del table[key]
        elif operation == "in":
            what = table.get(key) is not None
        elif operation == "scan":
            what = [[k, list(v.values)] for k, v in scan()]
        else:
            del table[key]
            table[key].values.append(event.value)
        return Told(event.value, what)

    def scan() -> Any:
        for key, found in table.scan():
            yield key, (found if window is None else found.value)

    if form == "stream":

        @app.agent(events, tables=[table], sinks=[told])
        async def by_stream(stream: Stream[Event]) -> AsyncIterator[Told]:
            async for event in stream:
                yield act(event, table, scan)
                trouble(event.value)

    else:

        @app.each(events, tables=[table], sinks=[told])
        def by_event(event: Event) -> Told:
            result = act(event, table, scan)
            trouble(event.value)
            return result

    if window is not None:
        ends = app.sink("ends", Told)

        @app.each(table.closed, sinks=[ends])
        def end(w: Closed[str, Values]) -> Told:
            return Told(0, [w.key, list(w.value.values)])

    return app


def told_by_a_dict(
    events: list[flink.Event], *, ttl: int | None, disorder: int, operations: list[str], bad: set[int]
) -> tuple[list[tuple[int, Any]], dict[str, list[int]]]:
    """The same with a dict: a key is gone `ttl` ms after its last use, both by the event's time or the watermark."""
    table: dict[str, tuple[list[int], int]] = {}
    watermark = flink.BEGINNING_OF_TIME
    told: list[tuple[int, Any]] = []
    for key, time, number in events:
        value = int(number)
        now = max(time, watermark)
        watermark = max(watermark, time - disorder - 1)
        live = {k: (v, last) for k, (v, last) in table.items() if ttl is None or last + ttl > now}
        if value in bad:
            continue
        operation = operations[value % len(operations)]
        what: Any = None
        old, last = live.get(key, ([], now))
        if operation == "add":
            table[key] = ([*old, value], max(now, last))
            what = [*old, value]
        elif operation == "set":
            table[key] = ([value], max(now, last))
        elif operation == "get":
            what = live[key][0] if key in live else None
        elif operation == "delete":
            table.pop(key, None)
        elif operation == "in":
            what = key in live
        elif operation == "scan":
            what = [[k, live[k][0]] for k in sorted(live, key=str.encode)]
        elif operation == "pop and add":
            table[key] = ([value], now)
        told.append((value, what))
    left = {k: v for k, (v, last) in table.items() if ttl is None or last + ttl > watermark}
    return told, left


@pytest.mark.parametrize("form", ["stream", "each"])
@examples(150)
@given(data=st.data())
def test_a_table_is_a_dict_whose_keys_may_expire(form: str, data: st.DataObject) -> None:
    events = numbered(data.draw(event_streams(max_size=40)))
    config: Any = {
        "ttl": data.draw(st.none() | st.integers(1, 60)),
        "disorder": data.draw(out_of_order()),
        "operations": data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=8)),
    }
    bad, once = data.draw(st.sets(st.integers(0, 40), max_size=4)), data.draw(st.sets(st.integers(0, 40), max_size=4))
    window = data.draw(st.sampled_from((None, Global())))
    app = table_app(**config, trouble=Trouble(at=frozenset(bad), once=frozenset(once)), form=form, window=window)
    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    told, left = told_by_a_dict(events, **config, bad=bad)
    assert [(t.value, t.what) for t in world.out("told", Told)] == told
    assert len(world.letters()) == len([v for _, _, v in events if v in bad])
    if window is not None:
        assert [t.what for t in world.out("ends", Told)] == [[k, left[k]] for k in sorted(left, key=str.encode)]


@examples(60)
@given(data=st.data())
def test_a_table_survives_crashes(data: st.DataObject) -> None:
    events = numbered(data.draw(event_streams(max_size=40)))
    config: Any = {
        "ttl": data.draw(st.none() | st.integers(1, 60)),
        "disorder": data.draw(out_of_order()),
        "operations": data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=8)),
        "window": data.draw(st.sampled_from((None, Global()))),
    }
    bad, once = data.draw(st.sets(st.integers(0, 40), max_size=4)), data.draw(st.sets(st.integers(0, 40), max_size=4))

    def build() -> App:
        return table_app(**config, trouble=Trouble(at=frozenset(bad), once=frozenset(once)), form="stream")

    inputs = [("events", lines(records(events)))]
    same(unbroken(build, inputs), broken(build, inputs, data.draw(crash_plans), data.draw(cut_plans)))


@examples(60)
@given(data=st.data())
def test_count_windows_with_a_ttl_begin_anew_for_keys_that_were_silent(data: st.DataObject) -> None:
    n, every, ttl = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 60))
    disorder = data.draw(out_of_order())
    events = numbered(data.draw(event_streams(max_size=40)))
    app = App("counted")
    source = app.topic("events", Event, key="key", time="at", out_of_order=disorder)
    told = app.sink("told", Told)
    table: Any = app.table("table", str, Values, window=Count(n, every), ttl=ttl)

    @app.each(source, tables=[table])
    def keep(event: Event) -> None:
        for window in table.windows(event.key):
            window.value.values.append(event.value)

    @app.each(table.closed, sinks=[told])
    def end(w: Closed[str, Values]) -> Told:
        return Told(w.start, [w.key, w.end, w.value.values])

    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    expected: list[tuple[int, Any]] = []
    watermark = flink.BEGINNING_OF_TIME
    counted: dict[str, list[tuple[int, int]]] = {}
    used: dict[str, int] = {}
    for key, time, value in events:
        mine = counted.setdefault(key, [])
        now = max(time, watermark)
        if key in used and used[key] + ttl <= now:
            mine.clear()
        used[key] = max(used.get(key, now), now)
        mine.append((time, int(value)))
        watermark = max(watermark, time - disorder - 1)
        if len(mine) % every == 0:
            members = mine[max(0, len(mine) - n) :]
            expected.append((members[0][0], [key, max(t for t, _ in members) + 1, [v for _, v in members]]))
    assert [(t.value, t.what) for t in world.out("told", Told)] == expected


# --- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
def test_readers_see_what_the_event_has_changed_whatever_the_order_of_declaration(cut: Cuts) -> None:
    app = App("readers")
    events = app.topic("events", Event, key="key", time="at")
    last, told = app.sink("last", Told), app.sink("told", Told)
    first = app.table("first", str, int)
    second = app.table("second", str, int)
    third = app.table("third", of=events, by="key", n=aggregates.Sum("value"))

    @app.each(events, reads=[second, third], sinks=[last])
    def end(event: Event) -> Told:
        return Told(event.value, [second[event.key], third[event.key].n])

    @app.agent(events, tables=[second], reads=[first], sinks=[told])
    async def middle(stream: Stream[Event]) -> AsyncIterator[Told]:
        async for event in stream:
            second[event.key] = first[event.key] * 10
            yield Told(event.value, first[event.key])

    @app.each(events, tables=[first])
    def begin(event: Event) -> None:
        first[event.key] += event.value

    world = World([("events", lines([Event("a", 1, 1), Event("a", 2, 2), Event("b", 3, 5)]))])
    play(world.run(app, **cut._asdict()))
    assert [(t.value, t.what) for t in world.out("told", Told)] == [(1, 1), (2, 3), (5, 5)]
    assert [(t.value, t.what) for t in world.out("last", Told)] == [(1, [10, 1]), (2, [30, 3]), (5, [50, 5])]


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1)])
def test_what_a_reader_gets_is_a_copy_and_it_cannot_write(cut: Cuts) -> None:
    app = App("copies")
    events = app.topic("events", Event, key="key", time="at")
    told = app.sink("told", Told)
    table = app.table("table", str, Values)

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        table[event.key].values.append(event.value)

    @app.each(events, reads=[table], sinks=[told])
    def read(event: Event) -> Told:
        table[event.key].values.append(-1)
        if event.value == 2:
            table[event.key] = Values()
        return Told(event.value, list(table[event.key].values))

    world = World([("events", lines([Event("a", 1, 1), Event("a", 2, 2), Event("a", 3, 3)]))])
    play(world.run(app, **cut._asdict()))
    assert [(t.value, t.what) for t in world.out("told", Told)] == [(1, [1]), (3, [1, 3])]
    assert [letter.error for letter in world.letters()] == ["ReadOnly"]


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
@pytest.mark.parametrize("changes", [False, True])
def test_a_declared_table_takes_no_event_without_a_key_on_any_way(cut: Cuts, changes: bool) -> None:
    app = App("keys")
    events = app.topic("events", Maybe, time="at")
    told = app.sink("told", Told)
    table: Any = app.table("table", of=events, by="key", n=aggregates.Sum("at"))

    @app.each(events, reads=[table], sinks=[told])
    def read(event: Maybe) -> Told:
        found = table.get("a")
        return Told(event.at, None if found is None else found.n)

    if changes:

        @app.each(table.changes, sinks=[told])
        def change(c: Any) -> Told:
            return Told(-1, [c.key, c.old and c.old.n, c.new.n])

    world = World([("events", lines([Maybe(1, "a"), Maybe(2, None), Maybe(4, "b"), Maybe(8, "a")]))])
    play(world.run(app, **cut._asdict()))
    assert [letter.error for letter in world.letters()] == ["RecordError"]
    got = [(t.value, t.what) for t in world.out("told", Told)]
    assert [row for row in got if row[0] >= 0] == [(1, 1), (4, 1), (8, 9)]
    if changes:
        assert [row[1] for row in got if row[0] < 0] == [["a", None, 1], ["b", None, 4], ["a", 1, 9]]


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
def test_a_declared_table_alone_takes_no_event_without_a_key(cut: Cuts) -> None:
    app = App("keys")
    events = app.topic("events", Maybe, time="at")
    told = app.sink("told", Told)
    table: Any = app.table("table", of=events, by="key", window=Global(), n=aggregates.Sum("at"))

    @app.each(table.closed, sinks=[told])
    def end(w: Closed[Any, Any]) -> Told:
        return Told(w.value.n, w.key)

    world = World([("events", lines([Maybe(1, "a"), Maybe(2, None), Maybe(4, "b"), Maybe(8, "a")]))])
    play(world.run(app, **cut._asdict()))
    assert [letter.error for letter in world.letters()] == ["RecordError"]
    assert [(t.what, t.value) for t in world.out("told", Told)] == [("a", 9), ("b", 4)]


class Maybe(Record):
    at: int
    key: str | None = None


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
def test_keys_of_other_types_are_in_order_of_their_wire_bytes(cut: Cuts) -> None:
    def build() -> App:
        app = App("numbers")
        events = app.topic("events", Event, key="key", time="at")
        told = app.sink("told", Told)
        table: Any = app.table("table", int, int, window=Tumbling(100), early=10)
        pairs: Any = app.table("pairs", tuple[int, str], int, window=Tumbling(100))

        @app.each(events, tables=[table, pairs])
        def keep(event: Event) -> None:
            table[event.value] += 1
            pairs[event.value, event.key] += 1

        @app.each(table.closed, pairs.closed, sinks=[told])
        def end(w: Any) -> Told:
            return Told(w.value, w.key)

        return app

    inputs = [("events", lines([Event("a", n, n) for n in (1, 2, 10, 11, 100)]))]
    world = broken(build, inputs, [3, 9], [cut])
    assert [t.what for t in world.out("told", Told)] == [
        *(1, 10, 2),  # early, when 10 comes
        *(1, 10, 11, 2),
        *([1, "a"], [10, "a"], [11, "a"], [2, "a"]),
        *(100, [100, "a"]),
    ]


# --- broadcast --------------------------------------------------------------------------------------------------------


def broadcast_app() -> App:
    """Two groups read the broadcast table, which counts: a record taken twice by either would show."""
    app = App("broadcast")
    rates = app.topic("rates", Event, key="key", time="at")
    table = app.table("rate", str, int, broadcast=True)

    @app.agent(rates, tables=[table])
    async def keep(stream: Stream[Event]) -> None:
        async for rate in stream:
            table[rate.key] += rate.value

    for name in ("one", "two"):
        source = app.topic(f"events-{name}", Event, key="key", time="at")
        sink = app.sink(f"told-{name}", Told)

        def read(event: Event) -> Told:
            return Told(event.value, table[event.key])

        app.each(source, reads=[table], sinks=[sink], name=name)(read)
    return app


@examples(60)
@given(data=st.data())
def test_each_group_has_the_whole_broadcast_table_also_after_crashes(data: st.DataObject) -> None:
    streams = {
        name: numbered(data.draw(event_streams(max_size=12, disorder=0)), 1)
        for name in ("rates", "events-one", "events-two")
    }
    inputs = [(name, lines(records(events))) for name, events in streams.items()]
    world = broken(broadcast_app, inputs, data.draw(crash_plans), data.draw(cut_plans))
    for name in ("one", "two"):
        expected = [
            # Rates come first among equals: the order of declaration.
            (int(value), sum(int(v) for k, t, v in streams["rates"] if k == key and t <= time))
            for key, time, value in streams[f"events-{name}"]
        ]
        assert [(t.value, t.what) for t in world.out(f"told-{name}", Told)] == expected
