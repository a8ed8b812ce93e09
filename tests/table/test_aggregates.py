"""What each aggregate answers; and that panes merged, or a state that went through the store, answer the same."""

import enum
import math
import random
import statistics
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import inf, isnan, nan
from typing import Any, Literal, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError
from flowkit.record import Record
from flowkit.table.aggregates import (
    Count,
    CountDistinct,
    Custom,
    First,
    Last,
    Max,
    Mean,
    Min,
    Quantile,
    Sum,
    TopK,
    Variance,
    compile_aggregates,
    result_type,
)
from flowkit.table.fused import Compiled
from tests.depth import examples


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Place(msgspec.Struct, frozen=True, order=True):
    x: int
    y: int


class Loose(Record):
    x: int


def over(spec: Any, type_: Any) -> Compiled:
    """`spec` compiled for events with one field `f`."""
    return compile_aggregates("t", {"it": spec}, msgspec.defstruct("Event", [("f", type_)], bases=(Record,)))


def events(compiled: Compiled, values: Sequence[Any]) -> list[Any]:
    return [compiled.event_type(value) for value in values]


def state_of(compiled: Compiled, values: Sequence[Any], times: Sequence[int] | None = None) -> Any:
    s = compiled.new()
    for event, t in zip(events(compiled, values), times or range(len(values)), strict=True):
        compiled.update(s, event, t)
    return s


def answer(spec: Any, type_: Any, values: Sequence[Any], times: Sequence[int] | None = None) -> Any:
    compiled = over(spec, type_)
    return compiled.result(state_of(compiled, values, times)).it


ABC = ["b", "a", None, "c", "a"]
TWO = datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("spec", "type_", "values", "expected"),
    [
        (Count(), str | None, ABC, 5),
        (Sum("f"), int, [1, 2, 3], 6),
        (Sum("f"), int, [], 0),
        (Sum("f"), int | None, [None, 4, None], 4),
        (Sum("f"), float | None, [None], 0.0),
        (Sum("f"), float, [0.1, 0.2, 0.3], 0.1 + 0.2 + 0.3),
        (Sum("f"), bool, [True, False, True], 2),
        (Sum("f"), Decimal, [Decimal("0.1"), Decimal("0.2")], Decimal("0.3")),
        (Sum("f"), Decimal, [], Decimal(0)),
        (Sum("f", exact=True), float, [0.1] * 10, 1.0),
        (Sum("f", exact=True), float, [1e100, 1.0, -1e100], 1.0),
        (Sum("f", exact=True), int, [2**60, 1], 2**60 + 1),
        (Sum("f", exact=True), Any, [0.1, 1, None, Decimal("0.5")], 1.6),
        (Mean("f"), float, [1.0, 2.0, 6.0], 3.0),
        (Mean("f"), int | None, [1, None, 2], 1.5),
        (Mean("f"), int, [], None),
        (Mean("f"), Decimal, [Decimal(1), Decimal(2)], Decimal("1.5")),
        (Mean("f"), int, [10**400, 10**400], inf),
        (Mean("f"), int, [-(10**400)], -inf),
        (Min("f"), str | None, ABC, "a"),
        (Max("f"), str | None, ABC, "c"),
        (Min("f"), int, [], None),
        (Min("f"), float, [nan, 2.0, nan, 1.0, nan], 1.0),
        (Max("f"), float, [1.0, nan, 2.0], 2.0),
        (Min("f"), float, [nan], None),
        (Max("f"), date, [date(2024, 1, 1), date(2025, 1, 1)], date(2025, 1, 1)),
        (Max("f"), Place, [Place(1, 5), Place(2, 0)], Place(2, 0)),
        (Max("f"), Level, [Level.LOW, Level.HIGH], Level.HIGH),
        (Min("f"), tuple[int, str], [(1, "b"), (1, "a")], (1, "a")),
        (Min("f"), Literal["x", "y"], ["y", "x"], "x"),
        (Variance("f"), float, [1.0, 2.0, 3.0, 4.0], 1.25),
        (Variance("f", ddof=1), int, [1, 2, 3, 4], 5 / 3),
        (Variance("f"), int, [7], 0.0),
        (Variance("f", ddof=1), int, [7], None),
        (Variance("f"), int | None, [None], None),
        (Variance("f"), Decimal, [Decimal(1), Decimal(2)], Decimal("0.25")),
        (First("f"), str | None, [None, "b", "a"], "b"),
        (Last("f"), str | None, ["b", "a", None], "a"),
        (First("f"), str, [], None),
        (Last("f"), Loose, [Loose(1), Loose(2)], Loose(2)),
        (First("f"), datetime, [TWO], datetime(2024, 1, 1, tzinfo=UTC)),
        (CountDistinct("f"), str | None, ABC, 3),
        (CountDistinct("f"), str, [], 0),
        (CountDistinct("f"), float, [nan, nan, 1.0], 1),
        (CountDistinct("f"), Color, [Color.RED, Color.BLUE, Color.RED], 2),
        (CountDistinct("f"), int | str, [1, "1", 1], 2),
        (TopK("f", 2), str | None, ABC, [("a", 2), ("b", 1)]),
        (TopK("f", 2), str, [], []),
        (TopK("f", 9), float, [nan, 1.0, nan], [(1.0, 1)]),
        (TopK("f", 1), Place, [Place(1, 1), Place(1, 1), Place(0, 0)], [(Place(1, 1), 2)]),
        (Quantile("f", 0.5), int, [], None),
        (Quantile("f", 0.5), int, [1, 3, 1000], pytest.approx(3, rel=0.01)),
        (Quantile("f", 1), Decimal, [Decimal(1), Decimal(3)], pytest.approx(3, rel=0.01)),
        (Quantile("f", 0), float | None, [None, -2.0, nan], pytest.approx(-2, rel=0.01)),
    ],
    ids=repr,
)
def test_answers(spec: Any, type_: Any, values: list[Any], expected: Any) -> None:
    found = answer(spec, type_, values)
    assert found == expected
    if isinstance(expected, int | float | Decimal):
        assert type(found) is type(expected)


