"""When records have arrived at a consumer. This and `kafka_columns` are all that reaches into aiokafka's fetcher.

Its public `getmany` waits for records only by taking them, of all partitions or of some. A worker wants to hear that
there is something, and let each task take its own when it has room.
"""

import asyncio
from typing import Any

from flowkit.source.kafka_columns import in_columns


class Arrivals:
    """Counts the arrivals at the consumer that it watches. `also` hears of each, too."""

    def __init__(self, also: "Arrivals | None" = None) -> None:
        self._also = also
        self._fetcher: Any = None
        self._mark = 0
        self._next = asyncio.Event()

    def watch(self, consumer: Any) -> None:
        """Count what arrives at `consumer`, which has been started."""
        self._fetcher = consumer._fetcher  # noqa: SLF001
        self._arm()
        self._fetcher.error_future.add_done_callback(lambda _: self.arrived())
        self.arrived()

    def leave(self) -> None:
        """Watch nothing; who waits is woken."""
        self._fetcher = None
        self.arrived()

    def failed(self) -> str | None:
        """Why nothing will ever arrive again; None if all is well.

        aiokafka ends the background task that fetches at any error that it does not know. It tells nobody.
        """
        if self._fetcher is None:
            return "closed"
        task = self._fetcher.error_future
        if not task.done():
            return None
        return "cancelled" if task.cancelled() else repr(task.exception())

    @property
    def lies_there(self) -> bool:
        """True if there are records that nobody has taken."""
        return self._fetcher is not None and bool(self._fetcher._records)  # noqa: SLF001

    async def wait(self, timeout_ms: float, seen: int | None) -> int:
        """Return at an arrival after the mark `seen` (None: or if something lies there), or after `timeout_ms`."""
        if seen is None and self.lies_there:
            return self._mark
        if seen is None or seen == self._mark:
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    await self._next.wait()
            except TimeoutError:
                pass
        return self._mark

    def in_columns(self, part: Any) -> None:
        """Let the next `getmany` of `part` give one KafkaBatch of what lies there."""
        in_columns(self._fetcher._records.get(part))  # noqa: SLF001

    def _arm(self) -> None:
        # Its waiters are told of records, markers and errors alike; each is told once.
        self._fetcher._create_fetch_waiter().add_done_callback(self._told)  # noqa: SLF001

    def _told(self, waiter: "asyncio.Future[None]") -> None:
        if self._fetcher is None or waiter.cancelled() or self._fetcher.error_future.done():
            return
        waiter.exception()
        self.arrived()
        self._arm()

    def arrived(self) -> None:
        """Something has: wake who waits."""
        self._mark += 1
        self._next.set()
        self._next = asyncio.Event()
        if self._also is not None:
            self._also.arrived()
