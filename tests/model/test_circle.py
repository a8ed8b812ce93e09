"""Groups that feed each other in a circle, through plain topics, end together: what each sends last is still handled.

events ──► counts (windows, a table) ── asks ──► answers (batches, or calls)
▲                                      │
└─────────────── backs ────────────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Record, Stream, Tumbling
from tests.depth import examples
from tests.model.test_engine import cuts
from tests.model.test_resume import broken, crash_plans, cut_plans, same
from tests.model.world import World, lines, play

SIZE = 20


class Event(Record):
    key: str
    at: int
    left: int


class Ask(Record):
    """It goes round `left` more times."""

    key: str
    at: int
    left: int


class Back(Record):
    key: str
    at: int
    left: int


class Seen(Record):
    who: str
    key: str
    left: int


def circle(how: str) -> App:
    """An event goes round as often as it says; a window that fires goes round as often as it has events."""
    app = App("circle")
    events = app.topic("events", Event, key="key", time="at")
    asks = app.topic("asks", Ask, key="key", time="at")
    backs = app.topic("backs", Back, key="key", time="at")
    seen = app.sink("seen", Seen)
    counts = app.table("counts", str, int, window=Tumbling(SIZE))
    returned = app.table("returned", str, int)

    @app.each(events, tables=[counts], sinks=[asks])
    def count(event: Event) -> Ask | None:
        counts[event.key] += 1
        return Ask(event.key, event.at, event.left) if event.left else None

    @app.each(counts.closed, sinks=[asks])
    def closed(w: Closed[str, int]) -> Ask:
        return Ask(w.key, w.end - 1, w.value)

    @app.agent(backs, tables=[returned], reads=[counts], sinks=[asks, seen])
    async def take_back(stream: Stream[Back]) -> AsyncIterator[Ask | Seen]:
        async for back in stream:
            returned[back.key] += 1
            yield Seen("counts", back.key, back.left)
            if back.left:
                yield Ask(back.key, back.at, back.left)

    def answer_to(ask: Ask) -> tuple[Seen, Back]:
        return Seen("answers", ask.key, ask.left), Back(ask.key, ask.at, ask.left - 1)

    async def call(ask: Ask) -> Ask:
        return ask

    if how == "batches":

        @app.agent(asks, sinks=[backs, seen])
        async def answers(stream: Stream[Ask]) -> AsyncIterator[Seen | Back]:
            async for batch in stream.batches(3):
                for ask in batch:
                    for answer in answer_to(ask):
                        yield answer

    else:

        @app.agent(asks.map_async(call, concurrency=4) if how == "calls" else asks, sinks=[backs, seen])
        async def answers(stream: Stream[Ask]) -> AsyncIterator[Seen | Back]:
            async for ask in stream:
                for answer in answer_to(ask):
                    yield answer

    return app


def expected(given_events: list[Event]) -> Counter[tuple[str, str, int]]:
    """What is seen, by a loop over what goes round."""
    windows = Counter((event.key, event.at // SIZE) for event in given_events)
    rounds = [(event.key, event.left) for event in given_events if event.left]
    rounds += [(key, n) for (key, _), n in windows.items()]
    found: Counter[tuple[str, str, int]] = Counter()
    for key, left in rounds:
        for n in range(left, 0, -1):
            found["answers", key, n] += 1
            found["counts", key, n - 1] += 1
    return found


# In order of time: an event that is late for a window is counted in none.
inputs = st.lists(st.builds(Event, st.sampled_from("ab"), st.integers(0, 90), st.integers(0, 3)), max_size=12).map(
    lambda found: sorted(found, key=lambda event: event.at)
)


@pytest.mark.parametrize("how", ["one by one", "batches", "calls"])
@examples(80)
@given(given_events=inputs, data=st.data())
def test_what_groups_in_a_circle_send_at_the_end_is_handled(
    how: str, given_events: list[Event], data: st.DataObject
) -> None:
    world = World([("events", lines(given_events))])
    play(world.run(circle(how), **data.draw(cuts())._asdict()))
    assert world.letters() == []
    seen = Counter((row.who, row.key, row.left) for row in world.out("seen", Seen))
    assert seen == expected(given_events)


@pytest.mark.parametrize("how", ["one by one", "batches", "calls"])
@examples(40)
@given(given_events=inputs, data=st.data())
def test_a_circle_leaves_the_same_bytes_wherever_it_is_cut_and_killed(
    how: str, given_events: list[Event], data: st.DataObject
) -> None:
    sources = [("events", lines(given_events))]
    left = broken(lambda: circle(how), sources, data.draw(crash_plans), data.draw(cut_plans))
    same(play(World(sources).run(circle(how))), left)
