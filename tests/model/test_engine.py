"""The engine against the oracle: the same events, the same windows, the same order, however it is stepped and cut."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.depth import examples
from tests.model import flink
from tests.model.apps import Beside, Event, Fired, Form, Seen, Trouble, app_of, records
from tests.model.flink import Result, WindowSpec
from tests.model.strategies import KINDS, Case, cases, out_of_order, splits
from tests.model.strategies import events as event_streams
from tests.model.world import World, lines, play


class Cuts(NamedTuple):
    """How a run is cut: into batches, commits and pieces.

    A commit waits `lazy` times between its steps; more than `live_objects` of a table are not kept in memory.
    """

    batch_size: int = 5_000
    commit_every: int = 5_000
    piece: int = 512
    lazy: int = 0
    live_objects: int = 1_000_000


def cuts() -> st.SearchStrategy[Cuts]:
    some = st.sampled_from((1, 2, 3, 7, 5_000))
    return st.builds(
        Cuts,
        batch_size=some,
        commit_every=some,
        piece=some,
        lazy=st.sampled_from((0, 0, 1, 5)),
        live_objects=st.sampled_from((1_000_000, 1, 3)),
    )


def numbered(events: list[flink.Event], first: int = 0) -> list[flink.Event]:
    """Events whose values are their places, so that no two are equal."""
    return [(key, time, first + n) for n, (key, time, _) in enumerate(events)]


def run(inputs: list[list[flink.Event]], app: Any, cut: Cuts, *, bounded: bool = True) -> World:
    world = World([("events", lines(records(events))) for events in inputs], ends=bounded)
    return play(world.run(app, **cut._asdict()))


def compare(
    world: World,
    expected: Result,
    *,
    ordered: bool = True,
    seen: bool = True,
    letters: int = 0,
    in_steps: bool = True,
) -> None:
    """Closed windows, late events and delivered ones are exactly the oracle's.

    `ordered`: values stand as they arrived. Without `in_steps` several windows may have fired at once.
    """
    assert len(world.letters()) == letters, world.letters()
    closed = [(f.pane, f.key, f.start, f.end, f.values) for f in world.out("fired", Fired)]
    wanted = [(c.pane, c.key, c.start, c.end, [int(v) for v in c.values]) for c in expected.closed]
    if not ordered:
        closed = [(*row[:4], sorted(row[4])) for row in closed]
        wanted = [(*row[:4], sorted(row[4])) for row in wanted]
    if not in_steps:
        closed.sort(key=itemgetter(1, 4))
        wanted.sort(key=itemgetter(1, 4))
    assert closed == wanted
    assert [(e.key, e.at, e.value) for e in world.out("late", Event)] == expected.late
    if seen:
        assert [(e.key, e.at, e.value) for e in world.out("seen", Seen)] == expected.delivered


def arrives_in_order(spec: WindowSpec, form: Form) -> bool:
    """Whether a window's values stand in the order of their arrival: not if sessions or panes were merged."""
    return spec[0] != "session" and not (form == "declared" and spec[0] in ("sliding", "cumulative"))


@pytest.mark.parametrize("kind", KINDS)
@examples(60)
@given(data=st.data())
def test_windows_kept_by_hand_equal_the_oracle(kind: str, data: st.DataObject) -> None:
    check(kind, "hand", data)


@pytest.mark.parametrize("form", ["awaits", "each"])
@examples(60)
@given(data=st.data())
def test_windows_kept_by_agents_that_await_equal_the_oracle(form: Form, data: st.DataObject) -> None:
    check(data.draw(st.sampled_from(KINDS)), form, data)


@pytest.mark.parametrize("kind", KINDS)
@examples(40)
@given(data=st.data())
def test_windows_kept_in_batches_equal_the_oracle(kind: str, data: st.DataObject) -> None:
    check(kind, "batches", data)


@pytest.mark.parametrize("kind", KINDS)
@examples(60)
@given(data=st.data())
def test_declared_windows_equal_the_oracle(kind: str, data: st.DataObject) -> None:
    check(kind, "declared", data)


def check(kind: str, form: Form, data: st.DataObject) -> None:
    case: Case = data.draw(cases(kind))
    beside: Beside = data.draw(st.sampled_from(("alone", "another", "reader", "changes")))
    cut = data.draw(cuts())
    compare_case(case, form, beside, cut)


