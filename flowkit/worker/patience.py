"""Waiting for a broker that is away when a worker starts: for a bounded time, with a line in the log for each try."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from flowkit.errors import BrokerError, BrokerRefused

T = TypeVar("T")

log = structlog.get_logger("flowkit.worker")

FIRST_WAIT, LONGEST_WAIT = 0.5, 5.0
"""It is tried again after 0.5, 1, 2 … s, at most 5."""


class Patience:
    """Patience of `ms` in all, from the first failure on; none any more once `stopping`."""

    def __init__(self, ms: int, stopping: asyncio.Event) -> None:
        self.why = ""
        """Why the broker cannot be used, as of the last try; '' if it went well."""
        self._ms, self._stopping = ms, stopping
        self._began: float | None = None

    async def have(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, which may be done again. Raises BrokerError once the time is over, BrokerRefused at once."""
        wait = FIRST_WAIT
        while True:
            try:
                done = await work()
            except BrokerRefused:
                raise
            except BrokerError as error:
                self.why = str(error)
                began = self._began = self._began or time.monotonic()
                left = self._ms / 1000 - (time.monotonic() - began)
                if self._stopping.is_set():
                    raise
                if left <= 0:
                    raise BrokerError(
                        f"{error}; waited for it for {self._ms / 1000:g} s: is it up, and is that where it is? "
                        "(FLOWKIT_BROKER_PATIENCE ms is how long a worker waits)"
                    ) from error
                log.warning("the broker is away; trying again", error=self.why, gives_up_in=round(left, 1))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), min(wait, left))
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                if self.why:
                    log.info("the broker answers")
                self.why = ""
                return done
