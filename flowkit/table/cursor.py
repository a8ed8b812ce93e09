"""Where a task is just now: the event that its agents see. Tables and sinks ask it what "now" means."""

from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from typing import Any

from flowkit.record import MIN_TIME


class Mode(Enum):
    """What may be done with tables just now."""

    WRITE = "write"
    READ = "read"
    OUTSIDE = "outside"


class Cursor:
    """One task's present event.

    `time` (ms) is the event's; `ordinal` numbers events, so that a count window counts one once; `ready` is set by a
    table that has something to fire without the watermark's help, by the clock or because it is full; `sent` is what
    operators have made of the event, for those who subscribe to it: (stream, event, time in ms). In a batch `time` is
    NEVER, and `batch` has (time, ordinal) by the events' identity.

    `floor` is how far event time had come for the event's key before this task took it over, if that is farther than
    the task has come.

    `wall` is the last reading of the clock (ms) that counts: in a bounded run the highest event time. `low` is the time
    of the first record, `high` how far event time has come at least, `end` what that was when the input ended. MIN_TIME
    stands for none.
    """

    __slots__ = (
        "agent",
        "batch",
        "bounded",
        "emit",
        "end",
        "event",
        "floor",
        "high",
        "low",
        "ordinal",
        "ready",
        "sent",
        "time",
        "wall",
        "watermark",
    )

    def __init__(self) -> None:
        self.time = MIN_TIME
        self.watermark = MIN_TIME
        self.floor = MIN_TIME
        self.wall = MIN_TIME
        self.low = MIN_TIME
        self.high = MIN_TIME
        self.end = MIN_TIME
        self.bounded = False
        self.event: Any = None
        self.ordinal = 0
        self.ready = False
        self.sent: list[tuple[str, Any, int]] = []
        self.agent: Any = None
        self.batch: dict[int, tuple[int, int]] | None = None
        self.emit: Callable[[Any, Any, Any, int | None], None]


current: ContextVar[Cursor] = ContextVar("flowkit_cursor")
"""The cursor of the flowkit task in whose asyncio task this code runs."""