def test_nan_makes_sums_means_and_variances_nan() -> None:
    for spec in (Sum("f"), Sum("f", exact=True), Mean("f"), Variance("f")):
        assert isnan(answer(spec, float, [1.0, nan, 2.0]))


@pytest.mark.parametrize(
    ("times", "first", "last"),
    [
        ([1, 2, 3], "a", "c"),
        ([3, 2, 1], "c", "a"),
        ([2, 1, 3], "b", "c"),
        ([5, 5, 5], "a", "c"),  # equal times: by arrival
        ([-5, -7, -7], "b", "a"),
    ],
)
def test_first_and_last_go_by_event_time_then_by_arrival(times: list[int], first: str, last: str) -> None:
    assert answer(First("f"), str, ["a", "b", "c"], times) == first
    assert answer(Last("f"), str, ["a", "b", "c"], times) == last


def test_equal_extremes_keep_the_one_that_came_first() -> None:
    compiled = over(Min("f"), Any)
    one = compiled.merge(state_of(compiled, [1]), state_of(compiled, [1.0]))
    assert type(compiled.result(one).it) is int
    assert type(answer(Max("f"), Any, [1, 1.0, True])) is int


def test_custom_aggregates_do_as_they_say() -> None:
    letters = Custom(
        initial=list,
        step=lambda state, event: [*state, event.f[0]],
        merge=lambda a, b: a + b,
        result="".join,
    )
    compiled = over(letters, str)
    assert compiled.result(state_of(compiled, ["x", "yy"])).it == "xy"
    assert compiled.result(compiled.merge(state_of(compiled, ["x"]), state_of(compiled, ["y"]))).it == "xy"


def test_a_custom_state_of_a_type_comes_back_from_the_store_as_that_type() -> None:
    def no_places() -> set[Place]:
        return set()

    compiled = over(Custom(no_places, lambda s, e: s | {e.f}, lambda a, b: a | b, len), Place)
    s = compiled.decode(compiled.encode(state_of(compiled, [Place(1, 2), Place(1, 2)])))
    assert compiled.result(s).it == 1
    assert msgspec.structs.astuple(s) == ({Place(1, 2)},)


# --- wrong uses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "type_"),
    [
        (Sum("f"), str),
        (Sum("f"), int | str),
        (Sum("f"), float | Decimal),
        (Sum("f"), datetime),
        (Mean("f"), bytes | None),
        (Variance("f"), list[int]),
        (Quantile("f", 0.5), str),
        (Min("f"), dict[str, int]),
        (Min("f"), set[int]),
        (Max("f"), int | str),
        (Max("f"), Loose),
        (Max("f"), Color),
        (Min("f"), tuple[Loose, ...]),
        (CountDistinct("f"), list[int]),
        (CountDistinct("f"), Loose),
        (TopK("f", 3), dict[str, int] | None),
        (TopK("f", 3), tuple[list[int], ...]),
        (Count(5), int),
        ("f", int),
    ],
)
def test_a_field_whose_type_does_not_suit_is_an_error_before_anything_starts(spec: Any, type_: Any) -> None:
    with pytest.raises(ConfigError, match=r"table 't': it=\w+: .*"):
        over(spec, type_)


