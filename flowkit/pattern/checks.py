"""What can be said of a row pattern before it runs: that it makes sense, whether its state is bounded, its shape."""

from flowkit.errors import ConfigError
from flowkit.pattern.element import Contiguity, Element, RowPattern
from flowkit.pattern.skip import AfterMatch, NoSkip, SkipToFirst, SkipToLast
from flowkit.record import duration


def check_pattern(pattern: RowPattern, after: AfterMatch) -> None:
    """Raises ConfigError with all that is wrong with the whole: what a method of `Pattern` could not know yet."""
    problems: list[str] = []
    if not any(not element.negated for element in pattern.elements):
        problems.append('pattern: it is empty: start it with Pattern[Event].begin("name", condition)')
    elif pattern.elements[0].negated:
        problems.append(f"pattern element {pattern.elements[0].title}: a pattern cannot begin with a negation")
    if not pattern.within:
        problems.extend(
            f"pattern element {last.title}: not_followed_by at the end is decided when time is up: "
            "add within(ms) to the pattern, or an element behind it"
            for last in _trailing(pattern.elements)
            if last.negated and last.contiguity is not Contiguity.STRICT
        )
    if isinstance(after, SkipToFirst | SkipToLast):
        names = [name for element in pattern.elements if not element.negated for name in _positive(element)]
        if after.name not in names:
            problems.append(f"pattern: {after} names no element that takes events: use one of {', '.join(names)}")
    if problems:
        raise ConfigError(*problems)


def unbounded_because(pattern: RowPattern) -> tuple[str, ...]:
    """Why a key's state may grow without limit; empty if it may not.

    With `within` only events and partial matches of that span are kept. Without it, an element that may be waited for
    keeps a partial match for each event that began one, and an endless loop a match for each event that it took.
    """
    if pattern.within:
        return ()
    return tuple(_unbounded(pattern.elements, first=True))


def pattern_shape(pattern: RowPattern, after: AfterMatch | None = None) -> str:
    """The pattern in words, conditions left out. Stored cells fit only a pattern of the same shape."""
    return _words(pattern, after, f"{pattern.within} ms")


def pattern_words(pattern: RowPattern, after: AfterMatch | None = None) -> str:
    """The same for people."""
    return _words(pattern, after, duration(pattern.within))


def _words(pattern: RowPattern, after: AfterMatch | None, within: str) -> str:
    words = _sequence(pattern.elements)
    if pattern.within:
        words += f", within {within}"
    if after is not None and not isinstance(after, NoSkip):
        words += f", then {after}"
    return words


def _positive(element: Element) -> tuple[str, ...]:
    if element.negated:
        return ()
    return tuple(n for e in element.body for n in _positive(e)) if element.body else (element.name,)


def _trailing(elements: tuple[Element, ...]) -> list[Element]:
    """Elements that may be a match's last, negations among them."""
    found: list[Element] = []
    for element in reversed(elements):
        found += _trailing(element.body) if element.body else [element]
        if not element.is_nullable:
            break
    return found


def _unbounded(elements: tuple[Element, ...], *, first: bool) -> list[str]:
    found: list[str] = []
    for element in elements:
        if element.negated:
            continue
        if not first and element.contiguity is not Contiguity.STRICT:
            found.append(f"{element.title} may be waited for without end")
        elif element.is_loop and element.inner is not Contiguity.STRICT:
            found.append(f"{element.title} may wait for another event without end")
        elif element.at_most is None:
            found.append(f"{element.title} may take events without end")
        found += _unbounded(element.body, first=True)
        first = first and element.optional
    return found


def _sequence(elements: tuple[Element, ...]) -> str:
    parts: list[str] = []
    for element in elements:
        how = {Contiguity.STRICT: "next ", Contiguity.RELAXED: "followed by ", Contiguity.ANY: "followed by any "}
        before = how[element.contiguity] if parts else ""
        parts.append(("not " if element.negated else "") + before + _element(element))
    return ", ".join(parts)


def _element(element: Element) -> str:
    low, high = element.at_least, element.at_most
    words = f"({_sequence(element.body)})" if element.body else element.name
    if high is None:
        words += "+" if low == 1 else f"{{{low},}}"
    elif high > 1:
        words += f"{{{low}}}" if low == high else f"{{{low},{high}}}"
    if element.optional:
        words += "?"
    inner = {Contiguity.STRICT: " consecutive", Contiguity.RELAXED: "", Contiguity.ANY: " combined"}
    return words + inner[element.inner] + (" greedy" if element.greedy else "") + (" until" if element.until else "")
