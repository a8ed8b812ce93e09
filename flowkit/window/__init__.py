"""Pure window logic: which windows an event falls in, and which of them a watermark has passed. No state, no I/O."""

from flowkit.window.kinds import (
    Aligned,
    Count,
    Cumulative,
    Global,
    Session,
    Sliding,
    Tumbling,
    Window,
    check_window,
)
from flowkit.window.marks import MarkedSplit
from flowkit.window.schedule import Crontab, Every, Schedule
from flowkit.window.sessions import Span, absorb
from flowkit.window.watermark import ACTIVE, IDLE, QUIET, FoundSplit, Split, Splits

__all__ = [
    "ACTIVE",
    "IDLE",
    "QUIET",
    "Aligned",
    "Count",
    "Crontab",
    "Cumulative",
    "Every",
    "FoundSplit",
    "Global",
    "MarkedSplit",
    "Schedule",
    "Session",
    "Sliding",
    "Span",
    "Split",
    "Splits",
    "Tumbling",
    "Window",
    "absorb",
    "check_window",
]
