"""Joins and patterns in the engine, against loops over whole inputs: with disorder, odd cuts and a crash on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Cumulative, Record, SchemaChanged, Session, Sliding, Tumbling
from flowkit.flow import Events
from flowkit.pattern import Match, Pattern, TimedOut
from tests.depth import examples
from tests.model import flink
from tests.model.apps import Event, records
from tests.model.strategies import events as event_streams
from tests.model.test_engine import Cuts, cuts, numbered
from tests.model.world import World, lines, play, with_crash

How = Literal["inner", "left", "right", "outer"]


class Pair(Record):
    left: Event | None
    right: Event | None


class Late(Record):
    event: Event


Row = tuple[int | None, int | None]
Made = Callable[[App, Events[Event], Events[Event]], Any]


def app_of(made: Made, out_of_order: int) -> App:
    app = App("joins")
    left = app.topic("left", Event, key="key", time="at", out_of_order=out_of_order)
    right = app.topic("right", Event, key="key", time="at", out_of_order=out_of_order)
    pairs = app.sink("pairs", Pair)
    late = app.sink("late", Late)
    joined = made(app, left, right)

    @app.each(joined, sinks=[pairs])
    def pair(row: Any) -> Pair:
        return Pair(row.left, row.right)

    @app.each(joined.late, sinks=[late])
    def late_event(event: Event) -> Late:
        return Late(event)

    return app


class Ran:
    """A run that was cut, and once crashed: the pairs that came out, and the events of each side that were in time."""

    def __init__(self, made: Made, inputs: list[list[flink.Event]], out_of_order: int, cut: Cuts, crash: int) -> None:
        left, right = numbered(inputs[0]), numbered(inputs[1], first=1000)
        world = World([("left", lines(records(left))), ("right", lines(records(right)))])
        app = app_of(made, out_of_order)
        with_crash(world, app, cut._asdict(), crash)
        assert world.letters() == []
        late = {row.event.value for row in world.out("late", Late)}
        self.left = [event for event in left if event[2] not in late]
        self.right = [event for event in right if event[2] not in late]
        self.late = late
        self.pairs = [(row.left and row.left.value, row.right and row.right.value) for row in world.out("pairs", Pair)]


def outer(
    how: How, left: list[flink.Event], right: list[flink.Event], meet: Callable[[flink.Event, flink.Event], bool]
) -> Counter[Row]:
    """All pairs that meet, and those events that meet none, as `how` has it."""
    rows: list[Row] = [(int(a[2]), int(b[2])) for a in left for b in right if a[0] == b[0] and meet(a, b)]
    if how in ("left", "outer"):
        rows += [(int(a[2]), None) for a in left if not any(a[0] == b[0] and meet(a, b) for b in right)]
    if how in ("right", "outer"):
        rows += [(None, int(b[2])) for b in right if not any(a[0] == b[0] and meet(a, b) for a in left)]
    return Counter(rows)


two_streams = st.lists(event_streams(max_size=20), min_size=2, max_size=2)
disorder = st.sampled_from([0, 10, 2000])
crashes = st.sampled_from([0, 0, 1, 2, 3, 5, 8])


@pytest.mark.parametrize("how", ["inner", "left", "right", "outer"])
@examples(100)
@given(
    inputs=two_streams, lower=st.integers(-40, 40), width=st.integers(0, 60), ooo=disorder, cut=cuts(), crash=crashes
)
def test_interval_join(
    how: Any, inputs: list[list[flink.Event]], lower: int, width: int, ooo: int, cut: Cuts, crash: int
) -> None:
    within = (lower, lower + width)

    def made(_: App, left: Events[Event], right: Events[Event]) -> Any:
        return left.join(right, on="key", within=within, how=how)

    ran = Ran(made, inputs, ooo, cut, crash)
    assert ooo < 2000 or not ran.late
    assert Counter(ran.pairs) == outer(how, ran.left, ran.right, lambda a, b: within[0] <= b[1] - a[1] <= within[1])


@pytest.mark.parametrize("how", ["inner", "left", "right", "outer"])
@pytest.mark.parametrize("window", [Tumbling(10), Tumbling(50, offset=3), Sliding(30, 10), Cumulative(10, 30)])
@examples(60)
@given(inputs=two_streams, ooo=disorder, cut=cuts(), crash=crashes)
def test_window_join(how: Any, window: Any, inputs: list[list[flink.Event]], ooo: int, cut: Cuts, crash: int) -> None:
    def made(_: App, left: Events[Event], right: Events[Event]) -> Any:
        return left.join(right, on=("key", lambda event: event.key), window=window, how=how)

    ran = Ran(made, inputs, ooo, cut, crash)
    if ooo < 2000 and not isinstance(window, Tumbling):
        return  # an event in time for some of its windows only: told by the tests of windows
    expected: Counter[Row] = Counter()
    ends = {end for event in (*ran.left, *ran.right) for _, end in window.windows(event[1])}
    for end in ends:
        inside = [
            [event for event in side if any(e == end for _, e in window.windows(event[1]))]
            for side in (ran.left, ran.right)
        ]
        expected += windows_outer(how, *inside)
    assert Counter(ran.pairs) == expected


def windows_outer(how: How, left: list[flink.Event], right: list[flink.Event]) -> Counter[Row]:
    return outer(how, left, right, lambda _a, _b: True)


@examples(60)
@given(inputs=two_streams, gap=st.integers(1, 30), cut=cuts(), crash=crashes)
def test_session_join(inputs: list[list[flink.Event]], gap: int, cut: Cuts, crash: int) -> None:
    def made(_: App, left: Events[Event], right: Events[Event]) -> Any:
        return left.join(right, on="key", window=Session(gap), how="outer")

    ran = Ran(made, inputs, 2000, cut, crash)
    expected: Counter[Row] = Counter()
    for key in {event[0] for event in (*ran.left, *ran.right)}:
        rows = sorted(
            [(e[1], 0, e) for e in ran.left if e[0] == key] + [(e[1], 1, e) for e in ran.right if e[0] == key]
        )
        session: list[tuple[int, int, flink.Event]] = []
        for row in [*rows, None]:
            if session and (row is None or row[0] > session[-1][0] + gap):
                sides = [[e for _, side, e in session if side == n] for n in (0, 1)]
                expected += windows_outer("outer", *sides)
                session = []
            if row is not None:
                session.append(row)
    assert Counter(ran.pairs) == expected


@pytest.mark.parametrize("how", ["inner", "left"])
@examples(100)
@given(inputs=two_streams, tolerance=st.none() | st.integers(0, 60), ooo=disorder, cut=cuts(), crash=crashes)
def test_as_of_join(
    how: Any, inputs: list[list[flink.Event]], tolerance: int | None, ooo: int, cut: Cuts, crash: int
) -> None:
    def made(_: App, left: Events[Event], right: Events[Event]) -> Any:
        return left.join_as_of(right, on="key", how=how, tolerance=tolerance)

    ran = Ran(made, inputs, ooo, cut, crash)
    expected = as_of(how, ran.left, ran.right, tolerance)
    assert Counter(ran.pairs) == expected


def as_of(how: How, left: list[flink.Event], right: list[flink.Event], tolerance: int | None) -> Counter[Row]:
    rows: list[Row] = []
    for key, t, value in left:
        before = [(b[1], n, b) for n, b in enumerate(right) if b[0] == key and b[1] <= t]
        found = max(before)[2] if before else None
        if found is not None and tolerance is not None and t - found[1] > tolerance:
            found = None
        if found is not None or how == "left":
            rows.append((int(value), None if found is None else int(found[2])))
    return Counter(rows)


@examples(60)
@given(inputs=two_streams, cut=cuts(), crash=crashes)
def test_join_with_a_table_as_it_was(inputs: list[list[flink.Event]], cut: Cuts, crash: int) -> None:
    """The table's writer deletes a key with every fifth event."""

    def made(app: App, left: Events[Event], right: Events[Event]) -> Any:
        table = app.table("latest", str, Event, default=lambda: Event("", 0))

        @app.each(right, tables=[table])
        def write(event: Event) -> None:
            if event.value % 5 == 0:
                del table[event.key]
            else:
                table[event.key] = event

        return left.join_table(table, on="key", how="left")

    right = sorted(inputs[1], key=lambda event: event[1])  # a table is written in order of arrival
    ran = Ran(made, [inputs[0], right], 2000, cut, crash)
    assert not ran.late
    rows: list[Row] = []
    for key, t, value in ran.left:
        before = [int(b[2]) for b in ran.right if b[0] == key and b[1] <= t]
        rows.append((int(value), before[-1] if before and before[-1] % 5 else None))
    assert Counter(ran.pairs) == Counter(rows)


