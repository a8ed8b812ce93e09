"""A firing that commits cut in the middle gives what the whole one gives: crashed, gone back, resumed, in any order.

The oracle is the same app in a run whose only commit is its last.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Record, Stream
from flowkit import agent as agents
from flowkit import table as aggregates
from flowkit.testing import harness
from flowkit.window import Count, Session, Tumbling
from flowkit.worker import step as steps
from tests.depth import examples
from tests.matrix import matrix
from tests.model import flink
from tests.model.apps import Event, Fired, Trouble, Values, app_of, overlapping, records, window_of
from tests.model.strategies import KEYS
from tests.model.test_engine import Cuts, cuts, numbered
from tests.model.test_resume import broken, crash_plans, same, unbroken
from tests.model.world import World, lines, play

SPECS: list[flink.WindowSpec] = [
    ("tumbling", 10, 0),
    ("sliding", 10, 5, 0),
    ("cumulative", 5, 10, 0),
    ("session", 10),
    ("count", 2),
    ("count", 4, 2),
    ("global",),
]
EACH = Cuts(commit_every=1)
"""A commit after each record, and after each result of a window."""


class Line(Record):
    who: str
    what: list[Any]


def busy_app(
    spec: flink.WindowSpec, *, declared: bool, lateness: int = 0, early: int | None = None, trouble: Trouble
) -> App:
    """Results of windows go everywhere: to tables with windows of their own, batches, readers, another group."""
    app = App("busy", retry=agents.Retry(attempts=2, backoff=1))
    events = app.topic("events", Event, key="key", time="at")
    ends = app.topic("ends", Fired, key="key")
    told, told_too = app.sink("told", Line), app.sink("told-too", Line)
    more: dict[str, Any] = {"window": window_of(spec), "allowed_lateness": lateness, "early": early}
    windows: Any
    if declared:
        listed = aggregates.Custom(list, lambda values, event: [*values, event.value], list.__add__, list)
        windows = app.table("windows", of=events, by="key", values=listed, **more)
    else:
        merge: Any = _joined if spec[0] == "session" else None
        windows = app.table("windows", str, Values, merge=merge, **more)

        @app.agent(events, tables=[windows])
        async def keep(stream: Stream[Event]) -> None:
            async for event in stream:
                for w in windows.windows(event.key) if overlapping(spec) else [windows]:
                    (w.value if w is not windows else windows[event.key]).values.append(event.value)

    sessions = app.table("sessions", str, Values, window=Session(7), merge=_joined)
    pairs = app.table("pairs", str, Values, window=Count(2))

    @app.agent(windows.closed, tables=[sessions, pairs], sinks=[told, ends])
    async def closed(stream: Stream[Closed[str, Any]]) -> AsyncIterator[Line | Fired]:
        async for w in stream:
            values = list(w.value.values)
            sessions[w.key[0]].values += values
            pairs[w.pane].values += values
            yield Line("closed", [w.pane, w.key, w.start, w.end, values])
            # The value is ours now. Nobody else may ever see what we make of it.
            w.value.values.append(-1)
            trouble(sum(values))
            yield Fired(w.pane, w.key, w.start, w.end, values)

    @app.each(windows.closed, reads=[windows], sinks=[told])
    def reader(w: Closed[str, Any]) -> Line:
        return Line("reader", [w.key, [[key, o.start, o.end, list(o.value.values)] for key, o in windows.scan()]])

    @app.agent(windows.closed, sinks=[told])
    async def batched(stream: Stream[Closed[str, Any]]) -> AsyncIterator[Line]:
        async for batch in stream.batches(3):
            yield Line("batched", [[w.pane, w.key, w.end] for w in batch])

    @app.each(sessions.closed, pairs.closed, sinks=[told])
    def after(w: Closed[str, Values]) -> Line:
        return Line("after", [w.key, w.start, w.end, w.value.values])

    @app.each(ends, sinks=[told_too])
    def another_group(fired: Fired) -> Line:
        return Line("end", [fired.pane, fired.key, fired.end, fired.values])

    return app


def _joined(a: Values, b: Values) -> Values:
    return Values([*a.values, *b.values])


def crowd(*times: int) -> list[flink.Event]:
    """At each time an event of every key."""
    return numbered([(key, time, 0) for time in times for key in KEYS])


def inputs_of(events: list[flink.Event]) -> Sequence[tuple[str, Sequence[bytes]]]:
    return [("events", lines(records(events)))]


FORMS = {"by hand": (False, 0), "declared": (True, 0), "declared and late": (True, 8)}
QUICK = [(("session", 10), "by hand"), (("count", 4, 2), "declared"), (("sliding", 10, 5, 0), "declared and late")]
"""Of each form the kind with the most to get wrong: windows that merge, that overlap by number, and by time."""


@pytest.mark.parametrize("spec, form", matrix(SPECS, FORMS, quick=lambda *case: case in QUICK), ids=str)
def test_every_place_of_a_firing_may_be_cut_and_be_crashed_at(spec: flink.WindowSpec, form: str) -> None:
    inputs = inputs_of(crowd(1, 12, 31))
    declared, lateness = FORMS[form]

    def build() -> App:
        return busy_app(spec, declared=declared, lateness=0 if spec[0] == "count" else lateness, trouble=Trouble())

    whole, cut = unbroken(build, inputs), World(inputs)
    play(cut.run(build(), **EACH._asdict()))
    same(whole, cut)
    assert cut.cut > 4
    # Runs of about one commit each, so that every commit is once the one that counts last.
    for first in (0, 3):
        same(whole, broken(build, inputs, [first, *[5] * 40], [EACH]))


@examples(150)
@given(data=st.data())
def test_cut_crashed_and_failing_firings_equal_whole_ones(data: st.DataObject) -> None:
    spec: flink.WindowSpec = data.draw(st.sampled_from(SPECS))
    counted = spec[0] == "count"
    times = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    events = numbered([(key, time, 0) for time in times for key in data.draw(st.permutations(KEYS))])
    sums = st.sets(st.integers(0, 30), max_size=3)
    at, once = frozenset(data.draw(sums)), frozenset(data.draw(sums))
    config: dict[str, Any] = {
        "declared": data.draw(st.booleans()),
        "lateness": 0 if counted else data.draw(st.sampled_from((0, 6, 20))),
        "early": None if counted else data.draw(st.sampled_from((None, 3))),
    }

    def build() -> App:
        return busy_app(spec, trouble=Trouble(at=at, once=once), **config)

    inputs = inputs_of(events)
    crashes, plan = data.draw(crash_plans), data.draw(st.lists(cuts(), min_size=1, max_size=3))
    same(unbroken(build, inputs), broken(build, inputs, crashes, plan))


def test_early_results_of_a_move_come_also_after_a_firing_of_it_was_taken_up_again() -> None:
    """A result fails amid the firing; the early one for the window that follows it is still to come."""
    inputs = inputs_of(numbered([(key, time, 0) for time in (30, 40) for key in KEYS]))

    def build() -> App:
        return busy_app(("sliding", 10, 5, 0), declared=False, early=3, trouble=Trouble(at=frozenset([0])))

    same(unbroken(build, inputs), broken(build, inputs, [], [EACH]))


@pytest.mark.parametrize("spec", matrix(SPECS, quick=lambda spec: spec[0] in ("sliding", "session")), ids=str)
def test_a_firing_that_takes_long_lets_the_task_look_around(
    spec: flink.WindowSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(numbered([(f"k{n:03}", 1, 0) for n in range(200) for _ in range(4)]))

    def build() -> App:
        return busy_app(spec, declared=False, trouble=Trouble(once=frozenset([30])))

    whole = unbroken(build, inputs)
    monkeypatch.setattr(steps, "STEP_SECONDS", -1.0)
    looked = unbroken(build, inputs)
    same(whole, looked)
    assert looked.pieces["Unfinished"] > whole.pieces["Unfinished"]


def test_what_was_handed_over_is_not_saved_any_more() -> None:
    app = App("owner")
    events = app.topic("events", Event, key="key", time="at")
    windows = app.table("windows", str, Values, window=Tumbling(10))
    fired = app.sink("fired", str)

    @app.each(events, tables=[windows])
    def keep(event: Event) -> None:
        windows[event.key].values.append(event.value)

    @app.each(windows.closed, sinks=[fired])
    def closed(w: Closed[str, Values]) -> str:
        w.value.values.append(closed)  # type: ignore[arg-type]  # what no commit could encode
        return w.key

    world = play(World(inputs_of(crowd(1))).run(app, **Cuts(commit_every=3)._asdict()))
    assert world.out("fired", str) == sorted(KEYS, key=str.encode)
    assert world.cut


@pytest.mark.parametrize("cut", [Cuts(), EACH], ids=["whole", "each"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec[0] != "count"], ids=str)
def test_no_early_result_is_lost_to_an_agent_that_raises_in_the_same_step(spec: flink.WindowSpec, cut: Cuts) -> None:
    # The table remembered for the rest of the step that it had given them, also when the step was taken back.
    inputs = inputs_of(crowd(1, 3, 5, 8))

    def build(*once: int) -> Callable[[], App]:
        return lambda: busy_app(spec, declared=False, early=3, trouble=Trouble(once=frozenset(once)))

    same(unbroken(build(), inputs), broken(build(3, 2, 20), inputs, [], [cut]))


@pytest.mark.parametrize("spec", [("tumbling", 10, 0), ("session", 10)], ids=str)
def test_a_window_is_over_for_readers_from_its_first_result_on(spec: flink.WindowSpec) -> None:
    world = unbroken(lambda: busy_app(spec, declared=False, trouble=Trouble()), inputs_of(crowd(1, 50)))
    seen = [line.what[1] for line in world.out("told", Line) if line.who == "reader"]
    first, last = seen[: len(KEYS)], seen[len(KEYS) :]
    assert all(len(rows) == 1 for rows in first[:1])  # the event at 50 that closed it; the others come after it
    assert all(row[1] > 1 for rows in first for row in rows)
    assert last == [[]] * len(KEYS)


@pytest.mark.parametrize("spec", SPECS, ids=str)
async def test_a_live_task_cuts_its_firings_and_crashes_in_them(spec: flink.WindowSpec) -> None:
    cuts = 0

    async def fired(seed: int | None) -> list[Fired]:
        nonlocal cuts
        app = app_of(spec)
        async with harness(app, seed=seed, crashes=0.2) as h:
            await h.send(app.topics["events"], *records(crowd(1, 7)))
            await h.send(app.topics["events"], *records(crowd(31, 32)))
            await h.finish()
            cuts += h.cut
            return h.sent(app.sinks["fired"])

    whole = await fired(None)
    for seed in range(10):
        assert await fired(seed) == whole
    assert cuts or spec[0] == "count"  # whose windows fire one or two at a time


@pytest.mark.parametrize(
    "spec, declared",
    matrix(
        [("tumbling", 10, 0), ("sliding", 10, 5, 0), ("global",)],
        [False, True],
        quick=lambda spec, declared: (spec[0], declared) in (("tumbling", True), ("sliding", False)),
    ),
    ids=str,
)
def test_windows_that_are_mostly_in_the_store_fire_from_there(spec: flink.WindowSpec, declared: bool) -> None:
    keys = [f"k{n:04}" for n in range(0, 5_000, 2)]
    inputs = inputs_of(numbered([(key, time, 0) for time in (1, 6) for key in keys]))

    def build() -> App:
        return app_of(spec, form="declared" if declared else "hand")

    small = Cuts(commit_every=900, live_objects=50)
    same(unbroken(build, inputs), broken(build, inputs, [20, 20, 20], [small]))


@pytest.mark.parametrize(
    "form, keys", matrix(["hand", "declared"], [15_000, 300_000], quick=lambda form, keys: keys == 15_000)
)
def test_a_firing_of_many_keys_holds_few_results_at_once(form: str, keys: int) -> None:
    """Neither the results of a window nor what comes of them are ever all in memory."""
    commit_every = keys // 60
    events = [Event(f"k{n}", 0, n) for n in range(keys)]
    app = App("many")
    topic = app.topic("events", Event, key="key", time="at")
    sink = app.sink("fired", int)
    alive: list[int] = []
    count = 0
    windows: Any
    if form == "declared":
        windows = app.table("windows", of=topic, by="key", window=Tumbling(10), n=Count())
    else:
        windows = app.table("windows", str, Values, window=Tumbling(10))

        @app.each(topic, tables=[windows])
        def keep(event: Event) -> None:
            windows[event.key].values.append(event.value)

    @app.each(windows.closed, sinks=[sink])
    def closed(w: Closed[str, Any]) -> int:
        nonlocal count
        count += 1
        if count % (keys // 3) == 1:
            alive.append(sum(type(thing) is Closed for thing in gc.get_objects()))
        return count

    world = Staged([("events", lines(events))])
    play(world.run(app, commit_every=commit_every))
    assert world.out("fired", int) == list(range(1, keys + 1))
    assert max(alive) < 10
    assert max(world.staged) <= commit_every
    assert world.cut >= keys / commit_every - 1


class Staged(World):
    """Counts the records of each commit."""

    def __init__(self, inputs: Any) -> None:
        super().__init__(inputs)
        self.staged: list[int] = []

    async def run(self, app: App, **options: Any) -> World:
        async def hook(step: str) -> None:
            if step == "delivered":
                before = sum(self.staged)
                self.staged.append(sum(map(len, self.kept.values())) - before)
            await asyncio.sleep(0)

        return await super().run(app, hook=hook, **options)
