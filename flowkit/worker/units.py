"""Careful units: an event for some agents that is kept whole, or leaves no trace.

mark ─ agents run on copies ─┬─ keep ─ what follows from it is sent: changes, results of windows fired already
                             └─ undo ─ retry, late record or dead letter
"""

from collections.abc import Callable
from typing import Any

from flowkit.agent import EVENT
from flowkit.errors import WindowClosed
from flowkit.record import Closed
from flowkit.worker.drivers import Driver
from flowkit.worker.origin import Origin
from flowkit.worker.output import Output
from flowkit.worker.step import EventFailed, StepContext


class Units:
    """Runs units by the agents' retry policies."""

    def __init__(self, step: StepContext, output: Output) -> None:
        self.step, self.output = step, output

    async def run(
        self,
        drivers: list[Driver],
        event: Any,
        again: Callable[[], Any],
        t: int,
        origin: Origin,
        late: dict[str, None],
    ) -> tuple[list[Driver], Any]:
        """One event for some drivers. Names of tables it is late for go to `late`.

        `again` makes the event anew. Returns the drivers that wait for a batch, and the event which theirs is to get.
        """
        failed = self.take_failure()
        attempt = 0
        left = list(drivers)
        while takers := [driver for driver in left if driver.need is EVENT]:
            if failed is None:
                failed = await self.attempt(takers, event, t)
                if failed is None:
                    await self.keep(t)
                    break
            driver, error = failed
            failed = None
            event = again()
            if isinstance(error, WindowClosed):
                late[error.table] = None
                left.remove(driver)
                continue
            attempt += 1
            wait = driver.retry.wait(attempt, error)
            if wait is None:
                self.output.dead_letter(origin, error, driver.name, attempt)
                return [], event
            await self.step.rest(wait)
        return [driver for driver in left if driver not in takers], event

    def take_failure(self) -> tuple[Driver, Exception] | None:
        """How the present unit failed in the quick way, if it did."""
        failed = self.step.failures.pop((self.step.event_number, self.step.unit), None)
        if failed is not None and not isinstance(failed[1], WindowClosed):
            self.step.counters.tally.failed[failed[0].name] += 1  # the task went back: only now it is counted for good
        return failed

    async def attempt(self, takers: list[Driver], event: Any, t: int) -> tuple[Driver, Exception] | None:
        """Run the event; None if all went well (the marks are still set), else what failed, all of it undone."""
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
        except EventFailed as failed:
            failed.driver.abandon()
            for state in step.states.values():
                state.undo()
            self.output.undo(emitted)
            cursor.ready = ready
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
        changes: list[tuple[str, Any]] = []
        fired: list[tuple[int, int, bytes, str, Closed[Any, Any]]] = []
        for state in step.changed:
            changes += [(f"{state.name}.changes", change) for change in state.changes(t)]
        for order, state in enumerate(step.states.values()):
            if state.lateness:
                fired += [(end, order, key, f"{state.name}.closed", event) for end, key, event in state.fire_late()]
            state.keep()
        for name, change in changes:
            await step.send(name, change, t, True, None)
        fired.sort(key=_firing_order)
        for _, _, _, name, closed in fired:
            step.counters.fired += 1
            step.counters.tally.results[name.removesuffix(".closed")] += 1
            await step.send(name, closed, closed.end - 1, True, None)


def _firing_order(row: tuple[int, int, bytes, str, Any]) -> tuple[int, int, bytes]:
    return row[:3]
