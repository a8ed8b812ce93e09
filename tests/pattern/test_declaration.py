"""Patterns that make no sense are refused where they are written, by name and with the cure."""

from collections.abc import Callable
from typing import Any

import pytest

from flowkit.errors import ConfigError
from flowkit.pattern import (
    NoSkip,
    Pattern,
    PatternProcess,
    RowPattern,
    SkipToFirst,
    SkipToLast,
    SkipToNext,
    unbounded_because,
)
from tests.pattern.runs import begin, of

B, X = of("b"), of("x")


def process(pattern: Pattern[str], after: Any = None) -> PatternProcess[str, str]:
    return PatternProcess(pattern, str, after=after)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "two of a name": (lambda: begin("a").next("a", B), r"two elements are called 'a': choose another name"),
    "two of a name, in a group": (lambda: begin("a").next(begin("b").next("a")), r"two elements are called 'a'"),
    "no name": (lambda: begin("a").next("", B), "an element has an empty name"),
    "quantified negation": (
        lambda: begin("a").not_next("x", X).one_or_more(),
        r"element 'x': one_or_more\(\) is a quantifier on a negation: .*leave it out",
    ),
    "optional negation": (lambda: begin("a").not_followed_by("x", X).optional(), "is a quantifier on a negation"),
    "until without a loop": (
        lambda: begin("a").next("b", B).until(X),
        r"element 'b': until\(\) needs a loop without an upper limit: call one_or_more\(\)",
    ),
    "until of a range": (lambda: begin("a").times(2, 3).until(X), "needs a loop without an upper limit"),
    "greedy without a loop": (lambda: begin("a").greedy(), r"element 'a': greedy\(\) needs a loop"),
    "greedy group": (lambda: begin("a").next(begin("b")).one_or_more().greedy(), r"group of 'b': .* is not for groups"),
    "greedy combinations": (lambda: begin("a").one_or_more().allow_combinations().greedy(), "choose one of them"),
    "combinations of greedy": (lambda: begin("a").one_or_more().greedy().allow_combinations(), "choose one of them"),
    "optional after greedy": (
        lambda: begin("a").one_or_more().greedy().next("b", B).optional(),
        r"element 'b': optional\(\) cannot follow a greedy element",
    ),
    "negation after optional": (
        lambda: begin("a").next("b", B).optional().not_next("x", X),
        r"negation 'x' cannot follow the optional element 'b': write two patterns",
    ),
    "consecutive without a loop": (lambda: begin("a").consecutive(), r"consecutive\(\) needs a loop"),
    "consecutive combinations": (lambda: begin("a").one_or_more().consecutive().allow_combinations(), "contradicts"),
    "two quantifiers": (lambda: begin("a").one_or_more().times(2), r"element 'a': times\(2\) is its second quantifier"),
    "no times": (lambda: begin("a").times(0), r"times\(0\) is no range of counts"),
    "times downwards": (lambda: begin("a").times(3, 2), r"times\(3, 2\) is no range of counts"),
    "empty group in a loop": (
        lambda: begin("a").next(begin("b").optional()).one_or_more(),
        "repeats a group that may be empty",
    ),
    "within nothing": (lambda: begin("a").within(0), r"within\(0\) must be positive"),
    "no condition": (lambda: begin("a").where("b"), "a condition is a function of the event, not 'b'"),  # type: ignore[call-overload]
    "condition of nothing": (lambda: begin("a").where(lambda: True), r"takes \(event\) or \(event, matched\)"),  # type: ignore[arg-type, misc]
    "last not_followed_by": (
        lambda: process(begin("a").not_followed_by("x", X)),
        r"element 'x': not_followed_by at the end is decided when time is up: add within\(ms\)",
    ),
    "last but optional": (
        lambda: process(begin("a").not_followed_by("x", X).next("b", B).optional()),
        "not_followed_by at the end",
    ),
    "skip to nobody": (
        lambda: process(begin("a"), SkipToFirst("b")),
        r"names no element that takes events: use one of a",
    ),
    "skip to a negation": (
        lambda: process(begin("a").not_next("x", X).next("b", B), SkipToLast("x")),
        "names no element that takes events: use one of a, b",
    ),
    "empty": (lambda: process(Pattern(RowPattern(()))), "it is empty: start it with Pattern"),
}


@pytest.mark.parametrize("make, complaint", WRONG.values(), ids=WRONG)
def test_a_pattern_without_sense_is_refused(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


def test_patterns_are_immutable() -> None:
    base = begin("a")
    base.next("b", B).one_or_more()
    assert repr(base) == "Pattern: a"


def test_the_shortest_within_counts() -> None:
    assert begin("a").within(5).next(begin("b").within(3)).within(9).row_pattern.within == 3


BOUNDED: list[tuple[Pattern[str], tuple[str, ...]]] = [
    (begin("a").next("b", B), ()),
    (begin("a").next("b", B).times(3).consecutive(), ()),
    (begin("a").next("b", B).not_next("x", X), ()),
    (begin("a").followed_by("b", B).within(5), ()),
    (begin("a").followed_by("b", B).one_or_more().within(5), ()),
    (begin("a").followed_by("b", B), ("'b' may be waited for without end",)),
    (begin("a").one_or_more().consecutive(), ("'a' may take events without end",)),
    (begin("a").times(2), ("'a' may wait for another event without end",)),
    (Pattern[str].begin(begin("a").followed_by("b", B)), ("'b' may be waited for without end",)),
]


@pytest.mark.parametrize("pattern, why", BOUNDED, ids=lambda value: str(value).removeprefix("Pattern: "))
def test_unbounded_state_is_told_with_its_reason(pattern: Pattern[str], why: tuple[str, ...]) -> None:
    assert unbounded_because(pattern.row_pattern) == why
    assert pattern.is_bounded() == (not why)


def test_a_shape_changes_with_all_that_stored_cells_hang_on() -> None:
    base = begin("a").followed_by("b", B)
    others = [
        base,
        base.within(5),
        base.one_or_more(),
        base.one_or_more().greedy(),
        base.one_or_more().until(X),
        base.times(2),
        base.times(2, 3),
        base.times(2, 3).consecutive(),
        base.times(2, 3).allow_combinations(),
        base.optional(),
        begin("a").next("b", B),
        begin("a").followed_by_any("b", B),
        begin("a").not_followed_by("b", B).within(6),
        Pattern[str].begin(base),
    ]
    shapes = {process(pattern).shape for pattern in others}
    assert len(shapes) == len(others)
    assert process(base, NoSkip()).shape == process(base).shape != process(base, SkipToNext()).shape
