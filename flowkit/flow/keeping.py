"""Operators that keep something, as they are declared: joins and patterns.

    left ──┐
           ├── by key ── a process, or windows ── what it sends, and what came too late for it
    right ─┘

What runs them is the app's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flowkit.errors import ConfigError
from flowkit.record import Change, duration
from flowkit.window import Cumulative, Session, Sliding, Tumbling, Window

if TYPE_CHECKING:  # and where they are used: an app without joins and patterns does not wait for them
    from flowkit.join import AsOfJoin, How, WindowJoin
    from flowkit.pattern import AfterMatch, Pattern

By = str | Callable[[Any], Any]
"""A field's name, or a function of the event."""

LATE = "late"


class Named(Protocol):
    """What is asked of a stream here."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> Any: ...


@dataclass(frozen=True)
class Feed:
    """One input: a stream, and the key by which its events are given."""

    stream: Any
    by: By


@dataclass(frozen=True)
class Keeping:
    """An operator over streams, by key: either a process, or windows whose rows are paired when they close.

    `sends` tells, from the type of the key, its streams by kind ("" is the main one) with their types. `words` say what
    it does, `signature` what must not change while there is state of it, `grows` why its state has no bound, if so.
    """

    name: str
    feeds: tuple[Feed, ...]
    words: str
    sends: Callable[[Any], Mapping[str, Any]]
    process: Any = None
    window: Window | None = None
    pairs: "WindowJoin | None" = None
    signature: str = ""
    grows: str = ""


def interval_join(name: str, left: Named, right: Named, on: Any, within: int | tuple[int, int], how: "How") -> Keeping:
    """Pairs whose right event comes `within` (earliest, latest) ms of the left one. Raises ConfigError."""
    from flowkit.join import IntervalJoin

    feeds = _sides(name, left, right, on)
    if not isinstance(within, tuple):
        within = (0, within)
    if len(within) != 2:
        raise ConfigError(f"{name}: within={within!r}: give (earliest, latest), in ms from the left event's time")
    lower, upper = within
    join = IntervalJoin(left.type, right.type, lower, upper, how, name=name)
    words = f"{how} join: each {left.name} with the {right.name} {_span(lower, upper)}"
    return _process(name, feeds, words, join, lambda _key: {"": join.type}, f"interval join {how} {lower} {upper}")


def window_join(name: str, left: Named, right: Named, on: Any, window: Window, how: "How") -> Keeping:
    """Pairs that fall in the same window. Raises ConfigError."""
    from flowkit.join import WindowJoin

    feeds = _sides(name, left, right, on)
    if not isinstance(window, Tumbling | Sliding | Cumulative | Session):
        raise ConfigError(f"{name}: window={window!r}: join in Tumbling, Sliding, Cumulative or Session windows")
    pairs = WindowJoin(left.type, right.type, how, name=name)
    words = f"{how} join of {left.name} and {right.name}"
    return Keeping(name, feeds, words, lambda _key: {"": pairs.type}, window=window, pairs=pairs)


def as_of_join(
    name: str,
    left: Named,
    right: Named,
    on: Any,
    how: Any,
    tolerance: int | None,
    keep_for: int | None,
) -> Keeping:
    """Each left event with the latest right one up to its time. Raises ConfigError."""
    from flowkit.join import AsOfJoin

    feeds = _sides(name, left, right, on)
    join = AsOfJoin(left.type, right.type, how, tolerance, keep_for, name=name)
    words = f"each {left.name} with the latest {right.name} up to its time"
    if tolerance is not None:
        words += f", at most {duration(tolerance)} before it"
    words += _kept(keep_for)
    signature, grows = f"as-of join {how} {tolerance} {keep_for}", _versions_grow(join, right)
    return _process(name, feeds, words, join, lambda _key: {"": join.type}, signature, grows)


def versions_join(name: str, left: Named, changes: Named, on: By, how: Any, keep_for: int | None) -> Keeping:
    """Each left event with the value that a table had for its key at its time. Raises ConfigError."""
    from flowkit.join import AsOfJoin

    feeds = (Feed(left, on), Feed(changes, "key"))
    value_type = _value_of_change(changes.type)
    join = AsOfJoin(left.type, value_type, how, keep_for=keep_for, value=_new_value, tombstone=_is_deleted, name=name)
    words = f"each {left.name} with what {changes.name.removesuffix('.changes')} was at its time{_kept(keep_for)}"
    signature, grows = f"versions {how} {keep_for}", _versions_grow(join, changes)
    return _process(name, feeds, words, join, lambda _key: {"": join.type}, signature, grows)


def pattern_match(name: str, stream: Named, pattern: "Pattern[Any]", by: By, after: "AfterMatch | None") -> Keeping:
    """Where a pattern is found in the events of each key. Raises ConfigError."""
    from flowkit.pattern import TIMED_OUT, Match, Pattern, PatternProcess, TimedOut, pattern_words, unbounded_because

    if not isinstance(pattern, Pattern):
        raise ConfigError(f"{name}: {pattern!r} is no pattern: begin one with Pattern.begin(…)")
    process: PatternProcess[Any, Any] = PatternProcess(pattern, stream.type, after)
    match: Any = Match
    timed_out: Any = TimedOut

    def sends(key: Any) -> dict[str, Any]:
        return {"": match[key, stream.type], TIMED_OUT: timed_out[key, stream.type]}

    grows = "; ".join(unbounded_because(pattern.row_pattern))
    words = f"finds {pattern_words(pattern.row_pattern, after)}"
    return _process(name, (Feed(stream, by),), words, process, sends, f"pattern {process.shape}", grows)


def _process(
    name: str,
    feeds: tuple[Feed, ...],
    words: str,
    process: Any,
    sends: Callable[[Any], Mapping[str, Any]],
    signature: str,
    grows: str = "",
) -> Keeping:
    for feed in feeds:
        if feed.stream.type is Any:
            raise ConfigError(
                f"{name}: the events of {feed.stream.name!r} are kept, so their type must be known: annotate what its "
                "function returns, or give the operator type="
            )
    return Keeping(name, feeds, words, lambda key: {**sends(key), LATE: Any}, process, signature=signature, grows=grows)


def _sides(name: str, left: Named, right: Named, on: Any) -> tuple[Feed, ...]:
    both = on if isinstance(on, tuple) else (on, on)
    if len(both) != 2:
        raise ConfigError(f"{name}: on={on!r}: give one field, or a pair: the left stream's and the right stream's")
    return Feed(left, both[0]), Feed(right, both[1])


def _versions_grow(join: "AsOfJoin", right: Named) -> str:
    if join.bounded:
        return ""
    return f"the newest {right.name} of each key stays for ever: give tolerance= or keep_for="


def _span(lower: int, upper: int) -> str:
    """How far after an event (ms) others may be, in words."""
    if lower == upper == 0:
        return "of the same time"
    if lower >= 0:
        return f"from {duration(lower)} to {duration(upper)} after it" if lower else f"up to {duration(upper)} after it"
    before = f"{duration(-lower)} before it"
    if upper < 0:
        return f"from {before} to {duration(-upper)} before it"
    return f"from {before} to {duration(upper)} after it" if upper else f"up to {before}"


def _kept(keep_for: int | None) -> str:
    return "" if keep_for is None else f", forgotten {duration(keep_for)} after its last change"


def _value_of_change(type_: Any) -> Any:
    """V of a Change[K, V]."""
    return type_.__args__[1]


def _new_value(change: Change[Any, Any]) -> Any:
    return change.new


def _is_deleted(change: Change[Any, Any]) -> bool:
    return change.new is None