# --- patterns -------------------------------------------------------------------------------------------------------


class Found(Record):
    what: str
    key: str
    values: list[int]
    at: int


def pairs_of_values(app: App, topic: Events[Event], within: int) -> None:
    """Two events of a key that follow each other by their values; what ran out of time too."""
    pattern: Pattern[Event] = (
        Pattern.begin("a", third).followed_by("b", lambda event: event.value % 3 == 1).within(within)
    )
    out = app.sink("out", Found)
    matches = topic.match(pattern)

    @app.each(matches, sinks=[out])
    def found(match: Match[str, Event]) -> Found:
        return Found("match", match.key, values_of(match.events.values()), match.end)

    @app.each(matches.timed_out, sinks=[out])
    def timed_out(match: TimedOut[str, Event]) -> Found:
        return Found("timed out", match.key, values_of(match.events.values()), match.at)

    @app.each(matches.late, sinks=[out])
    def late(event: Event) -> Found:
        return Found("late", event.key, [event.value], event.at)


def third(event: Event) -> bool:
    return event.value % 3 == 0


def values_of(events: Iterable[list[Event]]) -> list[int]:
    return [event.value for some in events for event in some]


@examples(100)
@given(events=event_streams(), within=st.integers(1, 60), ooo=disorder, cut=cuts(), crash=crashes)
def test_pattern(events: list[flink.Event], within: int, ooo: int, cut: Cuts, crash: int) -> None:
    events = numbered(events)
    app = App("patterns")
    pairs_of_values(app, app.topic("events", Event, key="key", time="at", out_of_order=ooo), within)
    world = World([("events", lines(records(events)))])
    with_crash(world, app, cut._asdict(), crash)
    assert world.letters() == []
    out = world.out("out", Found)
    late = {row.values[0] for row in out if row.what == "late"}
    expected: list[tuple[str, str, list[int], int]] = []
    for key in {event[0] for event in events}:
        rows = sorted((t, n) for n, (k, t, _) in enumerate(events) if k == key and n not in late)
        for place, (t, n) in enumerate(rows):
            if n % 3:
                continue
            later = [(u, m) for u, m in rows[place + 1 :] if m % 3 == 1 and u - t < within]
            expected.append(
                ("match", key, [n, later[0][1]], later[0][0]) if later else ("timed out", key, [n], t + within)
            )
    got = [(row.what, row.key, row.values, row.at) for row in out if row.what != "late"]
    assert sorted(got) == sorted(expected)


