"""What aggregates are made of: slots of a state, with the text of the code that keeps and tells them.

The parts that several aggregates use, or that are longer than a line, are here; the others with their aggregates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf
from typing import Any, TypeAlias

from flowkit.table import sketches
from flowkit.table.fields import Value, is_hashable, is_ordered, may_be_nan, number, optional, shown

State: TypeAlias = Any
"""Of one key: slots of builtins that msgpack can encode. A struct with fields `s0`, `s1` …, or a list where a part's
functions want it whole."""

SLOT = re.compile(r"\b([sab])\[\{(\d+)\}\]")
WHOLE = re.compile(r"(?<!\.)\b[sab]\b(?!\.s\{)")


def slots_apart(text: str) -> str | None:
    """The text of a part with its slots as fields (`s.s{0}` for `s[{0}]`), or None if it uses a state as a whole."""
    apart = SLOT.sub(r"\1.s{\2}", text)
    return None if WHOLE.search(apart) else apart


@dataclass(frozen=True)
class Part:
    """Neighbouring slots of a state, and the text that keeps them.

    In the texts `{0}`, `{1}` … are the numbers of the slots, `{v}` is the event's value (never None), and other names
    are `objects`. Names for passing use begin with an underscore.

    - `new`: the slots' first values, as items of a list.
    - `update`: statements over the state `s`, the event `e` and its time `t` (ms). They may raise: then the state is
      half changed, and of no more use.
    - `merge`: the slots of two states `a` and `b` together, as items of a list; nothing in it may be shared with `a`
      or `b` and change later. `a` began before `b`.
    - `types`: of those slots that hold what events hold.
    """

    kind: str
    new: tuple[str, ...]
    update: str
    merge: str
    value: Value | None = None
    types: Mapping[int, Any] = field(default_factory=dict)
    objects: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> str:
        """What stored slots mean, in words: it must not change while they are stored."""
        return self.kind if self.value is None else f"{self.kind} of {self.value.label}: {shown(self.value.type)}"


@dataclass(frozen=True)
class Plan:
    """How one aggregate is kept and told: `result` is text over `s` with the slots of all `parts`; `type` its type."""

    parts: tuple[Part, ...]
    result: str
    type: Any
    objects: Mapping[str, Any] = field(default_factory=dict)


class Unsuitable(Exception):
    """An aggregate cannot work on values of this type. It becomes a line of a ConfigError."""


def unsuitable(value: Value, does: str) -> Unsuitable:
    """The error of a value that an aggregate, which `does` this, cannot use."""
    what = f"field {value.field!r}" if isinstance(value.field, str) else f"what {value.label} returns"
    return Unsuitable(f"{what} is {shown(value.type)}, but this {does}")


def number_of(value: Value, does: str) -> Any:
    """int, float, Decimal or Any: the type of a sum of such values. Raises Unsuitable if they are no numbers."""
    kind = number(value.type)
    if kind is None:
        raise unsuitable(value, does)
    return kind


def check_hashable(value: Value) -> None:
    """Raises Unsuitable if values cannot be keys of a dict."""
    if not is_hashable(value.type):
        raise unsuitable(value, "tells values apart by their hash: take a field of them, or freeze the type")


def but_nan(value: Value, update: str) -> str:
    """`update`, left out for NaN."""
    if not may_be_nan(value.type):
        return update
    return "if {v} == {v}:\n" + "\n".join(f"    {line}" for line in update.splitlines())


def count(value: Value | None) -> Part:
    """Events, or those with a value where some have none."""
    counted = value if value is not None and value.nullable else None
    return Part("count", ("0",), "s[{0}] += 1", "a[{0}] + b[{0}]", counted)


def plain_sum(value: Value) -> Part:
    """One addition after the other."""
    kind = number(value.type)
    zero = {float: "0.0", Decimal: "{zero}"}.get(kind, "0")
    return Part(
        "sum",
        (zero,),
        "s[{0}] += {v}",
        "a[{0}] + b[{0}]",
        value,
        {} if kind is float else {0: kind},
        {"zero": Decimal(0)} if kind is Decimal else {},
    )


def exact_sum(value: Value) -> Part:
    """A true sum of floats, as partials."""
    v = "{v}" if value.type is float else "float({v})"
    return Part(
        "exact sum",
        ("[]",),
        f"_p = s[{{0}}]\n_p.append({v})\nif len(_p) > {sketches.MOST_PARTIALS}:\n    s[{{0}}] = {{condense}}(_p)",
        "{condense}(a[{0}] + b[{0}])",
        value,
        {},
        {"condense": sketches.exact_partials},
    )


def extreme(value: Value, kind: str, before: str) -> Plan:
    """The value that comes `before` (< or >) all others."""
    if not is_ordered(value.type):
        raise unsuitable(value, "compares values, which these do not allow")
    # A NaN at the start would stay for ever, since nothing compares with it; later ones never win.
    start = "    if {v} == {v}:\n        s[{0}] = {v}\n" if may_be_nan(value.type) else "    s[{0}] = {v}\n"
    part = Part(
        kind,
        ("None",),
        f"_m = s[{{0}}]\nif _m is None:\n{start}elif {{v}} {before} _m:\n    s[{{0}}] = {{v}}",
        f"a[{{0}}] if b[{{0}}] is None or (a[{{0}}] is not None and not b[{{0}}] {before} a[{{0}}]) else b[{{0}}]",
        value,
        {0: optional(value.type)},
    )
    return Plan((part,), "s[{0}]", part.types[0])


def by_time(value: Value, kind: str, never: str, wins: str, earlier_wins: str) -> Plan:
    """The value whose time is before (or after) all others', starting from the time `never`.

    A new value `wins` over the kept one if its time stands so to the kept one's; and the earlier of two merged states
    `earlier_wins` over the other, whose values arrived after its own.
    """
    part = Part(
        kind,
        (never, "None"),
        f"if t {wins} s[{{0}}]:\n    s[{{0}}] = t\n    s[{{1}}] = {{v}}",
        f"*((a[{{0}}], a[{{1}}]) if a[{{0}}] {earlier_wins} b[{{0}}] else (b[{{0}}], b[{{1}}]))",
        value,
        {1: optional(value.type)},
    )
    return Plan((part,), "s[{1}]", part.types[1])


def divide(total: Any, n: int) -> float | None:
    """`total / n`, whatever the integer; None of none."""
    if not n:
        return None
    try:
        return float(total / n)
    except OverflowError:  # integers beyond all floats
        return inf if total > 0 else -inf


def chan(n: int, mean: Any, m2: Any, other_n: int, other_mean: Any, other_m2: Any) -> list[Any]:
    """The count, mean and sum of squared distances of two groups together.

    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    if not n or not other_n:
        return [n, mean, m2] if n else [other_n, other_mean, other_m2]
    both = n + other_n
    apart = other_mean - mean
    return [both, mean + apart * other_n / both, m2 + other_m2 + apart * apart * (n * other_n) / both]
