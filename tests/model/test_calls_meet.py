"""map_async before and behind joins, patterns, timers and group_by: what comes is what `map` in its place gives.

Events are out of order by less than the watermark waits for, so none is late. What depends on which of two events was
handled first, such as a timer that another event would have moved, may differ, and is not asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Count, Joined, Record, Stream, Sum, Tick, Timer, Tumbling
from flowkit.cli.explain import mermaid_of, text_of
from flowkit.errors import ConfigError
from flowkit.flow import Events, key_of
from flowkit.pattern import Match, Pattern, TimedOut
from flowkit.record import END_OF_TIME
from flowkit.testing import harness
from flowkit.window import Splits
from tests.depth import examples
from tests.model.apps import Event
from tests.model.test_calls import DISORDER, events
from tests.model.test_engine import cuts
from tests.model.test_rekey import Job, Sale, Told, a_walk, one_task, several
from tests.model.test_resume import broken, crash_plans, cut_plans, same
from tests.model.world import World, lines, play

How = Literal["map", "each", "batches"]
Meets = Literal["join", "match", "timers"]

CALLED: list[How] = ["each", "batches"]
MEETS: list[Meets] = ["join", "match", "timers"]


class Note(Record):
    text: str
    at: int = 0


@dataclass
class Calls:
    """How calls are made, and how many turns of the event loop they take, by time."""

    how: How = "map"
    concurrency: int = 3
    size: int = 3
    turns: Sequence[int] = (0,)
    within: int | None = None

    def __call__(self, stream: Events[Any], function: Any) -> Events[Any]:
        """What the function makes of each event of a stream."""
        type_ = function.__annotations__["return"]
        type_ = {"Note": Note, "Event": Event, "Sale": Sale}[type_]

        async def later(event: Any) -> Any:
            made = function(event)
            for _ in range(self.turns[made.at % len(self.turns)]):
                await asyncio.sleep(0)
            return made

        async def all_later(given_events: list[Any]) -> list[Any]:
            return [await later(event) for event in given_events]

        if self.how == "map":
            return stream.map(function, type=type_)
        if self.how == "each":
            return stream.map_async(later, concurrency=self.concurrency, type=type_)
        return stream.map_async_batches(
            all_later, size=self.size, within=self.within, concurrency=self.concurrency, type=type_
        )


def _score(event: Event) -> Event:
    return Event(event.key, event.at, event.value + 1000)


def _values(found: dict[str, list[Event]]) -> str:
    return " ".join(f"{name}={[event.value for event in taken]}" for name, taken in sorted(found.items()))


def app_of(meets: Meets, calls: Calls) -> App:
    app = App("meet")
    left, right = (
        app.topic(name, Event, key="key", time="at", out_of_order=2 * DISORDER) for name in ("left", "right")
    )
    {"join": _join, "match": _match, "timers": _timers}[meets](app, calls, left, right, app.sink("notes", Note))
    return app


def _tell(app: App, stream: Events[Any], notes: Any, name: str) -> None:
    @app.each(stream, sinks=[notes], name=name)
    def tell(note: Note) -> Note:
        return note


def _join(app: App, calls: Calls, left: Any, right: Any, notes: Any) -> None:
    """Two sides, each behind calls, with pairs and single rows that go through calls themselves."""
    joined = calls(left, _score).join(calls(right, _score), on="key", within=(-10, 15), how="outer")

    def told(row: Joined[Any, Any]) -> Note:
        both = [None if event is None else event.value for event in (row.left, row.right)]
        return Note(f"{both}", max(event.at for event in (row.left, row.right) if event is not None))

    _tell(app, calls(joined, told), notes, "pairs")

    def late(event: Event) -> Note:
        return Note(f"late {event.value}")

    _tell(app, joined.late.map(late), notes, "late")


def _match(app: App, calls: Calls, left: Any, right: Any, notes: Any) -> None:
    """A pattern over results, and what it finds, and what runs out, through calls."""
    pattern = (
        Pattern[Event]
        .begin("odd", lambda event: event.value % 2 == 1)
        .followed_by("even", lambda event: event.value % 2 == 0)
        .within(25)
    )
    found = calls(left.merge(right), _score).match(pattern, by="key")

    def told(match: Match[Any, Event]) -> Note:
        return Note(f"match {match.key} {_values(match.events)}", match.end)

    def timed_out(out: TimedOut[Any, Event]) -> Note:
        return Note(f"timed out {out.key} {_values(out.events)}", out.at)

    _tell(app, calls(found, told), notes, "found")
    _tell(app, calls(found.timed_out, timed_out), notes, "out")


def _timers(app: App, calls: Calls, left: Any, right: Any, notes: Any) -> None:
    """Each event sets a timer of its own; what comes of that goes through a call, and sets another one, twice."""
    timers, seen = app.timers("timers", str), app.table("seen", str, int)

    @app.each(calls(left.merge(right), _score), tables=[timers, seen])
    def begin(event: Event) -> None:
        seen[event.key] += 1
        timers.set(f"{event.value} {event.key}", event.at + event.value % 40)

    def came(timer: Timer[str]) -> Note:
        return Note(timer.key, timer.at)

    @app.agent(calls(timers, came), tables=[timers], sinks=[notes])
    async def again(stream: Stream[Note]) -> AsyncIterator[Note]:
        async for note in stream:
            if note.text.count("+") < 2:
                timers.set(f"{note.text}+", note.at + (3 if note.at % 2 else 30))
            yield note

    @app.timer(25, clock="event", reads=[seen], sinks=[notes])
    def tick(t: Tick) -> Note:
        return Note("tick", t.at)


def notes_of(world: World) -> list[tuple[str, int]]:
    return sorted((note.text, note.at) for note in world.out("notes", Note))


def configs(how: How) -> st.SearchStrategy[Calls]:
    some = st.sampled_from((1, 2, 3, 64))
    return st.builds(Calls, st.just(how), some, some, st.lists(st.integers(0, 6), min_size=1, max_size=5))


two_inputs = st.fixed_dictionaries({"left": events(), "right": events()}).map(
    lambda found: {
        # No time in both: which comes first then is another matter in a live run.
        name: [
            Event(event.key, 2 * event.at + (name == "right"), event.value + 500 * (name == "right")) for event in rows
        ]
        for name, rows in found.items()
    }
)


def wanted(meets: Meets, given_events: dict[str, list[Event]]) -> World:
    inputs = [(name, lines(rows)) for name, rows in given_events.items()]
    return play(World(inputs).run(app_of(meets, Calls())))


@pytest.mark.parametrize("how", CALLED)
@pytest.mark.parametrize("meets", MEETS)
@examples(80)
@given(data=st.data())
def test_a_bounded_run_gives_what_a_sequential_one_gives(meets: Meets, how: How, data: st.DataObject) -> None:
    given_events, calls = data.draw(two_inputs), data.draw(configs(how))
    world = World([(name, lines(rows)) for name, rows in given_events.items()])
    play(world.run(app_of(meets, calls), **data.draw(cuts())._asdict()))
    assert world.letters() == []
    assert notes_of(world) == notes_of(wanted(meets, given_events))


@pytest.mark.parametrize("how", CALLED)
@pytest.mark.parametrize("meets", MEETS)
@examples(60)
@given(data=st.data())
def test_a_bounded_run_leaves_the_same_bytes_wherever_it_is_cut_and_killed(
    meets: Meets, how: How, data: st.DataObject
) -> None:
    given_events, calls = data.draw(two_inputs), data.draw(configs(how))
    inputs = [(name, lines(rows)) for name, rows in given_events.items()]

    def build() -> App:
        return app_of(meets, calls)

    same(play(World(inputs).run(build())), broken(build, inputs, data.draw(crash_plans), data.draw(cut_plans)))


@pytest.mark.parametrize("how", CALLED)
@pytest.mark.parametrize("meets", MEETS)
@examples(40)
@given(data=st.data())
def test_a_live_run_that_crashes_gives_what_a_sequential_one_gives(meets: Meets, how: How, data: st.DataObject) -> None:
    given_events, calls = data.draw(two_inputs), data.draw(configs(how))
    seed, size = data.draw(st.none() | st.integers(0, 1000)), data.draw(st.integers(1, 10))

    async def live() -> list[Note]:
        app = app_of(meets, calls)
        async with harness(app, seed=seed, crashes=0.1) as h:
            left = {name: list(rows) for name, rows in given_events.items()}
            while any(left.values()):
                for name, rows in left.items():
                    await h.send(app.topics[name], *rows[:size])
                    del rows[:size]
            await h.finish()
            assert h.sent(app.dead_letters) == []
            return h.sent(app.sinks["notes"])

    # Where ticks begin is where the first event is, which is another one in a live run.
    found = sorted((note.text, note.at) for note in play(live()) if note.text != "tick")
    assert found == [(text, at) for text, at in notes_of(wanted(meets, given_events)) if text != "tick"]


# --- group_by behind calls, before them, and between ------------------------------------------------------------------


def rekeyed(calls: Calls) -> Job:
    """Calls in front of a group_by, behind it, behind a join, and in front of the next group_by.

    sales ── call ── group_by shop ── call ── join ──┬── call ── told
                                                     └── call ── group_by text ── told
    """
    app = App("job")
    out = app.topic("out", Told, key="key")
    sales = app.topic("sales", Sale, key="user", time="at", out_of_order=DISORDER)

    def first(sale: Sale) -> Sale:
        return Sale(sale.user, sale.shop, sale.at, sale.value * 2)

    def second(sale: Sale) -> Sale:
        return Sale(sale.user, sale.shop, sale.at, sale.value + 1)

    by_shop = calls(calls(sales.filter(lambda sale: sale.value % 7), first).group_by("shop"), second)
    even, odd = by_shop.filter(lambda sale: sale.value // 2 % 2 == 0), by_shop.filter(lambda s: s.value // 2 % 2 == 1)
    pairs = even.join(odd, on="shop", within=(-5, 10), how="outer")

    def third(row: Joined[Any, Any]) -> Note:
        both = [sale for sale in (row.left, row.right) if sale is not None]
        return Note(f"{both[0].shop} {[sale.value for sale in both]}", max(sale.at for sale in both))

    @app.each(calls(pairs, third), sinks=[out], name="tell-pairs")
    def tell_pair(note: Note) -> Told:
        return Told("pair", note.text, note.at, note.at + 1, [])

    # Nothing behind these waits for an incomplete batch, so it has a time of its own.
    last = replace(calls, within=700)

    @app.each(last(calls(pairs, third).group_by("text"), _again), sinks=[out], name="tell-again")
    def tell_again(note: Note) -> Told:
        return Told("again", note.text, note.at, note.at + 1, [])

    return Job(app, ("sales",))


def _again(note: Note) -> Note:
    return Note(note.text, note.at)


def _compare(how: How, seeds: range) -> int:
    """How often the plug was pulled."""
    crashed = 0
    for seed in seeds:
        chance = Random(seed)
        inputs = {"sales": a_walk(chance, 60)}
        turns = [chance.randint(0, 5) for _ in range(4)]
        calls = Calls(how, chance.choice((1, 2, 64)), chance.choice((1, 3)), turns)
        found, crowd = several(rekeyed(calls), inputs, seed, partitions=2, crashes=0.1)
        assert found == one_task(rekeyed(Calls()), inputs)
        crashed += crowd.crashed
    return crashed


@pytest.mark.parametrize("how", CALLED)
def test_several_tasks_with_calls_that_crash_and_move_tell_what_one_without_tells(how: How) -> None:
    assert _compare(how, range(6)) > 20


# --- the comparison can fail ------------------------------------------------------------------------------------------


def test_marks_that_are_ahead_of_calls_under_way_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.worker.engine.Engine.mark", _mark_as_reached)
    with pytest.raises(AssertionError):
        _compare("each", range(8))


def _mark_as_reached(self: Any) -> tuple[int, int] | None:
    return None if self.unfinished else (self.splits.reached(), self.splits.standing())


def test_a_task_with_calls_under_way_is_not_idle() -> None:
    splits = Splits()
    splits.add("a", 0).high = 100
    splits.by_name["a"].idle = True
    splits.hold = 50
    assert splits.standing() == 0
    splits.hold = END_OF_TIME
    assert splits.standing() == 1


# --- the end of the input, and before ---------------------------------------------------------------------------------


def test_windows_whose_results_are_called_for_fire_while_a_bounded_run_goes_on() -> None:
    """What a firing calls held the watermark until there was no room for more calls, which never came to be."""
    app = App("goes-on")
    events = app.topic("events", Event, key="key", time="at")
    sums: Any = app.table("sums", of=events, by="key", window=Tumbling(10), n=Sum("value"))
    seen, told_at = [], []

    async def close(w: Closed[str, Any]) -> Event:
        return Event(w.key, w.end - 1, w.value.n)

    @app.each(events)
    def count(event: Event) -> None:
        seen.append(event.at)

    @app.each(sums.closed.map_async(close).map_async(_score_later))
    def tell(event: Event) -> None:
        told_at.append(len(seen) - event.at)

    play(World([("events", lines([Event("a", at, 1) for at in range(500)]))]).run(app))
    assert len(told_at) == 50
    assert max(told_at[:-1]) <= 12  # by when the next window was due


async def _score_later(event: Event) -> Event:
    return _score(event)


def test_a_timer_that_is_set_again_behind_a_call_comes_to_an_end_with_the_input() -> None:
    app = App("again")
    events, notes = app.topic("events", Event, key="key", time="at"), app.sink("notes", Note)
    timers = app.timers("timers", str)

    @app.each(events.map_async(_score_later), tables=[timers])
    def begin(event: Event) -> None:
        timers.set(event.key, event.at + 5)

    async def came(timer: Timer[str]) -> Note:
        return Note(timer.key, timer.at)

    @app.each(timers.map_async(came), tables=[timers], sinks=[notes])
    def again(note: Note) -> Note:
        timers.set(note.text, note.at + 10)
        return note

    world = play(World([("events", lines([Event("a", 0, 1), Event("b", 38, 1)]))]).run(app))
    assert notes_of(world) == [("a", 5), ("a", 15), ("a", 25), ("a", 35), ("a", 45), ("b", 43)]


def test_the_key_of_results_is_not_that_of_their_events() -> None:
    app = App("keys")
    events = app.topic("events", Event, key="key", time="at")
    called = events.map_async(_score_later)
    assert key_of(called) is None
    assert key_of(called.filter(bool)) is None
    with pytest.raises(ConfigError, match="by which key"):
        called.match(Pattern[Event].begin("any", lambda _: True))
    by_value = called.group_by("value")
    counts: Any = app.table("counts", of=by_value, by="value", n=Count())

    @app.each(counts.changes)
    def look(change: Any) -> None: ...

    first, second = app.plan(rekey=True).groups
    assert (first.name, [topic.name for topic in first.topics]) == ("from-events", ["events"])
    assert [stream.name for stream in first.called] == [called.name]
    assert [topic.name for topic in second.topics] == [f"keys.{by_value.name}"]
    assert second.called == []
    text = "\n".join(text_of(app, [first, second], {}))
    assert f"-> calls {called.name}" in text
    assert f"calls {called.name}: await _score_later for each event of events" in text
    assert f"-> re-keyed by value through topic keys.{by_value.name}" in text
    drawn = mermaid_of(app, [first, second])
    (box,) = [line.split("{{")[0].strip() for line in drawn.splitlines() if "{{" in line]
    (topic,) = [line.split("[(")[0].strip() for line in drawn.splitlines() if '"events"' in line]
    assert f"  {topic} --> {box}" in drawn
    assert f"  {box} --> " in drawn
