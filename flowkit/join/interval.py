"""Interval join: a left row pairs with the right rows of the same key from `lower` before to `upper` after it.

Both bounds count, as in Flink: left.t + lower <= right.t <= left.t + upper. With lower=-2, upper=3:

    time    0  1  2  3  4  5  6  7  8  9
    left                R                      R at 4 ...
    right         [--------------]             ... pairs with 2 to 7
    right            R                         R at 3 ...
    left    [--------------]                   ... pairs with 0 to 5 = 3 - upper to 3 - lower

A row can still find a partner until the watermark has come to the end of its reach: left.t + upper, or right.t - lower
of a right row. Then it is forgotten, and a row of an outer side that has found none is sent alone, with that moment as
its event time. A reach that ends before the row itself (upper < 0: rights lie before their lefts) counts as ending
with the row, since the row may come when the watermark is past that end already.

    watermark   0  1  2  3  4  5  6  7  8  9
    left at 4               |--kept--|            alone at 7 = 4 + upper, if it stayed alone
    right at 3           |--kept-|                alone at 5 = 3 - lower
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Generic, TypeVar

import msgspec

from flowkit.errors import ConfigError
from flowkit.join.joined import (
    LEFT,
    NEVER,
    RIGHT,
    How,
    L,
    R,
    Sent,
    duration_problems,
    how_problems,
    joined_type,
)
from flowkit.record import END_OF_TIME, Joined

E = TypeVar("E")

LEAST_SLACK = 30_000
"""Forgetting in steps of at least so long (ms), so that a narrow join does not wake for every row."""
MANY_ROWS = 64
"""After so many more rows of a key it looks at once what can be forgotten."""

_time_sent = itemgetter(2)


class Rows(msgspec.Struct, Generic[E], array_like=True):
    """One side's rows in order of (time, arrival), in columns: times are searched, and encoded, as plain integers."""

    times: list[int] = msgspec.field(default_factory=list)
    events: list[E] = msgspec.field(default_factory=list)
    settled: bytearray = msgspec.field(default_factory=bytearray)
    """On an outer side, a byte for each row: 1 once it has a partner, or was sent alone."""


class IntervalCell(msgspec.Struct, Generic[L, R], array_like=True):
    """The rows of one key that may still find partners, and for a while some that cannot."""

    left: Rows[L]
    right: Rows[R]
    due: int = NEVER
    """When a row must be sent alone, exactly; or, later than it could be, when rows are to be forgotten (ms)."""


