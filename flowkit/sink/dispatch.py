"""Sends a hand-off's records in batches, several at once, and again what was not taken: what all services share.

    ready     records whose key has none under way, in order       e.g. a1 b1 c1     (a2 waits for a1)
    batch     as many of them as the service takes in one call
    call      taken | again (throttled, broken) | never (it will not take this one)

Records of one key are sent one after the other, also when one has to be sent again: a reader sees them in order. A call
that is refused as a whole is halved until the record that it is refused for stands alone. When a service asks for
fewer requests, fewer are made at once, after a wait that doubles; what passes is tried for as long as it takes, told
now and then. So a service that hangs holds up the commits after this one, and memory stays as it is.
"""

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import structlog

from flowkit.aws import Backoff

log = structlog.get_logger("flowkit.sink")


class Item(msgspec.Struct, frozen=True, gc=False):  # a hand-off has many, and none is part of a cycle
    """What is sent for one record: row `row` of its hand-off, `size` bytes by the service's count.

    Of those with the same `key` one is under way at a time; None: any number.
    """

    row: int
    key: bytes | None
    size: int
    body: Any


class Limits(NamedTuple):
    """What a service takes in one call, and how many calls are made at once."""

    items: int
    bytes: int
    calls: int = 8


class Again(NamedTuple):
    """It was not taken, and may be the next time. `slow`: the service asks for fewer requests."""

    reason: str
    slow: bool = False


class Never(NamedTuple):
    """It will not be taken whenever it is sent."""

    error: str
    reason: str


class Some(NamedTuple):
    """An item that stands for many rows is dealt with: those that will never be taken, by their index."""

    never: Sequence[tuple[int, Never]]


Outcome = Again | Never | Some | None
"""What became of an item; None: taken."""


class TryAgain(Exception):
    """A call did not come through, or nobody knows: all of it is sent again."""

    def __init__(self, reason: str, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.again = Again(reason, slow)


class Refused(Exception):
    """A call was refused as a whole, for which one of its items may be to blame."""

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.never = Never(error, reason)


Send = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome] | None]]
"""One call, and what became of each of its items, in order (None: all were taken).

Raises TryAgain, Refused, or SinkError to give up all.
"""

ROW, SIZE = attrgetter("row"), attrgetter("size")


class Dispatch:
    """Sends items by `send` to what `where` names. How many calls are made at once is learned and kept."""

    def __init__(self, where: str, send: Send, limits: Limits) -> None:
        self.where, self.send, self.limits = where, send, limits
        self.window = float(limits.calls)
        """How many calls are made at once for now."""
        self.calls = self.again = 0
        """How many calls were made, and how many items had to be sent again."""

    async def run(self, items: Iterable[Item]) -> list[tuple[int, Never]]:
        """Send all; those that will never be taken, by their index, in order. Raises what `send` gives up with."""
        turn = _Turn(self, items)
        try:
            return await turn.run()
        finally:
            await turn.stop()


