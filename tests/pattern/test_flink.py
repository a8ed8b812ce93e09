"""What Flink's documentation of its CEP library shows, as tables: pattern, events, matches.

C  D  A1 A2 A3 D  A4 B          C followed by A+ followed by B
c.....a  a  a ....a  b          relaxed: D is passed over, each prefix of the As is a match
c.....a  a  a X                 consecutive: the second D ends the loop, what it has goes on to B
c.....a .... a ... a  b         allow_combinations: As may be left out too
"""

from collections.abc import Callable

import pytest

from flowkit.pattern import AfterMatch, NoSkip, Pattern, SkipPastLast, SkipToFirst, SkipToLast, SkipToNext
from tests.pattern.runs import begin, matches, of

P = Pattern[str]

A, B, C, D = of("a"), of("b"), of("c"), of("d")


@pytest.mark.parametrize(
    "follow, found",
    [(P.next, []), (P.followed_by, ["a b1"]), (P.followed_by_any, ["a b1", "a b2"])],
    ids=["strict", "relaxed", "any"],
)
def test_contiguity_between_two_elements(follow: Callable[..., P], found: list[str]) -> None:
    assert matches(follow(begin("a"), "b", B), "a c b1 b2") == found


LOOP = {
    "strict": (lambda p: p.consecutive().next("c", C), ["a b3 c"]),
    "relaxed": (
        lambda p: p.followed_by("c", C),
        ["a b1 b2 b3 c", "a b1 b2 c", "a b1 c", "a b2 b3 c", "a b2 c", "a b3 c"],
    ),
    "any": (
        lambda p: p.allow_combinations().followed_by("c", C),
        ["a b1 b2 b3 c", "a b1 b2 c", "a b1 b3 c", "a b1 c", "a b2 b3 c", "a b2 c", "a b3 c"],
    ),
}


@pytest.mark.parametrize("end, found", LOOP.values(), ids=LOOP)
def test_contiguity_within_a_loop(end: Callable[[P], P], found: list[str]) -> None:
    loop = begin("a").followed_by_any("b", B).one_or_more()
    assert matches(end(loop), "a b1 d1 b2 d2 b3 c") == found


EVENTS = "c d a1 a2 a3 d a4 b"


def c_a_b(quantified: Callable[[P], P], follow: Callable[..., P] = P.followed_by) -> list[str]:
    return matches(quantified(follow(begin("c"), "a", A)).followed_by("b", B), EVENTS)


def test_consecutive_ends_the_loop_at_the_first_other_event() -> None:
    assert c_a_b(lambda p: p.one_or_more().consecutive()) == ["c a1 a2 a3 b", "c a1 a2 b", "c a1 b"]
    relaxed = ["c a1 a2 a3 a4 b", "c a1 a2 a3 b", "c a1 a2 b", "c a1 b"]
    assert c_a_b(lambda p: p.one_or_more()) == relaxed


def test_combinations_leave_out_any_event_but_the_first_that_relaxed_contiguity_takes() -> None:
    """The documentation lists all fifteen subsets; those without a1 need followed_by_any, as Flink's own tests have."""
    with_a1 = ["a1 a2 a3 a4", "a1 a2 a3", "a1 a2 a4", "a1 a2", "a1 a3 a4", "a1 a3", "a1 a4", "a1"]
    without = ["a2 a3 a4", "a2 a3", "a2 a4", "a2", "a3 a4", "a3", "a4"]
    assert c_a_b(lambda p: p.one_or_more().allow_combinations()) == [f"c {found} b" for found in with_a1]
    found = c_a_b(lambda p: p.one_or_more().allow_combinations(), P.followed_by_any)
    assert found == [f"c {found} b" for found in with_a1 + without]


