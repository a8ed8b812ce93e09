"""As-of join: each left row with what the right side said last, at or before the row's time.

A right row is a version that holds from its time on, until the next one; a deletion is a version that holds nothing.

    right   ----A--------B-----x-------        A from 4 on, B from 13 on, deleted at 19
    left    --1----2---------3----4----        1 finds nothing, 2 finds A, 3 finds B, 4 finds nothing

A left row waits until the watermark comes to its time: then no right row that it could see is missing. With a
tolerance, a version is too old for rows that lie further after it:

    right   ----A==|                           tolerance 3: A is seen from 4 to 7
    left    ------5--6---                      5 finds A, 6 finds nothing
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic

import msgspec

from flowkit.errors import ConfigError
from flowkit.join.joined import (
    LEFT,
    NEVER,
    How,
    L,
    R,
    Sent,
    duration_problems,
    how_problems,
    joined_type,
)
from flowkit.record import END_OF_TIME, MIN_TIME, Joined

MANY_VERSIONS = 16
"""So many are forgotten as soon as they can be; of fewer, some are kept a little longer rather than waking for each."""
SLACK = (1_000, 60_000)
"""Least and longest time (ms) that a version stays beyond its use."""


class AsOfCell(msgspec.Struct, Generic[L, R], array_like=True):
    """The left rows of one key that wait, and the versions that they and later ones can see."""

    times: list[int] = msgspec.field(default_factory=list)
    waiting: list[L] = msgspec.field(default_factory=list)
    """Left rows in order of (time, arrival); `times` are theirs."""
    since: list[int] = msgspec.field(default_factory=list)
    versions: list[R | None] = msgspec.field(default_factory=list)
    """What holds from `since` on; None if nothing does. One a time: of several the last to arrive."""


class AsOfJoin:
    """Each left event with the latest right one of its key at or before its time, sent at the left one's time.

    At one time, a right event counts before a left one, and the last of several right ones to arrive counts. Left
    events go out in order of (time, arrival).

    Args:
        left_type, right_type: of the left events, and of what `value` makes of the right ones.
        how: "inner" sends only left events that find something, "left" all of them.
        tolerance: a right event is found for at most so long after its time (ms). It bounds the state.
        keep_for: without a tolerance, the newest version of each key stays for ever. This bounds the state instead: a
            key that was not updated for so long (ms) is forgotten, exactly then, so that results do not depend on when.
            A tolerance by another name: of a table's upkeep rather than of the rows' fitting together.
        value: what to keep of a right event; the event itself if not given. None is a deletion.
        tombstone: True of right events that delete.
        name: names the join in errors.

    The changes of a table make it a join with the table as it was at the time of each left event:

        AsOfJoin(Order, Customer, value=lambda change: change.new)

    Raises ConfigError for durations that are no whole ms or negative, for both of them, and for an unknown `how`.
    """

    def __init__(
        self,
        left_type: Any,
        right_type: Any,
        how: How = "inner",
        tolerance: int | None = None,
        keep_for: int | None = None,
        *,
        value: Callable[[Any], Any] | None = None,
        tombstone: Callable[[Any], bool] | None = None,
        name: str = "join",
    ) -> None:
        problems = [*how_problems(name, how, ("inner", "left")), *_problems(name, tolerance, keep_for)]
        if problems:
            raise ConfigError(*problems)
        self.cell_type: Any = AsOfCell[left_type, right_type]
        self.type = joined_type(left_type, right_type, how)
        self.how, self.tolerance, self.keep_for = how, tolerance, keep_for
        self.value, self.tombstone = value, tombstone
        reach = tolerance if tolerance is not None else keep_for
        self.bounded = reach is not None
        self.reach = END_OF_TIME - MIN_TIME if reach is None else reach
        """How long after its time a version can be found (ms)."""
        self.slack = min(max(self.reach // 8, SLACK[0]), SLACK[1])

    def new(self) -> AsOfCell[Any, Any]:
        return AsOfCell()

    def event(self, key: Any, cell: AsOfCell[Any, Any], side: int, event: Any, t: int) -> Sequence[Sent]:
        if side == LEFT:
            _put(cell.times, cell.waiting, event, t)
            return ()
        version = event
        if self.tombstone is not None and self.tombstone(event):
            version = None
        elif self.value is not None:
            version = self.value(event)
        since = cell.since
        if since and t <= since[-1] and since[place := bisect_left(since, t)] == t:
            cell.versions[place] = version
        else:
            _put(since, cell.versions, version, t)
        return ()

    def wake(self, key: Any, cell: AsOfCell[Any, Any], at: int) -> Sequence[Sent]:
        sent: list[Sent] = []
        times, waiting, since, versions = cell.times, cell.waiting, cell.since, cell.versions
        ready = bisect_right(times, at)
        for n in range(ready):
            t = times[n]
            found = None
            if (place := bisect_right(since, t) - 1) >= 0 and t - since[place] <= self.reach:
                found = versions[place]
            if found is not None or self.how == "left":
                sent.append(("", Joined(waiting[n], found), t))
        if ready:
            del times[:ready], waiting[:ready]
        self._forget(cell, at)
        return sent

    def _forget(self, cell: AsOfCell[Any, Any], at: int) -> None:
        """Drop what no row after `at` can see: all but the newest version until then, and that too if it holds nothing
        or is too old for the next row.
        """
        since = cell.since
        newest = bisect_right(since, at) - 1
        if newest < 0:
            return
        gone = newest
        if cell.versions[newest] is None or since[newest] + self.reach <= at or (self.bounded and at >= END_OF_TIME):
            gone += 1
        if gone:
            del since[:gone], cell.versions[:gone]

    def due(self, cell: AsOfCell[Any, Any]) -> int:
        """The time of the first row that waits, exactly; or, later than it could be, one when versions can go."""
        due = cell.times[0] if cell.times else NEVER
        since = cell.since
        if since:
            if len(since) > 1:
                useless = min(since[1], since[0] + self.reach)
                if len(since) > MANY_VERSIONS:
                    due = min(due, since[MANY_VERSIONS])
            elif cell.versions[0] is None:
                useless = since[0]
            elif self.bounded:
                useless = since[0] + self.reach
            else:
                return due
            due = min(due, useless + self.slack, END_OF_TIME)
        return due

    def over(self, cell: AsOfCell[Any, Any]) -> bool:
        return not cell.times and not cell.since


def _problems(name: str, tolerance: int | None, keep_for: int | None) -> Iterator[str]:
    given = {key: ms for key, ms in (("tolerance", tolerance), ("keep_for", keep_for)) if ms is not None}
    wrong = list(duration_problems(name, **given))
    yield from wrong
    if not wrong:
        for key, ms in given.items():
            if ms < 0:
                yield f"{name}: {key}={ms} ms is negative: give 0 or more, or leave it out"
    if len(given) == 2:
        yield f"{name}: tolerance bounds what is kept already: leave keep_for out"


def _put(times: list[int], values: list[Any], value: Any, t: int) -> None:
    """Insert into two lists that are ordered by `times`, after what has the same time."""
    if not times or times[-1] <= t:
        times.append(t)
        values.append(value)
    else:
        place = bisect_right(times, t)
        times.insert(place, t)
        values.insert(place, value)
