"""Every trace of a bug that was ever found, shrunk, by the name of what went wrong."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from flowkit import App, Closed, Record, Stream, Sum
from flowkit import agent as agents
from flowkit import table as aggregates
from flowkit.errors import FlowkitError, NoEvent
from flowkit.window import Count, Global, Session, Sliding, Tumbling
from tests.model import flink
from tests.model.apps import Beside, Broken, Event, Fired, Form, Trouble, Values, app_of, records
from tests.model.strategies import Case
from tests.model.test_engine import Cuts, compare_case, numbered
from tests.model.test_resume import broken, same, unbroken
from tests.model.world import World, lines, play

EACH = Cuts(batch_size=1, commit_every=1, piece=1)
"""A commit after each event."""

CUTS = pytest.mark.parametrize("cut", [Cuts(), EACH, Cuts(2, 3, 1)], ids=["whole", "each", "some"])


def check(
    spec: flink.WindowSpec,
    *times: int | tuple[str, int],
    form: Form = "hand",
    beside: Beside = "alone",
    cut: Cuts = Cuts(),
    **settings: Any,
) -> World:
    """Events of key "a" (or another) at these times, against the oracle."""
    defaults: dict[str, Any] = {
        "out_of_order": 0,
        "allowed_lateness": 0,
        "early": None,
        "late": "drop",
        "bounded": True,
    }
    events: list[flink.Event] = [(*time, 0) if isinstance(time, tuple) else ("a", time, 0) for time in times]
    chosen: Any = {**defaults, **settings, "window": spec}
    return compare_case(Case(events, chosen), form, beside, cut)


# --- windows against the oracle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["hand", "declared"])
def test_an_early_point_is_not_lost_where_another_window_fires_on_time_in_the_same_step(form: Form) -> None:
    # [0, 10) fires, [5, 15) has its early point at 8: both when the watermark goes from 5 to 9.
    check(("sliding", 10, 5, 0), 6, 10, form=form, early=2)


@pytest.mark.parametrize("form", ["hand", "declared"])
def test_sessions_give_early_results(form: Form) -> None:
    check(("session", 1), 0, 1, form=form, early=1)


@pytest.mark.parametrize("form", ["hand", "declared"])
def test_global_windows_give_early_results(form: Form) -> None:
    check(("global",), 0, form=form, early=1)


@pytest.mark.parametrize("form", ["hand", "declared"])
def test_a_late_event_between_two_windows_is_late_also_with_allowed_lateness(form: Form) -> None:
    check(("sliding", 1, 3, 0), 1, 2, 4, 12, 10, form=form, allowed_lateness=1)


@pytest.mark.parametrize("form", ["hand", "each", "declared", "batches"])
@CUTS
def test_an_event_between_two_count_windows_counts_nowhere(form: Form, cut: Cuts) -> None:
    check(("count", 1, 2), 0, 1, 2, 3, 4, form=form, cut=cut)


@CUTS
def test_an_early_result_is_given_again_after_a_step_that_failed_behind_it(cut: Cuts) -> None:
    """Going back to the commit left the window marked as one that had given its early result in this step."""
    app, events, notes = app_with_notes()
    early: Any = app.table("early", of=events, by="key", window=Tumbling(10), early=1, n=Count())
    beside: Any = app.table("beside", of=events, by="key", window=Tumbling(30), early=1, n=Count())

    @app.each(early.closed, sinks=[notes])
    def tell(w: Closed[str, Any]) -> Note:
        return Note(f"{w.pane} {w.end} {w.value.n}")

    @app.each(beside.closed)
    def refuse(w: Closed[str, Any]) -> None:
        raise OSError("no")

    world = World([("events", lines([Event("a", n, n) for n in (0, 5, 12)]))])
    play(world.run(app, **cut._asdict()))
    told = ["early 10 2", "on_time 10 2", "early 20 1", "on_time 20 1"]
    assert [note.text for note in world.out("notes", Note)] == told


def test_a_late_event_that_nobody_takes_does_not_fire_what_was_touched_before_it() -> None:
    # At -10 all is over; [0, 10) has fired, may still be touched, and was, but not by this event.
    check(("tumbling", 10, 0), 0, 12, -10, allowed_lateness=5)


@pytest.mark.parametrize("beside", ["alone", "changes"])
@CUTS
def test_a_batch_is_handed_over_before_the_session_that_its_events_prolong(cut: Cuts, beside: Beside) -> None:
    check(("session", 10), 0, 0, 0, 8, ("b", 15), 16, form="batches", beside=beside, cut=cut)


@pytest.mark.parametrize("beside", ["alone", "changes"])
@CUTS
def test_a_batch_is_handed_over_before_the_session_that_it_opens_is_over(cut: Cuts, beside: Beside) -> None:
    check(("session", 10), 0, ("b", 100), ("b", 101), ("b", 102), form="batches", beside=beside, cut=cut)


@CUTS
@pytest.mark.parametrize("later", range(45, 90, 5))
def test_a_batch_is_handed_over_before_the_fired_session_that_its_events_join_is_dropped(cut: Cuts, later: int) -> None:
    # [0, 40) has fired at 45 and is dropped at 49; 30 makes it [0, 70), if it has not waited in its batch for longer.
    check(("session", 40), 0, ("b", 45), 30, ("b", later), form="batches", cut=cut, allowed_lateness=10)
    check(("session", 40), 0, ("b", 45), ("b", 45), 30, ("b", later), form="batches", cut=cut, allowed_lateness=10)


@CUTS
def test_a_late_event_in_a_batch_fires_its_window_again(cut: Cuts) -> None:
    times = (0, 1, 2, 12, 3, ("b", 13), ("b", 14), ("b", 40))
    check(("tumbling", 10, 0), *times, form="batches", cut=cut, allowed_lateness=9)


@CUTS
def test_an_event_between_two_windows_is_not_late_because_it_waited_in_a_batch(cut: Cuts) -> None:
    check(("sliding", 1, 3, 0), 1, form="batches", cut=cut)


@CUTS
def test_a_count_window_filled_and_gone_on_within_one_batch_fires(cut: Cuts) -> None:
    check(("count", 2), 0, 1, 2, 3, 4, 5, form="batches", cut=cut)


@CUTS
def test_count_windows_count_an_event_at_the_address_of_an_earlier_one(cut: Cuts) -> None:
    """Which event of a batch was counted went by id(): new objects often lie where old ones lay."""
    app, events, notes = app_with_notes()
    table: Any = app.table("counted", str, Values, window=Count(30))

    @app.agent(events, tables=[table])
    async def keep(stream: Stream[Event]) -> None:
        async for batch in stream.batches(1):
            for event in batch:
                table.at(event)[event.key].values.append(event.value)

    @app.each(table.closed, sinks=[notes])
    def end(w: Closed[str, Values]) -> Note:
        return Note(str(len(w.value.values)))

    got = notes_of(app, [Event(key, n, n) for n in range(90) for key in ("a", "b")], cut)
    assert got == ["30"] * 6


def test_a_key_deleted_by_a_commit_under_way_is_not_found_in_the_store() -> None:
    """After a rollback the store was asked, which shows a frame only once it is prepared."""
    trouble = Trouble(at=frozenset({2}))
    events: list[flink.Event] = [("a", 0, 0), ("a", 0, 0), ("bad", 0, 0), *[("a", 0, 0)] * 4]
    world = World([("events", lines(records(numbered(events))))])
    play(world.run(app_of(("count", 3), trouble=trouble), commit_every=1))
    assert [fired.values for fired in world.out("fired", Fired)] == [[0, 1, 3], [4, 5, 6]]


# --- failures ---------------------------------------------------------------------------------------------------------


class Note(Record):
    text: str


def notes_of(app: App, events: Sequence[Event], cut: Cuts = Cuts()) -> list[str]:
    world = World([("events", lines(list(events)))])
    play(world.run(app, **cut._asdict()))
    assert world.letters() == []
    return [note.text for note in world.out("notes", Note)]


def app_with_notes(**topic: Any) -> tuple[App, Any, Any]:
    app = App("notes", retry=agents.Retry(attempts=2, backoff=1))
    return app, app.topic("events", Event, key="key", time="at", **topic), app.sink("notes", Note)


@CUTS
@pytest.mark.parametrize("emits", [True, False])
def test_an_agent_that_returns_is_started_anew_and_no_event_is_lost(cut: Cuts, emits: bool) -> None:
    app, events, notes = app_with_notes()

    if emits:

        @app.agent(events, sinks=[notes], retry=agents.Retry())
        async def one_by_one(stream: Stream[Event]) -> AsyncIterator[Note]:
            async for event in stream:
                if event.value % 2:
                    return
                yield Note(str(event.value))

    else:

        @app.agent(events, sinks=[notes], retry=agents.Retry())
        async def one_by_one_too(stream: Stream[Event]) -> None:
            async for event in stream:
                if event.value % 2:
                    return
                notes.emit(Note(str(event.value)))

    assert notes_of(app, [Event("a", n, n) for n in range(5)], cut) == ["0", "2", "4"]


@CUTS
def test_an_agent_may_go_over_from_events_to_batches_and_back(cut: Cuts) -> None:
    app, events, notes = app_with_notes()

    @app.agent(events, sinks=[notes])
    async def both(stream: Stream[Event]) -> AsyncIterator[Note]:
        async for event in stream:
            yield Note(f"one {event.value}")
            async for batch in stream.batches(2):
                yield Note(f"batch {[event.value for event in batch]}")
                break

    got = notes_of(app, [Event("a", n, n) for n in range(7)], cut)
    assert got == ["one 0", "batch [1, 2]", "one 3", "batch [4, 5]", "one 6"]


@CUTS
def test_a_failure_counts_as_an_attempt_also_if_it_came_at_the_end_of_the_input(cut: Cuts) -> None:
    """Failures of the quick way were looked for under numbers that the careful way did not have."""
    app = App("charged")
    events = app.topic("events", Event, key="key", time="at")
    table: Any = app.table("windows", str, Values, window=Tumbling(10))
    trouble = Trouble(once=frozenset({13}))

    @app.agent(events, tables=[table])
    async def keep(stream: Stream[Event]) -> None:
        async for event in stream:
            table[event.key].values.append(event.value)

    @app.each(table.closed)
    def end(w: Closed[str, Values]) -> None:
        trouble(w.value.values[-1])

    world = World([("events", lines([Event("a", at, at) for at in (0, 12, 13)]))])
    play(world.run(app, **cut._asdict()))
    assert [letter.attempts for letter in world.letters()] == [1]


@CUTS
def test_a_full_count_window_fires_though_a_subscriber_to_its_changes_fails(cut: Cuts) -> None:
    app, events, notes = app_with_notes()
    table: Any = app.table("counted", str, Values, window=Count(2))

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        table[event.key].values.append(event.value)

    @app.each(table.changes)
    def change(c: Any) -> None:
        raise Broken("always")

    @app.each(table.closed, sinks=[notes])
    def end(w: Closed[str, Values]) -> Note:
        return Note(str(w.value.values))

    world = World([("events", lines([Event("a", n, n) for n in range(4)]))])
    play(world.run(app, **cut._asdict()))
    assert [n.text for n in world.out("notes", Note)] == ["[0, 1]", "[2, 3]"]
    assert len(world.letters()) == 4


@pytest.mark.parametrize("first", ["quick", "careful"])
def test_the_traceback_of_a_dead_letter_shows_the_agents_errors_and_not_what_the_engine_was_doing(first: str) -> None:
    app, events, notes = app_with_notes()

    @app.agent(events, sinks=[notes], retry=agents.Retry())
    async def fail(stream: Stream[Event]) -> AsyncIterator[Note]:
        async for event in stream:
            yield Note(str(event.value))
            try:
                dict[str, int]()["missing"]
            except KeyError as error:
                if event.value == 1:
                    raise Broken("one") from error
                raise Broken("zero")  # noqa: B904  this is the point

    world = World([("events", lines([Event("a", 0, 0), Event("a", 1, 1)]))])
    play(world.run(app, commit_every=5_000 if first == "careful" else 1))
    for letter, link in zip(world.letters(), ("During handling of", "The above exception was the direct"), strict=True):
        assert letter.traceback.count("Traceback (most recent call last)") == 2
        assert link in letter.traceback
        assert "KeyError: 'missing'" in letter.traceback
        assert "StopIteration" not in letter.traceback
        assert "flowkit/worker" not in letter.traceback


def test_counters_do_not_count_twice_what_was_run_again() -> None:
    app, events, _ = app_with_notes()
    table: Any = app.table("windows", str, Values, window=Tumbling(10))

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        table[event.key].values.append(event.value)
        if event.value == 3:
            raise Broken("three")

    @app.each(table.closed)
    def end(w: Closed[str, Values]) -> None:
        pass

    events = [Event("a", 0, 1), Event("a", 30, 2), Event("a", 1, 4), Event("a", 31, 3)]
    world = World([("events", [*lines(events), b"{"])])
    play(world.run(app))
    counters = world.counters
    assert (counters.records, counters.late, counters.dead, counters.fired) == (5, 1, 2, 2)


@CUTS
def test_an_agent_may_await_and_yield_in_turns_thousands_of_times_in_one_event(cut: Cuts) -> None:
    app, events, notes = app_with_notes()

    @app.agent(events, sinks=[notes])
    async def many(stream: Stream[Event]) -> AsyncIterator[Note]:
        async for event in stream:
            for n in range(3000):
                await asyncio.sleep(0)
                yield Note(f"{event.value} {n}")

    got = notes_of(app, [Event("a", 1, 1), Event("a", 2, 2)], cut)
    assert got == [f"{value} {n}" for value in (1, 2) for n in range(3000)]


@CUTS
def test_an_agent_whose_value_no_sink_takes_is_left_in_good_order(cut: Cuts) -> None:
    app, events, notes = app_with_notes()
    left: list[str] = []

    @app.agent(events, sinks=[notes])
    async def wrong(stream: Stream[Event]) -> AsyncIterator[Any]:
        try:
            async for event in stream:
                yield Note(str(event.value)) if event.value != 2 else "no note"
        finally:
            left.append("finally")

    world = World([("events", lines([Event("a", n, n) for n in range(4)]))])
    play(world.run(app, **cut._asdict()))
    assert [note.text for note in world.out("notes", Note)] == ["0", "1", "3"]
    assert [letter.error for letter in world.letters()] == ["TypeError"]
    gc.collect()
    assert len(left) >= 2


def test_an_agent_cannot_send_before_its_first_event() -> None:
    app, events, notes = app_with_notes()

    @app.agent(events, sinks=[notes])
    async def hasty(stream: Stream[Event]) -> AsyncIterator[Note]:
        yield Note("each time I am started")
        async for event in stream:
            yield Note(str(event.value))

    with pytest.raises(NoEvent, match="before its first event"):
        play(World([("events", [])]).run(app))


@pytest.mark.parametrize("emits", [True, False])
def test_an_agent_that_returns_before_its_first_event_is_told(emits: bool) -> None:
    """It was started anew for ever, until Python's stack was full."""
    app, events, notes = app_with_notes()

    if emits:

        @app.agent(events, sinks=[notes])
        async def lazy(stream: Stream[Event]) -> AsyncIterator[Note]:
            for _ in ():
                yield Note("never")

    else:

        @app.agent(events, name="lazy")
        async def lazy_too(stream: Stream[Event]) -> None:
            await asyncio.sleep(0)

    with pytest.raises(FlowkitError, match="agent 'lazy' returned before it asked for an event"):
        play(World([("events", [])]).run(app))


