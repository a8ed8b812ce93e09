"""`Pattern`: what users write to say which events make a match. Names and meaning are those of Flink's CEP library.

>>> from flowkit.record import Record
>>> class Payment(Record):
...     amount: float
>>> pattern = (
...     Pattern[Payment].begin("small", lambda e: e.amount < 1)
...     .next("more", lambda e: e.amount < 1).one_or_more().consecutive().greedy()
...     .followed_by("large", lambda e, matched: e.amount > 1000 * len(matched["more"]))
...     .within(60_000)
... )
>>> pattern
Pattern: small, next more+ consecutive greedy, followed by large, within 60000 ms
>>> pattern.is_bounded()
True
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar, overload

from flowkit.pattern.checks import pattern_shape, unbounded_because
from flowkit.pattern.element import Contiguity, RowPattern
from flowkit.pattern.grammar import (
    greedy,
    joined,
    narrowed,
    optional,
    repeated,
    until,
    widened,
    with_element,
    with_group,
    within,
)

T = TypeVar("T")

Matched = Mapping[str, Sequence[T]]
"""The events that the partial match has taken so far, by element name; every name is there."""

Test = Callable[[T], object]
Iterative = Callable[[T, Matched[T]], object]
Either = Test[T] | Iterative[T] | None


class Pattern(Generic[T]):
    """Elements in a row that events of one key match in event-time order. Immutable: each method returns another.

    Write `Pattern[Payment].begin(...)`, so that type checkers know what conditions are given. A condition takes the
    event, or the event and what the partial match has so far (`Matched`); one without `matched` is asked at most once
    an event. Conditions must be pure.

    `begin`, `next`, `followed_by` and `followed_by_any` also take a pattern instead of a name: a group, to which
    quantifiers apply as a whole.

    Every method raises ConfigError if it makes no sense where it stands.
    """

    def __init__(self, row_pattern: RowPattern) -> None:
        self.row_pattern = row_pattern

    def __repr__(self) -> str:
        return f"Pattern: {pattern_shape(self.row_pattern)}"

    # --- elements ---------------------------------------------------------------------------------------------------

    @overload
    @classmethod
    def begin(cls, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    @classmethod
    def begin(cls, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    @classmethod
    def begin(cls, name: "Pattern[T]") -> "Pattern[T]": ...
    @classmethod
    def begin(cls, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """The first element. Each event that matches it starts a match of its own."""
        return _append(RowPattern(()), name, condition, Contiguity.STRICT)

    @overload
    def next(self, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    def next(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    def next(self, name: "Pattern[T]") -> "Pattern[T]": ...
    def next(self, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """Strict contiguity: the very next event of the key must match."""
        return _append(self.row_pattern, name, condition, Contiguity.STRICT)

    @overload
    def followed_by(self, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    def followed_by(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    def followed_by(self, name: "Pattern[T]") -> "Pattern[T]": ...
    def followed_by(self, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """Relaxed contiguity: events that do not match are passed over, the first that matches is taken."""
        return _append(self.row_pattern, name, condition, Contiguity.RELAXED)

    @overload
    def followed_by_any(self, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    def followed_by_any(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    def followed_by_any(self, name: "Pattern[T]") -> "Pattern[T]": ...
    def followed_by_any(self, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """Non-deterministic relaxed contiguity: a match for each later event that matches."""
        return _append(self.row_pattern, name, condition, Contiguity.ANY)

    @overload
    def not_next(self, name: str, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def not_next(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    def not_next(self, name: str, condition: Either[T]) -> "Pattern[T]":
        """The very next event must not match. At the end of a pattern, the next event decides."""
        return _append(self.row_pattern, name, condition, Contiguity.STRICT, negated=True)

    @overload
    def not_followed_by(self, name: str, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def not_followed_by(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    def not_followed_by(self, name: str, condition: Either[T]) -> "Pattern[T]":
        """No event may match until the next element has taken one; at the end of a pattern, until `within` is over."""
        return _append(self.row_pattern, name, condition, Contiguity.RELAXED, negated=True)

    # --- conditions of the last element -----------------------------------------------------------------------------

    @overload
    def where(self, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def where(self, condition: Iterative[T]) -> "Pattern[T]": ...
    def where(self, condition: Test[T] | Iterative[T]) -> "Pattern[T]":
        """An event must match this too."""
        return Pattern(narrowed(self.row_pattern, condition))

    @overload
    def or_where(self, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def or_where(self, condition: Iterative[T]) -> "Pattern[T]": ...
    def or_where(self, condition: Test[T] | Iterative[T]) -> "Pattern[T]":
        """Or an event matches this."""
        return Pattern(widened(self.row_pattern, condition))

    @overload
    def until(self, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def until(self, condition: Iterative[T]) -> "Pattern[T]": ...
    def until(self, condition: Test[T] | Iterative[T]) -> "Pattern[T]":
        """The loop takes no event that matches this, and none after it."""
        return Pattern(until(self.row_pattern, condition))

    # --- quantifiers of the last element ----------------------------------------------------------------------------

    def times(self, at_least: int, at_most: int | None = None) -> "Pattern[T]":
        """Exactly `at_least` events, or between `at_least` and `at_most`. 0 makes it optional too."""
        return Pattern(repeated(self.row_pattern, "times", at_least, at_least if at_most is None else at_most))

    def one_or_more(self) -> "Pattern[T]":
        """One event or more, with relaxed contiguity between them (see `consecutive`, `allow_combinations`)."""
        return Pattern(repeated(self.row_pattern, "one_or_more", 1, None))

    def times_or_more(self, at_least: int) -> "Pattern[T]":
        """`at_least` events or more. 0 makes it optional too."""
        return Pattern(repeated(self.row_pattern, "times_or_more", at_least, None))

    def optional(self) -> "Pattern[T]":
        """A match may do without it."""
        return Pattern(optional(self.row_pattern))

    def greedy(self) -> "Pattern[T]":
        """Takes every event that it can: none that matches it is left for the next element, or passed over by it."""
        return Pattern(greedy(self.row_pattern))

    def consecutive(self) -> "Pattern[T]":
        """Strict contiguity between the events of the loop."""
        return Pattern(joined(self.row_pattern, "consecutive", Contiguity.STRICT))

    def allow_combinations(self) -> "Pattern[T]":
        """Non-deterministic relaxed contiguity between the events of the loop: every subset of them, in order."""
        return Pattern(joined(self.row_pattern, "allow_combinations", Contiguity.ANY))

    # --- the whole --------------------------------------------------------------------------------------------------

    def within(self, ms: int) -> "Pattern[T]":
        """A match's last event is less than `ms` after its first. If called more than once, the least counts."""
        return Pattern(within(self.row_pattern, ms))

    def is_bounded(self) -> bool:
        """Whether the stored state of a key has a limit that time or the pattern sets (see `unbounded_because`)."""
        return not unbounded_because(self.row_pattern)


def _append(
    pattern: RowPattern,
    name: "str | Pattern[T]",
    condition: Either[T],
    contiguity: Contiguity,
    *,
    negated: bool = False,
) -> Pattern[T]:
    if isinstance(name, Pattern):
        return Pattern(with_group(pattern, name.row_pattern, contiguity))
    return Pattern(with_element(pattern, name, condition, contiguity, negated=negated))
