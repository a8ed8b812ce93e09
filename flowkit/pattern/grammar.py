"""The grammar of row patterns: each way to make one longer or say more of its last element, and what it refuses."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from flowkit.errors import ConfigError
from flowkit.pattern.element import Condition, Contiguity, Element, RowPattern

Test = Callable[..., object]


def with_element(
    pattern: RowPattern, name: str, test: Test | None, contiguity: Contiguity, *, negated: bool
) -> RowPattern:
    """`pattern` with an element, or a negation, at its end."""
    if negated and pattern.elements and pattern.elements[-1].optional:
        raise ConfigError(
            f"pattern: negation {name!r} cannot follow the optional element {pattern.elements[-1].title}: "
            "write two patterns, one with it and one without"
        )
    condition = _condition(test, repr(name)) if test is not None else None
    return _longer(pattern, Element(name, contiguity, condition, negated=negated))


def with_group(pattern: RowPattern, group: RowPattern, contiguity: Contiguity) -> RowPattern:
    """`pattern` with all of `group` as one element at its end."""
    longer = _longer(pattern, Element("", contiguity, body=group.elements))
    return within(longer, group.within) if group.within else longer


def _longer(pattern: RowPattern, element: Element) -> RowPattern:
    known = {name for before in pattern.elements for name in before.names()}
    for name in element.names():
        if not name:
            raise ConfigError("pattern: an element has an empty name: matches give its events by name, choose one")
        if name in known:
            raise ConfigError(f"pattern: two elements are called {name!r}: choose another name for one of them")
    return replace(pattern, elements=(*pattern.elements, element))


def narrowed(pattern: RowPattern, test: Test) -> RowPattern:
    """The last element takes only what `test` is true of too."""
    element, more = _single(pattern, "where"), _condition(test, "where")
    return _with(pattern, condition=element.condition.both(more) if element.condition else more)


def widened(pattern: RowPattern, test: Test) -> RowPattern:
    """The last element takes also what `test` is true of."""
    element, more = _single(pattern, "or_where"), _condition(test, "or_where")
    return _with(pattern, condition=element.condition.either(more) if element.condition else more)


def until(pattern: RowPattern, test: Test) -> RowPattern:
    """The last element's loop ends at what `test` is true of."""
    _positive(pattern, "until")
    if _single(pattern, "until").at_most is not None:
        _refuse(
            pattern, "until()", "needs a loop without an upper limit", "call one_or_more() or times_or_more(n) first"
        )
    return _with(pattern, until=_condition(test, "until"))


def repeated(pattern: RowPattern, method: str, at_least: int, at_most: int | None) -> RowPattern:
    """The last element takes between `at_least` and `at_most` events; None: no limit."""
    element = _positive(pattern, method)
    call = f"{method}({at_least}{'' if at_most in {None, at_least} else f', {at_most}'})"
    if element.is_loop or element.at_least != 1:
        _refuse(pattern, call, "is its second quantifier", "keep one of them")
    if at_least < 0 or (at_most is not None and (at_most < at_least or at_most < 1)):
        _refuse(pattern, call, "is no range of counts", "give 0 <= at_least <= at_most, and at_most >= 1")
    if element.body and at_most != 1 and all(e.is_nullable for e in element.body):
        _refuse(pattern, call, "repeats a group that may be empty", "make one of its elements not optional")
    made = _with(pattern, at_least=max(at_least, 1), at_most=at_most)
    return made if at_least else optional(made)


def optional(pattern: RowPattern) -> RowPattern:
    """A match may do without the last element."""
    _positive(pattern, "optional")
    if len(pattern.elements) > 1 and pattern.elements[-2].greedy:
        cure = "take greedy() away there, or write two patterns"
        _refuse(pattern, "optional()", "cannot follow a greedy element", cure)
    return _with(pattern, optional=True)


def greedy(pattern: RowPattern) -> RowPattern:
    """The last element leaves nothing to the next that it could take."""
    _positive(pattern, "greedy")
    element = _single(pattern, "greedy")
    if not element.is_loop:
        cure = "call one_or_more(), times_or_more(n) or times(lo, hi) first"
        _refuse(pattern, "greedy()", "needs a loop", cure)
    if element.inner is Contiguity.ANY:
        _refuse(pattern, "greedy()", "cannot be had with allow_combinations()", "choose one of them")
    return _with(pattern, greedy=True)


def joined(pattern: RowPattern, method: str, inner: Contiguity) -> RowPattern:
    """The contiguity between the events of the last element's loop."""
    element = _positive(pattern, method)
    if not element.is_loop:
        cure = "call one_or_more(), times_or_more(n) or times(...) first"
        _refuse(pattern, f"{method}()", "needs a loop", cure)
    if element.inner not in {Contiguity.RELAXED, inner}:
        cure = "choose consecutive() or allow_combinations()"
        _refuse(pattern, f"{method}()", "contradicts its inner contiguity", cure)
    if inner is Contiguity.ANY and element.greedy:
        _refuse(pattern, f"{method}()", "cannot be had with greedy()", "choose one of them")
    return _with(pattern, inner=inner)


def within(pattern: RowPattern, ms: int) -> RowPattern:
    """A match takes less than `ms`; of several limits the least counts."""
    if ms <= 0:
        raise ConfigError(f"pattern: within({ms}) must be positive: say how many ms a match may take")
    return replace(pattern, within=min(ms, pattern.within or ms))


def _with(pattern: RowPattern, **changes: Any) -> RowPattern:
    *before, last = pattern.elements
    return replace(pattern, elements=(*before, replace(last, **changes)))


def _positive(pattern: RowPattern, method: str) -> Element:
    if pattern.elements[-1].negated:
        _refuse(pattern, f"{method}()", "is a quantifier on a negation", "a negation is said once: leave it out")
    return pattern.elements[-1]


def _single(pattern: RowPattern, method: str) -> Element:
    if pattern.elements[-1].body:
        _refuse(pattern, f"{method}()", "is not for groups", "call it on the group's elements")
    return pattern.elements[-1]


def _refuse(pattern: RowPattern, what: str, why: str, cure: str) -> NoReturn:
    raise ConfigError(f"pattern element {pattern.elements[-1].title}: {what} {why}: {cure}")


def _condition(test: Test, where: str) -> Condition:
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
