"""Joins beside hand-written loops of the same work, and what a hot key costs. CPU time in one run, best of several.

The pure logic alone: rows in memory, in order of arrival, up to a second out of order; a watermark each 500 rows, and a
heap of dues as the engine has one.
"""

import gc
import random
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from heapq import heappop, heappush
from operator import itemgetter
from typing import Any

import msgspec
import pytest

from flowkit.join import NEVER, AsOfJoin, How, IntervalJoin, Sent
from flowkit.record import END_OF_TIME, Joined, Record
from tests.benchmarks.workload import best, show

ROWS = 200_000
"""Of each side."""
OUT_OF_ORDER = 1_000
BATCH = 500


class Order(Record):
    key: str
    n: int


class Payment(Record):
    key: str
    n: int
    amount: float


Row = tuple[int, str, int, Any]  # side, key, time (ms), event


def make_rows(keys: int, rows: int = ROWS, per_ms: float = 0.1) -> list[Row]:
    """Both sides' rows, of random keys, in order of arrival."""
    rng = random.Random(1)
    made: list[Row] = []
    for n in range(2 * rows):
        key = f"k{rng.randrange(keys)}"
        event = Order(key, n) if n % 2 == 0 else Payment(key, n, 1.5)
        made.append((n % 2, key, 1_700_000_000_000 + int(n / 2 / per_ms) - rng.randrange(OUT_OF_ORDER), event))
    return made


def joined(join: IntervalJoin | AsOfJoin, rows: Sequence[Row]) -> list[Sent]:
    """What the engine does about a join, in the least words."""
    cells: dict[str, Any] = {}
    dues: list[tuple[int, str]] = []
    told: dict[str, int] = {}
    out: list[Sent] = []
    process: Any = join
    new, give, wake, due_of, over = process.new, process.event, process.wake, process.due, process.over
    high = 0
    for start in range(0, len(rows), BATCH):
        for side, key, t, event in rows[start : start + BATCH]:
            high = max(high, t)
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = new()
            out.extend(give(key, cell, side, event, t))
            due = due_of(cell)
            if told.get(key) != due:
                told[key] = due
                heappush(dues, (due, key))
        watermark = high - OUT_OF_ORDER - 1 if start + BATCH < len(rows) else END_OF_TIME
        while dues and dues[0][0] <= watermark:
            at, key = heappop(dues)
            if told.get(key) != at:
                continue
            cell = cells[key]
            out.extend(wake(key, cell, at))
            if over(cell):
                del cells[key], told[key]
            elif (due := due_of(cell)) != NEVER:
                told[key] = due
                heappush(dues, (due, key))
    return out


def by_hand(rows: Sequence[Row], lower: int, upper: int) -> list[Sent]:
    """An inner interval join as anyone would write it: two sorted lists a key. What can go is dropped when its key is
    touched, and of all keys each time that event time has gone on by the interval's length.
    """
    kept: dict[str, tuple[list[int], list[Any], list[int], list[Any]]] = {}
    out: list[Sent] = []
    high = swept = 0
    for start in range(0, len(rows), BATCH):
        watermark = high - OUT_OF_ORDER - 1
        if watermark >= swept + upper - lower:
            swept = watermark
            for key, (left, lefts, right, rights) in list(kept.items()):
                gone = bisect_right(left, watermark - upper)
                del left[:gone], lefts[:gone]
                gone = bisect_right(right, watermark + lower)
                del right[:gone], rights[:gone]
                if not left and not right:
                    del kept[key]
        for side, key, t, event in rows[start : start + BATCH]:
            high = max(high, t)
            if key not in kept:
                kept[key] = ([], [], [], [])
            if side == 0:
                times, events, partners, others = kept[key]
                first, last = t + lower, t + upper
                expired = watermark + lower
            else:
                partners, others, times, events = kept[key]
                first, last = t - upper, t - lower
                expired = watermark - upper
            if partners and partners[0] <= expired:
                gone = bisect_right(partners, expired)
                del partners[:gone], others[:gone]
            place = bisect_right(times, t)
            times.insert(place, t)
            events.insert(place, event)
            for n in range(bisect_left(partners, first), bisect_right(partners, last)):
                other = partners[n]
                pair = Joined(event, others[n]) if side == 0 else Joined(others[n], event)
                out.append(("", pair, max(other, t)))
    return out


