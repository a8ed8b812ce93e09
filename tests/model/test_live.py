"""The live task against the oracle, in the harness: batches cut at random, a crash at any step of a commit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.testing import harness
from tests.depth import examples
from tests.model import flink
from tests.model.apps import Beside, Event, Fired, Form, Trouble, app_of, records
from tests.model.strategies import cases
from tests.model.test_engine import arrives_in_order, numbered
from tests.model.world import play


@pytest.mark.parametrize("form", ["hand", "awaits", "declared", "batches"])
@examples(30)
@given(data=st.data())
def test_a_live_task_that_crashes_at_random_equals_the_oracle(form: Form, data: st.DataObject) -> None:
    case = data.draw(cases())
    config: Any = dict(case.settings) | {"late": "drop", "bounded": True}
    if form == "batches":
        config["early"] = None
    events = numbered(case.events)
    expected = flink.run(events, **config)
    spec = config.pop("window")
    del config["bounded"]
    beside: Beside = data.draw(st.sampled_from(("alone", "another", "reader", "changes")))
    once = data.draw(st.sets(st.integers(0, 30), max_size=3)) if form != "declared" else set()
    # A crash forgets what has failed once already.
    app = app_of(spec, form=form, beside=beside, trouble=Trouble(once=frozenset(once)), attempts=2, **config)
    pieces = data.draw(st.lists(st.integers(1, 10), max_size=5))
    closed, late = play(send(app, events, pieces, data.draw(st.none() | st.integers(0, 1000))))
    told = [(f.pane, f.key, f.start, f.end, f.values) for f in closed]
    wanted = [(c.pane, c.key, c.start, c.end, [int(v) for v in c.values]) for c in expected.closed]
    if not arrives_in_order(spec, form):
        told = [(*row[:4], sorted(row[4])) for row in told]
        wanted = [(*row[:4], sorted(row[4])) for row in wanted]
    if form == "batches" and spec[0] == "count":
        told.sort(key=lambda row: (row[1], row[4]))
        wanted.sort(key=lambda row: (row[1], row[4]))
    assert told == wanted
    assert [(e.key, e.at, e.value) for e in late] == expected.late


async def send(
    app: Any, events: list[flink.Event], pieces: list[int], seed: int | None
) -> tuple[list[Fired], list[Event]]:
    async with harness(app, seed=seed, crashes=0.1) as h:
        left = records(events)
        for size in [*pieces, len(left)]:
            await h.send(app.topics["events"], *left[:size])
            left = left[size:]
        await h.finish()
        assert h.sent(app.dead_letters) == []
        return h.sent(app.sinks["fired"]), h.sent(app.sinks["late"])
