"""Sketches against exact answers, on seeded data; and that merging parts gives what the whole gives."""

import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from math import copysign, fsum, inf, isnan, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.table.sketches import (
    MOST_PARTIALS,
    distinct_add,
    distinct_count,
    distinct_merge,
    distinct_precision,
    exact_partials,
    exact_total,
    frequent_cut,
    frequent_merge,
    frequent_top,
    quantile_add,
    quantile_at,
    quantile_merge,
    quantile_scale,
    stable_hash,
)


def through_the_store(state: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state))


# --- the hash -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "hashed"),
    [
        ("", 0x14AFEC8BD9C42039),
        ("card-1", 0x048258D64AC85DB3),
        (b"card-1", 0x64EDC29A3219406B),
        (0, 0x4DE92F81EF4849A5),
        (-7, 0x99CAFD5D606C3758),
        (0.1, 0x055220E31B1F5D66),
        (inf, 0x23AD777FC3A74FE0),
        (2**70, 0x10AC1DE12E3E5903),
        (("a", 1), 0x343792D7DBF0807A),
        (date(2024, 2, 29), 0x7EFD9774436F2BA9),
    ],
)
def test_a_hash_is_the_same_in_every_process_and_version(value: Any, hashed: int) -> None:
    assert stable_hash(value) == hashed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (2**60, float(2**60)),
        (Decimal("1.50"), 1.5),
        (Decimal("2E+3"), 2000),
        (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))),
    ],
)
def test_equal_values_have_equal_hashes(one: Any, other: Any) -> None:
    assert one == other
    assert stable_hash(one) == stable_hash(other)


def test_values_that_are_not_equal_have_other_hashes() -> None:
    values = ["1", b"1", 1, 1.5, (1,), None, inf, -inf]
    assert len({stable_hash(value) for value in values}) == len(values)


# --- distinct -------------------------------------------------------------------------------------------------------


def distinct(values: Any, p: int = 14) -> Any:
    s: list[Any] = [{}]
    for value in values:
        distinct_add(s, 0, value, p)
    return s[0]


@pytest.mark.parametrize(("error", "p"), [(0.25, 5), (0.05, 9), (0.01, 14), (0.005, 16), (0.002, 19)])
def test_registers_are_enough_for_the_error(error: float, p: int) -> None:
    assert distinct_precision(error) == p
    assert 1.04 / 2 ** (p / 2) <= error


@pytest.mark.parametrize("n", [0, 1, 1000, 1024])
def test_few_distinct_values_are_counted_exactly(n: int) -> None:
    assert distinct_count(distinct([*range(n), *range(n)]), 14) == n


@pytest.mark.parametrize("n", [1025, 5_000, 40_000, 100_000])
def test_many_distinct_values_are_counted_within_three_standard_errors(n: int) -> None:
    rng = random.Random(n)
    seen = distinct(f"card-{rng.getrandbits(64)}" for _ in range(n))
    assert abs(distinct_count(seen, 14) - n) <= 3 * 1.04 / 2**7 * n


def test_the_error_of_distinct_counts_is_the_promised_one_on_average() -> None:
    p, n = 8, 2000
    errors = [distinct_count(distinct(range(i * n, (i + 1) * n), p), p) / n - 1 for i in range(60)]
    assert abs(sum(errors) / len(errors)) < 0.02  # unbiased
    assert (sum(e * e for e in errors) / len(errors)) ** 0.5 < 1.2 * 1.04 / 2 ** (p / 2)


