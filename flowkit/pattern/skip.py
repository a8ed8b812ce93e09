"""After-match strategies: which matches and partial matches a match that was sent takes with it (Flink's names).

With any of them but `NoSkip` a complete match waits until no partial match that started earlier is left, so that the
earliest start wins; of matches with one start, the one completed first does.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class NoSkip:
    """Every match is sent, as soon as it is complete."""


@dataclass(frozen=True)
class SkipToNext:
    """Nothing else that starts with the match's first event, or before it."""


@dataclass(frozen=True)
class SkipPastLast:
    """Nothing that starts before the match has ended."""


@dataclass(frozen=True)
class SkipToFirst:
    """Nothing that starts before the first event taken for `name`. As `NoSkip` for a match that has none."""

    name: str


@dataclass(frozen=True)
class SkipToLast:
    """Nothing that starts before the last event taken for `name`. As `NoSkip` for a match that has none."""

    name: str


AfterMatch = NoSkip | SkipToNext | SkipPastLast | SkipToFirst | SkipToLast


def first_start(after: AfterMatch, taken: list[tuple[int, str]]) -> int:
    """The number of the first event that others may still start with. `taken` are a match's (event number, name)."""
    match after:
        case SkipToNext():
            return taken[0][0] + 1
        case SkipPastLast():
            return taken[-1][0] + 1
        case SkipToFirst(name):
            return next((number for number, of in taken if of == name), 0)
        case SkipToLast(name):
            return next((number for number, of in reversed(taken) if of == name), 0)
        case NoSkip():
            return 0
