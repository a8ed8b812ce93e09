"""Summaries of many values in little space: how many are distinct, which are frequent, how they lie, their exact sum.

Each works on plain builtins in a slot of an aggregate's state, so that the store can encode it as it is:

    distinct    {value: None, …} up to a sixteenth of the registers' size, from there on 2**p registers as bytes
    frequent    {value: count, …} and, in the next slot, what was taken off every count
    quantile    {bucket: count, …}; buckets of negative values have negative numbers, 0 is zero
    exact sum   [partial, …], whose true sum is the sum

Nothing here is random: the same values give the same summary in every process. All but `frequent` depend on the
values alone, not on their order or on how they were split and merged; so does `frequent` while it is still exact.
NaN is no value: `distinct` and `frequent` must not be given one, `quantile` leaves it out.
"""

from __future__ import annotations

from decimal import Decimal
from hashlib import blake2b
from math import ceil, exp, fsum, inf, isfinite, log, log2, nan, sqrt
from sys import float_info
from typing import Any

import msgspec

from flowkit.codec import encode_key

Distinct = dict[Any, None] | bytes | bytearray

_seeded = blake2b(digest_size=8, key=b"flowkit")
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def stable_hash(value: Any) -> int:
    """64 bits that depend on the value alone, equal for values that are equal (1, 1.0 and True, as in a dict)."""
    if isinstance(value, int | float | Decimal) and (isinstance(value, int) or isfinite(value)):
        data = b"%d/%d" % value.as_integer_ratio()
    else:
        data = _encode(value)
    hashed = _seeded.copy()
    hashed.update(data)
    return int.from_bytes(hashed.digest(), "big")


# --- distinct values: exact, then HyperLogLog -----------------------------------------------------------------------


def distinct_precision(error: float) -> int:
    """The p whose 2**p registers give the relative standard error `error` = 1.04 / sqrt(2**p), or a better one."""
    return max(4, ceil(2 * log2(1.04 / error)))


def distinct_add(s: list[Any], i: int, value: Any, p: int) -> None:
    """Takes `value` into slot `i` of `s`."""
    seen = s[i]
    if type(seen) is dict:
        seen[value] = None
        if len(seen) > _exact_limit(p):
            s[i] = _registers(seen, p)
        return
    if type(seen) is bytes:  # as it comes from the store
        s[i] = seen = bytearray(seen)
    _count_leading_zeros(seen, value, p)


def distinct_merge(a: Distinct, b: Distinct, p: int) -> Distinct:
    """The distinct values of both, in a new object."""
    if isinstance(a, dict) and isinstance(b, dict):
        both = a | b
        return both if len(both) <= _exact_limit(p) else _registers(both, p)
    return _greater(_registers(a, p), _registers(b, p))


def distinct_count(seen: Distinct, p: int) -> int:
    """How many distinct values: exactly while they are few, from there on with the error of `p`.

    The estimator is Ertl's improved one (New cardinality estimation algorithms for HyperLogLog sketches, 2017,
    algorithm 6), which needs no tables of corrections for small numbers.
    """
    if isinstance(seen, dict):
        return len(seen)
    m = 1 << p
    longest = 64 - p + 1
    of_rank = []
    for rank in range(longest + 1):
        others = seen.translate(None, bytes([rank]))  # in C, and on ever fewer
        of_rank.append(len(seen) - len(others))
        seen = others
    z = m * _tau(1 - of_rank[longest] / m)
    for count in of_rank[-2:0:-1]:
        z = 0.5 * (z + count)
    z += m * _sigma(of_rank[0] / m)
    return round(m * m / (2 * log(2) * z))


def _exact_limit(p: int) -> int:
    """Up to here the values themselves, at some 16 bytes each, take no more room than the registers."""
    return (1 << p) >> 4


def _registers(seen: Distinct, p: int) -> bytearray:
    if not isinstance(seen, dict):
        return bytearray(seen)
    registers = bytearray(1 << p)
    for value in seen:
        _count_leading_zeros(registers, value, p)
    return registers


def _count_leading_zeros(registers: bytearray, value: Any, p: int) -> None:
    """The hash's first p bits choose the register; it keeps the longest run of zeros, plus one, in the rest."""
    hashed = stable_hash(value)
    rest = 64 - p
    register = hashed >> rest
    rank = rest - (hashed & ((1 << rest) - 1)).bit_length() + 1
    registers[register] = max(rank, registers[register])


def _greater(a: bytearray, b: bytearray) -> bytearray:
    """The greater of each pair of bytes, all below 128.

    As whole numbers, since 16,384 registers take 50 µs so and 1,600 µs one by one: the high bit of a byte survives
    the subtraction where a >= b, and makes the mask for the seven bits below it.
    """
    size = len(a)
    high = int.from_bytes(b"\x80" * size, "little")
    x, y = int.from_bytes(a, "little"), int.from_bytes(b, "little")
    at_least = ((x | high) - y) & high
    mask = at_least - (at_least >> 7)
    return bytearray((y ^ ((x ^ y) & mask)).to_bytes(size, "little"))


def _sigma(x: float) -> float:
    if x == 1:
        return inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    if x in (0, 1):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) ** 2 * y
    return z / 3


# --- frequent values ------------------------------------------------------------------------------------------------
#
# Misra and Gries' counters in batches, which are SpaceSaving's minus its least counter (Agarwal et al., Mergeable
# summaries, 2012), with the same bound. SpaceSaving looks for its least counter at each new value; here up to twice
# the capacity may gather before all are cut at once, so a value costs a dict update however many are distinct.
#
# The update is a part of the generated code: counts[value] += 1, and a cut when there are more than 2 * capacity.


