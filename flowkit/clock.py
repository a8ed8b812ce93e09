"""Time comes from a clock that is handed in: the system's, or a virtual one that only moves when told."""

import time
from typing import Protocol

import anyio
import anyio.lowlevel


class Clock(Protocol):
    """Where the runtime takes the time of day from."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""

    async def sleep(self, ms: float) -> None:
        """Return once `ms` milliseconds have passed on this clock."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, ms: float) -> None:
        await anyio.sleep(ms / 1000)


class VirtualClock:
    """A clock that stands still until `advance` or `reach`; a sleeper moves it on by itself.

    Sleeping moves the clock instead of waiting: in tests and bounded runs a retry's back-off is part of the
    computation, never a pause.
    """

    def __init__(self, start_ms: int = 0) -> None:
        self._now = start_ms

    def now_ms(self) -> int:
        return self._now

    async def sleep(self, ms: float) -> None:
        self.advance(int(ms))
        await anyio.lowlevel.checkpoint()

    def advance(self, ms: int) -> None:
        """Move on by `ms` milliseconds (never back)."""
        self._now += max(ms, 0)

    def reach(self, at_ms: int) -> None:
        """Move on to `at_ms`, unless it is already later."""
        self._now = max(self._now, at_ms)
