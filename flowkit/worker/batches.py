"""Batches that agents ask for: filled with events, handed over when they are full, old, or their windows fire."""

from typing import Any

from flowkit.errors import WindowClosed
from flowkit.table import NEVER, State
from flowkit.worker.calling import CallDriver
from flowkit.worker.calls import Calls
from flowkit.worker.drivers import StreamDriver
from flowkit.worker.origin import Origin
from flowkit.worker.output import Output
from flowkit.worker.recall import Recall
from flowkit.worker.step import Row, StepContext
from flowkit.worker.units import Units


class Batches:
    """The unfinished batches of an engine's agents. What is in them is saved with each commit."""

    def __init__(self, step: StepContext, units: Units, output: Output, recall: Recall, calls: Calls) -> None:
        self.step, self.units, self.output, self.recall, self.calls = step, units, output, recall, calls

    async def add(self, rows: list[Row], t: int, *, careful: bool) -> None:
        """Add what has come of an event of time `t` to batches, and hand over those that are full; or begin calls."""
        step = self.step
        for driver, value, source in rows:
            if isinstance(driver, CallDriver):
                await self.calls.add(driver, value, t, source, careful)
                continue
            assert isinstance(driver, StreamDriver)
            if not driver.buffer:
                driver.since = step.now()
            driver.add(value, t, source, careful=careful)
            step.next_due = min(step.next_due, driver.deadline)
            if len(driver.buffer) >= (driver.need.size or 1):
                await self.flush(driver, careful)

    async def flush_all(self, careful: bool) -> bool:
        """Hand over all unfinished batches; False if there were none."""
        waiting = self._unfinished()
        for driver in waiting:
            await self.flush(driver, careful)
        return bool(waiting)

    def has_any(self) -> bool:
        """True if a batch is unfinished."""
        return bool(self._unfinished())

    def has_old(self) -> bool:
        """True if an agent has waited for its batch to fill for as long as it allows."""
        now = self.step.now()
        return any(_is_old(driver, now) for driver in self._unfinished())

    async def flush_old(self, careful: bool) -> None:
        """Hand over the batches that have waited for as long as their agents allow."""
        if not self.step.in_piece:
            self.step.new_event()
        now = self.step.now()
        for driver in self._unfinished():
            if _is_old(driver, now):
                await self.flush(driver, careful)

    def are_timed(self) -> bool:
        """True if any agent has its batches handed over after a time."""
        return any(driver.need.within is not None for driver in self.step.drivers)

    def due_before(self, watermark: int, first: tuple[int, State] | None) -> StreamDriver | None:
        """An agent whose unfinished batch belongs into the window that fires `first`, or into one not opened yet."""
        for driver in self._unfinished():
            opens_first = first is None or driver.deadline < first[0]
            if (driver.deadline <= watermark and opens_first) or (first is not None and first[1] in driver.watched):
                return driver
        return None

    async def flush(self, driver: StreamDriver, careful: bool) -> None:
        """Give a batch to its agent; carefully, a batch that fails is tried event by event."""
        step = self.step
        batch, careful = driver.buffer, careful or driver.careful or bool(step.changed)
        driver.clear()
        step.unit += 1
        cursor = step.cursor
        before = cursor.time
        if careful:
            await self._flush_carefully(driver, batch)
        else:
            cursor.time = NEVER
            self._number(batch)
            try:
                await step.feed(driver, [event for event, _, _ in batch])
            finally:
                cursor.batch = None
        cursor.time = before

    def _number(self, batch: list[tuple[Any, int, Origin]]) -> None:
        """Make the events of a batch known to `table.at`."""
        cursor = self.step.cursor
        cursor.batch = {id(event): (t, cursor.ordinal + n) for n, (event, t, _) in enumerate(batch, 1)}
        cursor.ordinal += len(batch)

    async def _flush_carefully(self, driver: StreamDriver, batch: list[tuple[Any, int, Origin]]) -> None:
        cursor, units = self.step.cursor, self.units
        rows = self._again(batch)
        failed = units.take_failure()
        attempt = 0
        while True:
            if failed is None:
                self._number(rows)
                try:
                    failed = await units.attempt([driver], [event for event, _, _ in rows], NEVER, [], rows[0][2])
                finally:
                    cursor.batch = None
            if failed is None:
                await units.keep(max(t for _, t, _ in rows))
                return
            error, failed = failed[1], None
            rows = self._again(batch)
            attempt += 1
            wait = None if isinstance(error, WindowClosed) else driver.retry.wait(attempt, error)
            if wait is None:
                break
            await self.step.rest(wait)
        if len(batch) > 1:
            for row in batch:
                await self._flush_carefully(driver, [row])
        elif isinstance(error, WindowClosed):
            self.step.counters.late += 1
            self.step.counters.tally.late[error.table] += 1
            event, t, origin = rows[0]
            await self.step.send(f"{error.table}.late", event, t, True, origin)
        else:
            self.output.dead_letter(rows[0][2], error, driver.name, attempt)

    def _again(self, batch: list[tuple[Any, int, Origin]]) -> list[tuple[Any, int, Origin]]:
        return [(self.recall.event(origin), t, origin) for _, t, origin in batch]

    def _unfinished(self) -> list[StreamDriver]:
        return [driver for driver in self.step.stream_drivers() if driver.buffer]

    # Commit

    def save(self) -> dict[str, Any]:
        """What a commit saves of them: the events, and since when the batches wait (ms)."""
        return {
            "batches": {
                driver.name: [origin.save() for _, _, origin in driver.buffer] for driver in self._unfinished()
            },
            "since": {driver.name: driver.since for driver in self.step.stream_drivers()},
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Take up what `save` gave ({}: nothing yet)."""
        for driver in self.step.stream_drivers():
            driver.since = saved.get("since", {}).get(driver.name, 0)
            driver.clear()
            for row in saved.get("batches", {}).get(driver.name, []):
                origin = Origin.load(row)
                # Carefully, since nobody has noted which of them need it.
                driver.add(self.recall.event(origin), row[6], origin, careful=True)


def _is_old(driver: StreamDriver, now: int) -> bool:
    return driver.need.within is not None and now - driver.since >= driver.need.within
