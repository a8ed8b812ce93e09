"""Patterns: sequences of events of a key, found in event-time order. Names and meaning are those of Flink CEP.

    events                  a1  c   b1  b2

    a next b                a1  X                   the next event must be a b
    a followed_by b         a1  .   b1              other events are passed over: the first b is taken
    a followed_by_any b     a1  .   b1              and in another match it is passed over too
                            a1  .   .   b2

Every event that matches the first element begins a match of its own. In a loop (`one_or_more`, `times`), the same three
hold between its own events: `consecutive`, relaxed unless said otherwise, `allow_combinations`. A loop offers each
event to itself and to what follows it, so `a b+` is found with one b, with two and so on; `greedy` leaves nothing
to the next element that the loop could have taken, and `until` ends it:

    events                                  a   b1  b2  u   b3  c
    a followed_by b+ followed_by c          a   b1  b2  .   b3  c       and without b3, and without b2 and b3
      greedy                                a   b1  b2  .   b3  c
      until u                               a   b1  b2  .   .   c       and without b2
      greedy, until u                       a   b1  b2  .   .   c

An element passed over waits until it has taken an event, so a relaxed element passes over only what it would not take.
A negation ends partial matches:

    a not_next x followed_by b              a   x                       X
                                            a   c   x   b               a b
    a not_followed_by x followed_by b       a   c   x                   X
    a not_followed_by x, within 10          a@0 c@4 ... @10             a, sent at 10

`within(10)`: the last event comes less than 10 ms after the first. At start + 10 a partial match goes to `timed_out`.

After-match strategies (skip.py) say what a match takes with it: `b+ consecutive, next c` over b1 b2 b3 c finds

    NoSkip, SkipToNext, SkipToFirst("b")    b1 b2 b3 c      b2 b3 c     b3 c
    SkipToLast("b")                         b1 b2 b3 c                  b3 c
    SkipPastLast                            b1 b2 b3 c

Matches found at one event are sent in the order of their first events; those with one first event in that of the
first event that only one of them took, it first; then of the elements that took it.

builder.py (what users write) -> element.py (a row pattern) -> program.py (compiled) -> engine.py (runs on a key's cell)
process.py makes a keyed process of it. Pure: no I/O, no clock. Where it departs from Flink, program.py says.
"""

from flowkit.pattern.builder import Matched, Pattern
from flowkit.pattern.cell import Cell, Run
from flowkit.pattern.checks import check_pattern, pattern_shape, pattern_words, unbounded_because
from flowkit.pattern.element import Condition, Contiguity, Element, RowPattern
from flowkit.pattern.engine import Engine, Found
from flowkit.pattern.process import TIMED_OUT, Match, PatternProcess, TimedOut
from flowkit.pattern.program import Program, compile_pattern
from flowkit.pattern.skip import AfterMatch, NoSkip, SkipPastLast, SkipToFirst, SkipToLast, SkipToNext

__all__ = [
    "TIMED_OUT",
    "AfterMatch",
    "Cell",
    "Condition",
    "Contiguity",
    "Element",
    "Engine",
    "Found",
    "Match",
    "Matched",
    "NoSkip",
    "Pattern",
    "PatternProcess",
    "Program",
    "RowPattern",
    "Run",
    "SkipPastLast",
    "SkipToFirst",
    "SkipToLast",
    "SkipToNext",
    "TimedOut",
    "check_pattern",
    "compile_pattern",
    "pattern_shape",
    "pattern_words",
    "unbounded_because",
]
