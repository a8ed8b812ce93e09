"""Careful units: an event for some agents that is kept whole, or leaves no trace.

mark ─ agents run on copies ─┬─ keep ─ what follows from it is sent: what operators make of it, changes, results of
                             │         windows fired already
                             └─ undo ─ retry, late record or dead letter
"""

from collections.abc import Callable
from typing import Any

import structlog

from flowkit.agent import EVENT
from flowkit.errors import WindowClosed
from flowkit.record import Closed
from flowkit.worker.drivers import Driver
from flowkit.worker.origin import Origin
from flowkit.worker.output import Output
from flowkit.worker.step import EventFailed, Row, StepContext

log = structlog.get_logger("flowkit.engine")

NOWHERE = Origin("", 0, None, 0, None)

Late = dict[tuple[str, Driver], None]
"""Tables for which an event is late, each with the driver by which it would have come there."""


class Units:
    """Runs units by the agents' retry policies."""

    def __init__(self, step: StepContext, output: Output) -> None:
        self.step, self.output = step, output
        self._rows: list[Row] = []
        """What the unit that went well puts into batches."""

    async def run(
        self,
        drivers: list[Driver],
        event: Any,
        again: Callable[[], Any],
        t: int,
        origin: Origin,
        late: Late,
    ) -> list[Row]:
        """One event for some drivers; what is to go into batches. Tables that it is late for go to `late`.

        `again` makes the event anew.
        """
        failed = self.take_failure()
        attempt = 0
        left = list(drivers)
        while left:
            if failed is None:
                takers = [driver for driver in left if driver.need is EVENT]
                waiting = [driver for driver in left if driver not in takers]
                failed = await self.attempt(takers, event, t, waiting, origin)
                if failed is None:
                    rows, self._rows = self._rows, []
                    await self.keep(t)
                    return rows
            driver, error = failed
            failed = None
            event = again()
            if isinstance(error, WindowClosed):
                late[error.table, driver] = None
                left.remove(driver)
                continue
            attempt += 1
            wait = driver.retry.wait(attempt, error)
            if wait is None:
                self.output.dead_letter(origin, error, driver.name, attempt)
                break
            await self.step.rest(wait)
        return []

    def judge(self, drivers: list[Driver], event: Any, t: int) -> tuple[list[Driver], Late]:
        """Who takes an event of time `t`, and the tables for which it is late."""
        takers: list[Driver] = []
        late: Late = {}
        for driver in drivers:
            closed = [state.name for state in driver.drops_late if state.is_late(t)]
            if not closed or self._fails(driver, event):
                takers.append(driver)
            else:
                late.update(dict.fromkeys((name, driver) for name in closed))
        return takers, late

    def _fails(self, driver: Driver, event: Any) -> bool:
        """True if an operator on the way to the driver raises: then that is what becomes of the event."""
        try:
            driver.spread(event, NOWHERE)
        except Exception:
            return True
        return False

    async def send_late(self, late: Late, again: Callable[[], Any], t: int, origin: Origin) -> None:
        """Send an event to the late streams of tables; none if no operator lets it through to them."""
        for name, driver in late:
            for _, event, source in driver.spread(again(), origin):
                self.step.counters.late += 1
                self.step.counters.tally.late[name] += 1
                log.debug("late record", table=name, topic=origin.topic, time=t, watermark=self.step.cursor.watermark)
                await self.step.send(f"{name}.late", event, t, True, source)

    def take_failure(self) -> tuple[Driver, Exception] | None:
        """How the present unit failed in the quick way, if it did."""
        failed = self.step.failures.pop((self.step.event_number, self.step.unit), None)
        if failed is not None and not isinstance(failed[1], WindowClosed):
            self.step.counters.tally.failed[failed[0].name] += 1  # the task went back: only now it is counted for good
        return failed

    async def attempt(
        self, takers: list[Driver], event: Any, t: int, waiting: list[Driver], origin: Origin
    ) -> tuple[Driver, Exception] | None:
        """Run the event; None if all went well (the marks are still set), else what failed, all of it undone.

        For those that wait for batches only what the event comes to is worked out.
        """
        step = self.step
        cursor = step.cursor
        cursor.time = t
        emitted, ready = self.output.mark(), cursor.ready
        for state in step.states.values():
            state.mark()
        try:
            for driver in takers:
                await step.feed(driver, event)
                self._check_saved(driver)
            self._rows = step.spread(waiting, event, origin)
        except EventFailed as failed:
            failed.driver.abandon()
            for state in step.states.values():
                state.undo()
            self.output.undo(emitted)
            cursor.sent, cursor.ready = [], ready
            cursor.ordinal += 1
            if not isinstance(failed.error, WindowClosed):
                step.counters.failed += 1
                step.counters.tally.failed[failed.driver.name] += 1
            await step.restart_agents()
            return failed.driver, failed.error
        return None

    def _check_saved(self, driver: Driver) -> None:
        """What cannot be saved is the failure of the event that made it, not of the commit."""
        try:
            for state in driver.states:
                state.check_saved()
        except Exception as error:
            raise EventFailed((self.step.event_number, self.step.unit), driver, error) from error

    async def keep(self, t: int) -> None:
        """The unit went well: keep it, and send what follows from it."""
        step = self.step
        sent, step.cursor.sent = step.cursor.sent, []
        changes: list[tuple[str, Any]] = []
        fired: list[tuple[int, int, bytes, str, Closed[Any, Any]]] = []
        for state in step.changed:
            changes += [(f"{state.name}.changes", change) for change in state.changes(t)]
        for order, state in enumerate(step.states.values()):
            if state.lateness:
                fired += [(end, order, key, f"{state.name}.closed", event) for end, key, event in state.fire_late()]
            state.keep()
        for name, event, at in sent:
            await step.send(name, event, at, True, None)
        for name, change in changes:
            await step.send(name, change, t, True, None)
        fired.sort(key=_firing_order)
        for _, _, _, name, closed in fired:
            step.counters.fired += 1
            step.counters.tally.results[name.removesuffix(".closed")] += 1
            await step.send(name, closed, closed.end - 1, True, None)


def _firing_order(row: tuple[int, int, bytes, str, Any]) -> tuple[int, int, bytes]:
    return row[:3]
