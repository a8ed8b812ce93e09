"""Interval joins against nested loops over everything that came, in event time."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError
from flowkit.join import NEVER, How, IntervalJoin
from flowkit.join.interval import LEAST_SLACK, MANY_ROWS
from flowkit.record import END_OF_TIME, MIN_TIME, Joined
from tests.depth import examples
from tests.join.driver import LEFT, RIGHT, Driver, Order, Out, Payment, Step, event, in_time, steps

HOWS: tuple[How, ...] = ("inner", "left", "right", "outer")


def fits(left: int, right: int, lower: int, upper: int) -> bool:
    return left + lower <= right <= left + upper


def expected(given: list[Step], lower: int, upper: int, how: How) -> list[Out]:
    """All that is sent, in order: pairs as their second event comes, rows alone as the watermark passes."""
    rows = [(n, step) for n, step in enumerate(given) if step[0] == "row"]

    def partners(n: int, side: int, key: str, t: int, before: int) -> list[tuple[int, int]]:
        return sorted(
            (time, m)
            for m, (_, other, its_key, time, _) in rows
            if m < before and other != side and its_key == key
            if (fits(t, time, lower, upper) if side == LEFT else fits(time, t, lower, upper))
        )

    out: list[Out] = []
    watermark = MIN_TIME
    for n, step in enumerate(given):
        if step[0] == "row":
            _, side, key, t, _ = step
            for time, m in partners(n, side, key, t, before=n):
                pair = sorted((event(n, step), event(m, given[m])), key=lambda one: isinstance(one, Payment))  # type: ignore[arg-type]
                out.append((key, Joined(*pair), max(t, time)))
            continue
        alone = [
            (t + (max(upper, 0) if side == LEFT else max(-lower, 0)), key, side, t, n)
            for n, (_, side, key, t, _) in rows
            if how == "outer" or how == ("left", "right")[side]
            if not partners(n, side, key, t, before=len(given))
        ]
        for due, key, side, _, m in sorted(alone):
            if watermark < due <= step[1]:
                one = event(m, given[m])  # type: ignore[arg-type]
                out.append((key, Joined(one, None) if side == LEFT else Joined(None, one), due))
        watermark = step[1]
    return out


@given(
    steps(),
    st.lists(st.integers(-12, 12), min_size=2, max_size=2).map(sorted),
    st.sampled_from(HOWS),
    st.integers(0, 9),
    st.sampled_from((0, 0.5, 1)),
)
@examples(600)
def test_sends_what_nested_loops_find_in_the_promised_order(
    given: list[Step], bounds: list[int], how: How, seed: int, often: float
) -> None:
    lower, upper = bounds
    given = in_time(given)
    driver = Driver(IntervalJoin(Order, Payment, lower, upper, how), seed, often)
    assert driver.run(given) == expected(given, lower, upper, how)
    assert driver.cells == {}


@given(
    steps(-5_000, 30_000),
    st.lists(st.integers(-9_000, 9_000), min_size=2, max_size=2).map(sorted),
    st.sampled_from(HOWS),
)
@examples(200)
def test_rows_are_forgotten_in_steps(given: list[Step], bounds: list[int], how: How) -> None:
    lower, upper = bounds
    given = in_time(given)
    join = IntervalJoin(Order, Payment, lower, upper, how)
    assert join.slack == max(max(upper, -lower, 0) // 2, LEAST_SLACK)

    def bounded(driver: Driver) -> None:
        for cell in driver.cells.values():
            for rows, keep in ((cell.left, max(upper, 0)), (cell.right, max(-lower, 0))):
                assert rows.times == sorted(rows.times)
                assert all(t + keep + join.slack > driver.watermark for t in rows.times)

    driver = Driver(join)
    assert driver.run(given, bounded) == expected(given, lower, upper, how)
    assert driver.cells == {}


def test_results_do_not_depend_on_the_order_of_arrival() -> None:
    """All orders of arrival send the same pairs at the same times.

    left    --1--------3------5-
    right   -----2------4-------    within 10 either way
    """
    rows: list[Step] = [
        ("row", side, "a", t, False) for side, t in ((LEFT, 2), (RIGHT, 5), (LEFT, 11), (RIGHT, 12), (LEFT, 30))
    ]
    found = set()
    for order in permutations(rows):
        given: list[Step] = [*order, ("advance", END_OF_TIME)]
        times = [step[3] if step[0] == "row" else 0 for step in given]
        driver = Driver(IntervalJoin(Order, Payment, -10, 10, "outer"))
        found.add(
            tuple(
                sorted(
                    (times[out.left.n] if out.left else -1, times[out.right.n] if out.right else -1, time)
                    for _, out, time in driver.run(given)
                )
            )
        )
    assert found == {((2, 5, 5), (2, 12, 12), (11, 5, 11), (11, 12, 12), (30, -1, 40))}


def tell(out: list[Out]) -> list[tuple[int | None, int | None, int]]:
    return [(joined.left and joined.left.n, joined.right and joined.right.n, time) for _, joined, time in out]


def test_both_bounds_count_and_nothing_outside_them() -> None:
    """Rights at the edges of the reach, and 1 ms beyond.

    time    0  1  2  3  4  5  6  7  8
    left                L
    right      .  [--------------]  .       lower -2, upper 3
    """
    given: list[Step] = [("row", LEFT, "a", 4, False)]
    given += [("row", RIGHT, "a", t, False) for t in (1, 2, 7, 8)]
    driver = Driver(IntervalJoin(Order, Payment, -2, 3))
    assert tell(driver.run(given)) == [(0, 2, 4), (0, 3, 7)]


def test_a_row_stays_alone_from_the_end_of_its_reach() -> None:
    """Not 1 ms earlier: a partner could still have come.

    watermark   0  1  2  3  4  5  6  7
    left 0                  L========|      alone at 7
    right 1              R=====|            alone at 5: a left one at 5 could still have come
    """
    given: list[Step] = [("row", LEFT, "a", 4, False), ("row", RIGHT, "b", 3, False)]
    driver = Driver(IntervalJoin(Order, Payment, -2, 3, "outer"))
    for watermark, sent in ((4, []), (5, [(None, 1, 5)]), (6, [(None, 1, 5)]), (7, [(None, 1, 5), (0, None, 7)])):
        if watermark == 4:
            driver.run(given)
        driver.advance(watermark)
        assert tell(driver.out) == sent
    assert driver.cells == {}


def test_a_reach_that_ends_before_the_row_ends_with_the_row() -> None:
    """Nothing is sent at a time before that of its row.

    time    0  1  2  3  4  5  6  7
    left                         L      alone at 7, though its rights end at 4
    right      [--------]               lower -6, upper -3
    """
    driver = Driver(IntervalJoin(Order, Payment, -6, -3, "left"))
    driver.advance(5)
    driver.row(0, ("row", LEFT, "a", 7, False))
    driver.advance(6)
    assert driver.out == []
    driver.advance(7)
    assert tell(driver.out) == [(0, None, 7)]


def test_an_inner_join_does_not_wake_for_each_row() -> None:
    driver = Driver(IntervalJoin(Order, Payment, -10_000, 10_000), often=0)
    for n in range(2_000):
        driver.row(n, ("row", n % 2, "a", n * 50, False))
        driver.advance(n * 50 - 100)
    assert driver.wakes < 2_000 / MANY_ROWS  # for each so many rows of a side at most
    (cell,) = driver.cells.values()
    assert len(cell.left.times) < 10_000 / 100 + 2 * MANY_ROWS
    driver.advance(END_OF_TIME)
    assert driver.cells == {}


def test_an_older_row_makes_the_cell_due_earlier() -> None:
    join = IntervalJoin(Order, Payment, -1_000, 3_000)
    cell = join.new()
    for side, t, due in ((LEFT, 9_000, 42_000), (LEFT, 8_000, 41_000), (RIGHT, 9_999, 40_999), (RIGHT, 20_000, 40_999)):
        join.event("a", cell, side, Order(0) if side == LEFT else Payment(0), t)
        assert join.due(cell) == due


def test_one_wake_may_come_for_many_dues() -> None:
    """Rows alone go out in order of time; a left and a right one of the same due are partners."""
    join = IntervalJoin(Order, Payment, -2, 3, "outer")
    cell = join.new()
    for n, (side, t) in enumerate(((LEFT, 100), (LEFT, 0), (RIGHT, 11), (RIGHT, 51), (LEFT, 10), (RIGHT, 1_000))):
        join.event("a", cell, side, Order(n) if side == LEFT else Payment(n), t)
    sent = [("a", joined, time) for _, joined, time in join.wake("a", cell, 500)]
    assert tell(sent) == [(1, None, 3), (None, 3, 53), (0, None, 103)]
    assert join.due(cell) == 1_002
    for n, (side, t) in enumerate(((LEFT, 1_100), (RIGHT, 1_101 + 3))):
        join.event("a", cell, side, Order(n) if side == LEFT else Payment(n), t)
    assert tell([("a", joined, time) for _, joined, time in join.wake("a", cell, 2_000)]) == [
        (None, 5, 1_002),
        (0, None, 1_103),
        (None, 1, 1_106),
    ]
    assert join.over(cell)


def test_a_pair_of_the_last_moment_of_all() -> None:
    driver = Driver(IntervalJoin(Order, Payment, 0, 1_000))
    driver.row(0, ("row", LEFT, "a", END_OF_TIME - 1, False))
    driver.row(1, ("row", RIGHT, "a", END_OF_TIME - 1, False))
    driver.advance(END_OF_TIME)
    assert tell(driver.out) == [(0, 1, END_OF_TIME - 1)]
    assert driver.cells == {}


@pytest.mark.parametrize("how", HOWS)
def test_rows_of_the_last_moment_of_all(how: How) -> None:
    """Events of a window without an end have the last time but one; their reach goes beyond the end of time."""
    driver = Driver(IntervalJoin(Order, Payment, 0, 1_000, how))
    driver.row(0, ("row", LEFT, "a", END_OF_TIME - 1, False))
    driver.row(1, ("row", RIGHT, "b", END_OF_TIME - 1, False))
    driver.advance(END_OF_TIME)
    alone = {"right": (None, 1, END_OF_TIME - 1), "left": (0, None, END_OF_TIME)}
    assert tell(driver.out) == [sent for side, sent in alone.items() if how in (side, "outer")]
    assert driver.cells == {}


def test_a_new_cell_is_over_and_never_due() -> None:
    join = IntervalJoin(Order, Payment, 0, 0)
    assert join.over(join.new())
    assert join.due(join.new()) == NEVER


def test_the_type_says_which_side_may_be_missing() -> None:
    types: dict[How, Any] = {
        "inner": Joined[Order, Payment],
        "left": Joined[Order, Payment | None],
        "right": Joined[Order | None, Payment],
        "outer": Joined[Order | None, Payment | None],
    }
    assert {how: IntervalJoin(Order, Payment, 0, 0, how).type for how in types} == types


@pytest.mark.parametrize(
    "lower, upper, how, problem",
    [
        (5, 3, "inner", "paid: lower=5 ms is after upper=3 ms, so nothing can match: did you mean lower=3, upper=5?"),
        (0, 3, "full", "paid: how='full' is no kind of join: give 'inner', 'left', 'right' or 'outer'"),
        (0.5, 3, "inner", "paid: lower=0.5: give whole ms (seconds(…), minutes(…))"),
        (0, True, "inner", "paid: upper=True: give whole ms (seconds(…), minutes(…))"),
    ],
)
def test_nonsense_is_told_with_its_cure(lower: Any, upper: Any, how: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        IntervalJoin(Order, Payment, lower, upper, how, name="paid")
    assert caught.value.problems == (problem,)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        IntervalJoin(Order, Payment, 0.5, None, "full")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
