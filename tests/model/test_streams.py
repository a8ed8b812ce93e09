"""What tables and agents send on: changes, windows of windows, topics between agents, dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, DeadLetter, Record, Stream
from flowkit import agent as agents
from tests.depth import examples
from tests.model import flink
from tests.model.apps import Broken, Changed, Event, Fired, Form, Values, app_of, records, window_of
from tests.model.flink import Closed as Wanted
from tests.model.flink import _Model
from tests.model.strategies import allowed_lateness, cases, earlies, out_of_order, windows
from tests.model.strategies import events as event_streams
from tests.model.test_engine import Cuts, cuts, numbered
from tests.model.world import World, lines, play

# --- changes ----------------------------------------------------------------------------------------------------------


def merge_of(spec: flink.WindowSpec, merge: Any) -> Any:
    """What `app.table` wants as merge=: a function for sessions, nothing for the others."""
    return merge if spec[0] == "session" else None


@pytest.mark.parametrize("form", ["hand", "each", "declared"])
@examples(100)
@given(data=st.data())
def test_changes_tell_what_each_event_did_to_each_window(form: Form, data: st.DataObject) -> None:
    case = data.draw(cases())
    config: Any = dict(case.settings) | {"late": "drop", "early": None}
    del config["bounded"]
    events = numbered(case.events)
    expected = changes_of(events, **config)
    spec = config.pop("window")
    world = World([("events", lines(records(events)))])
    play(world.run(app_of(spec, form=form, beside="changes", **config), **data.draw(cuts())._asdict()))
    assert world.letters() == []
    told = [
        (c.key, c.old and sorted(c.old), c.new and sorted(c.new), c.time, c.start, c.end)
        for c in world.out("changed", Changed)
    ]
    assert told == expected


def changes_of(
    events: list[flink.Event], *, window: Any, out_of_order: int, allowed_lateness: int, **rest: Any
) -> list[tuple[Any, ...]]:
    """Before and after each event, all open windows of its key, by the oracle."""
    model = _Model(["input"], window, allowed_lateness=allowed_lateness, early=None, late="drop", key_bytes=str.encode)
    changes: list[tuple[Any, ...]] = []
    for event in events:
        key, time, _ = event
        before = open_windows(model, key)
        model.take("input", event, out_of_order)
        rows: list[tuple[Any, ...]] = []
        if window[0] == "count":
            rows += changes_of_count(model.counted[key], int(window[1]), int(window[-1]))
        for (start, end), new in touched(model, event).items():
            parts = sorted(span for span in before if start <= span[0] and span[1] <= end)
            if window[0] != "session":
                parts = [span for span in parts if span == (start, end)]
            rows += [(key, before[span], None, time, *span) for span in parts[1:]]
            rows.append((key, before[parts[0]] if parts else None, new, time, start, end))
        rows.sort(key=itemgetter(5))
        changes += rows
    return changes


def changes_of_count(events: list[flink.Event], n: int, every: int) -> list[tuple[Any, ...]]:
    """What the last event of a key did to the windows that it is in."""
    last = len(events) - 1
    key, time, _ = events[-1]
    rows = []
    for number in range(last // every + 1, (last + n) // every + 1):
        members = events[max(0, number * every - n) :]
        values = [int(v) for _, _, v in members]
        end = max(t for _, t, _ in members) + 1
        rows.append((key, values[:-1] or None, values, time, members[0][1], end))
    return rows


def open_windows(model: _Model, key: str) -> dict[tuple[int, int], list[int]]:
    return {(w.start, w.end): sorted(int(v) for _, v in w.arrivals) for w in model.open if w.key == key}


def touched(model: _Model, event: flink.Event) -> dict[tuple[int, int], list[int]]:
    """The windows that hold the event: those still open, and those that fired and went in its step."""
    key, _, value = event
    found = {span: values for span, values in open_windows(model, key).items() if value in values}
    for fired_in, closed in zip(model.result.steps, model.result.closed, strict=True):
        if model.spec[0] != "count" and fired_in == model.step and closed.key == key and value in closed.values:
            found[closed.start, closed.end] = sorted(int(v) for v in closed.values)
    return found


# --- windows of windows -----------------------------------------------------------------------------------------------


@examples(100)
@given(data=st.data())
def test_windows_of_closed_windows_take_each_result_before_the_watermark_that_caused_it(data: st.DataObject) -> None:
    first = data.draw(windows("tumbling", "sliding", "cumulative", "session"))
    second = data.draw(windows("tumbling", "sliding", "cumulative", "session", "count"))
    disorder, lateness = data.draw(out_of_order()), data.draw(allowed_lateness())
    lateness_too, early = data.draw(allowed_lateness()), data.draw(st.none() | st.integers(1, 20))
    events = numbered(data.draw(event_streams()))
    closed, late = windows_of_windows(
        events, first, second, disorder=disorder, lateness=lateness, lateness_too=lateness_too, early=early
    )
    app = App("nested")
    source = app.topic("events", Event, key="key", time="at", out_of_order=disorder)
    sink, late_sink = app.sink("second", Fired), app.sink("late", Fired)
    merge: Any = _merged
    below: Any = app.table(
        "below",
        str,
        Values,
        window=window_of(first),
        merge=merge_of(first, merge),
        allowed_lateness=lateness,
        early=early,
    )
    above: Any = app.table(
        "above",
        str,
        Values,
        window=window_of(second),
        merge=merge_of(second, merge),
        allowed_lateness=lateness_too,
    )

    @app.each(source, tables=[below])
    def keep(event: Event) -> None:
        for window in below.windows(event.key):
            window.value.values.append(event.value)

    @app.each(below.closed, tables=[above])
    def keep_closed(w: Closed[str, Values]) -> None:
        for window in above.windows(w.key):
            window.value.values.append(sum(w.value.values))

    @app.each(above.closed, sinks=[sink])
    def tell(w: Closed[str, Values]) -> Fired:
        return Fired(w.pane, w.key, w.start, w.end, w.value.values)

    @app.each(above.late, sinks=[late_sink])
    def tell_late(w: Closed[str, Values]) -> Fired:
        return Fired(w.pane, w.key, w.start, w.end, w.value.values)

    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    assert world.letters() == []
    told = [(f.pane, f.key, f.start, f.end, sorted(f.values)) for f in world.out("second", Fired)]
    assert sorted(told) == sorted((c.pane, c.key, c.start, c.end, sorted(int(v) for v in c.values)) for c in closed)
    assert sorted((f.key, f.end - 1, sum(f.values)) for f in world.out("late", Fired)) == sorted(late)


def windows_of_windows(
    events: list[flink.Event],
    first: Any,
    second: Any,
    *,
    disorder: int,
    lateness: int,
    lateness_too: int,
    early: int | None,
) -> tuple[list[Wanted], list[flink.Event]]:
    """As two operators in a row in Flink, where the watermark passes each end by itself.

    In one step windows fire by their ends, whichever table they belong to. Flink lets a watermark that passes several
    ends at once wait for all results of the first operator; so there, but not here, a session above takes a result
    that touches it though it was over before.
    """
    below = flink.run(events, window=first, out_of_order=disorder, allowed_lateness=lateness, early=early)
    above = _Model(["input"], second, allowed_lateness=lateness_too, early=None, late="drop", key_bytes=str.encode)
    marks = [*below.watermarks, flink.END_OF_TIME]
    for step, mark in enumerate(marks):
        above.step = step
        fired: list[Wanted] = []
        for fired_in, closed in zip(below.steps, below.closed, strict=True):
            if fired_in == step:
                event = (closed.key, closed.end - 1, sum(closed.values))
                if closed.pane == "on_time":
                    above.move_watermark(max(above.watermark, closed.end - 2), fired)
                    fired = []
                fired += above.count(event) if second[0] == "count" else above.add(event)
        above.move_watermark(mark, fired)
    return above.result.closed, above.result.late


def _merged(a: Values, b: Values) -> Values:
    return Values([*a.values, *b.values])


# --- topics between agents --------------------------------------------------------------------------------------------


@examples(60)
@given(data=st.data())
def test_a_topic_between_agents_is_read_as_if_it_came_from_outside(data: st.DataObject) -> None:
    case = data.draw(cases())
    config: Any = dict(case.settings) | {"late": "drop"}
    del config["bounded"]
    events = numbered(case.events)
    expected = flink.run([event for event in events if int(event[2]) % 3], **config)
    spec, disorder = config.pop("window"), config.pop("out_of_order")
    app = App("chained")
    source = app.topic("events", Event, key="key", time="at")
    middle = app.topic("middle", Event, key="key", time="at", out_of_order=disorder)
    fired = app.sink("fired", Fired)
    del config["late"]
    table: Any = app.table("windows", str, Values, window=window_of(spec), merge=merge_of(spec, _merged), **config)

    @app.agent(source, sinks=[middle])
    async def some(stream: Stream[Event]) -> AsyncIterator[Event]:
        async for event in stream:
            if event.value % 3:
                yield event

    @app.each(middle, tables=[table])
    def keep(event: Event) -> None:
        for window in table.windows(event.key):
            window.value.values.append(event.value)

    @app.each(table.closed, sinks=[fired])
    def tell(w: Closed[str, Values]) -> Fired:
        return Fired(w.pane, w.key, w.start, w.end, w.value.values)

    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    assert world.letters() == []
    told = [(f.pane, f.key, f.start, f.end, sorted(f.values)) for f in world.out("fired", Fired)]
    assert told == [(c.pane, c.key, c.start, c.end, [int(v) for v in sorted(c.values)]) for c in expected.closed]
    assert [e.value for e in world.out("middle", Event)] == [int(v) for _, _, v in events if int(v) % 3]


@examples(60)
@given(data=st.data())
def test_what_an_agent_sends_has_the_time_of_its_cause(data: st.DataObject) -> None:
    """Closed windows go to a topic that names no time, and from there into windows."""
    first = data.draw(windows("tumbling", "sliding", "cumulative", "session", "count"))
    second = data.draw(windows())
    disorder = data.draw(out_of_order())
    events = numbered(data.draw(event_streams()))
    below = flink.run(events, window=first)
    results: list[flink.Event] = [(c.key, c.end - 1, int(sum(c.values))) for c in below.closed]
    expected = flink.run(results, window=second, out_of_order=disorder)
    app = App("inherited")
    source = app.topic("events", Event, key="key", time="at")
    middle = app.topic("middle", Event, key="key", out_of_order=disorder)
    fired = app.sink("fired", Fired)
    table: Any = app.table("below", str, Values, window=window_of(first), merge=merge_of(first, _merged))
    table_too: Any = app.table("above", str, Values, window=window_of(second), merge=merge_of(second, _merged))

    @app.each(source, tables=[table])
    def keep(event: Event) -> None:
        for window in table.windows(event.key):
            window.value.values.append(event.value)

    @app.each(table.closed, sinks=[middle])
    def end(w: Closed[str, Values]) -> Event:
        return Event(w.key, 0, sum(w.value.values))

    @app.each(middle, tables=[table_too])
    def keep_too(event: Event) -> None:
        for window in table_too.windows(event.key):
            window.value.values.append(event.value)

    @app.each(table_too.closed, sinks=[fired])
    def tell(w: Closed[str, Values]) -> Fired:
        return Fired(w.pane, w.key, w.start, w.end, w.value.values)

    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    assert world.letters() == []
    told = [(f.pane, f.key, f.start, f.end, sorted(f.values)) for f in world.out("fired", Fired)]
    assert told == [(c.pane, c.key, c.start, c.end, sorted(int(v) for v in c.values)) for c in expected.closed]


# --- several tables ---------------------------------------------------------------------------------------------------


@examples(100)
@given(data=st.data())
def test_windows_of_several_tables_fire_by_end_then_table_then_key(data: st.DataObject) -> None:
    events = numbered(data.draw(event_streams()))
    disorder = data.draw(out_of_order())
    specs = [data.draw(windows()) for _ in range(data.draw(st.integers(2, 3)))]
    # What a record fires late, it fires before a count window that it fills, whose end may be earlier.
    late = st.just(0) if any(spec[0] == "count" for spec in specs) else allowed_lateness()
    settings: list[dict[str, Any]] = [
        {"allowed_lateness": data.draw(late), "early": None if spec[0] == "count" else data.draw(earlies())}
        for spec in specs
    ]
    app = App("several")
    source = app.topic("events", Event, key="key", time="at", out_of_order=disorder)
    sink = app.sink("fired", Fired)
    rows: list[tuple[int, int, int, bytes, Any]] = []
    for n, (spec, more) in enumerate(zip(specs, settings, strict=True)):
        name = f"t{n}"
        merge: Any = _merged if spec[0] == "session" else None
        table: Any = app.table(name, str, Values, window=window_of(spec), merge=merge, **more)

        def keep(event: Event, table: Any = table) -> None:
            for window in table.windows(event.key):
                window.value.values.append(event.value)

        def tell(w: Closed[str, Values], name: str = name) -> Fired:
            return Fired(f"{name} {w.pane}", w.key, w.start, w.end, sorted(w.value.values))

        app.each(source, tables=[table], name=f"keep {name}")(keep)
        app.each(table.closed, sinks=[sink], name=f"tell {name}")(tell)
        result = flink.run(events, window=spec, out_of_order=disorder, **more)
        for step, c in zip(result.steps, result.closed, strict=True):
            told = (f"{name} {c.pane}", c.key, c.start, c.end, sorted(int(v) for v in c.values))
            rows.append((step, c.end, n, c.key.encode(), told))
    rows.sort(key=itemgetter(0, 1, 2, 3))
    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    got = [(f.pane, f.key, f.start, f.end, f.values) for f in world.out("fired", Fired)]
    assert got == [row[4] for row in rows]


@pytest.mark.parametrize("form", ["hand", "declared"])
@examples(60)
@given(data=st.data())
def test_a_scan_shows_the_windows_that_are_open(form: Form, data: st.DataObject) -> None:
    case = data.draw(cases("tumbling", "sliding", "cumulative", "session", "global"))
    config: Any = dict(case.settings) | {"late": "drop"}
    del config["bounded"]
    events = numbered(case.events)
    model = _Model(
        ["input"],
        config["window"],
        allowed_lateness=config["allowed_lateness"],
        early=None,
        late="drop",
        key_bytes=str.encode,
    )
    expected = []
    for event in events:
        model.step += 1
        fired = model.add(event)
        scanned = [(w.key, w.start, w.end, sorted(int(v) for _, v in w.arrivals)) for w in model.open]
        expected.append(sorted(scanned))
        model.split_watermarks["input"] = max(model.split_watermarks["input"], event[1] - config["out_of_order"] - 1)
        model.move_watermark(model.split_watermarks["input"], fired)
    spec = config.pop("window")
    app = app_of(spec, form=form, **config)
    table: Any = app.tables["windows"]
    scans = app.sink("scans", Scan)

    @app.each(app.topics["events"], reads=[table], sinks=[scans])
    def scan(event: Event) -> Scan:
        return Scan([(key, w.start, w.end, sorted(w.value.values)) for key, w in table.scan()])

    world = World([("events", lines(records(events)))])
    play(world.run(app, **data.draw(cuts())._asdict()))
    assert [sorted(s.windows) for s in world.out("scans", Scan)] == expected


class Scan(Record):
    windows: list[tuple[str, int, int, list[int]]]


class Note(Record):
    text: str


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
def test_an_agent_that_reads_a_topic_which_its_own_group_writes_does_not_hold_up_the_windows(cut: Cuts) -> None:
    """Both agents use the table, so they are one group; nothing is ever sent before the first window closes."""
    app = App("loop")
    events = app.topic("events", Event, key="key", time="at")
    ends = app.topic("ends", Fired, key="key")
    notes = app.sink("notes", Note)
    window: Any = window_of(("tumbling", 10, 0))
    table = app.table("windows", str, Values, window=window)
    seen = app.table("seen", str, int)

    @app.agent(events, tables=[table, seen])
    async def keep(stream: Stream[Event]) -> None:
        async for event in stream:
            table[event.key].values.append(event.value)
            seen[event.key] += 1

    @app.each(table.closed, sinks=[ends])
    def end(w: Closed[str, Values]) -> Fired:
        return Fired(w.pane, w.key, w.start, w.end, w.value.values)

    @app.agent(ends, reads=[seen], sinks=[notes])
    async def tell(stream: Stream[Fired]) -> AsyncIterator[Note]:
        async for fired in stream:
            yield Note(f"{fired.key} {fired.end} after {seen.get(fired.key)}")

    world = World([("events", lines([Event("a", 1), Event("a", 12), Event("a", 13), Event("a", 25)]))])
    play(world.run(app, **cut._asdict()))
    assert world.letters() == []
    assert [note.text for note in world.out("notes", Note)] == ["a 10 after 2", "a 20 after 4", "a 30 after 4"]


# --- dead letters -----------------------------------------------------------------------------------------------------


def app_with_letters(*, fails: bool) -> App:
    app = App("letters", retry=agents.Retry(attempts=2, backoff=1))
    events = app.topic("events", Event, key="key", time="at")
    notes = app.sink("notes", Note)
    window: Any = window_of(("tumbling", 10, 0))
    table = app.table("windows", str, Values, window=window)

    @app.each(app.dead_letters, sinks=[notes])
    def read(letter: DeadLetter) -> Note:
        if fails:
            raise Broken("cannot read")
        return Note(f"{letter.topic} {letter.reason}")

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        table[event.key].values.append(event.value)
        if event.key == "bad":
            raise Broken("bad key")

    @app.each(table.closed)
    def end(w: Closed[str, Values]) -> None:
        if w.key == "end":
            raise Broken("bad end")

    return app


BAD_LINES = [*lines([Event("bad", 1), Event("end", 2)]), b'{"key": 7}', *lines([Event("bad", 3), Event("good", 4)])]


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
def test_dead_letters_can_be_read_also_those_of_the_last_windows(cut: Cuts) -> None:
    world = World([("events", BAD_LINES)])
    play(world.run(app_with_letters(fails=False), **cut._asdict()))
    letters = [(letter.topic, letter.reason) for letter in world.letters()]
    assert letters == [
        ("events", "bad key"),
        ("events", "Expected `str`, got `int` - at `$.key`"),
        ("events", "bad key"),
        ("windows.closed", "bad end"),
    ]
    assert [note.text for note in world.out("notes", Note)] == [" ".join(letter) for letter in letters]


@pytest.mark.parametrize("cut", [Cuts(), Cuts(1, 1, 1), Cuts(2, 3, 1)])
def test_a_dead_letter_that_cannot_be_handled_does_not_come_back_for_ever(cut: Cuts) -> None:
    world = World([("events", BAD_LINES)])
    play(world.run(app_with_letters(fails=True), **cut._asdict()))
    topics = sorted(letter.topic for letter in world.letters())
    assert topics == [*["dead-letters"] * 4, *["events"] * 3, "windows.closed"]


@examples(60)
@given(data=st.data())
def test_unusable_records_of_several_splits_come_in_one_order_however_they_are_cut(data: st.DataObject) -> None:
    bad = st.just(b"{") | st.just(b'{"key":"a","at":"soon"}')
    good = st.integers(0, 50).map(lambda at: lines([Event("a", at)])[0])
    inputs = [("events", data.draw(st.lists(bad | good, max_size=8))) for _ in range(data.draw(st.integers(1, 3)))]

    def build() -> App:
        app = App("unusable")
        events = app.topic("events", Event, key="key", time="at")
        seen = app.sink("seen", Note)

        @app.each(events, sinks=[seen])
        def see(event: Event) -> Note:
            return Note(str(event.at))

        return app

    whole = play(World(inputs).run(build()))
    cut = play(World(inputs).run(build(), **data.draw(cuts())._asdict()))
    assert cut.kept == whole.kept
