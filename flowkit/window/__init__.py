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
from flowkit.window.schedule import Crontab, Every, Schedule
from flowkit.window.sessions import Span, absorb
from flowkit.window.watermark import Split, Splits

__all__ = [
    "Aligned",
    "Count",
    "Crontab",
    "Cumulative",
    "Every",
    "Global",
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
