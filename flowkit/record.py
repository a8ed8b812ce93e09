"""What flows: records, and the events that tables make of them.

Times are integer milliseconds since the epoch, UTC; durations are integer milliseconds made by `milliseconds` … `days`.
"""

from typing import TYPE_CHECKING, Generic, Literal, TypeVar, dataclass_transform

import msgspec

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
U = TypeVar("U")

MIN_TIME = -(2**63)
END_OF_TIME = 2**63 - 1
"""The watermark at the end of a bounded run, as in Flink: everything is closed."""

EARLIEST = -62_135_596_800_000
LATEST = 253_402_300_799_999
"""The first and last millisecond of the years 1 … 9999: no record's own time may lie outside."""

Pane = Literal["early", "on_time", "late"]


if TYPE_CHECKING:

    @dataclass_transform(field_specifiers=(msgspec.field,))
    class _RecordMeta(msgspec.StructMeta):
        """A class that names such a metaclass may have frozen and other subclasses (PEP 681)."""

else:
    _RecordMeta = msgspec.StructMeta  # a subclass of it would be in the way of msgspec.defstruct


class Record(msgspec.Struct, metaclass=_RecordMeta):
    """Base of the values that flow and are stored: a typed, mutable struct, checked when it is decoded.

    With `frozen=True` it can be the key of a table. Other options are those of `msgspec.Struct`.

    >>> class Reading(Record):
    ...     sensor: str
    ...     value: float = 0.0
    >>> Reading("a")
    Reading(sensor='a', value=0.0)
    """


class Closed(msgspec.Struct, Generic[K, V]):
    """A window's result: `value` of `key` over `[start, end)` (ms).

    `pane` tells whether it was sent before the watermark passed the window (`early`), when it did (`on_time`), or
    because of a late record within the allowed lateness (`late`).
    """

    key: K
    value: V
    start: int
    end: int
    pane: Pane = "on_time"


class Enriched(msgspec.Struct, Generic[T, U]):
    """An event, and what a lookup found for it (None: nothing). See `Events.enrich`."""

    event: T
    found: U


class Change(msgspec.Struct, Generic[K, V]):
    """A table's value changed by one event, from `old` (None: new) to `new` (None: deleted).

    For windowed tables `start` and `end` (ms) say of which window. `time` (ms) is that of the causing event.
    """

    key: K
    old: V | None
    new: V | None
    time: int
    start: int = MIN_TIME
    end: int = END_OF_TIME


class Joined(msgspec.Struct, Generic[K, V]):
    """A left and a right event that belong together.

    The stream of an outer join says in its type which side may be missing: `Joined[Order, Payment | None]` of a left
    join, `Joined[Order | None, Payment]` of a right one.

    >>> Joined("order 7", "payment 7")
    Joined(left='order 7', right='payment 7')
    """

    left: K
    right: V


class Timer(msgspec.Struct, Generic[K]):
    """A timer that has gone off: that of `key`, set for `at` (ms), which is the event's time."""

    key: K
    at: int


class Tick(msgspec.Struct):
    """What a periodic agent is called with: the time (ms) that it was due at, which is the event's time."""

    at: int


class DeadLetter(msgspec.Struct):
    """A record that could not be used, as it came in, with where it lay and what was wrong with it.

    `position` is what a person needs to find it (`FILE:12` or `offset 34`); `offset` its number in the partition, or
    the line's in a file. `time` is in ms, None if the record had none. `attempts` counts runs of the agent; 0 if no
    agent saw it.
    """

    topic: str
    partition: int
    offset: int
    position: str
    key: bytes | None
    value: bytes | None
    time: int | None
    error: str
    reason: str
    traceback: str = ""
    agent: str = ""
    attempts: int = 0


def milliseconds(n: float) -> int:
    """`n` milliseconds as a duration (ms)."""
    return round(n)


def seconds(n: float) -> int:
    """`n` seconds as a duration (ms).

    >>> seconds(1.5)
    1500
    """
    return round(n * 1000)


def minutes(n: float) -> int:
    """`n` minutes as a duration (ms)."""
    return round(n * 60_000)


def hours(n: float) -> int:
    """`n` hours as a duration (ms)."""
    return round(n * 3_600_000)


def days(n: float) -> int:
    """`n` days of 24 hours as a duration (ms)."""
    return round(n * 86_400_000)


_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1))


def duration(ms: int) -> str:
    """A length of time in its largest whole units.

    >>> duration(600_000), duration(90_000), duration(0)
    ('10 min', '1 min 30 s', '0 ms')
    """
    parts = []
    for name, size in _UNITS:
        count, ms = divmod(ms, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts) or "0 ms"
