"""A pattern over keyed events as a process: events wait for the watermark, and go to the engine in event-time order.

    arrival     c@30  a@10  b@20             watermark
    waiting     a@10  b@20  c@30        ->  25: a and b are fed, c waits on; due = 30, or when a's match times out

Matches go to the main output at the event time at which they are certain: that of their last event, unless the pattern
ends with a negation or an after-match strategy held them back. Partial matches that ran out of `within` go to
`timed_out` at start + within; at one time, these come before events.
"""

from bisect import insort_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Generic, TypeVar

import msgspec

from flowkit.pattern.builder import Pattern
from flowkit.pattern.cell import Cell
from flowkit.pattern.checks import check_pattern, pattern_shape
from flowkit.pattern.engine import Engine
from flowkit.pattern.program import compile_pattern
from flowkit.pattern.skip import AfterMatch, NoSkip
from flowkit.record import END_OF_TIME

K = TypeVar("K")
T = TypeVar("T")

NEVER = END_OF_TIME + 1

TIMED_OUT = "timed_out"

Sent = tuple[str, Any, int]

_time = itemgetter(0)


class Match(msgspec.Struct, Generic[K, T]):
    """Events of `key` that match a pattern, by element name; elements that took none are absent.

    `start` and `end` are the times of the first and of the last event (ms).
    """

    key: K
    events: dict[str, list[T]]
    start: int
    end: int


class TimedOut(msgspec.Struct, Generic[K, T]):
    """Events of a partial match that was not complete `within` ms after its first, at `start`: `at` = start + within.

    Partial matches that wait for different elements, having taken the same events, are told once.
    """

    key: K
    events: dict[str, list[T]]
    start: int
    at: int


class PatternProcess(Generic[K, T]):
    """Finds `pattern` in the events of each key. `event_type` is the type of an event, for the stored cells.

    Raises:
        ConfigError: the pattern cannot match as it stands, or `after` names an element that it has not.
    """

    def __init__(self, pattern: Pattern[T], event_type: Any, after: AfterMatch | None = None) -> None:
        after = after or NoSkip()
        check_pattern(pattern.row_pattern, after)
        self.cell_type: Any = Cell[event_type]
        self.shape = pattern_shape(pattern.row_pattern, after)
        self._engine: Engine[T] = Engine(compile_pattern(pattern.row_pattern), after)
        self._feed = self._engine.feed
        self._within = pattern.row_pattern.within

    def new(self) -> Cell[T]:
        return Cell()

    def event(self, key: K, cell: Cell[T], side: int, event: T, t: int) -> Sequence[Sent]:
        waiting = cell.waiting
        if not waiting or waiting[-1][0] <= t:
            waiting.append((t, event))
        else:
            insort_right(waiting, (t, event), key=_time)
        return ()

    def wake(self, key: K, cell: Cell[T], at: int) -> Sequence[Sent]:
        sent: list[Sent] = []
        within = self._within
        waiting = cell.waiting
        while waiting and waiting[0][0] <= at:
            t, event = waiting.pop(0)
            run = cell.run
            if run is not None and within and run.partials[0][3] + within <= t:
                self._expire(key, cell, t, sent)
            matches = self._feed(cell, t, event)
            if matches:
                sent.extend([("", Match(key, *found), t) for found in matches])
        run = cell.run
        if run is not None and within and run.partials[0][3] + within <= at:
            self._expire(key, cell, at, sent)
        return sent

    def _expire(self, key: K, cell: Cell[T], until: int, sent: list[Sent]) -> None:
        while (run := cell.run) is not None and (due := run.partials[0][3] + self._within) <= until:
            matches, timed_out = self._engine.expire(cell, run)
            sent.extend([("", Match(key, *found), due) for found in matches])
            sent.extend([(TIMED_OUT, TimedOut(key, found.events, found.start, due), due) for found in timed_out])

    def due(self, cell: Cell[T]) -> int:
        run = cell.run
        if run is None or not self._within:
            return cell.waiting[0][0] if cell.waiting else NEVER
        due = run.partials[0][3] + self._within
        waiting = cell.waiting
        return waiting[0][0] if waiting and waiting[0][0] < due else due

    def over(self, cell: Cell[T]) -> bool:
        return cell.run is None and not cell.waiting
