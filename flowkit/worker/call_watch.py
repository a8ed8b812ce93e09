"""Waiting for calls: until one is done, no longer than its time-out, and telling which one it is that takes so long."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import structlog

from flowkit.errors import FlowkitError
from flowkit.worker.calling import Call, CallDriver
from flowkit.worker.step import StepContext

log = structlog.get_logger("flowkit.engine")


class CallWatch:
    """Looks after the calls of an engine that are under way."""

    def __init__(self, step: StepContext, drivers: Sequence[CallDriver]) -> None:
        self.step, self.drivers = step, drivers
        self.waiting = False
        """True while the task waits for a call."""
        self._waiter: asyncio.Future[None] | None = None
        self._told = 0.0

    def now(self) -> int:
        """The clock (ms) that time-outs go by."""
        return int(time.monotonic() * 1000) if self.step.bounded else self.step.clock.now_ms()

    async def wait_for(self, call: Call) -> None:
        """Bounded: wait until a call is done. Raises FlowkitError for one that ended without a result."""
        self.waiting = True
        loop = asyncio.get_running_loop()
        timed = any(driver.spec.timeout is not None for driver in self.drivers)
        try:
            while call.results is None:
                if call.begun and call.task is None:
                    raise FlowkitError(f"{call.calling.name!r}: a call ended without a result")
                self._waiter = loop.create_future()
                again = loop.call_later(0.01, self._look) if timed else None
                try:
                    await self._waiter
                finally:
                    if again is not None:
                        again.cancel()
        finally:
            self.waiting, self._waiter = False, None
        self.step.waited()

    def _look(self) -> None:
        self.expire()
        self.turn()

    def turn(self) -> None:
        """A call is done: whoever waits looks again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def expire(self) -> None:
        """Break off what has taken longer than its time-out."""
        now = self.now()
        for driver in self.drivers:
            if driver.spec.timeout is not None:
                driver.calling.expire(now)

    def tell_waiting(self, limit_ms: int) -> None:
        """Say which call has been waited for longest, once in `limit_ms`, if it has taken so long."""
        now = time.monotonic()
        running = [call for driver in self.drivers for call in driver.calling.running]
        if not running or now - self._told < limit_ms / 1000:
            return
        oldest = min(running, key=lambda call: call.since)
        age = self.now() - oldest.since
        if age >= limit_ms:
            self._told = now
            log.warning("waiting for a call", **self.oldest(oldest, age))

    def oldest(self, call: Call, age: int) -> dict[str, Any]:
        """A call in words."""
        topic, split, offset, where, *_ = call.rows[0].origin.save()
        place = where or f"{topic}[{split}] {offset}"
        return {"stream": call.calling.name, "at": place, "events": len(call.rows), "age_ms": age}
