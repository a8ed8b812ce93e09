"""Names of what comes in and goes out: topics, which agents can read and write, and sinks, which they only write."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar, get_args

from flowkit.codec import Codec, CodecName, EventTime, TimeUnit, fields_of, has_field, type_name
from flowkit.errors import ConfigError, NoEvent, TimeError
from flowkit.flow import Events
from flowkit.options import OutOfRange, Start
from flowkit.record import EARLIEST, END_OF_TIME, LATEST, MIN_TIME
from flowkit.table import current

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Getter = str | Callable[[T], Any] | None
"""A field's name, or a function of the value."""


def check_name(name: object, what: str) -> None:
    """Raise ConfigError unless `name` can be written on a command line as NAME=URL, and in a path."""
    if not isinstance(name, str) or not name or not name.isprintable() or any(c in "=/ " for c in name):
        raise ConfigError(f"{name!r} is no name for {what}: use text without spaces, '=' or '/'")


class Outlet(Generic[T_co]):
    """Where agents send values to. Bound to the outside when the worker starts.

    Covariant, so that `sinks=[alerts, features]` is a list of outlets of either type for all type checkers. `emit`
    bends the rule for that: who passes an outlet on as one of a wider type may send it too much, which the agent's
    check at run time finds.
    """

    def __init__(self, name: str, type_: type[T_co], *, key: Getter[Any] = None, codec: CodecName = "json") -> None:
        check_name(name, "a topic or sink")
        _check_getter(name, "key", key, type_)
        self.name, self.key, self.codec = name, key, codec
        self._element = type_
        try:
            Codec(codec, type_)  # an unfit type is an error now, not when the first record comes
        except ConfigError as error:
            raise ConfigError(*(f"{name!r}: {problem}" for problem in error.problems)) from None

    @property
    def element(self) -> type[T_co]:
        """The type of the values that it takes."""
        return self._element

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def emit(self, value: T_co, *, key: Any = None, time: int | None = None) -> None:  # type: ignore[misc]
        """Send `value` as a part of the present event's commit; back-pressure acts at the next event.

        `key` is taken from the value (the topic's `key=`) unless given; `time` (ms) is the present event's unless
        given. Raises NoEvent outside an event, UndeclaredSink if the agent does not declare this in `sinks=`,
        TypeError for a value of another type.
        """
        element: Any = self.element
        if isinstance(element, type) and hasattr(element, "__struct_fields__") and not isinstance(value, element):
            raise TypeError(f"{self.name!r} takes {element.__name__}, not {type(value).__name__}")
        if time is not None:
            self._check_time(time)
        cursor = current.get(None)
        if cursor is None:
            raise NoEvent(f"{self.name!r}.emit was called outside an event: call it while an agent handles one")
        cursor.emit(self, value, key, time)

    def _check_time(self, time: Any) -> None:
        if type(time) is not int or not MIN_TIME <= time <= END_OF_TIME:
            raise TypeError(f"{self.name!r}.emit: time={time!r}: give whole ms since the epoch, in 64 bits")


class Sink(Outlet[T_co]):
    """A sink that is no topic: a file, a table of a database, … Made by `app.sink`."""


