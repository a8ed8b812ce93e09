"""Timers and ticks against a model that keeps a dict and looks for the least due time: the bytes that come out.

One group has three tables of timers (two in event time, one by the clock) between windows, two periodic agents, and one
agent that sets, cancels and fails as its input says. Another group has nothing but the clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import App, Closed, Record, Stream, Tick, Timer, Tumbling
from flowkit import Count as Counting
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.testing import harness
from tests.depth import examples
from tests.model.apps import Broken
from tests.model.test_engine import Cuts
from tests.model.test_resume import broken, crash_plans, cut_plans, same, unbroken
from tests.model.world import World, lines, play

NAMES = "abc"
WINDOW, EVERY, WALL, ALONE = 10, 7, 6, 9


class Op(Record):
    """Set (`due`) or cancel (None) the timer of `key`, keep what its next timers do, and fail or not."""

    key: str
    at: int
    timers: str
    due: int | None
    then: list[int] = []
    fails: bool = False


class Came(Record):
    timers: str
    key: str
    at: int


class Note(Record):
    text: str


def app_of(disorder: int, *, retry_fails: bool = False) -> App:
    app = App("timers")
    ops = app.topic("ops", Op, key="key", time="at", out_of_order=disorder)
    beats = app.topic("beats", Note)
    notes, heard = app.sink("notes", Note), app.sink("heard", Note)
    a = app.timers("a", str)
    windows = app.table("windows", of=ops, by="key", window=Tumbling(WINDOW), n=Counting())
    b = app.timers("b", str)
    c = app.timers("c", str, clock="wall")
    plan = app.table("plan", str, list[int])
    handles = {"a": a, "b": b, "c": c}

    def came(name: str) -> Any:
        return handles[name].map(lambda t: Came(name, t.key, t.at), type=Came, name=f"came-{name}")

    def all_of(key: str) -> str:
        return " ".join(str(handle.get(key)) for handle in (a, b, c))

    @app.agent(ops, came("a"), came("b"), came("c"), tables=[plan], sinks=[notes])
    async def agent(stream: Stream[Op | Came]) -> AsyncIterator[Note]:
        async for event in stream:
            timers = handles[event.timers]
            if isinstance(event, Op):
                if event.then:
                    plan[event.key] = list(event.then)
                if event.due is None:
                    timers.cancel(event.key)
                else:
                    timers.set(event.key, event.due)
                yield Note(f"op {event.key}: {all_of(event.key)}")
                if event.fails:
                    raise Broken("op")
                continue
            yield Note(f"{event.timers} {event.key} {event.at}: {all_of(event.key)}")
            if plan[event.key]:
                step = plan[event.key].pop(0)
                handles[NAMES[step % 3]].set(event.key, event.at + step)
                if step == 0:
                    raise Broken("timer")

    @app.each(windows.closed, tables=[a], sinks=[notes])
    def closed(w: Closed[str, Any]) -> Note:
        a.set(w.key, w.end + 3)
        return Note(f"closed {w.key} {w.end} {w.value.n}")

    @app.timer(EVERY, clock="event", reads=[plan], sinks=[notes])
    def tick(t: Tick) -> Note:
        return Note(f"tick {t.at} {[key for key, steps in plan.scan() if steps]}")

    @app.timer(WALL, reads=[plan], sinks=[notes])
    async def wall(t: Tick) -> Note:
        return Note(f"wall {t.at}")

    @app.timer(ALONE, sinks=[beats])
    def alone(t: Tick) -> Note:
        return Note(f"alone {t.at}")

    @app.each(beats, sinks=[heard])
    def hear(beat: Note) -> Note:
        return beat

    return app


@dataclass
class Model:
    """What comes out, by the plainest means."""

    disorder: int
    out: list[str] = field(default_factory=list)
    letters: int = 0
    timers: dict[str, dict[str, tuple[int, bool]]] = field(default_factory=lambda: {name: {} for name in NAMES})
    """By table and key: the due time, and whether it will ever come."""
    plan: dict[str, list[int]] = field(default_factory=dict)
    windows: dict[int, dict[str, int]] = field(default_factory=dict)
    watermark: int = MIN_TIME
    high: int = MIN_TIME
    tick: int | None = None
    wall: int | None = None

    def run(self, ops: list[Op]) -> None:
        for op in ops:
            now = max(self.high, op.at)
            if self.wall is None:
                self.wall = -(-op.at // WALL) * WALL
            self.clock = now
            self.fire()
            self.unit(lambda op=op: self.do(op))
            self.high = now
            self.watermark = max(self.watermark, now - self.disorder - 1)
            if self.tick is None:
                self.tick = -(-op.at // EVERY) * EVERY
            self.fire()
        self.watermark = END_OF_TIME
        if ops:
            self.fire()

    def unit(self, work: Any) -> None:
        before = {name: dict(timers) for name, timers in self.timers.items()}
        plan, said = {key: list(steps) for key, steps in self.plan.items()}, len(self.out)
        try:
            work()
        except Broken:
            self.letters += 1
            self.timers, self.plan = before, plan
            del self.out[said:]

    def set(self, name: str, key: str, at: int) -> None:
        beyond = name != "c" and self.watermark == END_OF_TIME and at > self.high
        self.timers[name][key] = (at, not beyond and at < END_OF_TIME)

    def all_of(self, key: str) -> str:
        return " ".join(str(self.timers[name].get(key, (None,))[0]) for name in NAMES)

    def do(self, op: Op) -> None:
        if op.then:
            self.plan[op.key] = list(op.then)
        if op.due is None:
            self.timers[op.timers].pop(op.key, None)
        else:
            self.set(op.timers, op.key, op.due)
        self.out.append(f"op {op.key}: {self.all_of(op.key)}")
        if op.fails:
            raise Broken
        end = (op.at // WINDOW + 1) * WINDOW
        if self.watermark < end - 1:
            self.windows.setdefault(end, {}).setdefault(op.key, 0)
            self.windows[end][op.key] += 1

    def come(self, name: str, key: str, at: int) -> None:
        self.out.append(f"{name} {key} {at}: {self.all_of(key)}")
        if self.plan.setdefault(key, []):
            step = self.plan[key].pop(0)
            if step == 0 or (NAMES[step % 3] == name and step <= 0):
                raise Broken
            self.set(NAMES[step % 3], key, at + step)

    def first(self, name: str) -> int | None:
        limit = self.clock if name == "c" else self.watermark
        return min((at for at, comes in self.timers[name].values() if comes and at <= limit), default=None)

    def fire(self) -> None:
        while True:
            assert self.wall is not None
            event_end = min(self.watermark, self.high)
            due = {
                0: self.first("a"),
                1: min((end - 1 for end in self.windows if end - 1 <= self.watermark), default=None),
                2: self.first("b"),
                3: self.first("c"),
                4: self.tick if self.tick is not None and self.tick <= event_end else None,
                5: self.wall if self.wall <= self.clock else None,
            }
            found = [(at, n) for n, at in due.items() if at is not None]
            if not found:
                return
            at, n = min(found)
            if n == 1:
                for key, count in sorted(self.windows.pop(at + 1).items()):
                    self.set("a", key, at + 4)
                    self.out.append(f"closed {key} {at + 1} {count}")
            elif n == 4:
                self.out.append(f"tick {at} {sorted(key for key, steps in self.plan.items() if steps)}")
                self.tick = at + EVERY
            elif n == 5:
                self.out.append(f"wall {at}")
                self.wall = at + WALL
            else:
                self.fire_timers({0: "a", 2: "b", 3: "c"}[n], at)

    def fire_timers(self, name: str, at: int) -> None:
        while self.first(name) == at:
            key = min(key for key, (due, comes) in self.timers[name].items() if due == at and comes)
            del self.timers[name][key]
            self.unit(lambda key=key: self.come(name, key, at))
            if any((other := self.first(each)) is not None and other < at for each in NAMES):
                return  # one set for a time that has passed comes before what is left


times = st.integers(-20, 90)
steps = st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 20, 21, 60, -1, -3, -4)), max_size=4)
ops_of = st.lists(
    st.builds(
        Op,
        key=st.sampled_from(("x", "y", "é")),
        at=times,
        timers=st.sampled_from(NAMES),
        due=st.none() | times | times | st.sampled_from((END_OF_TIME, 400, 401)),
        then=steps,
        fails=st.sampled_from((False, False, False, True)),
    ),
    max_size=14,
)
in_order = st.booleans()


def drawn(data: st.DataObject) -> tuple[list[Op], int]:
    ops, disorder = data.draw(ops_of), data.draw(st.sampled_from((0, 5, 30)))
    return (sorted(ops, key=lambda op: op.at) if data.draw(in_order) else ops), disorder


@examples(300)
@given(data=st.data())
def test_timers_and_ticks_come_as_the_model_says_however_the_run_is_cut_and_killed(data: st.DataObject) -> None:
    ops, disorder = drawn(data)
    model = Model(disorder)
    model.run(ops)
    inputs = [("ops", lines(ops))]
    world = broken(lambda: app_of(disorder), inputs, data.draw(crash_plans), data.draw(cut_plans))
    assert [note.text for note in world.out("notes", Note)] == model.out
    assert len(world.letters()) == model.letters
    first, last = (ops[0].at, max(op.at for op in ops)) if ops else (0, -1)
    beats = [f"alone {at}" for at in range(-(-first // ALONE) * ALONE, last + 1, ALONE)]
    assert [note.text for note in world.out("heard", Note)] == beats


@examples(60)
@given(data=st.data())
def test_a_run_with_timers_that_was_killed_leaves_the_same_bytes(data: st.DataObject) -> None:
    """With a second input, so that splits hold each other back: no oracle, but one answer."""
    ops, disorder = drawn(data)
    inputs = [("ops", lines(ops)), ("ops", lines(data.draw(ops_of)))]
    same(
        unbroken(lambda: app_of(disorder), inputs),
        broken(lambda: app_of(disorder), inputs, data.draw(crash_plans), data.draw(cut_plans)),
    )


def test_one_set_for_a_time_that_has_passed_comes_before_what_is_left_of_a_firing() -> None:
    """Wherever a commit cuts the firing: after it, what comes next is asked anew of all tables."""
    ops = [Op("x", 0, "a", None), Op("y", 22, "a", None, [-1])]
    others = [Op("y", 10, "a", None), Op("z", 10, "a", None, [0])]
    inputs = [("ops", lines(ops)), ("ops", lines(others))]
    worlds = [unbroken(lambda: app_of(0), inputs)]
    worlds += [broken(lambda: app_of(0), inputs, [], [Cuts(1, every, 1, 0, 1_000_000)]) for every in (1, 2, 3)]
    for world in worlds:
        texts = [note.text.partition(":")[0] for note in world.out("notes", Note)]
        assert texts[texts.index("a y 23") :][:2] == ["a y 23", "c y 22"]
        (letter,) = world.letters()
        assert letter.position == "a key 'z' at 23"
        same(worlds[0], world)


@examples(60)
@given(data=st.data())
def test_event_timers_of_a_live_task_that_crashes_come_as_in_a_bounded_run(data: st.DataObject) -> None:
    ops, disorder = drawn(data)
    for op in ops:
        op.timers = "ab"[op.timers == "b"]
        op.then = [step for step in op.then if NAMES[step % 3] != "c"]
    model = Model(disorder)
    model.run(ops)
    seed, pieces = data.draw(st.none() | st.integers(0, 1000)), data.draw(st.lists(st.integers(1, 5), max_size=4))
    told = play(live(app_of(disorder), ops, pieces, seed))
    assert told == [text for text in model.out if not text.startswith("wall")]


async def live(app: App, ops: list[Op], pieces: list[int], seed: int | None) -> list[str]:
    async with harness(app, seed=seed, crashes=0.1, start_ms=1) as h:
        left = list(ops)
        for size in [*pieces, len(left)]:
            await h.send(app.topics["ops"], *left[:size])
            left = left[size:]
        if ops:
            await h.finish()
        return [note.text for note in h.sent(app.sinks["notes"])]


def test_ticks_begin_with_the_first_event_though_another_input_holds_the_watermark() -> None:
    app = App("held")
    ops = app.topic("ops", Op, key="key", time="at")
    notes = app.sink("notes", Note)
    seen = app.table("seen", str, int)

    @app.each(ops, tables=[seen])
    def keep(op: Op) -> None:
        seen[op.key] += 1

    @app.timer(10, clock="event", reads=[seen], sinks=[notes])
    def tick(t: Tick) -> Note:
        return Note(str(t.at))

    world = World(
        [
            ("ops", [b"bad", *lines([Op("x", 5, "a", None), Op("x", 42, "a", None)])]),
            ("ops", lines([Op("y", 61, "a", None)])),
        ]
    )
    play(world.run(app, piece=1))
    assert [note.text for note in world.out("notes", Note)] == ["10", "20", "30", "40", "50", "60"]


@pytest.mark.parametrize("cut", [Cuts(commit_every=1), Cuts(commit_every=3), Cuts()])
def test_commits_cut_between_the_timers_of_a_long_firing(cut: Cuts) -> None:
    ops = [Op(f"k{n:02}", 0, "a", 50) for n in range(20)] + [Op("k00", 100, "b", None)]
    model = Model(0)
    model.run(ops)
    world = World([("ops", lines(ops))])
    play(world.run(app_of(0), **cut._asdict()))
    assert [note.text for note in world.out("notes", Note)] == model.out
    assert (world.cut > 5) == (cut.commit_every < 5_000)


def test_timers_of_keys_beyond_what_memory_keeps() -> None:
    """Their hints and cells lie in the store, and come back in order."""
    app = App("many")
    ops = app.topic("ops", Op, key="key", time="at")
    notes = app.sink("notes", Note)
    timers = app.timers("timers", str)

    @app.each(ops, timers, sinks=[notes])
    def agent(event: Op | Timer[str]) -> Note | None:
        if isinstance(event, Op):
            timers.set(event.key, event.due or 0)
            return None
        return Note(f"{event.key} {event.at}")

    records = [Op(f"k{n % 997}", n, "", 2_000 + (n * 7919) % 100_000) for n in range(1500)]
    world = World([("ops", lines(records))])
    play(world.run(app, commit_every=100, live_objects=10))
    last = {op.key: op.due for op in records}
    wanted = sorted((due or 0, key) for key, due in last.items())
    assert [note.text for note in world.out("notes", Note)] == [f"{key} {due}" for due, key in wanted]
