"""Being asked to stop: SIGINT and SIGTERM, and the end of one's patience."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

PARENT = "FLOWKIT_PARENT_FD"
"""The variable that names the reading end of a pipe whose other end only the parent has: it closes with the parent."""


class Stop:
    """True once SIGINT or SIGTERM has come; a second one ends the process at once, which loses no commit.

    So does the end of `grace` seconds: what is to be stopped may wait for something that never comes. These are plain
    signal handlers, not the event loop's: they work while an agent computes without a pause. `then` is called when the
    first signal comes, wherever the program stands just then.
    """

    def __init__(self, grace: float | None = None, then: Callable[[], object] = lambda: None) -> None:
        self.signal: int | None = None
        self.grace, self.then = grace, then
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            self._die(number)
        elif self.grace is not None:
            signal.signal(signal.SIGALRM, self._overdue)
            signal.setitimer(signal.ITIMER_REAL, self.grace)
        self.signal = number
        self.then()

    def _overdue(self, _number: int, _frame: FrameType | None) -> None:
        words = f"error: not at rest {self.grace:g} s after it was told to stop: ended; what was committed is safe\n"
        with contextlib.suppress(OSError):  # nobody listening is no error
            os.write(2, words.encode())  # past what Python buffers: it may be just writing there
        assert self.signal is not None
        self._die(self.signal)

    def _die(self, number: int) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def __call__(self) -> bool:
        return self.signal is not None

    def over(self) -> None:
        """All is at rest: signals are the system's again."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)


def stop_with_parent() -> None:
    """Be stopped as by SIGTERM, grace and all, when the parent that named a pipe in `PARENT` is gone, if one did."""
    named = os.environ.pop(PARENT, "")
    if not named:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(int(named), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
