"""What a join sends, and what all joins are told alike: the sides, and which rows count without a partner."""

from collections.abc import Iterator
from typing import Any, Literal, Optional, TypeVar

from flowkit.record import END_OF_TIME, Joined

L = TypeVar("L")
R = TypeVar("R")

LEFT, RIGHT = 0, 1

NEVER = END_OF_TIME + 1
"""The due of a cell that needs no waking: no watermark comes so far."""

How = Literal["inner", "left", "right", "outer"]
"""Whose rows are sent when they find no partner: no one's, the left's, the right's, or both sides'."""

Sent = tuple[str, Any, int]
"""An output's suffix ("" is the main one), what is sent, and its event time (ms)."""


def joined_type(left_type: Any, right_type: Any, how: How) -> Any:
    """The type of what a join sends."""
    left = Optional[left_type] if how in ("right", "outer") else left_type  # noqa: UP045  of any type form
    right = Optional[right_type] if how in ("left", "outer") else right_type  # noqa: UP045
    generic: Any = Joined
    return generic[left, right]


def how_problems(name: str, how: object, known: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with `how`, if it is none of the known ones."""
    if how not in known:
        yield f"{name}: how={how!r} is no kind of join: give {', '.join(map(repr, known[:-1]))} or {known[-1]!r}"


def duration_problems(name: str, **durations: object) -> Iterator[str]:
    """What is wrong with numbers that must be whole ms."""
    for argument, value in durations.items():
        if isinstance(value, bool) or not isinstance(value, int):
            yield f"{name}: {argument}={value!r}: give whole ms (seconds(…), minutes(…))"
