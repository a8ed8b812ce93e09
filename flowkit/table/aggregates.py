"""Declared aggregates: what `app.table(…, of=source, by="field", n=Count(), total=Sum("amount"))` may ask for.

A field is a name or a function of the event. As in SQL, None is no value: an aggregate of no values is None, but a
count or sum is 0 and a top list is empty; `Count()` counts events. NaN is no value either, but for sums, means and
variances, which it makes NaN.

Each aggregate is a frozen description; `plan` says how it is kept, as text for `flowkit.table.fused`.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

from flowkit.errors import ConfigError
from flowkit.table import sketches
from flowkit.table.fields import Field, Value, returned, value_of
from flowkit.table.fused import Compiled, fuse
from flowkit.table.parts import (
    Part,
    Plan,
    Unsuitable,
    but_nan,
    by_time,
    chan,
    check_hashable,
    count,
    divide,
    exact_sum,
    extreme,
    number_of,
    plain_sum,
)
from flowkit.window import Count

__all__ = [
    "Aggregate",
    "Compiled",
    "Count",
    "CountDistinct",
    "Custom",
    "First",
    "Last",
    "Max",
    "Mean",
    "Min",
    "Quantile",
    "Sum",
    "TopK",
    "Variance",
    "compile_aggregates",
    "result_type",
]


@dataclass(frozen=True)
class Sum:
    """The sum of a field of numbers; 0 of none.

    Floats are added one after the other, each addition rounded, so the last digits depend on the order. With `exact`
    the result is the true sum rounded once, whatever the order and the panes; that costs about 0.2 µs an event.
    """

    field: Field
    exact: bool = False

    def plan(self, value: Value) -> Plan:
        kind = number_of(value, "adds numbers")
        if self.exact and kind in (float, Any):
            part = exact_sum(value)
            return Plan((part,), "{total}(s[{0}])", float, {"total": sketches.exact_total})
        return Plan((plain_sum(value),), "s[{0}]", kind)


@dataclass(frozen=True)
class Mean:
    """The arithmetic mean of a field of numbers: the plain sum by the number of values."""

    field: Field

    def plan(self, value: Value) -> Plan:
        kind = number_of(value, "divides numbers")
        parts = (count(value), plain_sum(value))
        if kind in (float, Decimal):
            return Plan(parts, "s[{1}] / s[{0}] if s[{0}] else None", kind | None)
        return Plan(parts, "{divide}(s[{1}], s[{0}])", float | None, {"divide": divide})


@dataclass(frozen=True)
class Min:
    """The least value of a field of any type with an order; of equal values, the first."""

    field: Field

    def plan(self, value: Value) -> Plan:
        return extreme(value, "min", "<")


@dataclass(frozen=True)
class Max:
    """The greatest value of a field of any type with an order; of equal values, the first."""

    field: Field

    def plan(self, value: Value) -> Plan:
        return extreme(value, "max", ">")


@dataclass(frozen=True)
class Variance:
    """The variance of a field of numbers, by Welford's method and merged by Chan's.

    `ddof` is taken off the divisor: 0 for the variance of a population, 1 for the estimate from a sample. None of
    `ddof` values or fewer.
    """

    field: Field
    ddof: int = 0

    def __post_init__(self) -> None:
        _check(self.ddof >= 0, self, "ddof must be 0 or more")

    def plan(self, value: Value) -> Plan:
        kind = number_of(value, "works on numbers")
        part = Part(
            "variance",
            ("0", "0", "0"),
            "_n = s[{0}] = s[{0}] + 1\n_d = {v} - s[{1}]\n_m = s[{1}] = s[{1}] + _d / _n\ns[{2}] += _d * ({v} - _m)",
            "*{chan}(a[{0}], a[{1}], a[{2}], b[{0}], b[{1}], b[{2}])",
            value,
            {1: Decimal, 2: Decimal} if kind is Decimal else {},
            {"chan": chan},
        )
        result = f"s[{{2}}] / (s[{{0}}] - {self.ddof}) if s[{{0}}] > {self.ddof} else None"
        return Plan((part,), result, (Decimal if kind is Decimal else float) | None)


@dataclass(frozen=True)
class First:
    """The value with the least event time; of equal times, the first to arrive."""

    field: Field

    def plan(self, value: Value) -> Plan:
        return by_time(value, "first", "9223372036854775807", "<", "<=")


@dataclass(frozen=True)
class Last:
    """The value with the greatest event time; of equal times, the last to arrive."""

    field: Field

    def plan(self, value: Value) -> Plan:
        return by_time(value, "last", "-9223372036854775808", ">=", ">")


@dataclass(frozen=True)
class CountDistinct:
    """How many different values a field has; 0 of none.

    Exact while they are few (up to 1,024 at an error of 0.01), then HyperLogLog, whose relative standard error is
    `error` or less: with 0.01, a key takes 16 kB, and two results of three are within 1%. From 0.002 to 0.25.
    """

    field: Field
    error: float = 0.01

    def __post_init__(self) -> None:
        _check(0.002 <= self.error <= 0.25, self, "error must be from 0.002 to 0.25")

    def plan(self, value: Value) -> Plan:
        check_hashable(value)
        p = sketches.distinct_precision(self.error)
        part = Part(
            f"distinct in 2**{p} registers",
            ("{{}}",),
            but_nan(value, f"{{add}}(s, {{0}}, {{v}}, {p})"),
            f"{{merge}}(a[{{0}}], b[{{0}}], {p})",
            value,
            {0: dict[value.type, None] | bytes},  # type: ignore[name-defined]
            {"add": sketches.distinct_add, "merge": sketches.distinct_merge},
        )
        return Plan((part,), f"{{count}}(s[{{0}}], {p})", int, {"count": sketches.distinct_count})


@dataclass(frozen=True)
class TopK:
    """The `k` most frequent values as (value, count): the most frequent first, then in the order of their bytes.

    Exact for up to twice `capacity` different values (16 * k, at least 128). With more, a value that makes up more
    than 1 / (capacity + 1) of all is always known, and counts are too high by at most that part of all.
    """

    field: Field
    k: int
    capacity: int = 0

    def __post_init__(self) -> None:
        _check(self.k > 0, self, "k must be above 0")
        _check(self.capacity == 0 or self.capacity >= self.k, self, "capacity must be k or more")

    def plan(self, value: Value) -> Plan:
        check_hashable(value)
        capacity = self.capacity or max(16 * self.k, 128)
        part = Part(
            f"frequent among {capacity}",
            ("{{}}", "0"),
            but_nan(
                value,
                "_c = s[{0}]\n"
                "_c[{v}] = _c.get({v}, 0) + 1\n"
                f"if len(_c) > {2 * capacity}:\n"
                f"    {{cut}}(s, {{0}}, {capacity})",
            ),
            f"*{{merge}}(a, b, {{0}}, {capacity})",
            value,
            {0: dict[value.type, int]},  # type: ignore[name-defined]
            {"cut": sketches.frequent_cut, "merge": sketches.frequent_merge},
        )
        result = f"{{top}}(s[{{0}}], s[{{1}}], {self.k})"
        return Plan((part,), result, list[tuple[value.type, int]], {"top": sketches.frequent_top})  # type: ignore[name-defined]


@dataclass(frozen=True)
class Quantile:
    """The value at rank `q` * (n - 1), rounded down, of n numbers: `Quantile("ms", 0.5)` is the (lower) median.

    By DDSketch: the result is off by `error` times itself at most (from 0.0001 to 0.5). Quantiles of one field and
    error share their state.
    """

    field: Field
    q: float
    error: float = 0.01

    def __post_init__(self) -> None:
        _check(0 <= self.q <= 1, self, "q must be from 0 to 1")
        _check(0.0001 <= self.error <= 0.5, self, "error must be from 0.0001 to 0.5")

    def plan(self, value: Value) -> Plan:
        kind = number_of(value, "ranks numbers")
        scale, base = sketches.quantile_scale(self.error)
        v = "float({v})" if kind is Decimal else "{v}"
        part = Part(
            f"quantiles within {self.error}",
            ("{{}}",),
            f"{{add}}(s[{{0}}], {v}, {scale!r}, {base})",
            f"{{merge}}(a[{{0}}], b[{{0}}], {base})",
            value,
            {},
            {"add": sketches.quantile_add, "merge": sketches.quantile_merge},
        )
        result = f"{{at}}(s[{{0}}], {self.q!r}, {scale!r}, {base})"
        return Plan((part,), result, float | None, {"at": sketches.quantile_at})


@dataclass(frozen=True)
class Custom:
    """An aggregate of the user's own.

    `initial()` makes a state, `step(state, event)` returns the state with one more event (it may change and return
    the one that it gets), `merge(a, b)` returns a new state of two, the earlier first, without changing either, and
    `result(state)` the value. A state is made of builtins; if `initial` is a type, or annotates what it returns, it may
    be whatever msgspec can encode.

    >>> longest = Custom(
    ...     initial=str,
    ...     step=lambda state, event: max(state, event.text, key=len),
    ...     merge=lambda a, b: max(a, b, key=len),
    ...     result=str.upper,
    ... )
    """

    initial: Callable[[], Any]
    step: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    result: Callable[[Any], Any]

    def plan(self) -> Plan:
        part = Part(
            "custom",
            ("{initial}()",),
            "s[{0}] = {step}(s[{0}], e)",
            "{merge}(a[{0}], b[{0}])",
            None,
            {0: returned(self.initial)},
            {"initial": self.initial, "step": self.step, "merge": self.merge},
        )
        return Plan((part,), "{result}(s[{0}])", returned(self.result), {"result": self.result})


Aggregate: TypeAlias = (
    Count | Sum | Mean | Min | Max | Variance | First | Last | CountDistinct | TopK | Quantile | Custom
)


def compile_aggregates(
    table: str, specs: Mapping[str, Aggregate], event_type: Any, by: Field | None = None
) -> Compiled:
    """The aggregates of `table` as code for events of `event_type`, counted by the key `by`.

    Raises ConfigError with all that is wrong: names that cannot be fields of the result, unknown fields, fields whose
    type does not suit the aggregate.
    """
    problems: list[str] = []
    plans: dict[str, Plan] = {}
    for name, spec in specs.items():
        where = f"table {table!r}: {name}={type(spec).__name__}"
        if not name.isidentifier() or keyword.iskeyword(name):
            problems.append(f"table {table!r}: {name!r} is no name for a field")
            continue
        try:
            plans[name] = _plan(spec, event_type)
        except LookupError as error:
            problems.append(f"{where}: {error.args[0]}")
        except Unsuitable as error:
            problems.append(f"{where}: {error}")
    key = None
    if by is not None:
        try:
            key = value_of(event_type, by, required=True)
        except LookupError as error:
            problems.append(f"table {table!r}: by={by!r}: {error.args[0]}")
    if not specs:
        problems.append(f"table {table!r}: no aggregates: give some, such as n=Count()")
    if problems:
        raise ConfigError(*problems)
    return fuse(table, plans, event_type, key)


def result_type(spec: Aggregate, field_type: Any = Any) -> Any:
    """The type of the result of `spec` over a field of `field_type`. Raises ConfigError if it does not suit.

    >>> result_type(Mean("amount"), int)
    float | None
    """
    try:
        return _plan(spec, dict[str, field_type]).type
    except Unsuitable as error:
        raise ConfigError(f"{type(spec).__name__}: {error}") from None


def _plan(spec: Aggregate, event_type: Any) -> Plan:
    if isinstance(spec, Custom):
        return spec.plan()
    if isinstance(spec, Count):
        if spec.n is not None:
            raise Unsuitable(f"{spec} is a window; to count events use Count()")
        return Plan((count(None),), "s[{0}]", int)
    if not hasattr(spec, "plan"):
        raise Unsuitable("this is no aggregate: use Count(), Sum(field), Mean(field), …")
    return spec.plan(value_of(event_type, spec.field))


def _check(right: bool, spec: Any, message: str) -> None:
    if not right:
        raise ConfigError(f"{spec}: {message}")