def test_an_agent_that_raises_at_its_start_or_at_its_end_is_not_stopped_as_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its traceback was logged as that of an agent that fails while it is stopped."""
    for at_start in (True, False):
        app, events, notes = app_with_notes()

        @app.agent(events, sinks=[notes])
        async def broken(stream: Stream[Event], at_start: bool = at_start) -> AsyncIterator[Note]:
            if at_start:
                raise OSError("no")
            async for event in stream:
                yield Note(str(event.value))
            raise OSError("no")

        with pytest.raises(OSError, match="no"):
            play(World([("events", lines([Event("a", 0, 0)]))]).run(app))
    assert "while it was stopped" not in "".join(capsys.readouterr())


@CUTS
@pytest.mark.parametrize("time", ["1", 1.0, 2**63, True, 10**17])
def test_an_output_at_what_is_no_time_makes_its_event_a_dead_letter(cut: Cuts, time: Any) -> None:
    """It went through, and the run ended where times were compared or saved."""
    app, events, _ = app_with_notes()
    topic = app.topic("more", Note)
    seen = app.sink("seen", Note)

    @app.each(events, sinks=[topic])
    def send(event: Event) -> None:
        topic.emit(Note(str(event.value)), time=time if event.value == 2 else event.at)

    @app.each(topic, sinks=[seen])
    def see(note: Note) -> Note:
        return note

    world = World([("events", lines([Event("a", n, n) for n in range(5)]))])
    play(world.run(app, **cut._asdict()))
    assert [note.text for note in world.out("seen", Note)] == ["0", "1", "3", "4"]
    assert [(letter.offset, letter.error) for letter in world.letters()] == [
        (2, "TimeError" if time == 10**17 else "TypeError")
    ]


@CUTS
@pytest.mark.parametrize("value", [2**64, object(), {"\ud800": 1}, {"a": {"b": {1, object()}}}])
@pytest.mark.parametrize("window", [None, Tumbling(100), Count(30), "declared"])
def test_a_value_that_cannot_be_saved_is_the_failure_of_its_event(cut: Cuts, window: Any, value: Any) -> None:
    """It was found at the commit, and ended the run as a mistake of flowkit's own."""
    app, events, notes = app_with_notes()
    if isinstance(window, Tumbling):
        cut = EACH  # else it is closed, and gone, before anything of it is to be saved
    if window == "declared":

        def initial() -> Any:
            return {}

        def step(state: Any, event: Event) -> Any:
            return {**state, str(event.value): value if event.value == 3 else event.value}

        gathered = aggregates.Custom(initial, step, lambda a, b: a | b, len)
        table: Any = app.table("kept", of=events, by="key", window=Global(), n=gathered)
    else:
        table = app.table("kept", str, dict, default=dict, window=window)

        @app.each(events, tables=[table])
        def keep(event: Event) -> None:
            table[event.key][str(event.value)] = value if event.value == 3 else event.value

    @app.each(events, sinks=[notes])
    def beside(event: Event) -> Note:
        return Note(str(event.value))

    world = World([("events", lines([Event("ab"[n % 2], n, n) for n in range(12)]))])
    play(world.run(app, **cut._asdict()))
    assert [note.text for note in world.out("notes", Note)] == [str(n) for n in range(12) if n != 3]
    (letter,) = world.letters()
    assert (letter.offset, letter.error) == (3, "StateError")
    assert "table 'kept': the value of key 'b' cannot be saved" in letter.reason


