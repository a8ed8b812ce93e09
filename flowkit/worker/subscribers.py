"""Those who take what tables send: closed windows, changes and late records, as parts of the present step."""

from typing import Any

from flowkit.agent import EVENT
from flowkit.table import Mode, ProcessState, State
from flowkit.worker.batches import Batches
from flowkit.worker.drivers import Driver
from flowkit.worker.origin import Origin
from flowkit.worker.recall import Recall
from flowkit.worker.step import StepContext
from flowkit.worker.units import Units


class Subscribers:
    """Gives the events of tables to the drivers that are routed to them."""

    def __init__(self, step: StepContext, units: Units, batches: Batches, recall: Recall) -> None:
        self.step, self.units, self.batches, self.recall = step, units, batches, recall
        self._touched: dict[str, list[State]] = {}
        """By stream: the states that those who take it write or read."""
        self._judges: dict[str, list[State]] = {}
        """By stream: the states that say whether an event is late for anyone who takes it."""
        step.send = self.send

    def _look_at(self, name: str, drivers: list[Driver]) -> list[State]:
        judges = [state for driver in drivers for state in driver.drops_late]
        written = [*judges, *(state for driver in drivers for state in driver.states)]
        read = [state for driver in drivers for state, mode in driver.modes if mode is Mode.READ]
        # Of a process nothing is fired again: its events are late, which is asked for each, or in time.
        touched = [state for state in (*written, *read) if not isinstance(state, ProcessState)]
        self._judges[name] = list({id(state): state for state in judges}.values())
        self._touched[name] = list({id(state): state for state in touched}.values())
        return self._touched[name]

    async def send(self, name: str, event: Any, t: int, careful: bool, origin: Origin | None = None) -> None:
        """Give an event of a table to those who subscribed to it. `origin` is where a late record came from."""
        step = self.step
        drivers = step.routes.get(name)
        if not drivers:
            return
        step.unit += 1
        cursor = step.cursor
        touched = self._touched.get(name)
        if touched is None:
            touched = self._look_at(name, drivers)
        cautious = careful or bool(step.changed)
        for state in self._judges[name]:
            if state.is_late(t):
                cautious = True
        # Only what its takers touch: a join's rows come at the watermark, where other operators would call them late.
        for state in touched:
            if t < state.careful_before or t <= cursor.watermark - state.careful_lag:
                cautious = True
        if cautious:
            source = origin or self.recall.of_table(name, t, event)
            takers, closed = self.units.judge(drivers, event, t)
            rows = await self.units.run(takers, event, lambda: self.recall.event(source), t, source, closed)
            await self.batches.add(rows, t, careful=True)
            await self.units.send_late(closed, lambda: self.recall.event(source), t, source)
            return
        cursor.time = t
        cursor.ordinal += 1
        waiting = []
        for driver in drivers:
            if driver.need is EVENT:
                if driver.modes:
                    await step.feed(driver, event)
                elif (done := step.give(driver, event)) is not None:
                    await done
            else:
                waiting.append(driver)
        if cursor.sent:
            await step.send_on()
        if waiting:
            source = origin or self.recall.of_table(name, t, event)
            await self.batches.add(step.spread(waiting, event, source), t, careful=False)
