"""As-of joins against a look at all right rows that came, for each left one."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError
from flowkit.join import NEVER, AsOfJoin, How
from flowkit.join.asof import MANY_VERSIONS
from flowkit.record import END_OF_TIME, MIN_TIME, Change, Joined
from tests.depth import examples
from tests.join.driver import LEFT, RIGHT, Driver, Order, Out, Payment, Step, event, in_time, steps


def expected(given: list[Step], how: How, reach: int | None) -> list[Out]:
    """All that is sent, in order: left rows as the watermark passes them."""
    rows = [(n, step) for n, step in enumerate(given) if step[0] == "row"]

    def version(key: str, t: int) -> Any:
        seen = [(time, n) for n, (_, side, its, time, _) in rows if side == RIGHT and its == key and time <= t]
        time, n = max(seen, default=(MIN_TIME, -1))
        if n < 0 or (reach is not None and t - time > reach):
            return None
        found = event(n, given[n])  # type: ignore[arg-type]
        return None if isinstance(found, Payment) and found.gone else found

    out: list[Out] = []
    watermark = MIN_TIME
    for step in given:
        if step[0] == "advance":
            ready = [(t, key, n) for n, (_, side, key, t, _) in rows if side == LEFT and watermark < t <= step[1]]
            for t, key, n in sorted(ready):
                found = version(key, t)
                if found is not None or how == "left":
                    out.append((key, Joined(Order(n), found), t))
            watermark = step[1]
    return out


@given(
    steps(),
    st.sampled_from(("inner", "left")),
    st.one_of(st.none(), st.integers(0, 12)),
    st.booleans(),
    st.integers(0, 9),
    st.sampled_from((0, 0.5, 1)),
)
@examples(600)
def test_sends_what_a_look_at_everything_finds_in_order(
    given: list[Step], how: How, reach: int | None, kept: bool, seed: int, often: float
) -> None:
    given = in_time(given)
    bound = {"keep_for" if kept else "tolerance": reach}
    join = AsOfJoin(Order, Payment, how, tombstone=lambda payment: payment.gone, **bound)  # type: ignore[arg-type]
    driver = Driver(join, seed, often)
    assert driver.run(given) == expected(given, how, reach)
    if reach is not None:
        assert driver.cells == {}
    assert all(len(cell.since) == 1 and not cell.times for cell in driver.cells.values())


@given(steps(-100_000, 300_000), st.one_of(st.none(), st.integers(0, 50_000)))
@examples(200)
def test_versions_are_forgotten_in_steps(given: list[Step], tolerance: int | None) -> None:
    given = in_time(given)
    join = AsOfJoin(Order, Payment, "left", tolerance, tombstone=lambda payment: payment.gone)
    assert join.slack == (60_000 if tolerance is None else max(tolerance // 8, 1_000))

    def bounded(driver: Driver) -> None:
        for cell in driver.cells.values():
            assert cell.since == sorted(set(cell.since))
            assert cell.times == sorted(cell.times)
            assert all(t > driver.watermark for t in cell.times)
            # All but the newest version that can be seen lie after the watermark, or not long before it.
            assert all(t + join.slack > driver.watermark for t in cell.since[1:])
            if tolerance is not None:
                assert all(t + tolerance + join.slack > driver.watermark for t in cell.since[:1])

    driver = Driver(join)
    assert driver.run(given, bounded) == expected(given, "left", tolerance)


def tell(out: list[Out]) -> list[tuple[int, int | None, int]]:
    return [(joined.left.n, joined.right and joined.right.n, time) for _, joined, time in out]


def rows(*several: tuple[int, int]) -> list[Step]:
    return [("row", side, "a", t, False) for side, t in several]


def test_the_last_at_or_before_counts_whatever_came_when() -> None:
    """Right rows that came after the left ones count all the same.

    time    0  1  2  3  4  5  6  7
    right            A     BC          B and C at the same time: C came later
    left          0  1  2  3
    """
    given = rows((LEFT, 2), (LEFT, 3), (LEFT, 4), (LEFT, 5), (RIGHT, 5), (RIGHT, 5), (RIGHT, 3))
    driver = Driver(AsOfJoin(Order, Payment, "left"))
    driver.run(given)
    assert driver.out == []
    driver.advance(4)
    assert tell(driver.out) == [(0, None, 2), (1, 6, 3), (2, 6, 4)]
    driver.advance(5)
    assert tell(driver.out[3:]) == [(3, 5, 5)]


def test_a_tolerance_counts_its_last_millisecond() -> None:
    """A version is seen at its time + tolerance, and not 1 ms later.

    time    0  1  2  3  4  5  6  7
    right      A========|                tolerance 3
    left                1  2
    """
    driver = Driver(AsOfJoin(Order, Payment, "left", tolerance=3))
    driver.run([*rows((RIGHT, 1), (LEFT, 4), (LEFT, 5)), ("advance", END_OF_TIME)])
    assert tell(driver.out) == [(1, 0, 4), (2, None, 5)]
    assert driver.cells == {}


@pytest.mark.parametrize("jump", [1, 7, 1_000])
def test_a_key_not_updated_is_forgotten_at_one_moment_however_the_watermark_goes(jump: int) -> None:
    """What is found follows from event time, not from when a cell was woken.

    time    0     10    20
    right   A=====|             keep_for 10
    left          1 2
    """
    driver = Driver(AsOfJoin(Order, Payment, "left", keep_for=10))
    for n, step in enumerate(rows((RIGHT, 0), (LEFT, 10), (LEFT, 11))):
        assert step[0] == "row"
        driver.row(n, step)
        if n == 0:
            driver.advance(min(jump, 9))
    for watermark in range(jump + 9, 5_000, jump):
        driver.advance(watermark)
    assert tell(driver.out) == [(1, 0, 10), (2, None, 11)]
    assert driver.cells == {}


class Customer(msgspec.Struct, frozen=True):
    tier: str


def test_the_changes_of_a_table_give_the_table_at_the_time_of_each_row() -> None:
    """A deletion is a version, too.

    time      0   10   20   30
    table        gold      deleted
    left       5    15   25   35
    """
    join = AsOfJoin(Order, Customer, "left", value=lambda change: change.new)
    assert join.type == Joined[Order, Customer | None]
    gold = Customer("gold")
    cell = join.new()
    changes = [Change("a", None, gold, 10), Change("a", gold, None, 30)]
    for change in reversed(changes):
        assert join.event("a", cell, RIGHT, change, change.time) == ()
    for n, t in enumerate((5, 15, 25, 35)):
        assert join.event("a", cell, LEFT, Order(n), t) == ()
    cell = msgspec.msgpack.decode(msgspec.msgpack.encode(cell), type=join.cell_type)
    found = [(joined.left.n, joined.right, time) for _, joined, time in join.wake("a", cell, 40)]
    assert found == [(0, None, 5), (1, gold, 15), (2, gold, 25), (3, None, 35)]
    assert join.over(cell)


def test_without_a_bound_one_version_stays() -> None:
    driver = Driver(AsOfJoin(Order, Payment), often=0)
    most = 0
    for n in range(5_000):
        driver.row(n, ("row", RIGHT, "a", n * 10, False))
        driver.advance(n * 10 - 50)
        most = max(most, len(driver.cells["a"].since))
    assert most <= MANY_VERSIONS + 6
    assert driver.wakes < 5_000 / (MANY_VERSIONS - 6)
    driver.advance(END_OF_TIME)
    (cell,) = driver.cells.values()
    assert cell.since == [49_990]
    assert driver.join.due(cell) == NEVER


def test_one_old_version_of_a_quiet_key_wakes_no_one() -> None:
    driver = Driver(AsOfJoin(Order, Payment))
    driver.row(0, ("row", RIGHT, "a", 5, False))
    driver.advance(10**12)
    driver.row(1, ("row", LEFT, "a", 10**12 + 1, False))
    driver.advance(10**12 + 1)
    assert tell(driver.out) == [(1, 0, 10**12 + 1)]
    assert driver.wakes == 1


def test_an_old_version_does_not_wait_for_the_next_one_to_be_forgotten() -> None:
    join = AsOfJoin(Order, Payment, tolerance=5_000)
    cell = join.new()
    for n, t in enumerate((0, 90_000)):
        join.event("a", cell, RIGHT, Payment(n), t)
    assert join.due(cell) == 5_000 + join.slack
    assert join.wake("a", cell, join.due(cell)) == []
    assert cell.since == [90_000]


def test_one_wake_may_come_for_many_dues() -> None:
    join = AsOfJoin(Order, Payment, "left")
    cell = join.new()
    for n, (side, t) in enumerate(((LEFT, 30), (RIGHT, 20), (LEFT, 10), (RIGHT, 40), (LEFT, 30), (LEFT, 60))):
        join.event("a", cell, side, Order(n) if side == LEFT else Payment(n), t)
    assert tell([("a", joined, time) for _, joined, time in join.wake("a", cell, 50)]) == [
        (2, None, 10),
        (0, 1, 30),
        (4, 1, 30),
    ]
    assert join.due(cell) == 60
    assert cell.since == [40]


@pytest.mark.parametrize("tolerance", [0, 5_000])
def test_rows_of_the_last_moment_of_all(tolerance: int) -> None:
    """Events of a window without an end have the last time but one; a version's use goes beyond the end of time."""
    driver = Driver(AsOfJoin(Order, Payment, tolerance=tolerance))
    driver.row(0, ("row", RIGHT, "a", END_OF_TIME - 1, False))
    driver.row(1, ("row", LEFT, "a", END_OF_TIME - 1, False))
    driver.advance(END_OF_TIME)
    assert tell(driver.out) == [(1, 0, END_OF_TIME - 1)]
    assert driver.cells == {}


@pytest.mark.parametrize(
    "options, problems",
    [
        ({"tolerance": -1}, ["prices: tolerance=-1 ms is negative: give 0 or more, or leave it out"]),
        ({"keep_for": 1.5}, ["prices: keep_for=1.5: give whole ms (seconds(…), minutes(…))"]),
        ({"how": "outer"}, ["prices: how='outer' is no kind of join: give 'inner' or 'left'"]),
        (
            {"tolerance": 1, "keep_for": -1},
            [
                "prices: keep_for=-1 ms is negative: give 0 or more, or leave it out",
                "prices: tolerance bounds what is kept already: leave keep_for out",
            ],
        ),
    ],
)
def test_nonsense_is_told_with_its_cure(options: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        AsOfJoin(Order, Payment, name="prices", **options)
    assert list(caught.value.problems) == problems