class Odd:
    """A value that only its own methods can turn into builtins."""

    def __init__(self, total: int = 0) -> None:
        self.total = total

    def to_state(self) -> int:
        return self.total

    @classmethod
    def from_state(cls, state: int) -> Odd:
        return cls(state)


@CUTS
def test_values_with_a_state_of_their_own_go_through_closed_windows_and_changes(cut: Cuts) -> None:
    app, events, notes = app_with_notes()
    table: Any = app.table("odd", str, Odd, window=Tumbling(10))

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        table[event.key].total += event.value

    @app.each(table.changes, sinks=[notes])
    def change(c: Any) -> Note:
        return Note(f"{c.old.total if c.old else 0} -> {c.new.total}")

    @app.agent(table.closed, sinks=[notes])
    async def end(stream: Stream[Closed[str, Odd]]) -> AsyncIterator[Note]:
        async for batch in stream.batches(3):
            yield Note(" ".join(str(w.value.total) for w in batch))

    got = notes_of(app, [Event("a", n, n) for n in (8, 12, 13)], cut)
    assert got == ["0 -> 8", "0 -> 12", "12 -> 25", "8 25"]


@CUTS
def test_late_events_in_batches_keep_their_type_also_after_a_commit(cut: Cuts) -> None:
    app, events, notes = app_with_notes()
    table: Any = app.table("windows", str, Values, window=Tumbling(10))

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        table[event.key].values.append(event.value)

    @app.agent(table.late, sinks=[notes])
    async def late(stream: Stream[Event]) -> AsyncIterator[Note]:
        async for batch in stream.batches(10):
            yield Note(" ".join(f"{event.key}{event.value}" for event in batch))

    def build() -> App:
        return app

    inputs = [("events", lines([Event("a", 50, 0), Event("a", 1, 1), Event("a", 2, 2), Event("a", 51, 3)]))]
    world = broken(build, inputs, [4, 8], [cut])
    assert [note.text for note in world.out("notes", Note)] == ["a1 a2"]


