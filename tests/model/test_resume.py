"""A run that was killed and goes on leaves the same bytes as an unbroken one; so does one that is cut otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.app import App
from tests.depth import examples
from tests.model.apps import Beside, Form, Trouble, app_of, records
from tests.model.strategies import cases, splits
from tests.model.strategies import events as event_streams
from tests.model.test_engine import Cuts, cuts, numbered
from tests.model.world import Crash, World, lines, play
from tests.model.zoo import Rate, zoo

Inputs = Sequence[tuple[str, Sequence[bytes]]]


def unbroken(build: Callable[[], App], inputs: Inputs) -> World:
    return play(World(inputs).run(build()))


def broken(build: Callable[[], App], inputs: Inputs, crashes: list[int], cut: list[Cuts]) -> World:
    """Runs that crash after so many steps of commits each, and a last one that does not. Each is cut in its own way."""
    world = World(inputs)
    for n, steps in enumerate(crashes):
        left = steps

        async def hook(step: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash(step)

        try:
            play(world.run(build(), hook=hook, **cut[n % len(cut)]._asdict()))
        except Crash:
            continue
    return play(world.run(build(), **cut[-1]._asdict()))


def same(one: World, other: World) -> None:
    for name in one.kept.keys() | other.kept.keys():
        assert other.kept[name] == one.kept[name], name


crash_plans = st.lists(st.integers(0, 12), max_size=4)
cut_plans = st.lists(cuts(), min_size=1, max_size=3)


@pytest.mark.parametrize("form", ["hand", "declared", "batches"])
@examples(60)
@given(data=st.data())
def test_windows_survive_crashes_at_any_step_of_a_commit(form: Form, data: st.DataObject) -> None:
    case = data.draw(cases())
    config: Any = dict(case.settings)
    del config["bounded"]
    spec = config.pop("window")
    if form == "batches":
        config["early"] = None
    beside: Beside = data.draw(st.sampled_from(("alone", "another", "reader", "changes")))
    inputs = [("events", lines(records(numbered(case.events))))]
    at, once = data.draw(st.sets(st.integers(0, 30), max_size=3)), data.draw(st.sets(st.integers(0, 30), max_size=3))

    def build() -> App:
        trouble = Trouble(at=frozenset(at), once=frozenset(once if form != "declared" else ()))
        return app_of(spec, form=form, beside=beside, trouble=trouble, attempts=2, **config)

    same(unbroken(build, inputs), broken(build, inputs, data.draw(crash_plans), data.draw(cut_plans)))


def zoo_inputs(data: st.DataObject) -> Inputs:
    streams = data.draw(splits(max_splits=2, max_size=12))
    inputs: list[tuple[str, Sequence[bytes]]] = [
        ("events", lines(records(numbered(events, 100 * n)))) for n, events in enumerate(streams.values())
    ]
    inputs.append(("rates", lines([Rate(key, at, int(v)) for key, at, v in data.draw(event_streams(max_size=8))])))
    for n, bad in data.draw(st.dictionaries(st.integers(0, len(inputs) - 1), st.integers(0, 12))).items():
        name, good = inputs[n]
        inputs[n] = (name, [*good[:bad], b'{"at": "soon"}', *good[bad:]])
    return inputs


def zoo_of(data: st.DataObject) -> Callable[[], App]:
    some = st.sets(st.integers(-30, 120), max_size=4)
    at, once = frozenset(data.draw(some)), frozenset(data.draw(some))
    ms = st.sampled_from((0, 5, 30))
    kinds = {"out_of_order": data.draw(ms), "lateness": data.draw(ms)}
    idle = data.draw(st.none() | st.integers(1, 40))
    return lambda: zoo(Trouble(at=at, once=once), idle_after=idle, **kinds)


@examples(100, quick=8)
@given(data=st.data())
def test_everything_at_once_survives_crashes(data: st.DataObject) -> None:
    inputs, build = zoo_inputs(data), zoo_of(data)
    same(unbroken(build, inputs), broken(build, inputs, data.draw(crash_plans), data.draw(cut_plans)))


@examples(100, quick=8)
@given(data=st.data())
def test_everything_at_once_does_not_depend_on_batches_and_commits(data: st.DataObject) -> None:
    inputs, build = zoo_inputs(data), zoo_of(data)
    same(unbroken(build, inputs), broken(build, inputs, [], data.draw(cut_plans)))
