"""Names of what comes in and goes out: topics, which agents can read and write, and sinks, which they only write."""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from flowkit.codec import Codec, EventTime, has_field
from flowkit.errors import ConfigError, NoEvent
from flowkit.record import Events
from flowkit.table import current

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Getter = str | Callable[[Any], Any] | None
"""A field's name, or a function of the value."""


class Takes(Protocol[T_co]):
    """Something that values of one type can be sent to (for type checkers: what an agent may yield)."""

    @property
    def element(self) -> type[T_co]:
        """The type of its values."""


class Outlet(Generic[T]):
    """Where agents send values to. Bound to the outside when the worker starts."""

    def __init__(self, name: str, type_: type[T], *, key: Getter = None, codec: str = "json") -> None:
        if not name or any(c in name for c in "=/ \0"):
            raise ConfigError(f"{name!r} is no name for a topic or sink: no spaces, '=' or '/'")
        if isinstance(key, str) and not has_field(type_, key):
            raise ConfigError(f"{name!r}: key={key!r} is no field of {getattr(type_, '__name__', type_)}")
        self.name, self.key, self.codec = name, key, codec
        self._element = type_
        Codec(codec, type_)  # an unfit type is an error now, not when the first record comes

    @property
    def element(self) -> type[T]:
        return self._element

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def emit(self, value: T, *, key: Any = None, time: int | None = None) -> None:
        """Send `value` as a part of the present event's commit; back-pressure acts at the next event.

        `key` is taken from the value (the topic's `key=`) unless given; `time` (ms) is the present event's unless
        given. Raises NoEvent outside an event, UndeclaredSink if the agent does not declare this in `sinks=`.
        """
        cursor = current.get(None)
        if cursor is None:
            raise NoEvent(f"{self.name!r}.emit was called outside an event: call it while an agent handles one")
        cursor.emit(self, value, key, time)


class Sink(Outlet[T]):
    """A sink that is no topic: a file, a table of a database, … Made by `app.sink`."""


class Topic(Events[T], Outlet[T]):
    """A named stream of records of one type, in partitions. Made by `app.topic`."""

    def __init__(
        self,
        name: str,
        type_: type[T],
        *,
        key: Getter = None,
        time: Getter = None,
        time_unit: str = "ms",
        timezone: str | None = None,
        out_of_order: int = 0,
        codec: str = "json",
        idle_after: int | None = None,
        close_after_idle: int | None = None,
    ) -> None:
        Events.__init__(self, name, type_)
        Outlet.__init__(self, name, type_, key=key, codec=codec)
        if isinstance(time, str) and not has_field(type_, time):
            raise ConfigError(f"{name!r}: time={time!r} is no field of {getattr(type_, '__name__', type_)}")
        for option, value in (("out_of_order", out_of_order), ("idle_after", idle_after)):
            if value is not None and value < 0:
                raise ConfigError(f"{name!r}: {option} must be >= 0 ms")
        self.time, self.event_time = time, EventTime(time_unit, timezone)
        self.out_of_order, self.idle_after, self.close_after_idle = out_of_order, idle_after, close_after_idle

    __repr__ = Outlet.__repr__
