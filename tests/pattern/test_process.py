"""Patterns as a process: events in any order, time-outs, what is stored, what is sent when.

within(10)     a@0 ........... b@9      a match: 9 - 0 < 10
               a@0 .............. b@10  timed out at 10, before b is looked at
"""

import random
from typing import Any

import msgspec
import pytest

from flowkit.pattern import Match, Pattern, PatternProcess, SkipPastLast, SkipToFirst, TimedOut
from flowkit.record import END_OF_TIME
from tests.pattern.runs import begin, of, outputs, words

A_B = begin("a").followed_by("b", of("b")).within(10)


def test_a_match_has_its_key_events_by_name_and_times() -> None:
    assert outputs(A_B, [("a", 5), ("x", 6), ("b", 9)]) == [("", Match("k", {"a": ["a"], "b": ["b"]}, 5, 9), 9)]


def test_the_last_event_comes_less_than_within_after_the_first() -> None:
    assert [(o, t) for o, _, t in outputs(A_B, [("a", 0), ("b", 9)])] == [("", 9)]
    assert outputs(A_B, [("a", 0), ("b", 10)]) == [("timed_out", TimedOut("k", {"a": ["a"]}, 0, 10), 10)]


def test_events_are_looked_at_by_time_and_those_of_one_time_as_they_came() -> None:
    sent = outputs(A_B, [("b1", 5), ("a", 3), ("b2", 4), ("b3", 4), ("c", 3)])
    assert [words(value.events) for _, value, _ in sent] == ["a b2"]


def test_no_event_is_looked_at_before_the_watermark() -> None:
    process: PatternProcess[str, str] = PatternProcess(A_B, str)
    cell = process.new()
    assert process.due(cell) == END_OF_TIME + 1
    process.event("k", cell, 0, "a", 7)
    process.event("k", cell, 0, "b", 4)
    assert process.due(cell) == 4
    assert process.wake("k", cell, 4) == []
    assert process.due(cell) == 7
    assert process.wake("k", cell, 7) == []
    assert process.due(cell) == 17  # a's match times out
    assert not process.over(cell)
    assert process.wake("k", cell, 17) == [("timed_out", TimedOut("k", {"a": ["a"]}, 7, 17), 17)]
    assert process.over(cell)
    assert cell == process.new()


def test_a_partial_match_that_waits_for_several_elements_times_out_once() -> None:
    pattern = begin("a").one_or_more().followed_by("b", of("b")).within(5)
    assert [(o, words(v.events)) for o, v, _ in outputs(pattern, "a1 c c")] == [("timed_out", "a1")]


def test_a_match_decided_by_time_goes_out_at_that_time_and_ends_with_its_last_event() -> None:
    pattern = begin("a").not_followed_by("b", of("b")).within(10)
    assert outputs(pattern, [("a", 3), ("c", 5)]) == [("", Match("k", {"a": ["a"]}, 3, 3), 13)]


def test_a_loop_before_a_negation_is_complete_even_if_nothing_came_after_it() -> None:
    """Flink only tells it as timed out: the state of its loop is not pending."""
    pattern = begin("a").next("b", of("b")).one_or_more().not_followed_by("c", of("c")).within(5)
    assert [(o, words(v.events)) for o, v, _ in outputs(pattern, "a b")] == [("", "a b"), ("timed_out", "a b")]


def test_a_strategy_holds_a_match_until_no_earlier_one_can_come() -> None:
    """{b1 b2} may take another b until it times out at 10, and would then forbid what starts with b2."""
    pattern = begin("b").one_or_more().next("c", of("c")).within(10)
    events = [("b1", 0), ("b2", 1), ("c", 2)]
    lost = [("timed_out", "b1 b2", 10), ("timed_out", "b2", 11)]
    assert told(outputs(pattern, events)) == [("", "b1 b2 c", 2), ("", "b2 c", 2), *lost]
    assert told(outputs(pattern, events, SkipToFirst("b"))) == [("", "b1 b2 c", 2), ("", "b2 c", 10), *lost]
    more = [*events, ("b3", 3), ("c", 4)]
    skipped = told(outputs(pattern, more, SkipPastLast()))
    assert skipped == [("", "b1 b2 c", 2), ("", "b3 c", 4)]


