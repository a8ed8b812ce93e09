"""The engine against the oracle: the same events, the same windows, the same order, however it is stepped and cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model import flink
from tests.model.apps import Beside, Event, Fired, Form, Seen, app_of, records
from tests.model.flink import Result, WindowSpec
from tests.model.strategies import KINDS, Case, cases, splits
from tests.model.world import World, lines, play

F = TypeVar("F", bound=Callable[..., Any])

LONG = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1
"""HYPOTHESIS_PROFILE=long looks at twenty times as many examples."""


def examples(count: int) -> Callable[[F], F]:
    return settings(  # type: ignore[return-value]
        max_examples=count * LONG, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )


class Cuts(NamedTuple):
    """How a run is cut: into batches, commits and pieces."""

    batch_size: int = 5_000
    commit_every: int = 5_000
    piece: int = 512


def cuts() -> st.SearchStrategy[Cuts]:
    some = st.sampled_from((1, 2, 3, 7, 5_000))
    return st.builds(Cuts, batch_size=some, commit_every=some, piece=some)


def numbered(events: list[flink.Event], first: int = 0) -> list[flink.Event]:
    """Events whose values are their places, so that no two are equal."""
    return [(key, time, first + n) for n, (key, time, _) in enumerate(events)]


def run(inputs: list[list[flink.Event]], app: Any, cut: Cuts, *, bounded: bool = True) -> World:
    world = World([("events", lines(records(events))) for events in inputs], ends=bounded)
    return play(world.run(app, batch_size=cut.batch_size, commit_every=cut.commit_every, piece=cut.piece))


def compare(world: World, expected: Result, *, ordered: bool = True, seen: bool = True) -> None:
    """Closed windows, late events and delivered ones are exactly the oracle's; `ordered`: values as they arrived."""
    assert world.letters() == []
    closed = [(f.pane, f.key, f.start, f.end, f.values) for f in world.out("fired", Fired)]
    wanted = [(c.pane, c.key, c.start, c.end, [int(v) for v in c.values]) for c in expected.closed]
    if not ordered:
        closed = [(*row[:4], sorted(row[4])) for row in closed]
        wanted = [(*row[:4], sorted(row[4])) for row in wanted]
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


@pytest.mark.parametrize("kind", KINDS)
@examples(30)
@given(data=st.data())
def test_windows_kept_by_a_function_equal_the_oracle(kind: str, data: st.DataObject) -> None:
    check(kind, "each", data)


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
    events = numbered(case.events)
    expected = flink.run(events, bounded=bounded, **config)  # type: ignore[arg-type]
    spec = config.pop("window")
    world = run([events], app_of(spec, form=form, beside=beside, **config), cut, bounded=bounded)  # type: ignore[arg-type]
    late_seen = config["late"] == "deliver"
    if late_seen:
        caught = [(e.key, e.at, e.value) for e in world.out("seen", Seen) if e.late]
        assert caught == expected.late
        expected.late = []
    compare(world, expected, ordered=arrives_in_order(spec, form), seen=form != "declared")  # type: ignore[arg-type]
    return world