@CUTS
def test_agents_and_batches_of_one_topic_go_in_the_same_order_on_every_way(cut: Cuts) -> None:
    """An event passes the agents that go event by event first; then batches that it fills are handed over."""

    def build(*, careful: bool) -> App:
        app, events, notes = app_with_notes()
        table: Any = app.table("table", str, int)

        @app.agent(events, sinks=[notes])
        async def batches(stream: Stream[Event]) -> AsyncIterator[Note]:
            async for batch in stream.batches(2):
                yield Note(f"batch {[event.value for event in batch]}")

        @app.each(events, tables=[table], sinks=[notes])
        def each(event: Event) -> Note:
            table[event.key] += 1
            return Note(f"event {event.value}")

        if careful:

            @app.each(table.changes)
            def change(c: Any) -> None:
                pass

        return app

    given = [Event("a", n, n) for n in range(4)]
    quick = notes_of(build(careful=False), given, cut)
    assert quick == notes_of(build(careful=True), given, cut)
    assert quick == ["event 0", "event 1", "batch [0, 1]", "event 2", "event 3", "batch [2, 3]"]


@CUTS
def test_a_count_window_that_closes_on_a_late_event_reopens_the_window_of_windows(cut: Cuts) -> None:
    """What a count window sends may be older than the watermark: the table above must fire again at once."""
    app, events, notes = app_with_notes()
    below: Any = app.table("below", str, Values, window=Count(1))
    above: Any = app.table("above", str, Values, window=Tumbling(10), allowed_lateness=100)

    @app.each(events, tables=[below])
    def keep(event: Event) -> None:
        below[event.key].values.append(event.value)

    @app.each(below.closed, tables=[above])
    def keep_closed(w: Closed[str, Values]) -> None:
        above[w.key].values.extend(w.value.values)

    @app.each(above.closed, sinks=[notes])
    def end(w: Closed[str, Values]) -> Note:
        return Note(f"{w.pane} {w.end} {w.value.values}")

    got = notes_of(app, [Event("a", 1, 0), Event("a", 25, 1), Event("a", 2, 2)], cut)
    assert got == ["on_time 10 [0]", "late 10 [0, 2]", "on_time 30 [1]"]