SKIPS: list[tuple[AfterMatch, list[str]]] = [
    (NoSkip(), ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
    (SkipToNext(), ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
    (SkipPastLast(), ["b1 b2 b3 c"]),
    (SkipToFirst("b"), ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
    (SkipToLast("b"), ["b1 b2 b3 c", "b3 c"]),
]


@pytest.mark.parametrize("after, found", SKIPS, ids=str)
def test_what_each_strategy_skips_of_b_plus_c(after: AfterMatch, found: list[str]) -> None:
    assert matches(begin("b").one_or_more().consecutive().next("c", C), "b1 b2 b3 c", after) == found


def test_skip_to_first_skips_what_began_before_it() -> None:
    pattern = begin("x", "abc").next("y", of("bc")).next("c", C).one_or_more().consecutive().greedy().next("d", D)
    all_found = ["a b c1 c2 c3 d", "b c1 c2 c3 d", "c1 c2 c3 d"]
    assert matches(pattern, "a b c1 c2 c3 d") == all_found
    assert matches(pattern, "a b c1 c2 c3 d", SkipToFirst("c")) == ["a b c1 c2 c3 d", "c1 c2 c3 d"]


def test_skip_to_next_sends_one_match_for_a_first_event() -> None:
    pattern = begin("a").followed_by("b", B).one_or_more()
    assert matches(pattern, "a b1 b2 b3") == ["a b1", "a b1 b2", "a b1 b2 b3"]
    assert matches(pattern, "a b1 b2 b3", SkipToNext()) == ["a b1"]


QUANTIFIERS: dict[str, tuple[Callable[[P], P], list[str]]] = {
    "exactly": (lambda p: p.times(2), ["c a1 a2 b"]),
    "range": (lambda p: p.times(2, 3), ["c a1 a2 a3 b", "c a1 a2 b"]),
    "range, greedy": (lambda p: p.times(2, 4).greedy(), ["c a1 a2 a3 a4 b"]),
    "range, greedy, too short": (lambda p: p.times(2, 3).greedy(), []),
    "at least": (lambda p: p.times_or_more(3), ["c a1 a2 a3 a4 b", "c a1 a2 a3 b"]),
    "one or more, greedy": (lambda p: p.one_or_more().greedy(), ["c a1 a2 a3 a4 b"]),
    "none or more": (
        lambda p: p.one_or_more().optional(),
        ["c a1 a2 a3 a4 b", "c a1 a2 a3 b", "c a1 a2 b", "c a1 b", "c b"],
    ),
    "none or more, greedy": (lambda p: p.times_or_more(0).greedy(), ["c a1 a2 a3 a4 b"]),
    "optional": (lambda p: p.optional(), ["c a1 b", "c b"]),
    "until": (lambda p: p.one_or_more().until(lambda e: e == "a3"), ["c a1 a2 b", "c a1 b"]),
    "until, greedy": (lambda p: p.one_or_more().greedy().until(lambda e: e == "a3"), ["c a1 a2 b"]),
}


@pytest.mark.parametrize("quantified, found", QUANTIFIERS.values(), ids=QUANTIFIERS)
def test_quantifiers(quantified: Callable[[P], P], found: list[str]) -> None:
    assert c_a_b(quantified) == found


NEGATIONS: list[tuple[P, str, list[str]]] = [
    (begin("a").not_next("x", of("x")).followed_by("b", B), "a x b", []),
    (begin("a").not_next("x", of("x")).followed_by("b", B), "a y x b", ["a b"]),
    (begin("a").not_followed_by("x", of("x")).followed_by("b", B), "a y x b", []),
    (begin("a").not_followed_by("x", of("x")).followed_by("b", B), "x a y b x", ["a b"]),
    (
        begin("a").not_followed_by("b", B).followed_by_any("c", C).optional().followed_by_any("d", D),
        "a c b d",
        ["a c d"],
    ),
    (begin("a").not_followed_by("b", B).followed_by_any("c", C).optional().followed_by_any("d", D), "a b d", []),
    (begin("a").not_next("x", of("x")), "a1 b a2 x a3", ["a1"]),
    (begin("a").not_followed_by("x", of("x")).within(3), "a1 b a2 b b x", ["a1", "a2"]),
    (begin("a").not_followed_by("x", of("x")).within(4), "a1 b a2 b b x", ["a1"]),
]


@pytest.mark.parametrize("pattern, events, found", NEGATIONS, ids=lambda value: str(value).removeprefix("Pattern: "))
def test_negations(pattern: P, events: str, found: list[str]) -> None:
    assert matches(pattern, events) == found


def test_an_iterative_condition_sees_what_the_partial_match_took() -> None:
    """The documentation's example: values of a loop whose sum stays below a limit."""

    def below(event: str, matched: object) -> bool:
        assert isinstance(matched, dict)
        return event[0] == "a" and sum(int(e[1:]) for e in matched["a"]) + int(event[1:]) < 5

    pattern = begin("c").followed_by("a", below).one_or_more().greedy().followed_by("b", B)
    assert matches(pattern, "c a1 a2 a3 a1 b") == ["c a1 a2 a1 b"]


def group() -> P:
    return begin("a").next("b")


GROUPS: dict[str, tuple[P, str, list[str]]] = {
    "twice": (begin("c").followed_by(group()).times(2).followed_by("d", D), "c a1 b1 a2 b2 d", ["c a1 a2 b1 b2 d"]),
    "optional": (begin("c").followed_by(group()).optional().followed_by("d", D), "c a b d", ["c a b d", "c d"]),
    "loop": (P.begin(group()).one_or_more().consecutive(), "a1 b1 a2 b2 c", ["a1 b1", "a1 a2 b1 b2", "a2 b2"]),
    "loop, broken": (P.begin(group()).times(2).consecutive(), "a1 b1 c a2 b2", []),
    "loop, relaxed": (P.begin(group()).times(2), "a1 b1 c a2 b2", ["a1 a2 b1 b2"]),
}


@pytest.mark.parametrize("pattern, events, found", GROUPS.values(), ids=GROUPS)
def test_groups_are_quantified_as_a_whole(pattern: P, events: str, found: list[str]) -> None:
    assert matches(pattern, events) == found


DRAWN: list[tuple[Callable[[P], P], list[str]]] = [
    (lambda p: p, ["a b1 b2 b3 c", "a b1 b2 c", "a b1 c"]),
    (P.greedy, ["a b1 b2 b3 c"]),
    (lambda p: p.until(of("u")), ["a b1 b2 c", "a b1 c"]),
    (lambda p: p.greedy().until(of("u")), ["a b1 b2 c"]),
]


@pytest.mark.parametrize("more, found", DRAWN, ids=["loop", "greedy", "until", "greedy, until"])
def test_loops_as_the_room_draws_them(more: Callable[[P], P], found: list[str]) -> None:
    loop = more(begin("a").followed_by("b", B).one_or_more())
    assert matches(loop.followed_by("c", C), "a b1 b2 u b3 c") == found
