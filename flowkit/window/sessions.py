"""How session windows merge: pure spans on a line.

open       |---------)          |------)
new event        |---------)                overlaps the first: one longer session
new event                  |----)           touches both: all three become one
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Span(Protocol):
    """A stretch `[start, end)` of time in ms."""

    start: int
    end: int


S = TypeVar("S", bound=Span)


def absorb(spans: Sequence[S], start: int, end: int) -> tuple[list[S], int, int]:
    """The spans that overlap or touch `[start, end)`, in order of start, and the start and end of them all together.

    `spans` are apart from each other, so one pass finds them all. As Flink's TimeWindow.intersects: touching counts.
    """
    hit = [span for span in spans if span.start <= end and span.end >= start]
    for span in hit:
        start, end = min(start, span.start), max(end, span.end)
    return hit, start, end
