"""A row pattern: elements in a row, each with a condition, a quantifier and its contiguity to what came before.

This is what the Python builder and SQL's MATCH_RECOGNIZE both make, and all that the compiler reads. Names and meaning
are Flink CEP's (`Quantifier`, `ConsumingStrategy`).
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Contiguity(enum.Enum):
    """Which events may lie between two events of a match."""

    STRICT = "strict"
    """None."""
    RELAXED = "relaxed"
    """Those that do not match the element waited for: the first that matches is taken."""
    ANY = "any"
    """All: one that matches is taken, and in another match it is not."""


@dataclass(frozen=True)
class Condition:
    """`test(event)`, or, if `iterative`, `test(event, matched)` with the events taken so far by element name."""

    test: Callable[..., Any]
    iterative: bool = False

    def both(self, other: "Condition") -> "Condition":
        """This one and `other`, which is not asked if this one says no."""
        if self.iterative or other.iterative:
            first, second = _with_matched(self), _with_matched(other)

            def matched_too(event: Any, matched: Any) -> Any:
                return first(event, matched) and second(event, matched)

            return Condition(matched_too, iterative=True)
        one, two = self.test, other.test

        def both(event: Any) -> Any:
            return one(event) and two(event)

        return Condition(both)

    def either(self, other: "Condition") -> "Condition":
        """This one or `other`, which is not asked if this one says yes."""
        if self.iterative or other.iterative:
            first, second = _with_matched(self), _with_matched(other)

            def matched_too(event: Any, matched: Any) -> Any:
                return first(event, matched) or second(event, matched)

            return Condition(matched_too, iterative=True)
        one, two = self.test, other.test

        def either(event: Any) -> Any:
            return one(event) or two(event)

        return Condition(either)


def _with_matched(condition: Condition) -> Callable[[Any, Any], Any]:
    test = condition.test
    if condition.iterative:
        return test

    def without(event: Any, matched: Any) -> Any:
        return test(event)

    return without


@dataclass(frozen=True)
class Element:
    """One element, or, with a `body`, a group of them: what to take, how often, and what may lie before it.

    `condition` None takes any event. `at_most` None has no limit. `inner` is the contiguity between its own events.
    A `greedy` element leaves no event to the next one that it could have taken itself. `until` ends a loop.
    """

    name: str
    contiguity: Contiguity = Contiguity.RELAXED
    condition: Condition | None = None
    body: tuple["Element", ...] = ()
    negated: bool = False
    optional: bool = False
    at_least: int = 1
    at_most: int | None = 1
    inner: Contiguity = Contiguity.RELAXED
    greedy: bool = False
    until: Condition | None = None

    @property
    def is_loop(self) -> bool:
        """Whether a quantifier was given: it may take more than one event."""
        return self.at_most != 1

    @property
    def title(self) -> str:
        """How errors call it."""
        if self.body:
            return f"group of {', '.join(repr(name) for name in self.names())}"
        return repr(self.name)

    def names(self) -> tuple[str, ...]:
        """Its own name, or those of everything in its body."""
        if not self.body:
            return (self.name,)
        return tuple(name for element in self.body for name in element.names())

    @property
    def is_nullable(self) -> bool:
        """Whether a match may pass it without an event."""
        return self.negated or self.optional or (bool(self.body) and all(e.is_nullable for e in self.body))


@dataclass(frozen=True)
class RowPattern:
    """Elements in a row. A match's last event is less than `within` ms after its first; 0: no limit."""

    elements: tuple[Element, ...]
    within: int = 0