class _Turn:
    """One `run`.

    The hot path is what nearly all items take: no key, or one that nothing else waits for, taken at once. They are cut
    into batches by slices and sums (0.4 µs an item less than one by one), and a call that tells of no item costs
    nothing an item but for those with keys (0.5 µs less).
    """

    def __init__(self, dispatch: Dispatch, items: Iterable[Item]) -> None:
        self.dispatch, self.limits = dispatch, dispatch.limits
        self.at = 0
        """How many of `fresh` have been sent."""
        self.back: list[tuple[int, Item]] = []
        """A heap: what is ready after it waited for another, or was not taken. Before what is fresh, by its row."""
        self.lanes: dict[bytes, deque[Item] | None] = {}
        """By key: what waits for the one that is ready or under way."""
        self.running: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        self.error: BaseException | None = None
        self.never: list[tuple[int, Never]] = []
        self.backoff = Backoff()
        self.paused_until = 0.0
        items = list(items)
        self.left = len(items)
        self.fresh = sorted(self._leading(items), key=ROW)
        self.sizes = [0, *accumulate(map(SIZE, self.fresh))]

    def _leading(self, items: list[Item]) -> list[Item]:
        """Those that wait for no other one."""
        ready: list[Item] = []
        lanes = self.lanes
        for item in items:
            if item.key is None:
                ready.append(item)
            elif item.key not in lanes:
                lanes[item.key] = None
                ready.append(item)
            elif (lane := lanes[item.key]) is None:
                lanes[item.key] = deque((item,))
            else:
                lane.append(item)
        return ready

    async def run(self) -> list[tuple[int, Never]]:
        while self.left:
            self.ended.clear()
            self._start()
            pause = self.paused_until - time.monotonic()
            if not self.running:
                await asyncio.sleep(pause)
            elif pause <= 0:
                await self.ended.wait()
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.ended.wait(), pause)
            if self.error is not None:
                raise self.error
        return sorted(self.never, key=lambda pair: pair[0])

    async def stop(self) -> None:
        """Drop what is under way, if it was broken off."""
        running = list(self.running)
        for lane in running:
            lane.cancel()
        if running:
            await asyncio.gather(*running, return_exceptions=True)

    def _start(self) -> None:
        """As many tasks as may be, for as much as is ready: each makes one call after the other."""
        while len(self.running) < int(self.dispatch.window) and (batch := self._batch()):
            task = asyncio.create_task(self._work(batch), name=f"send to {self.dispatch.where}")
            self.running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled():
            self.error = self.error or task.exception()
        self.ended.set()

    async def _work(self, batch: Sequence[Item]) -> None:
        while batch:
            await self._call(batch)
            if len(self.running) > int(self.dispatch.window):
                return
            batch = self._batch()
            self._start()  # what the call has set free may be more than one batch

    def _batch(self) -> Sequence[Item]:
        """What goes into the next call; nothing if nothing is ready, or there is a pause."""
        if self.paused_until > time.monotonic():
            return ()
        if self.back:
            return self._mixed()
        start, sizes = self.at, self.sizes
        end = min(start + self.limits.items, len(self.fresh))
        if start < end:
            end = max(start + 1, bisect_right(sizes, sizes[start] + self.limits.bytes, start + 1, end + 1) - 1)
        self.at = end
        return self.fresh[start:end]

    def _mixed(self) -> list[Item]:
        """A batch of what comes back and what is fresh, in the order of their rows."""
        batch: list[Item] = []
        size, fresh, back = 0, self.fresh, self.back
        while len(batch) < self.limits.items:
            older = bool(back) and (self.at == len(fresh) or back[0][0] < fresh[self.at].row)
            if not older and self.at == len(fresh):
                break
            item = back[0][1] if older else fresh[self.at]
            if batch and size + item.size > self.limits.bytes:
                break
            if older:
                heappop(back)
            else:
                self.at += 1
            batch.append(item)
            size += item.size
        return batch

    async def _call(self, batch: Sequence[Item]) -> None:
        outcomes: Sequence[Outcome] | None
        self.dispatch.calls += 1
        try:
            outcomes = await self.dispatch.send(batch)
        except TryAgain as error:
            outcomes = [error.again] * len(batch)
        except Refused as error:
            if len(batch) > 1:
                half = len(batch) // 2
                await self._call(batch[:half])
                await self._call(batch[half:])
                return
            outcomes = [error.never]
        if outcomes is None:
            self._all_gone(batch)
            self._learn(None)
            return
        assert len(outcomes) == len(batch), f"{len(outcomes)} outcomes for {len(batch)} items"
        again = None
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Again):
                again = outcome if again is None or outcome.slow else again
                heappush(self.back, (item.row, item))
                self.dispatch.again += 1
                continue
            if isinstance(outcome, Some):
                self.never += outcome.never
            elif outcome is not None:
                self.never.append((item.row, outcome))
            self._gone(item)
        self._learn(again)

    def _all_gone(self, batch: Sequence[Item]) -> None:
        if self.lanes:
            for item in batch:
                self._gone(item)
        else:
            self.left -= len(batch)

    def _gone(self, item: Item) -> None:
        """It is dealt with: the next of its key is free."""
        self.left -= 1
        if item.key is None:
            return
        lane = self.lanes[item.key]
        if lane:
            follower = lane.popleft()
            heappush(self.back, (follower.row, follower))
        else:
            del self.lanes[item.key]

    def _learn(self, again: Again | None) -> None:
        dispatch = self.dispatch
        if again is None:
            self.backoff.over()
            dispatch.window = min(float(self.limits.calls), dispatch.window + 1 / dispatch.window)
            return
        now = time.monotonic()
        if again.slow:
            dispatch.window = max(1.0, dispatch.window / 2)
        if now >= self.paused_until:  # of calls that were under way together the first one counts
            self.paused_until = now + self.backoff.wait()
        if self.backoff.is_to_tell():
            log.warning(
                "not taken; trying again", sink=dispatch.where, records=self.left, reason=again.reason,
                calls_at_once=int(dispatch.window),
            )  # fmt: skip
