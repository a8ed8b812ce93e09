"""The watermark and what it makes due: windows fire in the order (end, table, key bytes), then what is past is dropped.

    advance ── full count windows ─┐
               batches             ├─ the first by (end, table), until nothing is due ── settle
               a table's windows ──┘
                     └─ results one by one, each handled by its subscribers before the next is made

A firing may be long. After as many results as the task allows (`allow`), or as much time, `advance` returns with the
rest `unfinished`; it must be called again before anything else happens. In between the task may commit: where the
firing stands is part of the state, and what comes of it does not depend on where it was cut.
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from flowkit.record import END_OF_TIME, MIN_TIME, Closed
from flowkit.table import FAILED, NEVER, Result, State
from flowkit.worker.batches import Batches
from flowkit.worker.calls import Calls
from flowkit.worker.recall import Recall
from flowkit.worker.step import StepContext

GLANCE = 64
"""After so many results the firing looks at the time."""

BEFORE_RECORDS = -1
"""The event number of a firing that a commit has cut: what follows the commit begins at 0."""

UNLIMITED = 2**62

Full = tuple[int, int, bytes, str, Closed[Any, Any]]
"""A count window that is full: end, place of its table, key bytes, name of the stream, result."""


class Firing:
    """Fires what is due, in pieces."""

    def __init__(self, step: StepContext, batches: Batches, recall: Recall, calls: Calls) -> None:
        self.step, self.batches, self.recall, self.calls = step, batches, recall, calls
        self.unfinished = False
        """True while a firing is cut: it goes on before anything else is done."""
        self.number = (BEFORE_RECORDS, 0)
        """The unit at which it was cut, or at which the last one that was cut came to its end."""
        self.left = UNLIMITED
        self.handled = 0
        """What counts towards the next commit: results, and windows that fired without anyone to take theirs."""
        """How many results may be sent before the firing is cut."""
        self._state: State | None = None
        self._results: Iterator[Result] = iter(())
        """The table that is firing just now, and its results to come."""
        self._full: deque[Full] = deque()

    def allow(self, results: int) -> None:
        """Let the next call of `advance` send so many results."""
        self.left = max(results, 1)

    async def advance(self, careful: bool) -> None:
        """The watermark may have moved, or count windows are full: fire and drop what is due, if anything is."""
        step = self.step
        reached = step.splits.reached()
        watermark = step.cursor.watermark = min(reached, step.splits.hold)
        if reached < END_OF_TIME:
            step.cursor.high = max(step.cursor.high, reached)
        for state in step.moving:
            step.next_due = min(step.next_due, state.due)
        if self.unfinished:
            await self._resume(careful)
            return
        if not step.in_piece:
            # Due or not: what is due may be told too early, and otherwise after a rollback, where nothing fires then.
            step.new_event()
        due = watermark >= step.next_due or step.cursor.ready
        if not due and not self._waits_for_calls():
            return
        if due:
            await self._fire(careful)
        await self._bring_on(careful)

    def _waits_for_calls(self) -> bool:
        """True if windows may wait for calls that nothing but this brings on."""
        return self.calls.may_stop and self.step.splits.reached() >= self.step.next_due

    async def _bring_on(self, careful: bool) -> None:
        """Bring on the calls for which windows wait, and fire these."""
        step = self.step
        while not self.unfinished and self._waits_for_calls():
            await self.calls.bring_on(careful)
            for state in step.moving:
                step.next_due = min(step.next_due, state.due)
            if step.splits.watermark() >= step.next_due or step.cursor.ready:
                await self._fire(careful)
            elif not self.calls.inline or not self.calls.may_stop:
                return

    async def _resume(self, careful: bool) -> None:
        """Go on under the number at which it was cut: whether and where that was leaves no trace."""
        step = self.step
        before = step.event_number
        step.event_number, step.unit = self.number
        self.unfinished = False
        await self._fire(careful)
        await self._bring_on(careful)
        self.number = step.event_number, step.unit
        step.event_number = max(before, step.event_number)

    async def _fire(self, careful: bool) -> None:
        self.step.firing = True
        try:
            await self._fire_all(list(self.step.states.values()), careful)
        finally:
            self.step.firing = False

    async def _fire_all(self, states: list[State], careful: bool) -> None:
        step, cursor = self.step, self.step.cursor
        cursor.high = max([cursor.high, *(split.high for split in step.splits.by_name.values())])
        reached = step.splits.reached()  # no split goes on while windows fire
        if cursor.end == MIN_TIME and reached >= END_OF_TIME:
            cursor.end = cursor.high
        while True:
            if self._state is not None and not await self._send_results(self._state, careful):
                return
            if self.left <= 0:
                self._cut()
                return
            if step.cursor.ready:
                self._take_full()
            # What has fired may be on its way through a call, which holds all later windows.
            watermark = min(reached, step.splits.hold)
            ends = [
                (end, n)
                for n, state in enumerate(states)
                # Those of which nothing is due yet are not asked: that is most of them.
                if (state.due <= watermark or state.due <= state.watermark or state.by_clock)
                and (end := state.peek(watermark)) is not None
            ]
            first = min(ends, default=None)
            batch = self.batches.due_before(watermark, None if first is None else (first[0], states[first[1]]))
            if batch is not None:
                await self.batches.flush(batch, careful)
            elif self._full and (first is None or self._full[0][:2] <= first):
                if not await self._send_full(careful):
                    return
            elif first is not None:
                self._state = states[first[1]]
                self._state.limit = min((end - 1 for end, n in ends if n != first[1]), default=NEVER)
                self._results = self._state.fire(first[0], watermark)
                step.counters.tally.fired[self._state.name] += 1
                if not self._state.wants_closed:
                    self._count()  # its windows go, which the commit must save
            else:
                break
        for state in states:
            state.settle(watermark)
        step.settled = max(step.settled, watermark)
        step.cursor.watermark = watermark
        self.calls.resumed()
        step.refresh_due()

    async def _send_results(self, state: State, careful: bool) -> bool:
        """Send the results of the table that is firing; False if the firing was cut."""
        step = self.step
        name, results = f"{state.name}.closed", step.counters.tally.results
        for result in self._results:
            # A list is what one key of an operator sends at once: no commit comes between.
            for stream, event, t in result if isinstance(result, list) else [(name, result, result.end - 1)]:
                if stream == FAILED:
                    self._give_up(state.name, t, *event)  # type: ignore[misc]  # of a process: (event, error)
                    continue
                step.counters.fired += 1
                results[state.name] += 1
                await step.send(stream, event, t, careful, None)
            self._count()
            if self._is_enough():
                self._cut()
                return False
        self._state, self._results = None, iter(())
        return True

    def _give_up(self, name: str, t: int, event: Any, error: Exception) -> None:
        """A dead letter for an event of time `t` that an operator has kept, and cannot handle."""
        self.batches.output.dead_letter(self.recall.of_kept(name, t, event), error, name, 1)

    def _count(self) -> None:
        self.left -= 1
        self.handled += 1

    def _is_enough(self) -> bool:
        """True if the firing is to be cut after the result just sent."""
        return self.left <= 0 or self.calls.cuts or (self.left % GLANCE == 0 and time.perf_counter() > self.step.until)

    def _cut(self) -> None:
        step = self.step
        self.unfinished = True
        self.number = step.event_number, step.unit
        step.beats += 1
        step.link_hit = True  # whoever steps through records stops after this one

    def _take_full(self) -> None:
        """The results of count windows that this event has filled: taken at once, since the next event fills on.

        There are few, but where what another table fires is counted: then as many as its firing has filled, and a
        commit that cuts this one saves those that are left.
        """
        self.step.cursor.ready = False
        full = [
            (end, order, key, f"{state.name}.closed", closed)
            for order, state in enumerate(self.step.states.values())
            for end, key, closed in state.take_ready()
        ]
        self._full = deque(sorted([*self._full, *full], key=_firing_order))

    async def _send_full(self, careful: bool) -> bool:
        """Send the result of the next full count window; False if the firing was cut."""
        _, _, _, name, closed = self._full.popleft()
        self.step.counters.fired += 1
        self.step.counters.tally.results[name.removesuffix(".closed")] += 1
        await self.step.send(name, closed, closed.end - 1, careful, None)
        self._count()
        if self._is_enough():
            self._cut()
            return False
        return True

    # Commit

    def save(self) -> dict[str, Any] | None:
        """Where a firing stands that is cut, for a commit; each table saves how far its own results have come."""
        self.number = (BEFORE_RECORDS, 0)
        if not self.unfinished:
            return None
        return {
            "table": None if self._state is None else self._state.name,
            "full": [
                [end, order, key, name, self.recall.codec(name).encode(closed)]
                for end, order, key, name, closed in self._full
                if name in self.step.routes
            ],
        }

    def load(self, saved: dict[str, Any] | None) -> None:
        """Take up what `save` gave. The states are open already."""
        self.unfinished = saved is not None
        self.number = (BEFORE_RECORDS, 0)
        self._state, self._results, self._full = None, iter(()), deque()
        if saved is not None:
            self._full.extend(
                (end, order, key, name, self.recall.codec(name).decode(data))
                for end, order, key, name, data in saved["full"]
            )
            if saved["table"] is not None:
                self._state = self.step.states[saved["table"]]
                self._results = self._state.resume(self.step.splits.watermark())


def _firing_order(row: Full) -> tuple[int, int, bytes]:
    return row[:3]
