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

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

from flowkit.errors import ConfigError
from flowkit.pattern.checks import pattern_shape, unbounded_because
from flowkit.pattern.element import Condition, Contiguity, Element, RowPattern

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
        return _appended(RowPattern(()), name, condition, Contiguity.STRICT)

    @overload
    def next(self, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    def next(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    def next(self, name: "Pattern[T]") -> "Pattern[T]": ...
    def next(self, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """Strict contiguity: the very next event of the key must match."""
        return _appended(self.row_pattern, name, condition, Contiguity.STRICT)

    @overload
    def followed_by(self, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    def followed_by(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    def followed_by(self, name: "Pattern[T]") -> "Pattern[T]": ...
    def followed_by(self, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """Relaxed contiguity: events that do not match are passed over, the first that matches is taken."""
        return _appended(self.row_pattern, name, condition, Contiguity.RELAXED)

    @overload
    def followed_by_any(self, name: str, condition: Test[T] | None = None) -> "Pattern[T]": ...
    @overload
    def followed_by_any(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    @overload
    def followed_by_any(self, name: "Pattern[T]") -> "Pattern[T]": ...
    def followed_by_any(self, name: "str | Pattern[T]", condition: Either[T] = None) -> "Pattern[T]":
        """Non-deterministic relaxed contiguity: a match for each later event that matches."""
        return _appended(self.row_pattern, name, condition, Contiguity.ANY)

    @overload
    def not_next(self, name: str, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def not_next(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    def not_next(self, name: str, condition: Either[T]) -> "Pattern[T]":
        """The very next event must not match. At the end of a pattern, the next event decides."""
        return _appended(self.row_pattern, name, condition, Contiguity.STRICT, negated=True)

    @overload
    def not_followed_by(self, name: str, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def not_followed_by(self, name: str, condition: Iterative[T]) -> "Pattern[T]": ...
    def not_followed_by(self, name: str, condition: Either[T]) -> "Pattern[T]":
        """No event may match until the next element has taken one; at the end of a pattern, until `within` is over."""
        return _appended(self.row_pattern, name, condition, Contiguity.RELAXED, negated=True)

    # --- conditions of the last element -----------------------------------------------------------------------------

    @overload
    def where(self, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def where(self, condition: Iterative[T]) -> "Pattern[T]": ...
    def where(self, condition: Test[T] | Iterative[T]) -> "Pattern[T]":
        """An event must match this too."""
        element, more = self._single("where"), _condition(condition, "where")
        return self._with(condition=element.condition.both(more) if element.condition else more)

    @overload
    def or_where(self, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def or_where(self, condition: Iterative[T]) -> "Pattern[T]": ...
    def or_where(self, condition: Test[T] | Iterative[T]) -> "Pattern[T]":
        """Or an event matches this."""
        element, more = self._single("or_where"), _condition(condition, "or_where")
        return self._with(condition=element.condition.either(more) if element.condition else more)

    @overload
    def until(self, condition: Test[T]) -> "Pattern[T]": ...
    @overload
    def until(self, condition: Iterative[T]) -> "Pattern[T]": ...
    def until(self, condition: Test[T] | Iterative[T]) -> "Pattern[T]":
        """The loop takes no event that matches this, and none after it."""
        element = self._single("until")
        if element.at_most is not None:
            self._refuse(
                "until()", "needs a loop without an upper limit", "call one_or_more() or times_or_more(n) first"
            )
        return self._with(until=_condition(condition, "until"))

    # --- quantifiers of the last element ----------------------------------------------------------------------------

    def times(self, at_least: int, at_most: int | None = None) -> "Pattern[T]":
        """Exactly `at_least` events, or between `at_least` and `at_most`. 0 makes it optional too."""
        return self._repeat("times", at_least, at_least if at_most is None else at_most)

    def one_or_more(self) -> "Pattern[T]":
        """One event or more, with relaxed contiguity between them (see `consecutive`, `allow_combinations`)."""
        return self._repeat("one_or_more", 1, None)

    def times_or_more(self, at_least: int) -> "Pattern[T]":
        """`at_least` events or more. 0 makes it optional too."""
        return self._repeat("times_or_more", at_least, None)

    def optional(self) -> "Pattern[T]":
        """A match may do without it."""
        self._positive("optional")
        if len(self.row_pattern.elements) > 1 and self.row_pattern.elements[-2].greedy:
            self._refuse(
                "optional()", "cannot follow a greedy element", "take greedy() away there, or write two patterns"
            )
        return self._with(optional=True)

    def greedy(self) -> "Pattern[T]":
        """Takes every event that it can: none that matches it is left for the next element, or passed over by it."""
        element = self._single("greedy")
        if not element.is_loop:
            self._refuse("greedy()", "needs a loop", "call one_or_more(), times_or_more(n) or times(lo, hi) first")
        if element.inner is Contiguity.ANY:
            self._refuse("greedy()", "cannot be had with allow_combinations()", "choose one of them")
        return self._with(greedy=True)

    def consecutive(self) -> "Pattern[T]":
        """Strict contiguity between the events of the loop."""
        return self._inner("consecutive", Contiguity.STRICT)

    def allow_combinations(self) -> "Pattern[T]":
        """Non-deterministic relaxed contiguity between the events of the loop: every subset of them, in order."""
        if self.row_pattern.elements and self.row_pattern.elements[-1].greedy:
            self._refuse("allow_combinations()", "cannot be had with greedy()", "choose one of them")
        return self._inner("allow_combinations", Contiguity.ANY)

    # --- the whole --------------------------------------------------------------------------------------------------

    def within(self, ms: int) -> "Pattern[T]":
        """A match's last event is less than `ms` after its first. If called more than once, the least counts."""
        if ms <= 0:
            raise ConfigError(f"pattern: within({ms}) must be positive: say how many ms a match may take")
        least = min(ms, self.row_pattern.within or ms)
        return Pattern(replace(self.row_pattern, within=least))

    def is_bounded(self) -> bool:
        """Whether the stored state of a key has a limit that time or the pattern sets (see `unbounded_because`)."""
        return not unbounded_because(self.row_pattern)

    def _repeat(self, method: str, at_least: int, at_most: int | None) -> "Pattern[T]":
        element = self._positive(method)
        call = f"{method}({at_least}{'' if at_most in {None, at_least} else f', {at_most}'})"
        if element.is_loop or element.at_least != 1:
            self._refuse(call, "is its second quantifier", "keep one of them")
        if at_least < 0 or (at_most is not None and (at_most < at_least or at_most < 1)):
            self._refuse(call, "is no range of counts", "give 0 <= at_least <= at_most, and at_most >= 1")
        if element.body and (at_most is None or at_most > 1) and all(e.is_nullable for e in element.body):
            self._refuse(call, "repeats a group that may be empty", "make one of its elements not optional")
        made = self._with(at_least=max(at_least, 1), at_most=at_most)
        return made if at_least else made.optional()

    def _inner(self, method: str, contiguity: Contiguity) -> "Pattern[T]":
        element = self._positive(method)
        if not element.is_loop:
            self._refuse(f"{method}()", "needs a loop", "call one_or_more(), times_or_more(n) or times(...) first")
        if element.inner not in {Contiguity.RELAXED, contiguity}:
            self._refuse(f"{method}()", "contradicts its inner contiguity", "choose consecutive or allow_combinations")
        return self._with(inner=contiguity)

    def _positive(self, method: str) -> Element:
        element = self.row_pattern.elements[-1]
        if element.negated:
            self._refuse(f"{method}()", "is a quantifier on a negation", "a negation is said once: leave it out")
        return element

    def _single(self, method: str) -> Element:
        """The last element, which must not be a group."""
        element = self.row_pattern.elements[-1]
        if element.body:
            self._refuse(f"{method}()", "is not for groups", "call it on the group's elements")
        return element if method in {"where", "or_where"} else self._positive(method)

    def _refuse(self, what: str, why: str, cure: str) -> None:
        raise ConfigError(f"pattern element {self.row_pattern.elements[-1].title}: {what} {why}: {cure}")

    def _with(self, **changes: Any) -> "Pattern[T]":
        *before, last = self.row_pattern.elements
        return Pattern(replace(self.row_pattern, elements=(*before, replace(last, **changes))))


def _condition(test: Callable[..., object], where: str) -> Condition:
    """The test with whether it wants to see what was matched: it does if it needs a second positional argument."""
    if not callable(test):
        raise ConfigError(f"pattern element {where}: a condition is a function of the event, not {test!r}")
    try:
        parameters = inspect.signature(test).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return Condition(test)
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    needed = sum(p.default is p.empty for p in positional)
    if needed > 2 or not (positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        raise ConfigError(
            f"pattern element {where}: a condition takes (event) or (event, matched), but {test!r} needs {needed}"
        )
    return Condition(test, iterative=needed == 2)


def _appended(
    pattern: RowPattern,
    name: "str | Pattern[T]",
    condition: Either[T],
    contiguity: Contiguity,
    *,
    negated: bool = False,
) -> Pattern[T]:
    within = pattern.within
    if isinstance(name, Pattern):
        inner = name.row_pattern
        within = min((w for w in (within, inner.within) if w), default=0)
        element = Element("", contiguity, body=inner.elements)
    else:
        test = _condition(condition, repr(name)) if condition is not None else None
        element = Element(name, contiguity, test, negated=negated)
    elements = pattern.elements
    known = {known for before in elements for known in before.names()}
    for new in element.names():
        if not new:
            raise ConfigError("pattern: an element has an empty name: matches give its events by name, choose one")
        if new in known:
            raise ConfigError(f"pattern: two elements are called {new!r}: choose another name for one of them")
    if negated and elements and elements[-1].optional:
        raise ConfigError(
            f"pattern: negation {name!r} cannot follow the optional element {elements[-1].title}: "
            "write two patterns, one with it and one without"
        )
    return Pattern(RowPattern((*elements, element), within))
