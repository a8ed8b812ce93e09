"""The tasks of an app as workers run them, on a broker in memory, each at a pace of its own, and what befalls them.

What is drawn at random: which task turns next, how much it takes in, where it commits, at which step of a commit the
plug is pulled, and when it moves: its next owner claims it while the old one still works, which finds out at its next
commit. The tasks and their topics are those that a worker's wiring makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from flowkit.app import App
from flowkit.clock import VirtualClock
from flowkit.codec import Codec, encode_key, field_getter
from flowkit.errors import Fenced
from flowkit.options import WorkerOptions
from flowkit.record import DeadLetter, Record
from flowkit.source import MemoryBroker
from flowkit.store import open_store
from flowkit.worker import LiveTask, random_ids
from flowkit.worker.wiring import Wiring

T = TypeVar("T")


class Plug(BaseException):
    """It was pulled."""


class Crowd:
    """Made, opened, fed by `put`, driven by `turn` or `drain`."""

    def __init__(self, app: App, partitions: dict[str, int], chance: Random, *, crashes: float = 0.0) -> None:
        self.app, self.counts, self.chance, self.crashes = app, partitions, chance, crashes
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        self.wiring = Wiring(app, app.plan(rekey=True), {}, 1)
        self.tasks: dict[str, LiveTask] = {}
        self.disks: dict[str, list[bytes]] = {}
        self.crashed = self.fenced = 0
        self._new_id = random_ids(1)

    async def open(self) -> None:
        for topic, count in self.counts.items():
            await self.broker.create(topic, count)
        self.wiring.check()
        await self.wiring.connect(self.broker)
        for name in self.wiring.slices:
            await self.claim(name)

    async def claim(self, name: str) -> None:
        """Open a task under a new epoch, from what its disk holds."""
        part = self.wiring.slices[name]
        claim = await self.broker.claim(name, "memory", worker="crowd")
        self.tasks[name] = LiveTask(
            self.app,
            part.group,
            part.partition,
            part.count,
            broker=self.broker,
            topics=self.wiring.topics,
            senders=self.wiring.senders,
            sinks={},
            store=open_store(None, disk=self.disks.setdefault(name, [])),
            epoch=claim.epoch,
            clock=self.clock,
            options=WorkerOptions(),
            new_id=self._new_id,
            hook=self._maybe_pull,
            finder=self.wiring.finder,
        )
        await self.tasks[name].open()

    async def close(self) -> None:
        for task in self.tasks.values():
            await task.close()

    async def put(self, topic: str, *events: Record, partition: int | None = None) -> None:
        declared = self.app.topics[topic]
        key: Any = field_getter(declared.type, declared.key) if isinstance(declared.key, str) else declared.key
        encode = Codec("json", declared.type).encode
        rows = [(encode_key(key(event)), encode(event), 0) for event in events]
        await self.broker.put(topic, rows, partition)

    # Driving

    async def turn(self) -> None:
        """One of the tasks does something."""
        name = self.chance.choice(sorted(self.tasks))
        try:
            await self._work(self.tasks[name], self.chance.randint(1, 8))
        except Plug:
            self.crashed += 1
            await self._reopen(name)
        if self.crashes and self.chance.random() < self.crashes / 4:
            await self.move(name)

    async def move(self, name: str) -> None:
        """Another owner takes the task over; the old one works on, until its commit does not count."""
        old = self.tasks[name]
        self.disks[name] = list(self.disks[name])  # the new owner has a copy of the directory
        crashes, self.crashes = self.crashes, 0.0
        await self.claim(name)
        new = self.tasks[name]
        try:
            for _ in range(3):
                await self._work(old, 8, commit=True)
        except Fenced:
            self.fenced += 1
        except Plug:  # amid a commit that was under way when it was taken over
            self.crashed += 1
        self.crashes, self.tasks[name] = crashes, new
        await old.close()

    async def drain(self) -> None:
        """Until nothing moves and everything is committed."""
        while True:
            moved = False
            for name in self.chance.sample(sorted(self.tasks), len(self.tasks)):
                try:
                    moved = await self._work(self.tasks[name], 1_000, commit=True) or moved
                except Plug:
                    self.crashed += 1
                    moved = True
                    await self._reopen(name)
            if not moved:
                return

    async def pass_time(self, ms: int, step: int = 50) -> None:
        """Let the clock go on by `ms`, the tasks looking at it every `step`."""
        for _ in range(0, ms, step):
            self.clock.advance(step)
            for task in self.tasks.values():
                await task.fetch(1_000)
                task.look_at_clock()
            await self.drain()

    async def _work(self, task: LiveTask, most: int, *, commit: bool = False) -> bool:
        found = await task.fetch(most)
        if not commit:
            for _ in range(self.chance.randint(0, 4)):
                task.task.commit_every = task.task.since_commit + self.chance.randint(1, 10)
                task.task._slice = self.chance.randint(1, 8)
                if not await task.step():
                    break
            commit = self.chance.random() < 0.4
        else:
            while await task.step() or task.waits_for_calls:
                if task.waits_for_calls:
                    await task.wait_for_calls(1_000)
        if commit:
            await task.task.commit()
            await task.task.settled()
        return found

    async def _reopen(self, name: str) -> None:
        with contextlib.suppress(Plug):
            await self.tasks[name].close()
        await self.claim(name)

    async def _maybe_pull(self, _step: str) -> None:
        if self.chance.random() < self.crashes:
            raise Plug

    # Looking

    async def values(self, topic: str) -> list[bytes]:
        """What lies in a topic, by partition."""
        return [value for log in self.broker.store.topics[topic] for value in log.columns[1] if value is not None]

    async def sent(self, topic: str, type_: type[T]) -> list[T]:
        decode = Codec("json", type_).decode
        return [decode(value) for value in await self.values(topic)]

    async def letters(self) -> list[DeadLetter]:
        return await self.sent("dead-letters", DeadLetter)


async def play_out(crowd: Crowd, rounds: Sequence[tuple[str, Sequence[Record], int]]) -> None:
    """Put events into a topic, let some turns pass, and so on; then drain."""
    await crowd.open()
    for topic, events, turns in rounds:
        await crowd.put(topic, *events)
        for _ in range(turns):
            await crowd.turn()
    await crowd.drain()