def frequent_cut(s: list[Any], i: int, capacity: int) -> None:
    """Takes the (capacity + 1)-th greatest count off all counts in slot `i`, and drops those that reach zero."""
    counts: dict[Any, int] = s[i]
    cut = sorted(counts.values(), reverse=True)[capacity]
    s[i] = {value: count - cut for value, count in counts.items() if count > cut}
    s[i + 1] += cut


def frequent_merge(a: list[Any], b: list[Any], i: int, capacity: int) -> list[Any]:
    """Both slots of the merged summary."""
    counts: dict[Any, int] = dict(a[i])
    for value, count in b[i].items():
        counts[value] = counts.get(value, 0) + count
    merged = [counts, a[i + 1] + b[i + 1]]
    if len(counts) > 2 * capacity:
        frequent_cut(merged, 0, capacity)
    return merged


def frequent_top(counts: dict[Any, int], cut: int, k: int) -> list[tuple[Any, int]]:
    """The `k` most frequent values, the most frequent first and equally frequent ones in the order of their bytes.

    A count is exact if nothing was cut; else it may be too high, by no more than all values / (capacity + 1).
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], encode_key(item[0])))
    return [(value, count + cut) for value, count in ranked[:k]]


# --- quantiles: DDSketch --------------------------------------------------------------------------------------------
#
# Masson, Rim and Lee, DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees, VLDB 2019.
# Bucket i holds gamma**(i-1) < value <= gamma**i with gamma = (1 + error) / (1 - error). `base` lifts the numbers of
# all positive floats above 0, so that the order of the buckets is that of the values. A state keeps base / BUCKETS of
# them, which is enough for values over 17 powers of ten without a gap: 2,069 buckets at an error of 0.01.

BUCKETS = 18


def quantile_scale(error: float) -> tuple[float, int]:
    """(scale, base) for the relative error `error`: bucket i = ceil(ln(value) * scale)."""
    scale = 1 / log((1 + error) / (1 - error))
    return scale, ceil(745 * scale) + 1  # ln of the least float is -744.4


def quantile_add(buckets: dict[int, int], value: float, scale: float, base: int) -> None:
    """Counts `value`. Infinities, and integers beyond all floats, have a bucket of their own."""
    if value > 0:
        bucket = base + ceil(log(value) * scale) if value <= float_info.max else 2 * base
    elif value < 0:
        bucket = -base - ceil(log(-value) * scale) if value >= -float_info.max else -2 * base
    elif value == 0:
        bucket = 0
    else:
        return
    count = buckets.get(bucket)
    if count is not None:
        buckets[bucket] = count + 1
    else:
        buckets[bucket] = 1
        if len(buckets) > base // BUCKETS:
            _collapse(buckets, base)


def quantile_merge(a: dict[int, int], b: dict[int, int], base: int) -> dict[int, int]:
    """The values of both, in a new dict."""
    buckets = dict(a)
    for bucket, count in b.items():
        buckets[bucket] = buckets.get(bucket, 0) + count
    _collapse(buckets, base)
    return buckets


def quantile_at(buckets: dict[int, int], q: float, scale: float, base: int) -> float | None:
    """The value at rank q * (n - 1), rounded down, of n values, with the relative error of `scale`; None of none."""
    if not buckets:
        return None
    rank = q * (sum(buckets.values()) - 1)
    reached = 0
    bucket = 0
    for bucket in sorted(buckets):
        reached += buckets[bucket]
        if reached > rank:
            break
    if bucket == 0:
        return 0.0
    sign = 1 if bucket > 0 else -1
    if abs(bucket) == 2 * base:
        return sign * inf
    middle = 2 / (1 + exp(1 / scale))  # of a bucket, as a part of its upper end
    try:
        return sign * middle * exp((abs(bucket) - base) / scale)
    except OverflowError:  # the upper end of the greatest floats' bucket
        return sign * float_info.max


def _collapse(buckets: dict[int, int], base: int) -> None:
    """Joins the buckets nearest to zero until there are few enough: wide data loses its least values' precision.

    What is kept are the farthest of all buckets ever seen, so the order of arrival does not matter.
    """
    surplus = len(buckets) - base // BUCKETS
    if surplus > 0:
        nearest = sorted(buckets, key=lambda bucket: (abs(bucket), bucket))
        buckets[nearest[surplus]] += sum(buckets.pop(bucket) for bucket in nearest[:surplus])


# --- exact sums -----------------------------------------------------------------------------------------------------
#
# The update is a part of the generated code: append the value, and condense when there are more than MOST_PARTIALS.

MOST_PARTIALS = 12


def exact_total(partials: list[float]) -> float:
    """The true sum, rounded once (Shewchuk's algorithm, as in math.fsum)."""
    try:
        return fsum(partials)
    except ValueError:  # both infinities
        return nan
    except OverflowError:
        return sum(partials)


def exact_partials(partials: list[float]) -> list[float]:
    """Few floats with the same true sum: the sum, what its rounding left out, what that one's left out, and so on."""
    rest = list(partials)
    condensed: list[float] = []
    while total := exact_total(rest):
        condensed.append(total)
        if not isfinite(total):
            return [total]
        rest.append(-total)
    return condensed