def test_an_error_names_table_aggregate_field_and_type() -> None:
    with pytest.raises(ConfigError) as raised:
        over(Sum("f"), str)
    assert str(raised.value) == "table 't': it=Sum: field 'f' is str, but this adds numbers"


def test_all_that_is_wrong_is_told_at_once() -> None:
    class Event(Record):
        card: str
        amount: float

    with pytest.raises(ConfigError) as raised:
        compile_aggregates(
            "spend",
            {"total": Sum("amuont"), "top": Max("amount"), "mean": Mean("card"), "class": Count(), "w": Count(3)},
            Event,
            "crad",
        )
    assert raised.value.problems == (
        "table 'spend': total=Sum: 'amuont' is no field of Event, whose fields are: card, amount",
        "table 'spend': mean=Mean: field 'card' is str, but this divides numbers",
        "table 'spend': 'class' is no name for a field",
        "table 'spend': w=Count: Count(n=3, every=None) is a window; to count events use Count()",
        "table 'spend': by='crad': 'crad' is no field of Event, whose fields are: card, amount",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Variance("f", ddof=-1),
        lambda: CountDistinct("f", error=0),
        lambda: CountDistinct("f", error=0.5),
        lambda: TopK("f", 0),
        lambda: TopK("f", 10, capacity=5),
        lambda: Quantile("f", 1.5),
        lambda: Quantile("f", nan),
        lambda: Quantile("f", 0.5, error=0),
        lambda: compile_aggregates("t", {}, Loose),
    ],
)
def test_numbers_that_make_no_sense_are_errors(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


@pytest.mark.parametrize("spec", [Sum("f"), Min("f"), Quantile("f", 0.5), Variance("f"), TopK("f", 1)])
def test_a_wrong_value_in_an_untyped_event_is_an_error_of_that_event(spec: Any) -> None:
    compiled = compile_aggregates("t", {"it": spec}, dict[str, Any])
    s = compiled.new()
    compiled.update(s, {"f": 1}, 0)
    with pytest.raises(TypeError):
        compiled.update(s, {"f": ["text"]}, 0)


# --- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field_type", "expected"),
    [
        (Count(), str, int),
        (Sum("f"), int, int),
        (Sum("f"), bool, int),
        (Sum("f"), float | None, float),
        (Sum("f"), int | float, float),
        (Sum("f"), Decimal, Decimal),
        (Sum("f"), Any, Any),
        (Mean("f"), int, float | None),
        (Mean("f"), Decimal, Decimal | None),
        (Min("f"), str, str | None),
        (Last("f"), Place | None, Place | None),
        (First("f"), Any, Any),
        (Variance("f"), int, float | None),
        (CountDistinct("f"), str, int),
        (TopK("f", 3), str | None, list[tuple[str, int]]),
        (Quantile("f", 0.5), Decimal, float | None),
        (Custom(list, max, max, len), int, Any),
    ],
)
def test_the_type_of_a_result_is_known(spec: Any, field_type: Any, expected: Any) -> None:
    assert result_type(spec, field_type) == expected


def test_the_type_of_a_result_that_cannot_be_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Sum: field 'f' is str, but this adds numbers"):
        result_type(Sum("f"), str)


def test_results_are_records_that_every_codec_can_write_and_read() -> None:
    class Event(TypedDict):
        card: str
        amount: float

    compiled = compile_aggregates(
        "card_spend", {"n": Count(), "top": TopK("card", 2), "most": Max("amount")}, Event, "card"
    )
    s = compiled.new()
    compiled.update(s, {"card": "a", "amount": 2.5}, 0)
    result = compiled.result(s)
    assert repr(result) == "CardSpend(n=1, top=[('a', 1)], most=2.5)"
    assert msgspec.json.decode(msgspec.json.encode(result), type=compiled.result_type) == result


# --- merging and the store ------------------------------------------------------------------------------------------

EXACT: dict[str, Any] = {
    "n": Count(),
    "sum": Sum("v"),
    "true_sum": Sum("x", exact=True),
    "mean": Mean("v"),
    "least": Min("x"),
    "most": Max("word"),
    "first": First("x"),
    "last": Last("word"),
    "distinct": CountDistinct("word"),
    "few_distinct": CountDistinct("v", error=0.25),
    "top": TopK("word", 3),
    "median": Quantile("x", 0.5),
    "decimals": Sum("d"),
    "least_decimal": Min("d"),
    "days": TopK("day", 2),
    "id": Last("id"),
    "when": Max("when"),
    "words": Custom(dict, lambda s, e: {**s, e.word or "": 1}, lambda a, b: {**a, **b}, sorted),
}


