"""Calls in every place at once: chained through a topic, behind merged inputs, windows, late records, dead letters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from flowkit import App, Closed, DeadLetter, Session, Sliding, Sum
from flowkit.testing import harness
from tests.model.apps import Broken, Event
from tests.model.test_resume import same
from tests.model.world import Crash, World, lines, play


def zoo(turns: Sequence[int], disorder: int) -> App:
    """Calls take as many turns of the event loop as `turns` says, by value."""
    app = App("zoo")
    a, b = (app.topic(name, Event, key="key", time="at", out_of_order=disorder) for name in "ab")
    c = app.topic("c", Event, key="key", time="at", out_of_order=10 * disorder)
    out, late, dead = app.sink("out", Event), app.sink("late", Event), app.sink("dead", Event)

    async def add(event: Event) -> Event:
        for _ in range(turns[event.value % len(turns)]):
            await asyncio.sleep(0)
        if event.value % 11 == 10:
            raise Broken("add")
        return Event(event.key, event.at, event.value + 1)

    async def double(events: list[Event]) -> list[Event]:
        for _ in range(turns[events[0].value % len(turns)]):
            await asyncio.sleep(0)
        return [Event(event.key, event.at, event.value * 2) for event in events]

    async def close(w: Closed[str, Any]) -> Event:
        await asyncio.sleep(0)
        return Event(w.key, w.end - 1, w.value.total)

    async def look(letter: DeadLetter) -> Event:
        return Event(letter.error, letter.time or 0, letter.offset)

    @app.each(a.merge(b).map_async(add, concurrency=3), sinks=[c])
    def send(event: Event) -> Event:
        if event.value % 13 == 12:
            raise Broken("send")
        return event

    doubled = c.map_async_batches(double, size=4, within=20, concurrency=2)
    some = doubled.filter(lambda event: event.value % 3)
    sessions: Any = app.table("sessions", of=doubled, by="key", window=Session(7), total=Sum("value"))
    slides: Any = app.table("slides", of=some, by="key", window=Sliding(20, 10), total=Sum("value"))

    @app.each(sessions.closed.merge(slides.closed).map_async(close, concurrency=2), sinks=[out])
    def tell(event: Event) -> Event:
        return event

    @app.each(slides.late.map_async(add), sinks=[late])
    def tell_late(event: Event) -> Event:
        return event

    @app.each(app.dead_letters.map_async(look), sinks=[dead])
    def tell_dead(event: Event) -> Event:
        return event

    return app


def events(chance: random.Random, most: int) -> list[Event]:
    now, found = 0, []
    for n in range(chance.randint(0, most)):
        now += chance.randint(0, 6)
        found.append(Event(chance.choice("ab"), max(0, now - chance.randint(0, 9)), n))
    return found


def some_turns(chance: random.Random) -> list[int]:
    return [chance.randint(0, 5) for _ in range(4)]


@pytest.mark.parametrize("seed", range(6))
def test_a_bounded_run_leaves_the_same_bytes_wherever_it_is_cut_and_killed(seed: int) -> None:
    chance = random.Random(seed)
    inputs = [("a", lines(events(chance, 40))), ("b", lines(events(chance, 25)))]
    unbroken = play(World(inputs).run(zoo([0], 5)))
    broken = World(inputs)
    for last in (False, False, False, True):
        left = chance.randint(0, 15)

        async def hook(step: str, last: bool = last) -> None:
            nonlocal left
            left -= 1
            if left < 0 and not last:
                raise Crash(step)

        cut: Any = {
            "commit_every": chance.choice((1, 2, 5, 50)),
            "batch_size": chance.choice((1, 3, 50)),
            "piece": chance.choice((1, 4, 99)),
        }
        try:
            play(broken.run(zoo(some_turns(chance), 5), hook=hook, **cut))
        except Crash:
            continue
    same(unbroken, broken)


@pytest.mark.parametrize("seed", range(6))
async def test_a_live_run_counts_each_event_once_through_crashes(seed: int) -> None:
    chance = random.Random(seed)
    left = {"a": events(chance, 40), "b": events(chance, 25)}
    given = [*left["a"], *left["b"]]
    app = zoo(some_turns(chance), 50)
    async with harness(app, seed=seed, crashes=0.08, partitions=chance.choice((1, 2))) as h:
        while any(left.values()):
            name, count = chance.choice("ab"), chance.randint(1, 9)
            await h.send(app.topics[name], *left[name][:count])
            left[name] = left[name][count:]
        await h.finish()
        await h.drain()
        passed = [event for event in given if event.value % 11 != 10 and (event.value + 1) % 13 != 12]
        wanted = Counter((event.key, event.at, event.value + 1) for event in passed)
        assert Counter((event.key, event.at, event.value) for event in h.sent(app.topics["c"])) == wanted
        assert h.sent(app.sinks["late"]) == []
        # Each counts in one session, and, if it is let through, in two windows that slide.
        totals = [2 * (event.value + 1) * (1 if 2 * (event.value + 1) % 3 == 0 else 3) for event in passed]
        assert sum(event.value for event in h.sent(app.sinks["out"])) == sum(totals)
        assert len(h.sent(app.dead_letters)) == len(given) - len(passed)