def as_of_by_hand(rows: Sequence[Row]) -> list[Sent]:
    """A left as-of join: all left rows that wait in one heap, the right ones in a sorted list a key."""
    waiting: list[tuple[int, int, str, Any]] = []
    kept: dict[str, list[tuple[int, int, Any]]] = {}
    out: list[Sent] = []
    high = 0
    for start in range(0, len(rows), BATCH):
        for n, (side, key, t, event) in enumerate(rows[start : start + BATCH], start):
            high = max(high, t)
            if side == 0:
                heappush(waiting, (t, n, key, event))
            else:
                insort(kept.setdefault(key, []), (t, n, event))
        watermark = high - OUT_OF_ORDER - 1 if start + BATCH < len(rows) else END_OF_TIME
        while waiting and waiting[0][0] <= watermark:
            t, _, key, event = heappop(waiting)
            versions = kept.get(key, [])
            place = bisect_right(versions, t, key=itemgetter(0)) - 1
            out.append(("", Joined(event, versions[place][2] if place >= 0 else None), t))
            if place > 0:
                del versions[:place]
    return out


def timed(function: Any, *arguments: Any) -> float:
    gc.collect()
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


def told(out: list[Sent]) -> list[tuple[int, int, int]]:
    return sorted((pair.left.n, pair.right.n if pair.right else -1, at) for _, pair, at in out)


@pytest.mark.parametrize("keys", [1_000, 10_000])
def test_interval_join_beside_a_hand_written_loop(keys: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Some two pairs a left row; an outer join beside it, for its share of exact dues and of rows sent alone."""
    rows = make_rows(keys)
    within = 10 * keys
    hows: tuple[How, ...] = ("inner", "outer")
    joins = [IntervalJoin(Order, Payment, -within, within, how) for how in hows]
    pairs = told(joined(joins[0], rows))
    assert pairs == told(by_hand(rows, -within, within))
    hand, *took = best(
        lambda: timed(by_hand, rows, -within, within),
        *(lambda join=join: timed(joined, join, rows) for join in joins),
        rounds=3,
    )
    per = 1e6 / len(rows)
    show(
        capsys,
        f"interval join, {keys} keys, {len(rows)} rows, {len(pairs)} pairs: by hand {hand * per:.2f} µs a row",
        *(
            f"{how:6} {one * per:.2f} µs a row, {one / hand:.2f}x by hand" + (" (at most 2x)" if how == "inner" else "")
            for how, one in zip(hows, took, strict=True)
        ),
    )


@pytest.mark.parametrize("keys", [1_000, 10_000])
def test_as_of_join_beside_a_hand_written_loop(keys: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(keys)
    join = AsOfJoin(Order, Payment, "left")
    assert told(joined(join, rows)) == told(as_of_by_hand(rows))
    hand, took = best(lambda: timed(as_of_by_hand, rows), lambda: timed(joined, join, rows), rounds=3)
    per = 1e6 / len(rows)
    show(
        capsys,
        f"as-of join, {keys} keys: by hand {hand * per:.2f} µs a row",
        f"{took * per:.2f} µs a row, {took / hand:.2f}x by hand (at most 2x)",
    )


@pytest.mark.parametrize("kept", [100, 1_000, 10_000, 100_000])
def test_a_hot_key(kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One key that holds `kept` rows a side: a row's cost must not grow with them; a commit's does."""
    rows = make_rows(1, 20_000 + kept, per_ms=1)
    lines = []
    hows: tuple[How, ...] = ("inner", "outer")
    for how in hows:
        join = IntervalJoin(Order, Payment, kept, kept + 2, how)  # far behind, a few partners
        cell = join.new()
        for side, key, t, event in rows[: 2 * kept]:
            join.event(key, cell, side, event, t)

        def rest(join: IntervalJoin = join, cell: Any = cell) -> None:
            high = 0
            for side, key, t, event in rows[2 * kept :]:
                join.event(key, cell, side, event, t)
                high = max(high, t)
                while (due := join.due(cell)) < high - OUT_OF_ORDER:
                    join.wake(key, cell, due)

        took = timed(rest)
        decoder = msgspec.msgpack.Decoder(join.cell_type)
        held = len(cell.left.times) + len(cell.right.times)
        encoded = msgspec.msgpack.encode(cell)
        encode, decode = best(
            lambda cell=cell: timed(msgspec.msgpack.encode, cell),  # type: ignore[misc]
            lambda decoder=decoder, encoded=encoded: timed(decoder.decode, encoded),  # type: ignore[misc]
        )
        lines.append(
            f"hot key, {how}, {held} rows held: {took / 40_000 * 1e6:.2f} µs a row; commit: {encode * 1e3:.2f} ms to "
            f"encode {len(encoded) / 1e3:.0f} kB, {decode * 1e3:.2f} ms to decode"
        )
    show(capsys, *lines)
