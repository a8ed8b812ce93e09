"""The ways to step through a batch of records. This is the hot path: what stands here costs time for every event.

    _step_one_agent   one agent over one stream             0.35 µs an event, an empty agent's turn included
    _step_fused       one declared table                    its generated loop; see flowkit.table.fused
    _step_hop         only sent on by another key           a batch at once: no window waits here
    _step             anything else: several drivers, careful units, moving tables, batches

`process` takes the quickest that is right for what is subscribed. Each event passes its drivers, then the watermark
moves, then windows fire. A quick way that meets an event which needs care hands just that one to `_careful_event`.
"""

from collections.abc import Awaitable, Callable
from operator import length_hint
from typing import Any

import structlog

from flowkit.agent import EVENT
from flowkit.record import MIN_TIME
from flowkit.table import NEVER
from flowkit.window import Split
from flowkit.worker.batches import Batches
from flowkit.worker.drivers import AggregateDriver, Driver, StreamDriver
from flowkit.worker.firing import Firing
from flowkit.worker.hops import HopDriver
from flowkit.worker.inlet import Decoded
from flowkit.worker.output import Output
from flowkit.worker.recall import Recall
from flowkit.worker.step import BESIDE, EventFailed, StepContext
from flowkit.worker.tap import Tap
from flowkit.worker.units import Units

log = structlog.get_logger("flowkit.engine")

Way = Callable[[list[Driver], Split, Decoded, int, int, str, bool], Awaitable[int]]


class _Careful(Exception):
    """Ends the generated loop at an event that must be handled carefully."""


