"""Events on their way through calls of async functions (`map_async`): held, saved with each commit, handed over.

    event ── add ── under way ── done ── hand over ── subscribers, as a step of its own

What is under way holds the watermark before its time. In a bounded run the oldest is waited for when there is no room
for another, when a window waits for calls that a firing has made (of which no more come before it has fired), and at
the end: what is handed over when depends on how many there are, never on how long calls take. In a
live run the task takes no input while there is no room, and that a call is done is a piece of its feed
(`flowkit.worker.feed.Completed`), so that after a rollback the same results come at the same place again.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import structlog

from flowkit.errors import ConfigError
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.table import current
from flowkit.worker.call_watch import CallWatch
from flowkit.worker.calling import Call, CallDriver, Calling, Failed, Row
from flowkit.worker.origin import Origin
from flowkit.worker.output import Output
from flowkit.worker.recall import Recall
from flowkit.worker.step import StepContext

log = structlog.get_logger("flowkit.engine")

FOR_OTHERS = 1_000
"""How long (ms) a batch without a time of its own waits to be full where others wait for what this task sends on."""


class Calls:
    """All calls of an engine."""

    def __init__(self, step: StepContext, output: Output, recall: Recall) -> None:
        self.step, self.output, self.recall = step, output, recall
        self.drivers = [driver for driver in step.drivers if isinstance(driver, CallDriver)]
        self.inline = step.bounded
        """True while results are waited for where there is no room; else the task has to wait."""
        self.done: list[Call] = []
        """Calls that are done, of which the task has not taken note."""
        self.handled = 0
        """How many results have been handed over."""
        self.wake = asyncio.Event()
        self._holds: list[tuple[int, int, Row]] = []
        self._number = 0
        self._fired = False
        """True while a result is handed over that a firing wanted."""
        self._journal: list[Call] = []
        """Calls handed over since the last commit."""
        self._again: dict[bytes, deque[Call]] = {}
        """Calls of before a rollback, for when their events come again."""
        self._touched: set[CallDriver] = set()
        """Streams of which a firing that was cut has begun calls."""
        self.watch = CallWatch(step, self.drivers)
        for driver in self.drivers:
            driver.calling = Calling(
                step.app, driver.stream, step.clock, self.watch.now, self.recall.event, self._finished
            )

    def cached(self) -> dict[str, tuple[int, int]]:
        """Hits and misses of the caches before look-ups, by stream, since they were made."""
        found = {
            d.name: counts() for d in self.drivers if (counts := getattr(d.calling.function, "cache_counts", None))
        }
        return {name: counts for name, counts in found.items() if counts is not None}

    # Taking events

    async def add(self, driver: CallDriver, event: Any, t: int, origin: Origin, careful: bool) -> None:
        """Begin the call of an event, or add the event to a batch."""
        step = self.step
        # A result must find the windows open that were open when its event came.
        hold = max(t - 1, step.settled if step.firing else step.cursor.watermark)
        row = Row(driver, event, t, hold, origin, step.firing or self._fired)
        self._number += 1
        heapq.heappush(self._holds, (row.hold, self._number, row))
        step.splits.hold = self._holds[0][0]
        if driver.spec.size is None:
            if self.inline and len(driver.pending) >= driver.concurrency:
                await self._make_room(driver, careful)
            self._begin(driver, [row])
            return
        if not driver.forming:
            driver.since = step.now()
        driver.forming.append(row)
        if len(driver.forming) >= driver.spec.size:
            await self._complete(driver, careful)

    async def _complete(self, driver: CallDriver, careful: bool) -> None:
        if self.inline and driver.full:
            await self._make_room(driver, careful)
        rows, driver.forming = driver.forming, []
        self._begin(driver, rows)

    async def _make_room(self, driver: CallDriver, careful: bool) -> None:
        while len(driver.pending) >= driver.concurrency:
            await self._end_oldest(driver, careful)

    async def _end_oldest(self, driver: CallDriver, careful: bool) -> None:
        """Wait for the oldest call of a stream, and hand over what it gave."""
        call = driver.pending[0]
        if call.results is None:
            await self.watch.wait_for(call)
        driver.pending.popleft()
        await self._hand_over(driver, call, careful)

    def _begin(self, driver: CallDriver, rows: list[Row]) -> None:
        call = self._known(rows, driver) if self._again else None
        if call is None:
            call = Call(driver.calling, rows)
            driver.calling.start(call)
        elif call.arrived and not self.inline:
            self._finished(call)  # that it is done came before its event did
        driver.pending.append(call)
        if not self.inline and driver.full:
            self.step.link_hit = True
            if self.step.firing:
                self._touched.add(driver)

    def _known(self, rows: list[Row], driver: CallDriver) -> Call | None:
        """The call that was made for these events before a rollback."""
        same = self._again.get(_identity(driver, rows))
        if not same:
            return None
        call = same.popleft()
        call.rows = rows
        for n, data in enumerate(call.saved):  # as many as were handed over
            if data is not None and call.results is not None:
                call.results[n] = self._decode(driver, data, type(call.results[n]))
        return call

    async def begin_old(self, careful: bool) -> None:
        """Begin the calls of batches that have waited for as long as they may."""
        now = self.step.now()
        for driver in self.drivers:
            if self._is_old(driver, now):
                await self._complete(driver, careful)

    def has_old(self) -> bool:
        """True if a batch has waited for as long as it may."""
        now = self.step.now()
        return any(self._is_old(driver, now) for driver in self.drivers)

    def _is_old(self, driver: CallDriver, now: int) -> bool:
        within = driver.spec.within
        if within is None and self.step.group.hops and not self.step.bounded:
            within = FOR_OTHERS
        return within is not None and bool(driver.forming) and now - driver.since >= within

    def are_forming(self) -> bool:
        """True if a batch is not complete."""
        return any(driver.forming for driver in self.drivers)

    @property
    def may_stop(self) -> bool:
        """True if windows may wait for what nothing else brings on.

        That is: for batches that are not complete; and in a bounded run for calls that a firing has made.
        """
        return self._stopped_by_firing or self.are_forming()

    @property
    def _stopped_by_firing(self) -> bool:
        return self.inline and bool(self._holds) and self._holds[0][2].fired

    async def bring_on(self, careful: bool) -> None:
        """A window waits: begin the calls of batches that are not complete, and end those of a firing."""
        for driver in self.drivers:
            if driver.forming:
                await self._complete(driver, careful)
        goes_on = self._stopped_by_firing
        while goes_on:  # at least one: what is due may be a tick that never comes, since the input has ended
            await self._end_oldest(self._holds[0][2].driver, careful)
            goes_on = self._stopped_by_firing and self.step.splits.hold < self.step.next_due

    # Handing over

    async def _hand_over(self, driver: CallDriver, call: Call, careful: bool) -> None:
        step, name, saved, results = self.step, driver.name, call.saved, call.results
        assert results is not None
        before = step.cursor.time
        saved.clear()
        self._journal.append(call)  # whatever happens from here on: what was under way is in it, or pending
        for n, row in enumerate(call.rows):
            result = results[n]
            kind = type(result)
            if kind is Failed:
                saved.append(None)
                self.output.dead_letter(row.origin, result.error, name, result.attempts)
            else:
                data = self._encode(driver, result, kind)
                saved.append(data)
                origin = row.origin.made_of((name, data, result if data is None else kind))
                before_it, self._fired = self._fired, row.fired
                try:
                    await step.send(name, result, row.t, careful, origin)
                finally:
                    self._fired = before_it
            row.gone = True
        self.handled += len(results)
        step.counters.tally.called[name] += len(results)
        holds = self._holds
        while holds and holds[0][2].gone:
            heapq.heappop(holds)
        step.splits.hold = holds[0][0] if holds else END_OF_TIME
        step.cursor.time = before

    def _encode(self, driver: CallDriver, value: Any, kind: type) -> bytes | None:
        """The result as it is now, or None if it cannot be kept."""
        try:
            encode = driver.encoders[kind]
        except KeyError:
            codec = self.recall.result_codec(driver.stream.type, kind)
            encode = driver.encoders[kind] = None if codec is None else codec.encode
        try:
            return None if encode is None else encode(value)
        except Exception:
            return None

    def _decode(self, driver: CallDriver, data: bytes, kind: type) -> Any:
        codec = self.recall.result_codec(driver.stream.type, kind)
        assert codec is not None
        return codec.decode(data)

    async def take(self, calls: Sequence[Call], careful: bool) -> None:
        """Live: these are done. Hand over what may be, in the order of each stream or as they come."""
        step = self.step
        step.new_event()
        step.cursor.watermark = step.splits.watermark()
        for call in calls:
            call.arrived = True
        arrived = {call.calling for call in calls}
        for driver in self.drivers:
            if driver.calling not in arrived:
                continue
            if driver.spec.ordered:
                while driver.pending and driver.pending[0].arrived:
                    await self._hand_over(driver, driver.pending.popleft(), careful)
            else:
                ready = [call for call in calls if call.calling is driver.calling and call in driver.pending]
                for call in [*ready, *(call for call in driver.pending if call.arrived and call not in ready)]:
                    driver.pending.remove(call)
                    await self._hand_over(driver, call, careful)

    async def drain(self, careful: bool) -> bool:
        """Wait for all that is under way, and hand it over; False if there was nothing."""
        found = False
        for driver in self.drivers:
            if driver.forming:
                await self._complete(driver, careful)
            while driver.pending:
                found = True
                await self._end_oldest(driver, careful)
        return found

    # Waiting

    def has_any(self) -> bool:
        """True if anything is under way, or waits to be."""
        return any(driver.pending or driver.forming for driver in self.drivers)

    @property
    def under_way(self) -> bool:
        """True if there are calls that are not handed over."""
        return any(driver.pending for driver in self.drivers)

    @property
    def no_room(self) -> bool:
        """Live: True if the task is to take no input."""
        return not self.inline and any(driver.full for driver in self.drivers)

    @property
    def cuts(self) -> bool:
        """Live: True if a firing has to wait until there is room."""
        return not self.inline and any(driver.full for driver in self._touched)

    def resumed(self) -> None:
        """The firing that was cut is through."""
        self._touched.clear()

    def take_done(self) -> list[Call]:
        """Live: the calls that are done, each once. Amid a firing only those for which it waits."""
        ready = self._ready()
        if len(ready) == len(self.done):
            self.done = []
        else:
            taken = set(ready)
            self.done = [call for call in self.done if call not in taken]
        return ready

    @property
    def ready(self) -> bool:
        """Live: True if there is anything for `take_done` to give."""
        return bool(self._ready())

    def _ready(self) -> list[Call]:
        amid = {driver.calling for driver in self._touched if driver.full}
        return [call for call in self.done if not amid or call.calling in amid]

    def _finished(self, call: Call) -> None:
        if not self.step.bounded:
            self.done.append(call)
            self.wake.set()
        self.watch.turn()

    # Commit and recovery

    def save(self) -> dict[str, Any]:
        """What a commit saves: the events that are under way. What was handed over is behind it."""
        self._journal.clear()
        for calls in self._again.values():
            for call in calls:
                call.calling.drop(call)
        self._again = {}
        saved = {}
        for driver in self.drivers:
            for call in driver.pending:
                call.kept = call.arrived
            if driver.pending or driver.forming:
                saved[driver.name] = [
                    [_saved(call.rows) for call in driver.pending],
                    _saved(driver.forming),
                    driver.since,
                ]
        return {"calls": saved, "settled": self.step.settled} if self.drivers else {}

    def open(self, saved: dict[str, Any]) -> None:
        """Take up what `save` gave ({}: nothing yet), and make the calls again.

        Raises ConfigError if the app no longer has a stream whose events were under way: they would be lost.
        """
        known = {driver.name for driver in self.drivers}
        gone = {name: len(calls) for name, (calls, *_) in saved.get("calls", {}).items() if name not in known}
        if gone:
            raise ConfigError(
                *(
                    f"stream {name!r} had {count} calls under way at the last commit, and the app no longer has it: "
                    f"give the stream that it is now name={name!r} (calls are named after what they are made of)"
                    for name, count in gone.items()
                )
            )
        base = contextvars.copy_context()
        hidden = {current, *(table.bound for table in self.step.group.tables)}
        for driver in self.drivers:
            for variable, value in base.items():
                if variable not in hidden:
                    driver.calling.context.run(variable.set, value)
        self._load(saved)

    def rollback(self, saved: dict[str, Any]) -> None:
        """Go back to what `save` gave; calls made since then are not made again where their events come again."""
        known = [*self._journal, *(call for driver in self.drivers for call in driver.pending)]
        known += [call for calls in self._again.values() for call in calls]
        self._journal, self._again = [], {}
        self._touched.clear()
        self.inline = self.step.bounded
        for driver in self.drivers:
            kept = [call for call in known if call.calling is driver.calling]
            for call in kept:
                if not call.begun:
                    continue  # not even begun
                call.arrived = call.kept
                self._again.setdefault(_identity(driver, call.rows), deque()).append(call)
            driver.calling.queue.clear()
        self._load(saved)

    def _load(self, saved: dict[str, Any]) -> None:
        self._holds = []
        self.step.settled = saved.get("settled", MIN_TIME)
        for driver in self.drivers:
            driver.pending.clear()
            calls, forming, since = saved.get("calls", {}).get(driver.name, ([], [], 0))
            for saved_rows in calls:
                rows = list(self._loaded(driver, saved_rows))
                call = self._known(rows, driver)
                if call is None:
                    call = Call(driver.calling, rows)
                    driver.calling.start(call)
                driver.pending.append(call)
            driver.forming, driver.since = list(self._loaded(driver, forming)), since
        self.step.splits.hold = self._holds[0][0] if self._holds else END_OF_TIME

    def _loaded(self, driver: CallDriver, saved: list[Any]) -> Iterator[Row]:
        for origin_row, t, hold, fired in saved:
            origin = Origin.load(origin_row)
            row = Row(driver, self.recall.event(origin), t, hold, origin, fired)
            self._number += 1
            heapq.heappush(self._holds, (hold, self._number, row))
            yield row

    async def close(self) -> None:
        """Break off everything."""
        tasks = []
        for driver in self.drivers:
            driver.calling.queue.clear()
            for call in list(driver.calling.running):
                call.dropped = True
            for task in list(driver.calling.tasks):
                task.cancel()
                tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        for driver in self.drivers:
            if hasattr(driver.calling.function, "aclose"):
                await driver.calling.function.aclose()


def _saved(rows: list[Row]) -> list[Any]:
    return [[row.origin.save(), row.t, row.hold, row.fired] for row in rows]


def hold_of(saved: dict[str, Any]) -> int:
    """How far (ms) the watermark may come by what `Calls.save` gave."""
    held = [
        hold
        for calls, forming, _ in saved.get("calls", {}).values()
        for rows in (*calls, forming)
        for _, _, hold, _ in rows
    ]
    return min(held, default=END_OF_TIME)


def _identity(driver: CallDriver, rows: list[Row]) -> bytes:
    return msgspec.msgpack.encode([driver.name, [row.origin.save() for row in rows]])