# --- what a commit must keep ------------------------------------------------------------------------------------------


def test_a_batch_that_goes_by_time_is_as_old_after_a_restart_as_before() -> None:
    def build() -> App:
        app, events, notes = app_with_notes()

        @app.agent(events, sinks=[notes])
        async def batches(stream: Stream[Event]) -> AsyncIterator[Note]:
            async for batch in stream.batches(10, within=20):
                yield Note(f"{[event.value for event in batch]}")

        return app

    inputs = [("events", lines([Event("a", n * 9, n) for n in range(8)]))]
    same(unbroken(build, inputs), broken(build, inputs, [6], [EACH]))


def test_an_unusable_record_first_in_a_batch_keeps_its_place() -> None:
    def build() -> App:
        app, events, notes = app_with_notes()

        @app.each(events, app.dead_letters, sinks=[notes])
        def see(event: Any) -> Note:
            return Note(type(event).__name__)

        return app

    one = lines([Event("a", 5), Event("a", 6)])
    two = [*lines([Event("b", 5)]), b"{", *lines([Event("b", 7)])]
    inputs = [("events", one), ("events", two)]
    same(unbroken(build, inputs), broken(build, inputs, [], [EACH]))
    same(unbroken(build, inputs), broken(build, inputs, [5], [EACH]))