@pytest.mark.parametrize("sizes", [(3, 5), (10, 40), (40, 10), (100, 200), (0, 100), (100, 0)])
def test_distinct_values_of_two_parts_are_those_of_the_whole(sizes: tuple[int, int]) -> None:
    p = 9  # exact up to 32
    a, b = range(sizes[0]), range(sizes[0] // 2, sizes[0] // 2 + sizes[1])
    whole = distinct([*a, *b], p)
    assert distinct_merge(distinct(a, p), distinct(b, p), p) == whole
    assert distinct_merge(distinct(b, p), distinct(a, p), p) == whole


@pytest.mark.parametrize("size", [5, 200])
def test_merging_distinct_values_changes_neither_part(size: int) -> None:
    a, b = distinct(range(size), 9), distinct(range(size, 2 * size), 9)
    before = through_the_store([a, b])
    merged = [distinct_merge(a, b, 9)]
    for value in range(1000):
        distinct_add(merged, 0, value, 9)
    assert [a, b] == before


def test_repeated_values_do_not_count_twice_in_registers() -> None:
    seen = distinct(range(5000))
    s = [through_the_store(seen)]
    for value in range(5000):
        distinct_add(s, 0, value, 14)
    assert s[0] == seen


# --- frequent -------------------------------------------------------------------------------------------------------


def frequent(values: Any, capacity: int) -> list[Any]:
    s: list[Any] = [{}, 0]
    for value in values:
        s[0][value] = s[0].get(value, 0) + 1
        if len(s[0]) > 2 * capacity:
            frequent_cut(s, 0, capacity)
    return s


def test_frequent_values_are_exact_while_they_fit() -> None:
    values = [c for c in "abracadabra" for _ in range(3)]
    counts, cut = frequent(values, 10)
    assert frequent_top(counts, cut, 3) == [("a", 15), ("b", 6), ("r", 6)]


def test_equally_frequent_values_come_in_the_order_of_their_bytes() -> None:
    assert frequent_top({"é": 1, "z": 1, "a": 1, "aa": 1}, 0, 9) == [("a", 1), ("aa", 1), ("z", 1), ("é", 1)]
    assert frequent_top({9: 1, 10: 1}, 0, 9) == [(10, 1), (9, 1)]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_frequent_values_are_found_among_many_and_counts_are_too_high_by_a_bounded_part(parts: int) -> None:
    rng = random.Random(parts)
    n, capacity = 20_000, 50
    values = [int(rng.paretovariate(0.6)) for _ in range(n)]
    true = Counter(values)
    state = frequent(values[::parts], capacity)
    for i in range(1, parts):
        state = frequent_merge(state, frequent(values[i::parts], capacity), 0, capacity)
    counts, cut = state
    assert len(counts) <= 2 * capacity
    assert cut <= n / (capacity + 1)
    for value, count in true.items():
        assert value in counts or count <= cut
    for value, count in counts.items():
        assert count <= true[value] <= count + cut
    assert [value for value, _ in frequent_top(counts, cut, 5)] == [value for value, _ in true.most_common(5)]


def test_merging_frequent_values_changes_neither_part() -> None:
    a, b = frequent("aab", 2), frequent("bcdefgh", 2)
    before = through_the_store([a, b])
    frequent_merge(a, b, 0, 2)[0]["a"] = 99
    assert [a, b] == before


# --- quantiles ------------------------------------------------------------------------------------------------------


def buckets_of(values: Any, error: float = 0.01) -> dict[int, int]:
    scale, base = quantile_scale(error)
    buckets: dict[int, int] = {}
    for value in values:
        quantile_add(buckets, value, scale, base)
    return buckets


def quantile(buckets: dict[int, int], q: float, error: float = 0.01) -> float | None:
    return quantile_at(buckets, q, *quantile_scale(error))


DISTRIBUTIONS: dict[str, Any] = {
    "uniform": lambda rng: rng.random(),
    "normal": lambda rng: rng.gauss(0, 10),
    "exponential": lambda rng: rng.expovariate(0.001),
    "heavy tail": lambda rng: rng.paretovariate(0.8),
    "integers": lambda rng: rng.randrange(-5, 100),
    "tiny and huge": lambda rng: 10 ** (rng.choice([-300, 290]) + rng.uniform(0, 2)),
}


@pytest.mark.parametrize("error", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_within_the_error_of_the_exact_ones(name: str, error: float) -> None:
    rng = random.Random(name)
    values = [DISTRIBUTIONS[name](rng) for _ in range(3000)]
    buckets = buckets_of(values, error)
    values.sort()
    for q in (0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1):
        exact = values[int(q * (len(values) - 1))]
        assert quantile(buckets, q, error) == pytest.approx(exact, rel=error * (1 + 1e-6), abs=0)


def test_there_is_no_quantile_of_no_values() -> None:
    assert quantile({}, 0.5) is None


def test_infinities_and_integers_beyond_floats_are_the_ends_and_nan_is_left_out() -> None:
    buckets = buckets_of([nan, inf, -inf, 10**400, -(10**400), 0, -0.0, nan])
    assert [quantile(buckets, q) for q in (0, 0.2, 0.4, 0.6, 0.8, 1)] == [-inf, -inf, 0, 0, inf, inf]


@pytest.mark.parametrize("value", [1.7976931348623157e308, 5e-324, 2.2250738585072014e-308])
def test_the_greatest_and_the_least_floats_keep_their_precision(value: float) -> None:
    for signed in (value, -value):
        found = quantile(buckets_of([signed]), 0.5)
        assert found is not None
        assert found == pytest.approx(signed, rel=0.01, abs=5e-324)
        assert copysign(1, found) == copysign(1, signed)


def test_one_absurd_value_does_not_spoil_the_others() -> None:
    buckets = buckets_of([*range(1, 1000), 1e308])
    assert quantile(buckets, 0.5) == pytest.approx(500, rel=0.02)


def test_values_over_too_many_powers_of_ten_lose_the_precision_of_the_least_whatever_their_order() -> None:
    rng = random.Random(3)
    values = [10.0**exponent * rng.choice([1, -1]) for exponent in range(-300, 300) for _ in range(3)]
    values += [1.01**i for i in range(3000)]
    whole = buckets_of(values)
    assert len(whole) == 2069
    assert sum(whole.values()) == len(values)
    assert quantile(whole, 0.999) == pytest.approx(sorted(values)[int(0.999 * (len(values) - 1))], rel=0.01)
    rng.shuffle(values)
    assert buckets_of(values) == whole
    _, base = quantile_scale(0.01)
    assert quantile_merge(buckets_of(values[:1000]), buckets_of(values[1000:]), base) == whole


@given(st.lists(st.floats(allow_nan=True)), st.lists(st.floats(allow_nan=True)))
def test_quantiles_of_two_parts_are_those_of_the_whole(a: list[float], b: list[float]) -> None:
    _, base = quantile_scale(0.01)
    assert quantile_merge(buckets_of(a), through_the_store(buckets_of(b)), base) == buckets_of([*a, *b])


# --- exact sums -----------------------------------------------------------------------------------------------------


def partials_of(values: Any) -> list[float]:
    partials: list[float] = []
    for value in values:
        partials.append(value)
        if len(partials) > MOST_PARTIALS:
            partials = exact_partials(partials)
    return partials


finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(st.lists(finite, max_size=60), st.randoms(use_true_random=False))
def test_exact_sums_are_the_true_sum_rounded_once_in_any_order(values: list[float], rng: random.Random) -> None:
    true = float(sum(map(Fraction, values)))
    assert exact_total(partials_of(values)) == true
    rng.shuffle(values)
    cut = len(values) // 3
    assert exact_total(exact_partials(partials_of(values[:cut]) + partials_of(values[cut:]))) == true


def test_condensed_partials_are_few_and_have_the_same_sum() -> None:
    rng = random.Random(1)
    values = [rng.uniform(-1, 1) * 10.0 ** rng.randrange(20) for _ in range(10_000)]
    partials = exact_partials(values)
    assert len(partials) <= 3
    assert exact_total(partials) == fsum(values)


def test_exact_sums_of_infinities_are_those_of_plain_addition() -> None:
    assert exact_total(partials_of([inf] * 50)) == inf
    assert isnan(exact_total(partials_of([inf, -inf] * 50)))
    assert isnan(exact_total(partials_of([nan, 1.0] * 50)))
    assert exact_total(partials_of([1e308] * 50)) == inf