def told(sent: list[tuple[str, Any, int]]) -> list[tuple[str, str, int]]:
    return [(output, words(value.events), t) for output, value, t in sent]


def test_state_holds_each_event_once_and_forgets_what_no_partial_match_needs() -> None:
    pattern = begin("a").followed_by("b", of("b")).one_or_more().followed_by("c", of("c")).within(50)
    process: PatternProcess[str, str] = PatternProcess(pattern, str)
    cell = process.new()
    most = 0
    chance = random.Random(3)
    for t in range(3000):
        event = f"{chance.choice('abxx')}{t}"
        process.event("k", cell, 0, event, t)
        while process.due(cell) <= t:
            process.wake("k", cell, process.due(cell))
        stored = msgspec.msgpack.encode(cell)
        assert stored.count(event.encode()) <= 1
        most = max(most, len(stored))
        if cell.run is not None:
            assert len(cell.run.events) <= 200  # fifty events within 50 ms, and as much again until the next sweep
    assert most < 40_000


def test_an_event_that_starts_nothing_leaves_nothing() -> None:
    process: PatternProcess[str, str] = PatternProcess(A_B, str)
    cell = process.new()
    process.event("k", cell, 0, "b", 1)
    assert process.wake("k", cell, 1) == []
    assert process.over(cell)


def test_a_condition_is_asked_once_an_event_however_many_partial_matches_wait() -> None:
    asked: list[str] = []

    def is_b(event: str) -> bool:
        asked.append(event)
        return event[0] == "b"

    outputs(begin("a").followed_by("b", is_b).within(100), "a1 a2 a3 x b")
    assert asked == ["a2", "a3", "x", "b"]


def test_cells_keep_the_type_of_events() -> None:
    class Reading(msgspec.Struct):
        name: str
        value: float = 0.0

    pattern = Pattern[Reading].begin("low", lambda e: e.value < 1).followed_by("high", lambda e: e.value > 9).within(10)
    process: PatternProcess[int, Reading] = PatternProcess(pattern, Reading)
    cell = process.new()
    process.event(1, cell, 0, Reading("x"), 1)
    process.event(1, cell, 0, Reading("x", 10.0), 2)
    process.wake(1, cell, 1)
    cell = msgspec.msgpack.decode(msgspec.msgpack.encode(cell), type=process.cell_type)
    events = {"low": [Reading("x")], "high": [Reading("x", 10.0)]}
    sent = process.wake(1, cell, 2)
    assert sent == [("", Match(1, events, 1, 2), 2)]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent[0][1]), type=Match[int, Reading]) == sent[0][1]


@pytest.mark.parametrize("iterative", [False, True])
def test_an_error_in_a_condition_costs_its_event_alone(iterative: bool) -> None:
    def is_b(event: str) -> bool:
        if event == "bad":
            raise ValueError(event)
        return event[0] == "b"

    base = begin("a").where(lambda event, matched: event[0] == "a") if iterative else begin("a")
    pattern = base.followed_by("b", lambda event, matched: is_b(event)) if iterative else base.followed_by("b", is_b)
    process: PatternProcess[str, str] = PatternProcess(pattern.within(100), str)
    cell = process.new()
    for t, event in enumerate(["a", "bad", "b"]):
        process.event("k", cell, 0, event, t)
    process.wake("k", cell, 0)
    with pytest.raises(ValueError, match="bad"):
        process.wake("k", cell, 1)
    assert process.due(cell) == 2
    assert [words(value.events) for _, value, _ in process.wake("k", cell, 2)] == ["a b"]
    assert process.over(cell)