class Mixed(Record):
    v: int | None
    x: float | None
    word: str | None
    d: Decimal | None = None
    day: date | None = None
    id: uuid.UUID | None = None
    when: datetime | None = None


COMPILED = compile_aggregates("t", EXACT, Mixed)
words = st.sampled_from(["", "a", "b", "é", "card-1", "card-2"])
mixed = st.builds(
    Mixed,
    v=st.none() | st.integers(-(2**70), 2**70),
    x=st.none() | st.floats(allow_nan=False),
    word=st.none() | words,
    d=st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-999, max_value=999),
    day=st.none() | st.dates(),
    id=st.none() | st.uuids(),
    when=st.none() | st.integers(-(10**12), 10**12).map(lambda ms: TWO + timedelta(milliseconds=ms)),
)
timed = st.lists(st.tuples(mixed, st.integers(-20, 20)), max_size=40)


def counted(pairs: Sequence[tuple[Any, int]], s: Any = None) -> Any:
    s = COMPILED.new() if s is None else s
    for event, t in pairs:
        COMPILED.update(s, event, t)
    return s


def told(s: Any) -> str:
    return repr(COMPILED.result(s))


@given(timed, st.lists(st.integers(0, 40), max_size=4))
@examples(200)
def test_parts_merged_in_order_answer_as_the_whole(pairs: list[tuple[Any, int]], cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(pairs)]
    merged = COMPILED.new()
    for start, stop in pairwise(bounds):
        merged = COMPILED.merge(merged, counted(pairs[start:stop]))
    assert told(merged) == told(counted(pairs))


@given(timed, st.integers(0, 40))
@examples(200)
def test_a_state_that_went_through_the_store_goes_on_as_if_it_had_not(pairs: list[tuple[Any, int]], cut: int) -> None:
    stored = COMPILED.decode(COMPILED.encode(counted(pairs[:cut])))
    assert told(stored) == told(counted(pairs[:cut]))
    assert told(counted(pairs[cut:], stored)) == told(counted(pairs))
    assert COMPILED.encode(stored) == COMPILED.encode(counted(pairs))


@given(timed, timed, timed)
@examples()
def test_a_merge_changes_neither_part_and_shares_nothing_with_them(a: Any, b: Any, more: Any) -> None:
    one, other = counted(a), counted(b)
    before = COMPILED.encode(one), COMPILED.encode(other)
    counted(more, COMPILED.merge(one, other))
    assert (COMPILED.encode(one), COMPILED.encode(other)) == before


@given(timed, timed)
@examples()
def test_a_result_does_not_change_with_later_events(pairs: Any, more: Any) -> None:
    s = counted(pairs)
    result = COMPILED.result(s)
    before = repr(result)
    counted(more, s)
    assert repr(result) == before


def test_variance_agrees_with_the_exact_one_and_survives_a_large_mean_and_merges() -> None:
    rng = random.Random(5)
    values = [1e9 + rng.gauss(0, 1) for _ in range(4000)]
    exact = float(statistics.pvariance(map(Fraction, values)))
    compiled = over(Variance("f"), float)
    merged = compiled.new()
    for i in range(0, len(values), 37):
        merged = compiled.merge(merged, state_of(compiled, values[i : i + 37]))
    for s in (state_of(compiled, values), merged):
        assert compiled.result(s).it == pytest.approx(exact, rel=1e-6)


def test_sketches_of_many_values_survive_merges_and_the_store() -> None:
    rng = random.Random(9)
    specs: dict[str, Any] = {
        "distinct": CountDistinct("f"),
        "top": TopK("f", 3, capacity=64),
        "p99": Quantile("f", 0.99),
    }
    compiled = compile_aggregates("t", specs, msgspec.defstruct("Event", [("f", int)]))
    values = [int(rng.paretovariate(0.5)) for _ in range(20_000)]
    merged = compiled.new()
    for i in range(0, len(values), 3000):
        merged = compiled.merge(merged, compiled.decode(compiled.encode(state_of(compiled, values[i : i + 3000]))))
    result = compiled.result(merged)
    assert result.distinct == pytest.approx(len(set(values)), rel=0.025)
    assert [value for value, _ in result.top] == [1, 2, 3]
    assert result.p99 == pytest.approx(sorted(values)[math.floor(0.99 * (len(values) - 1))], rel=0.0101)