class IntervalJoin:
    """Pairs of a left and a right event with left.t + lower <= right.t <= left.t + upper (ms; may be negative).

    A pair is sent when the second of the two comes, at the later of their times; pairs of one event in order of (time,
    arrival) of the others. `how` says whose rows are sent alone when no partner can come any more.

    `type` is that of what is sent. `name` names the join in errors.

    Raises ConfigError for bounds that are no whole ms or the wrong way round, and for an unknown `how`.
    """

    def __init__(
        self, left_type: Any, right_type: Any, lower: int, upper: int, how: How = "inner", *, name: str = "join"
    ) -> None:
        problems = [
            *duration_problems(name, lower=lower, upper=upper),
            *how_problems(name, how, ("inner", "left", "right", "outer")),
        ]
        if not problems and lower > upper:
            problems.append(
                f"{name}: lower={lower} ms is after upper={upper} ms, so nothing can match: "
                f"did you mean lower={upper}, upper={lower}?"
            )
        if problems:
            raise ConfigError(*problems)
        self.cell_type: Any = IntervalCell[left_type, right_type]
        self.type = joined_type(left_type, right_type, how)
        self.lower, self.upper, self.how = lower, upper, how
        self.keep = (max(upper, 0), max(-lower, 0))
        """How long after its own time a row of each side can find partners (ms)."""
        self.slack = max(max(self.keep) // 2, LEAST_SLACK)
        """A row is forgotten at most so long after that (ms): a wake costs more than a row."""
        self.outer = (how in ("left", "outer"), how in ("right", "outer"))
        self._linger = (self.keep[LEFT] + self.slack, self.keep[RIGHT] + self.slack)
        self._alone = any(self.outer)

    def new(self) -> IntervalCell[Any, Any]:
        return IntervalCell(Rows(), Rows())

    def event(self, key: Any, cell: IntervalCell[Any, Any], side: int, event: Any, t: int) -> Sequence[Sent]:
        if side == LEFT:
            own, other = cell.left, cell.right
            first, last = t + self.lower, t + self.upper
        else:
            own, other = cell.right, cell.left
            first, last = t - self.upper, t - self.lower
        times = own.times
        place = len(times)
        if not place or times[-1] <= t:
            times.append(t)
            own.events.append(event)
        else:
            place = bisect_right(times, t)
            times.insert(place, t)
            own.events.insert(place, event)
        partners = other.times
        start = stop = 0
        if partners and partners[-1] >= first:
            start = bisect_left(partners, first)
            stop = bisect_right(partners, last, start)
        if self._alone:
            if self.outer[side]:
                own.settled.insert(place, stop > start)
            if self.outer[1 - side]:
                other.settled[start:stop] = b"\1" * (stop - start)
            cell.due = self._next(cell)
        elif not place:  # the first to be forgotten: all others are later
            cell.due = min(cell.due, t + self._linger[side], END_OF_TIME)
        elif place % MANY_ROWS == 0:
            cell.due = min(cell.due, max(times[0] + self.keep[side], t), END_OF_TIME)
        if start == stop:
            return ()
        if stop - start == 1:
            partner = other.events[start]
            joined = Joined(event, partner) if side == LEFT else Joined(partner, event)
            return (("", joined, max(partners[start], t)),)
        found = zip(other.events[start:stop], partners[start:stop], strict=True)
        if side == LEFT:
            return [("", Joined(event, partner), max(time, t)) for partner, time in found]
        return [("", Joined(partner, event), max(time, t)) for partner, time in found]

    def wake(self, key: Any, cell: IntervalCell[Any, Any], at: int) -> Sequence[Sent]:
        left, right = cell.left, cell.right
        sweep = bool(left.times and left.times[0] + self._linger[LEFT] <= at) or (
            bool(right.times) and right.times[0] + self._linger[RIGHT] <= at
        )
        sent: list[Sent] = []
        for side in (LEFT, RIGHT):
            rows = right if side else left
            times = rows.times
            past = at - self.keep[side] if at < END_OF_TIME else END_OF_TIME
            if not times or times[0] > past:
                continue
            gone = bisect_right(times, past)
            if self.outer[side]:
                sent.extend(self._left_alone(side, rows, gone))
            # Moving the others up costs as much as there are of them: wait until half can go, or some row must.
            if sweep or 2 * gone >= len(times):
                del times[:gone], rows.events[:gone]
                if self.outer[side]:
                    del rows.settled[:gone]
        cell.due = self._next(cell)
        if len(sent) > 1:
            sent.sort(key=_time_sent)
        return sent

    def _left_alone(self, side: int, rows: Rows[Any], gone: int) -> list[Sent]:
        """What is to be said of the first `gone` rows, which find no partner any more; they count as settled then."""
        sent: list[Sent] = []
        settled, keep = rows.settled, self.keep[side]
        n = settled.find(0, 0, gone)
        while n >= 0:
            settled[n] = 1
            event = rows.events[n]
            joined = Joined(event, None) if side == LEFT else Joined(None, event)
            sent.append(("", joined, min(rows.times[n] + keep, END_OF_TIME)))
            n = settled.find(0, n + 1, gone)
        return sent

    def _next(self, cell: IntervalCell[Any, Any]) -> int:
        left, right = cell.left, cell.right
        due = NEVER
        if left.times:
            due = min(left.times[0] + self._linger[LEFT], END_OF_TIME)
            if self.outer[LEFT] and (n := left.settled.find(0)) >= 0:
                due = min(due, left.times[n] + self.keep[LEFT])
        if right.times:
            due = min(due, right.times[0] + self._linger[RIGHT], END_OF_TIME)
            if self.outer[RIGHT] and (n := right.settled.find(0)) >= 0:
                due = min(due, right.times[n] + self.keep[RIGHT])
        return due

    def due(self, cell: IntervalCell[Any, Any]) -> int:
        return cell.due

    def over(self, cell: IntervalCell[Any, Any]) -> bool:
        return cell.due == NEVER