@examples(60)
@given(events=event_streams(), ooo=disorder, cut=cuts(), crash=crashes)
def test_an_event_for_which_a_condition_raises_is_a_dead_letter_and_no_more(
    events: list[flink.Event], ooo: int, cut: Cuts, crash: int
) -> None:
    def careful(event: Event) -> bool:
        if event.value % 5 == 4:
            raise ValueError(f"value {event.value}")
        return event.value % 3 == 0

    events = numbered(events)
    app = App("patterns")
    topic = app.topic("events", Event, key="key", time="at", out_of_order=ooo)
    out = app.sink("out", Found)
    found = topic.match(Pattern[Event].begin("a", careful))

    @app.each(found, sinks=[out])
    def single(match: Match[str, Event]) -> Found:
        return Found("match", match.key, values_of(match.events.values()), match.end)

    @app.each(found.late, sinks=[out])
    def late(event: Event) -> Found:
        return Found("late", event.key, [event.value], event.at)

    world = World([("events", lines(records(events)))])
    with_crash(world, app, cut._asdict(), crash)
    rows = world.out("out", Found)
    gone = {row.values[0] for row in rows if row.what == "late"}
    assert sorted(row.values for row in rows if row.what == "match") == [
        [n] for n in range(len(events)) if n not in gone and n % 5 != 4 and n % 3 == 0
    ]
    letters = world.letters()
    assert sorted(letter.reason for letter in letters) == sorted(
        f"value {n}" for n in range(len(events)) if n not in gone and n % 5 == 4
    )
    assert all(letter.topic == "events.match" and "careful" in letter.traceback for letter in letters)


KEPT: dict[str, tuple[Made, Made]] = {
    "the bounds of an interval": (
        lambda _, left, right: left.join(right, on="key", within=5, name="kept"),
        lambda _, left, right: left.join(right, on="key", within=6, name="kept"),
    ),
    "who is sent alone": (
        lambda _, left, right: left.join(right, on="key", within=5, name="kept"),
        lambda _, left, right: left.join(right, on="key", within=5, how="outer", name="kept"),
    ),
    "a tolerance": (
        lambda _, left, right: left.join_as_of(right, on="key", tolerance=5, name="kept"),
        lambda _, left, right: left.join_as_of(right, on="key", tolerance=50, name="kept"),
    ),
    "how long versions are kept": (
        lambda _, left, right: left.join_as_of(right, on="key", name="kept"),
        lambda _, left, right: left.join_as_of(right, on="key", keep_for=50, name="kept"),
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_a_join_that_has_changed_does_not_take_up_the_state_of_the_former(what: str) -> None:
    former, now = KEPT[what]
    world = World([(side, lines(records([("a", 0, 0), ("a", 9, 1)]))) for side in ("left", "right")], ends=False)
    play(world.run(app_of(former, 0)))
    play(world.run(app_of(former, 0)))
    with pytest.raises(SchemaChanged, match="'kept': what it does has changed"):
        play(world.run(app_of(now, 0)))