class Ways:
    """Steps through records."""

    def __init__(
        self, step: StepContext, units: Units, batches: Batches, firing: Firing, output: Output, recall: Recall
    ) -> None:
        self.step, self.units, self.batches, self.firing = step, units, batches, firing
        self.output, self.recall = output, recall

    async def process(self, topic: str, split: Split, decoded: Decoded, start: int, stop: int, careful: bool) -> int:
        """Step through records `[start, stop)` of one split; how many were done.

        Fewer than all are done only if the task must look at something first (`link_hit`). Raises EventFailed if an
        agent raised and `careful` is False.
        """
        step = self.step
        drivers = step.routes.get(topic, [])
        careful = careful or bool(step.changed)
        step.begin()
        await self.firing.advance(careful)
        if self.firing.unfinished:
            return 0
        step.link_hit = False
        index = start
        for limit in [*sorted(n for n in decoded.bad if start <= n < stop), stop]:
            if index < limit:
                way = self._choose(drivers, careful)
                index = await way(drivers, split, decoded, index, limit, topic, careful)
            if index < limit or index == stop or step.link_hit:
                break
            bad = self.recall.of_record(topic, split.number, decoded, index)
            self.output.dead_letter(bad, decoded.bad[index], "", 0)
            step.event_number += 1
            index += 1
            if step.link_hit:
                break
        step.counters.records += index - start
        step.counters.tally.took(topic, decoded.batch, start, index)
        return index - start

    def _choose(self, drivers: list[Driver], careful: bool) -> Way:
        """How to step through a batch: the quickest way that is right for what is subscribed."""
        if careful or len(drivers) != 1 or self.step.moving or self._is_timed():
            return self._step
        (driver,) = drivers
        if isinstance(driver, AggregateDriver | Tap) and driver.loop is not None:
            return self._step_fused
        if isinstance(driver, Tap) and driver.chain.one is not None:
            driver = driver.inner
        if isinstance(driver, HopDriver) and not self.step.states:
            return self._step_hop
        simple = isinstance(driver, StreamDriver) and driver.need is EVENT and not driver.modes
        return self._step_one_agent if simple else self._step

    def _is_timed(self) -> bool:
        """True if every event of a bounded run may move a clock."""
        return self.step.bounded and (bool(self.step.idle_after) or bool(self.step.clocked) or self.batches.are_timed())

    def _due_time(self, split: Split) -> int:
        """The event time in `split` from which on the task's watermark makes something due."""
        step = self.step
        if step.next_due == NEVER or step.splits.others(split.name) < step.next_due:
            return NEVER
        if step.splits.hold < step.next_due and not self.batches.calls.may_stop:
            return NEVER
        return step.next_due + split.out_of_order + 1

    async def _step_one_agent(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """One agent over decoded records."""
        (taker,) = drivers
        driver = taker.inner if isinstance(taker, Tap) else taker
        assert isinstance(driver, StreamDriver)
        assert isinstance(taker, StreamDriver | Tap)
        # Everything in locals: one send and two comparisons an event. Whatever may change a local is followed by
        # looking it up again; the event's number is worked out only where someone needs it.
        step, cursor, times, records = self.step, self.step.cursor, decoded.times, decoded.records
        cursor.agent = driver
        base = step.event_number - start
        # The watermark itself is not computed: `due` is the event time from which on it would matter.
        high, due, careful_before = split.high, self._due_time(split), step.careful_before
        send, index = taker.send, start
        try:
            while index < stop:
                t = times[index]
                if t < careful_before:
                    split.high = high
                    step.event_number, step.unit = base + index, 0
                    await self._careful_event(drivers, split, decoded, index, topic)
                    cursor.agent, send = driver, taker.send
                else:
                    cursor.time = t
                    # The agent is driven by hand, without an asyncio task or an await between. Mostly it suspends
                    # with EVENT at once; what it yields or awaits instead is followed by its driver.
                    try:
                        got = send(records[index])
                    except StopIteration as stopped:
                        done = driver.emitted(stopped.value)
                        if done is not None:
                            await done
                            step.waited()
                        send = taker.send
                    except StopAsyncIteration:
                        done = driver.returned()
                        if done is not None:
                            await done
                        send = taker.send
                    else:
                        if got is not EVENT:
                            done = driver.after(got)
                            if done is not None:
                                await done
                                step.waited()
                            send = taker.send
                if t > high:
                    high = t
                    if t >= due:
                        split.high = high
                        step.event_number, step.unit = base + index, 0
                        await self.firing.advance(False)
                        due, careful_before = self._due_time(split), step.careful_before
                        cursor.agent, send = driver, taker.send
                index += 1
                if step.link_hit or driver.need is not EVENT:
                    break
        except EventFailed:
            raise
        except Exception as error:
            raise EventFailed((base + index, 0), taker, error) from error
        split.high = high
        step.event_number = base + index
        if index < stop and not step.link_hit:
            return await self._step(drivers, split, decoded, index, stop, topic, False)
        return index

    async def _step_fused(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """A declared table alone: its generated loop, from one move of the watermark that matters to the next."""
        (driver,) = drivers
        assert isinstance(driver, AggregateDriver | Tap)
        assert driver.loop is not None
        step, inner = self.step, driver.inner if isinstance(driver, Tap) else driver
        assert isinstance(inner, AggregateDriver)
        base, space_at = step.event_number - start, inner.state.space_at
        index = start
        while index < stop:
            # Mostly the whole batch: no copy of its lists then.
            whole = index == 0 and stop == len(decoded)
            rest = iter(decoded.records if whole else decoded.records[index:stop])
            times = decoded.times if whole else decoded.times[index:stop]
            due, first = self._due_time(split), index

            # Asked once a window, not once an event.
            def switch(_event: Any, t: int, careful_before: int = step.careful_before, due: int = due) -> Any:
                if t < careful_before:
                    raise _Careful
                return *space_at(t), due

            # How far the loop has come is what the iterator has left: no counter in the loop.
            try:
                split.high = driver.loop(zip(rest, times, strict=False), split.high, switch, due)
                index = stop - length_hint(rest)
                step.event_number, step.unit = base + index - 1, 0
            except _Careful:
                index = stop - length_hint(rest)
                split.high = max(split.high, max(times[: index - 1 - first], default=MIN_TIME))
                step.event_number, step.unit = base + index - 1, 0
                await self._careful_event(drivers, split, decoded, index - 1, topic)
                split.high = max(split.high, decoded.times[index - 1])
            except Exception as error:
                index = stop - length_hint(rest)
                raise EventFailed((base + index - 1, 0), driver, error) from error
            await self.firing.advance(False)
            if step.link_hit:
                break
        step.event_number = base + index
        return index

    async def _step(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """Any agents and tables, event by event."""
        step, cursor, splits = self.step, self.step.cursor, self.step.splits
        times, records = decoded.times, decoded.records
        base = step.event_number - start
        others, out_of_order, calls = splits.others(split.name), split.out_of_order, self.batches.calls
        reached = splits.reached()
        watermark = cursor.watermark = min(reached, splits.hold)
        timed = self._is_timed()
        for index in range(start, stop):
            t = times[index]
            step.event_number, step.unit = base + index, 0
            if timed:
                await self._event_clock(split, t, careful)
                if self.firing.unfinished:
                    return index  # the record comes again once the firing is through
                others, reached = splits.others(split.name), splits.reached()
                watermark = min(reached, splits.hold)
                step.unit += 1  # what the clock brought has had its own
            if careful or t < step.careful_before or t <= watermark - step.careful_lag:
                await self._careful_event(drivers, split, decoded, index, topic)
            else:
                cursor.time = t
                cursor.ordinal += 1
                waiting = None
                for driver in drivers:
                    if driver.need is EVENT:
                        if driver.modes:
                            await step.feed(driver, records[index])
                        elif (done := step.give(driver, records[index])) is not None:
                            await done
                    else:
                        waiting = [*(waiting or ()), driver]
                if cursor.sent:
                    await step.send_on()
                if waiting:
                    origin = self.recall.of_record(topic, split.number, decoded, index)
                    await self.batches.add(step.spread(waiting, records[index], origin), t, careful=False)
            if t > split.high:
                split.high = t
                reached = max(splits.floor, min(t - out_of_order - 1, others))
            watermark = reached if reached < splits.hold else splits.hold  # noqa: FURB136  half the time of min
            for state in step.moving:
                if state.due < step.next_due:  # noqa: PLR1730  half the time of min
                    step.next_due = state.due
            if watermark >= step.next_due or cursor.ready or (reached >= step.next_due and calls.may_stop):
                await self.firing.advance(careful)
                watermark = min(reached, splits.hold)
            if step.link_hit:
                step.event_number += 1
                return index + 1
            cursor.watermark = watermark
        step.event_number = base + stop
        return stop

    async def _step_hop(
        self, drivers: list[Driver], split: Split, decoded: Decoded, start: int, stop: int, topic: str, careful: bool
    ) -> int:
        """Events that are only sent on, in a group without state: nothing is due, whatever their times."""
        (taker,) = drivers
        step, driver = self.step, taker.inner if isinstance(taker, Tap) else taker
        assert isinstance(driver, HopDriver)
        events, times = decoded.records[start:stop], decoded.times[start:stop]
        high = max(times)
        try:
            if isinstance(taker, Tap):
                events, times = taker.pass_all(events, times)
            step.outlets[driver.topic.name].emit_all(events, driver.keys(events), times)
        except Exception:  # which of them it was is found one by one
            return await self._step(drivers, split, decoded, start, stop, topic, careful)
        step.counters.emitted += len(events)
        split.high = max(split.high, high)
        step.event_number += stop - start
        return stop

    async def _event_clock(self, split: Split, t: int, careful: bool) -> None:
        """In a bounded run what else goes by the clock goes by event time: idle splits, and batches grown old.

        It may be cut by a firing; then all of it is called again, and what is done already does nothing.
        """
        step, firing = self.step, self.firing
        if firing.number[0] == step.event_number and firing.number[1] < BESIDE:
            step.unit = firing.number[1]
        now = step.event_now = max(step.event_now, t)
        step.active[split.name] = now
        step.read_clock(now)
        for name, after in step.idle_after.items():
            other = step.splits.by_name[name]
            if not other.idle and now - step.active.setdefault(name, now) >= after:
                other.idle = True
                await firing.advance(careful)
                if firing.unfinished:
                    return
        await self.batches.flush_old(careful)
        await self.batches.calls.begin_old(careful)
        if step.cursor.ready:
            await firing.advance(careful)

    async def _careful_event(
        self, drivers: list[Driver], split: Split, decoded: Decoded, index: int, topic: str
    ) -> None:
        """One record as a unit that leaves no trace if it fails, judged for lateness first."""
        t = decoded.times[index]
        step, cursor = self.step, self.step.cursor
        cursor.watermark = step.splits.watermark()
        cursor.ordinal += 1
        for state in step.states.values():
            state.watermark = max(state.watermark, cursor.watermark)
        if step.floors:
            keys = decoded.batch.keys
            step.turn_to(None if keys is None else keys[index])
        takers, late = self.units.judge(drivers, decoded.records[index], t)
        origin = self.recall.of_record(topic, split.number, decoded, index)
        inlet = step.inlets[(topic, split.number)]

        def again() -> Any:
            return inlet.codec.decode(decoded.batch.values[index])  # type: ignore[arg-type]

        rows = await self.units.run(takers, decoded.records[index], again, t, origin, late)
        await self.batches.add(rows, t, careful=True)
        await self.units.send_late(late, again, t, origin)
        if step.floors:
            step.turn_to(None)