class Topic(Events[T_co], Outlet[T_co]):
    """A named stream of records of one type, in partitions. Made by `app.topic`.

    With a `pattern` it is all topics of the broker whose names match that, whole, and its own name is for people.
    """

    def __init__(
        self,
        name: str,
        type_: type[T_co],
        *,
        key: Getter[Any] = None,
        time: Getter[Any] = None,
        time_unit: TimeUnit = "ms",
        timezone: str | None = None,
        out_of_order: int = 0,
        codec: CodecName = "json",
        idle_after: int | None = None,
        close_after_idle: int | None = None,
        start: Start | datetime = "earliest",
        out_of_range: OutOfRange = "fail",
        pattern: str | None = None,
    ) -> None:
        Events.__init__(self, name, type_)
        Outlet.__init__(self, name, type_, key=key, codec=codec)
        _check_getter(name, "time", time, type_)
        _check_ms(name, "out_of_order", out_of_order, 0)
        _check_ms(name, "idle_after", idle_after, 1)
        _check_ms(name, "close_after_idle", close_after_idle, 1)
        self.start, self.out_of_range = start_of(name, start), out_of_range
        if out_of_range not in get_args(OutOfRange):
            raise ConfigError(f"{name!r}: out_of_range={out_of_range!r}: give 'fail', 'earliest' or 'latest'")
        self.pattern = None if pattern is None else _compiled(name, pattern)
        if pattern is not None and isinstance(self.start, Mapping):
            raise ConfigError(
                f"{name!r}: start={start!r}: offsets are those of one topic, and {pattern!r} stands for many: give "
                "'earliest', 'latest' or a time"
            )
        self.time, self.event_time = time, EventTime(time_unit, timezone)
        self.out_of_order, self.idle_after, self.close_after_idle = out_of_order, idle_after, close_after_idle

    __repr__ = Outlet.__repr__

    def stands_for(self, topic: str) -> bool:
        """True if this is the broker's `topic`, or its pattern matches it."""
        return topic == self.name if self.pattern is None else self.pattern.fullmatch(topic) is not None

    def emit(self, value: T_co, *, key: Any = None, time: int | None = None) -> None:  # type: ignore[misc]
        """As `Outlet.emit`. Raises ConfigError as well, if it has a pattern: which of its topics would that be?"""
        if self.pattern is not None:
            raise ConfigError(no_place(self))
        super().emit(value, key=key, time=time)

    def _check_time(self, time: Any) -> None:
        super()._check_time(time)
        if not EARLIEST <= time <= LATEST:  # one such record would make all that follow late
            raise TimeError(f"{self.name!r}.emit: time={time} lies outside the years 1 to 9999")


def no_place(topic: Topic[Any]) -> str:
    """Why nothing can be sent to a topic with a pattern."""
    assert topic.pattern is not None
    return (
        f"topic {topic.name!r} stands for all topics that match {topic.pattern.pattern!r}, so nothing can be sent to "
        "it: declare the topic that you mean by its own name (outside of the pattern)"
    )


def _compiled(name: str, pattern: Any) -> "re.Pattern[str]":
    if not isinstance(pattern, str):
        raise ConfigError(f"{name!r}: pattern={pattern!r}: give a regular expression as text")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name!r}: pattern={pattern!r} is no regular expression: {error}") from None


def start_of(name: str, start: Any) -> Start:
    """Where to begin, with a date as ms since the epoch. Raises ConfigError for what is none of it."""
    if isinstance(start, datetime) and start.tzinfo is not None:
        return int(start.timestamp() * 1000)
    if start in ("earliest", "latest") or (isinstance(start, int) and not isinstance(start, bool)):
        return start  # type: ignore[no-any-return]
    if isinstance(start, Mapping) and all(type(n) is int and n >= 0 for pair in start.items() for n in pair):
        return dict(start)
    raise ConfigError(
        f"{name!r}: start={start!r}: give 'earliest', 'latest', a datetime with a zone, ms since the epoch, or offsets "
        "by partition"
    )


def _check_getter(name: str, option: str, getter: object, type_: Any) -> None:
    if getter is None or callable(getter):
        return
    if not isinstance(getter, str):
        raise ConfigError(f"{name!r}: {option}={getter!r}: give the name of a field, or a function of the value")
    if not has_field(type_, getter):
        fields = fields_of(type_)
        known = f", whose fields are: {', '.join(fields) or 'none'}" if fields is not None else ""
        raise ConfigError(f"{name!r}: {option}={getter!r} is no field of {type_name(type_)}{known}")


def _check_ms(name: str, option: str, value: object, least: int) -> None:
    if value is None and least:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name!r}: {option}={value!r}: give whole ms, {least} or more (seconds(…), minutes(…))")
