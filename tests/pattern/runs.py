"""Patterns over words: events are strings such as "a1", taken by their first letter, one a millisecond."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from flowkit.pattern import AfterMatch, Pattern, PatternProcess
from flowkit.record import END_OF_TIME


def of(letters: str) -> Callable[[str], bool]:
    return lambda event: event[0] in letters


def begin(name: str, letters: str | None = None) -> Pattern[str]:
    return Pattern[str].begin(name, of(letters or name))


def outputs(
    pattern: Pattern[str],
    events: str | Sequence[tuple[str, int]],
    after: AfterMatch | None = None,
) -> list[tuple[str, Any, int]]:
    """Everything sent, the watermark following the events closely; cells are stored between any two calls."""
    process: PatternProcess[str, str] = PatternProcess(pattern, str, after=after)
    timed = [(e, t) for t, e in enumerate(events.split())] if isinstance(events, str) else list(events)
    cell = process.new()
    sent: list[tuple[str, Any, int]] = []
    for index, (event, t) in enumerate([*timed, (None, END_OF_TIME + 1)]):
        watermark = min((other for _, other in timed[index:]), default=t) - 1
        while (due := process.due(cell)) <= watermark:
            sent += process.wake("k", cell, due)
            cell = msgspec.msgpack.decode(msgspec.msgpack.encode(cell), type=process.cell_type)
        if event is not None:
            process.event("k", cell, 0, event, t)
    return sent


def matches(pattern: Pattern[str], events: str, after: AfterMatch | None = None) -> list[str]:
    """The matches as words, in the order in which they are sent."""
    return [words(value.events) for output, value, _ in outputs(pattern, events, after) if not output]


def words(events: Mapping[str, Sequence[str]]) -> str:
    return " ".join(event for taken in events.values() for event in taken)
