"""map_async against the same app with map in its place: whatever calls take, and wherever a run is cut or killed.

Events are out of order by less than the watermark waits for, so none is late: with calls under way the watermark is
behind, and what a sequential run finds late may still be in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, DeadLetter, Record, Retry, Sum, Tumbling
from flowkit.testing import harness
from tests.depth import examples
from tests.model.apps import Broken, Event, Trouble
from tests.model.test_engine import cuts
from tests.model.test_resume import broken, crash_plans, cut_plans, same, unbroken
from tests.model.world import World, lines, play

How = Literal["map", "each", "batches"]

DISORDER = 20


class Scored(Record):
    key: str
    at: int
    value: int


class Total(Record):
    key: str
    end: int
    total: int


class Totals(Record):
    total: int = 0
    seen: list[int] = []


@dataclass
class Config:
    """An app, and how long its calls take (turns of the event loop, by value)."""

    first: int = 3
    second: int = 2
    size: int = 3
    within: int | None = None
    ordered: bool = True
    turns: Sequence[int] = (0,)
    refuse: frozenset[int] = frozenset()
    flaky: frozenset[int] = frozenset()
    agent_at: frozenset[int] = frozenset()
    agent_once: frozenset[int] = frozenset()
    calls: list[int] = field(default_factory=list)


def app_of(how: How, config: Config) -> App:
    """The app, or its sequential likeness, in which what is refused is not there.

    events ── filter ── call ── map ──┬── agent ── scored
                                      └── sums ── call ── agent over a table of its own ── totals
    """
    app = App("calls")
    source = app.topic("events", Event, key="key", time="at", out_of_order=DISORDER)
    scored_sink, totals_sink, beside_sink = (
        app.sink("scored", Scored),
        app.sink("totals", Total),
        app.sink("beside", Event),
    )
    left = set(config.flaky)
    trouble = Trouble(at=config.agent_at, once=config.agent_once)

    def score(event: Event) -> Scored:
        config.calls.append(event.value)
        if event.value in config.refuse:
            raise Broken(f"refused {event.value}")
        if event.value in left:
            left.discard(event.value)
            raise Broken("once")
        return Scored(event.key, event.at, event.value * 10)

    async def score_later(event: Event) -> Scored:
        for _ in range(config.turns[event.value % len(config.turns)]):
            await asyncio.sleep(0)
        return score(event)

    async def score_batch(events: list[Event]) -> list[Scored]:
        for _ in range(config.turns[events[0].value % len(config.turns)]):
            await asyncio.sleep(0)
        return [score(event) for event in events]

    def total(w: Closed[str, Any]) -> Total:
        return Total(w.key, w.end, w.value.n)

    async def total_later(w: Closed[str, Any]) -> Total:
        for _ in range(config.turns[w.end % len(config.turns)]):
            await asyncio.sleep(0)
        return total(w)

    wanted = source.filter(lambda event: event.value % 5 != 4)
    retry, ordered = Retry(attempts=2, backoff=0, errors=(Broken,)), config.ordered
    if how == "map":
        scored = wanted.filter(lambda event: event.value not in config.refuse).map(score)
    elif how == "each":
        scored = wanted.map_async(score_later, concurrency=config.first, retry=retry, ordered=ordered)
    else:
        scored = wanted.map_async_batches(
            score_batch, size=config.size, within=config.within, concurrency=config.second, retry=retry, ordered=ordered
        )
    scored = scored.map(lambda s: Scored(s.key, s.at, s.value + 1), type=Scored)
    sums: Any = app.table("sums", of=scored, by="key", window=Tumbling(10), n=Sum("value"))
    closed = (
        sums.closed.map(total)
        if how == "map"
        else sums.closed.map_async(total_later, concurrency=config.second, ordered=ordered)
    )
    seconds = app.table("seconds", str, Totals, window=Tumbling(20))

    @app.each(scored, sinks=[scored_sink], retry=Retry(attempts=2, backoff=0))
    def tell(event: Scored) -> Scored:
        event.value += 1  # what one does to an event, another try must not see
        trouble(event.value)
        return event

    @app.each(closed, tables=[seconds])
    def keep(event: Total) -> None:
        window = seconds[event.key]
        window.total += event.total
        window.seen.append(event.end)

    @app.each(seconds.closed, sinks=[totals_sink])
    def tell_total(w: Closed[str, Totals]) -> Total:
        assert len(w.value.seen) <= 2
        return Total(w.key, w.end, w.value.total)

    if how != "map":

        @app.each(source, sinks=[beside_sink])
        def beside(event: Event) -> Event:
            return event

    return app


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    some = st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, DISORDER - 1))
    steps = draw(st.lists(some, max_size=25))
    now, found = 0, []
    for n, (key, step, back) in enumerate(steps):
        now += step
        found.append(Event(key, now - back, n))
    return found


numbers = st.integers(0, 25)
few = st.frozensets(numbers, max_size=3)


def configs(**fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    some = st.sampled_from((1, 2, 3, 64))
    return st.fixed_dictionaries(
        {
            "first": some,
            "second": some,
            "size": some,
            "within": st.none() | st.integers(1, 40),
            "turns": st.lists(st.integers(0, 6), min_size=1, max_size=7),
            "refuse": few,
            "flaky": few,
            "agent_at": few.map(lambda values: frozenset(v * 10 + 2 for v in values)),
            "agent_once": few.map(lambda values: frozenset(v * 10 + 2 for v in values)),
            **fixed,
        }
    )


def letters(found: list[DeadLetter]) -> list[tuple[Any, ...]]:
    return sorted((d.topic, d.partition, d.offset, d.error, d.reason) for d in found)


def wanted(given_events: list[Event], config: dict[str, Any]) -> World:
    """What the sequential app makes of it: flaky calls are as good as good ones."""
    sequential = Config(**{**config, "flaky": frozenset()})
    return play(World([("events", lines(given_events))]).run(app_of("map", sequential)))


def letters_wanted(given_events: list[Event], config: dict[str, Any], expected: World) -> list[tuple[Any, ...]]:
    refused = [n for n in range(len(given_events)) if n in config["refuse"] and n % 5 != 4]
    return sorted(letters(expected.letters()) + [("events", 0, n, "Broken", f"refused {n}") for n in refused])


@pytest.mark.parametrize("how", ["each", "batches"])
@examples(150)
@given(data=st.data())
def test_a_bounded_run_gives_what_a_sequential_one_gives(how: How, data: st.DataObject) -> None:
    config, given_events = data.draw(configs()), data.draw(events())
    expected = wanted(given_events, config)
    world = World([("events", lines(given_events))])
    play(world.run(app_of(how, Config(**config)), **data.draw(cuts())._asdict()))
    for sink in ("scored", "totals"):
        assert world.kept[sink] == expected.kept[sink], sink
    assert world.kept["beside"] == lines(given_events)
    assert letters(world.letters()) == letters_wanted(given_events, config, expected)


@pytest.mark.parametrize("how", ["each", "batches"])
@examples(150)
@given(data=st.data())
def test_a_bounded_run_leaves_the_same_bytes_whatever_calls_take_and_wherever_it_is_killed(
    how: How, data: st.DataObject
) -> None:
    config, given_events = data.draw(configs()), data.draw(events())
    inputs = [("events", lines(given_events))]
    others = st.lists(st.integers(0, 6), min_size=1, max_size=7)

    def build() -> App:
        return app_of(how, Config(**config))

    def build_other() -> App:
        return app_of(how, Config(**{**config, "turns": data.draw(others)}))

    same(unbroken(build, inputs), broken(build_other, inputs, data.draw(crash_plans), data.draw(cut_plans)))


@pytest.mark.parametrize("how", ["each", "batches"])
@pytest.mark.parametrize("ordered", [True, False])
@examples(60)
@given(data=st.data())
def test_a_live_run_that_crashes_at_random_gives_what_a_sequential_one_gives(
    how: How, ordered: bool, data: st.DataObject
) -> None:
    config = data.draw(configs(flaky=st.just(frozenset()), ordered=st.just(ordered)))
    given_events = data.draw(events())
    expected = wanted(given_events, config)
    pieces = data.draw(st.lists(st.integers(1, 10), max_size=5))
    seed = data.draw(st.none() | st.integers(0, 1000))
    scored, totals, dead = play(send(app_of(how, Config(**config)), given_events, pieces, seed))
    arrange: Callable[[Any], Any] = list if ordered else sorted
    told = [(s.key, s.at, s.value) for s in scored]
    assert arrange(told) == arrange([(s.key, s.at, s.value) for s in expected.out("scored", Scored)])
    summed = [(t.end, t.key, t.total) for t in totals]
    assert summed == [(t.end, t.key, t.total) for t in expected.out("totals", Total)]
    assert letters(dead) == letters_wanted(given_events, config, expected)


async def send(
    app: App, given_events: list[Event], pieces: list[int], seed: int | None
) -> tuple[list[Scored], list[Total], list[DeadLetter]]:
    async with harness(app, seed=seed, crashes=0.1) as h:
        left = given_events
        for size in [*pieces, len(left)]:
            await h.send(app.topics["events"], *left[:size])
            left = left[size:]
        await h.finish()
        return h.sent(app.sinks["scored"]), h.sent(app.sinks["totals"]), h.sent(app.dead_letters)
