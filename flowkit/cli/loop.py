"""Runs a command's coroutine on uvloop, and lets SIGINT and SIGTERM ask it to stop."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from flowkit.cli.outcome import say

T = TypeVar("T")


class Stop:
    """True once SIGINT or SIGTERM has come; a second one ends the process at once, which loses no commit.

    So does the end of `grace` seconds: what is to be stopped may wait for something that never comes. These are plain
    signal handlers, not the event loop's: they work while an agent computes without a pause.
    """

    def __init__(self, grace: float | None = None) -> None:
        self.signal: int | None = None
        self.grace = grace
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            self._die(number)
        elif self.grace is not None:
            signal.signal(signal.SIGALRM, self._overdue)
            signal.setitimer(signal.ITIMER_REAL, self.grace)
        self.signal = number

    def _overdue(self, _number: int, _frame: FrameType | None) -> None:
        say(f"error: not at rest {self.grace:g} s after it was told to stop: ended; what was committed is safe")
        assert self.signal is not None
        self._die(self.signal)

    def _die(self, number: int) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def __call__(self) -> bool:
        return self.signal is not None


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, on uvloop where there is one."""
    try:
        from uvloop import new_event_loop
    except ImportError:  # not made for every platform
        new_event_loop = None  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