# --- early results and settings that make no sense --------------------------------------------------------------------


@pytest.mark.parametrize("window", [Global(), Session(5), Sliding(20, 10), Tumbling(20)])
def test_early_results_of_declared_tables_are_no_accumulators_but_results(window: Any) -> None:
    app, events, notes = app_with_notes()
    table: Any = app.table("sums", of=events, by="key", window=window, early=2, total=aggregates.Sum("value"))

    @app.each(table.closed, sinks=[notes])
    def end(w: Closed[str, Any]) -> Note:
        return Note(f"{w.pane} {w.value.total}")

    got = notes_of(app, [Event("a", 0, 1), Event("a", 2, 2), Event("a", 4, 3)])
    assert got[-1] == "on_time 6"
    assert {note.split()[0] for note in got} == {"early", "on_time"}


@pytest.mark.parametrize("shape", ["a function of the user's", "a value that cannot be added"])
def test_a_declared_tables_dead_letters_do_not_tell_by_which_way_the_event_came(shape: str) -> None:
    """In the generated loop of a batch, or alone: the tracebacks showed the one or the other."""

    class Sale(Record):
        key: str
        at: int
        amount: Any = None

    def build() -> App:
        if shape == "a function of the user's":
            return app_of(("tumbling", 1), form="declared", trouble=Trouble(at=frozenset({0, 1})), attempts=2)
        app = App("sums")
        events = app.topic("events", Sale, key="key", time="at")
        app.table("sums", of=events, by="key", window=Tumbling(1), total=Sum("amount"))
        return app

    if shape == "a function of the user's":
        given = lines(records([("a", 0, 0), ("a", 0, 1)]))
    else:
        given = lines([Sale("a", 0, "x"), Sale("a", 0, 1), Sale("a", 0, "y")])
    many, one = World([("events", given)]), World([("events", given)])
    play(many.run(build()))
    play(one.run(build(), batch_size=1, commit_every=1, piece=1))
    assert many.letters() == one.letters()
    assert len(many.letters()) == 2