def compare_case(case: Case, form: Form, beside: Beside = "alone", cut: Cuts = Cuts()) -> World:
    config = dict(case.settings)
    bounded = bool(config.pop("bounded"))
    if form == "declared":
        config["late"] = "drop"
    if form == "batches":
        config["early"] = None  # how much there is to tell early depends on the batches
        bounded = True  # the last batch is handed over only at the end
    events = numbered(case.events)
    expected = flink.run(events, bounded=bounded, **config)  # type: ignore[arg-type]
    spec = config.pop("window")
    world = run([events], app_of(spec, form=form, beside=beside, **config), cut, bounded=bounded)  # type: ignore[arg-type]
    late_seen = config["late"] == "deliver"
    if late_seen:
        caught = [(e.key, e.at, e.value) for e in world.out("seen", Seen) if e.late]
        assert caught == expected.late
        expected.late = []
    compare(
        world,
        expected,
        ordered=arrives_in_order(spec, form),  # type: ignore[arg-type]
        seen=form != "declared",
        in_steps=form != "batches" or spec[0] != "count",  # type: ignore[index]
    )
    return world


@pytest.mark.parametrize("form", ["hand", "declared"])
@examples(80)
@given(data=st.data())
def test_several_splits_are_merged_by_time_and_the_least_watermark_counts(form: Form, data: st.DataObject) -> None:
    given = data.draw(splits())
    case = data.draw(cases())
    beside: Beside = data.draw(st.sampled_from(("alone", "another", "reader", "changes")))
    inputs = {name: numbered(events, 100 * n) for n, (name, events) in enumerate(given.items())}
    config = dict(case.settings) | {"late": "drop"}
    del config["bounded"]
    expected = flink.run_splits(inputs, **config)  # type: ignore[arg-type]
    spec = config.pop("window")
    app = app_of(spec, form=form, beside=beside, **config)  # type: ignore[arg-type]
    world = run(list(inputs.values()), app, data.draw(cuts()))
    compare(world, expected, ordered=arrives_in_order(spec, form), seen=form != "declared")  # type: ignore[arg-type]


@examples(60)
@given(data=st.data())
def test_topics_of_one_agent_keep_their_own_disorder(data: st.DataObject) -> None:
    inputs = {name: numbered(data.draw(event_streams(max_size=12)), 100 * n) for n, name in enumerate(("one", "two"))}
    disorder = {name: data.draw(out_of_order()) for name in inputs}
    case = data.draw(cases())
    config = dict(case.settings) | {"late": "drop", "out_of_order": disorder}
    del config["bounded"]
    expected = flink.run_splits(inputs, **config)  # type: ignore[arg-type]
    spec = config.pop("window")
    app = app_of(spec, topics=disorder, **{k: v for k, v in config.items() if k != "out_of_order"})  # type: ignore[arg-type]
    world = World([(name, lines(records(events))) for name, events in inputs.items()])
    play(world.run(app, **data.draw(cuts())._asdict()))
    compare(world, expected, ordered=arrives_in_order(spec, "hand"))  # type: ignore[arg-type]


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["hand", "awaits", "each", "declared", "batches"])
@examples(60)
@given(data=st.data())
def test_events_that_make_an_agent_raise_leave_no_trace(form: Form, data: st.DataObject) -> None:
    """Some events, each of a key of its own, raise after they have changed everything: only they are missing."""
    case = data.draw(cases())
    config = dict(case.settings) | {"late": "drop"}
    bounded = bool(config.pop("bounded"))
    if form == "batches":
        config["early"], bounded = None, True
    events = numbered(case.events)
    fail = data.draw(st.sets(st.sampled_from(range(len(events))))) if events else set()
    events = [(f"bad {n}" if n in fail else key, t, v) for n, (key, t, v) in enumerate(events)]
    expected = flink.run(events, bounded=bounded, **config)  # type: ignore[arg-type]
    spec: Any = config.pop("window")
    bad = [event for event in expected.delivered if event[2] in fail]
    if form == "declared" and spec[0] == "sliding":
        bad = [event for event in bad if flink.covering(spec, event[1])]  # in a gap there is nothing to count
    once = data.draw(st.sets(st.integers(0, 40))) if form != "declared" else set()  # declared tables do not retry
    trouble = Trouble(at=frozenset(fail), once=frozenset(once))
    app = app_of(
        spec,
        form=form,
        beside=data.draw(st.sampled_from(("alone", "another", "reader", "changes"))),
        trouble=trouble,
        attempts=2,
        **config,  # type: ignore[arg-type]
    )
    world = run([events], app, data.draw(cuts()), bounded=bounded)
    assert [msgspec.json.decode(letter.value or b"", type=Event).value for letter in world.letters()] == [
        value for _, _, value in bad
    ]
    expected.closed = [closed for closed in expected.closed if not closed.key.startswith("bad")]
    expected.delivered = [event for event in expected.delivered if event[2] not in fail]
    compare(
        world,
        expected,
        ordered=arrives_in_order(spec, form),
        seen=form != "declared",
        letters=len(bad),
        in_steps=form != "batches" or spec[0] != "count",
    )
    assert world.counters.dead == len(bad)
    assert world.counters.late == len(expected.late)
    assert world.counters.records == len(events)
