"""Those who take what tables send: closed windows, changes and late records, as parts of the present step."""

from typing import Any

from flowkit.agent import EVENT
from flowkit.worker.batches import Batches
from flowkit.worker.origin import Origin
from flowkit.worker.recall import Recall
from flowkit.worker.step import StepContext
from flowkit.worker.units import Units


class Subscribers:
    """Gives the events of tables to the drivers that are routed to them."""

    def __init__(self, step: StepContext, units: Units, batches: Batches, recall: Recall) -> None:
        self.step, self.units, self.batches, self.recall = step, units, batches, recall
        step.send = self.send

    async def send(self, name: str, event: Any, t: int, careful: bool, origin: Origin | None = None) -> None:
        """Give an event of a table to those who subscribed to it. `origin` is where a late record came from."""
        step = self.step
        drivers = step.routes.get(name)
        if not drivers:
            return
        step.unit += 1
        cursor = step.cursor
        late = False
        for driver in drivers:
            if driver.drops_late and any(state.is_late(t) for state in driver.drops_late):
                late = True
        cautious = careful or step.changed or t < step.careful_before or t <= cursor.watermark - step.careful_lag
        if cautious or late:
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
                await step.feed(driver, event)
            else:
                waiting.append(driver)
        if cursor.sent:
            await step.send_on()
        if waiting:
            source = origin or self.recall.of_table(name, t, event)
            await self.batches.add(step.spread(waiting, event, source), t, careful=False)
