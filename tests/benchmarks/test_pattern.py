"""A pattern of three steps beside the same steps written by hand: 500,000 events over 10,000 keys."""

import gc
import heapq
import random
import time
from typing import Any

import msgspec
import pytest

from flowkit.pattern import Match, Pattern, PatternProcess, TimedOut
from flowkit.record import END_OF_TIME

EVENTS, KEYS, WITHIN, LAG = 500_000, 10_000, 200_000, 50


class Event(msgspec.Struct):
    kind: int
    amount: float


class Nothing:
    """What the driver costs: each event wakes its key once."""

    def new(self) -> Any:
        return []

    def event(self, key: int, cell: Any, side: int, event: Event, t: int) -> Any:
        cell.append(t)
        return ()

    def wake(self, key: int, cell: Any, at: int) -> Any:
        cell.pop(0)
        return ()

    def due(self, cell: Any) -> int:
        return cell[0] if cell else END_OF_TIME + 1

    def over(self, cell: Any) -> bool:
        return not cell


class ByHand(Nothing):
    """Partial matches [since, a, b or None] beside the events that wait."""

    def new(self) -> Any:
        return ([], [])

    def event(self, key: int, cell: Any, side: int, event: Event, t: int) -> Any:
        waiting = cell[0]
        waiting.append((t, event))
        if len(waiting) > 1 and waiting[-2][0] > t:
            waiting.sort(key=lambda timed: timed[0])
        return ()

    def wake(self, key: int, cell: Any, at: int) -> Any:
        waiting, partials = cell
        sent: list[Any] = []
        while waiting and waiting[0][0] <= at:
            t, event = waiting.pop(0)
            if partials and partials[0][0] + WITHIN <= t:
                self.expire(key, partials, t, sent)
            if event.kind == 0:
                partials.append([t, event, None])
            elif event.kind == 1:
                for partial in partials:
                    if partial[2] is None:
                        partial[2] = event
            elif event.kind == 2 and event.amount > 500:
                for since, a, b in partials:
                    if b is not None:
                        sent.append(("", Match(key, {"a": [a], "b": [b], "c": [event]}, since, t), t))
                partials[:] = [partial for partial in partials if partial[2] is None]
        if partials and partials[0][0] + WITHIN <= at:
            self.expire(key, partials, at, sent)
        return sent

    def expire(self, key: int, partials: Any, t: int, sent: Any) -> None:
        while partials and partials[0][0] + WITHIN <= t:
            since, a, b = partials.pop(0)
            events = {"a": [a]} if b is None else {"a": [a], "b": [b]}
            sent.append(("timed_out", TimedOut(key, events, since, since + WITHIN), since + WITHIN))

    def due(self, cell: Any) -> int:
        waiting, partials = cell
        due: int = waiting[0][0] if waiting else END_OF_TIME + 1
        return min(due, partials[0][0] + WITHIN) if partials else due

    def over(self, cell: Any) -> bool:
        return not cell[0] and not cell[1]


def drive(process: Any, events: list[tuple[int, Event, int]]) -> tuple[float, list[Any]]:
    """CPU seconds an event, and all that was sent; the watermark follows the events at `LAG`."""
    cells: dict[int, Any] = {}
    dues: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    sent: list[Any] = []
    gc.collect()
    gc.freeze()
    began = time.process_time()
    for key, event, t in events:
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = process.new()
            dues[key] = END_OF_TIME + 1
        process.event(key, cell, 0, event, t)
        due = process.due(cell)
        if due < dues[key]:
            dues[key] = due
            heapq.heappush(heap, (due, key))
        while heap and heap[0][0] <= t - LAG:
            due, woken = heapq.heappop(heap)
            if dues.get(woken) != due:
                continue
            cell = cells[woken]
            sent += process.wake(woken, cell, due)
            if process.over(cell):
                del cells[woken], dues[woken]
            else:
                dues[woken] = due = process.due(cell)
                if due <= END_OF_TIME:
                    heapq.heappush(heap, (due, woken))
    spent = time.process_time() - began
    gc.unfreeze()
    return spent / len(events), sent


def test_a_pattern_costs_at_most_twice_what_the_same_steps_cost_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(7)
    events = [(rng.randrange(KEYS), Event(rng.randrange(5), rng.random() * 1000), t) for t in range(EVENTS)]
    pattern = (
        Pattern[Event]
        .begin("a", lambda e: e.kind == 0)
        .followed_by("b", lambda e: e.kind == 1)
        .followed_by("c", lambda e: e.kind == 2 and e.amount > 500)
        .within(WITHIN)
    )
    rounds: list[tuple[float, float, float]] = []
    for _ in range(2):
        idle, _ = drive(Nothing(), events)
        hand, by_hand = drive(ByHand(), events)
        cost, sent = drive(PatternProcess[int, Event](pattern, Event), events)
        assert sent == by_hand
        rounds.append((idle, hand, cost))
    idle, hand, cost = (min(times) for times in zip(*rounds, strict=True))
    with capsys.disabled():
        print(f"\na pattern of three steps: {cost * 1e6:.2f} us an event, by hand {hand * 1e6:.2f}", end="")
        print(f" (of which the driver {idle * 1e6:.2f}): {cost / hand:.2f} times")
    assert cost / hand < 2
