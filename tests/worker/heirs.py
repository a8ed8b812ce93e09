"""Shards on a broker in memory: tasks that end, and others that take over their keys."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from flowkit import App
from flowkit.agent import Group
from flowkit.clock import VirtualClock
from flowkit.options import OutOfRange, Start, WorkerOptions
from flowkit.source import BEGIN, MemoryBroker
from flowkit.source.local import LogSource
from flowkit.store import Frame, Store, open_store
from flowkit.worker import LiveTask, random_ids
from flowkit.worker.inheriting import Inheritance

Record = tuple[bytes, bytes]
TOPIC, OUT = "in", "out"


class Shard(NamedTuple):
    """One shard: `span` are the first letters of its keys."""

    number: int
    span: str
    parents: tuple[int, ...]
    records: Sequence[Record]


class FromBegin(LogSource):
    """A topic whose readers take the position of a shard that has not begun."""

    async def open(self, split: int, position: Any) -> Any:
        return await super().open(split, None if position == BEGIN else position)


class Shards(MemoryBroker):
    """A broker whose partitions are shards. `frames` are those that counted."""

    def __init__(self) -> None:
        super().__init__(VirtualClock())
        self.frames: list[tuple[str, Frame]] = []
        self.dies_after = 10**9
        """So many commits count; the next one's worker dies before."""

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> LogSource:
        return FromBegin(self, topic, start=start, out_of_range=out_of_range)

    def keys_in(self, span: str) -> Callable[[bytes], bool]:
        return lambda key: chr(key[0]) in span

    async def came_from(self, task: str, shards: Sequence[int]) -> None:
        """Nobody asks."""

    async def commit(self, task: str, epoch: int, number: int, *rest: Any) -> None:
        if not self.dies_after:
            raise ConnectionError("the worker dies")
        self.dies_after -= 1
        await super().commit(task, epoch, number, *rest)
        self.frames.append((task, rest[-1]))


class Tree:
    """Runs the tasks of an app's only group over shards, one after the other, on disks in memory."""

    def __init__(self, app: App, commit_every: int = 4) -> None:
        self.app, self.broker, self.spans = app, Shards(), dict[int, str]()
        self.group: Group
        (self.group,) = app.plan().groups
        self.disks: dict[int, list[bytes]] = {}
        self.commit_every = commit_every

    def name(self, number: int) -> str:
        """Of a task."""
        return f"{self.app.name}/{self.group.name}/{number}"

    @asynccontextmanager
    async def state_of(self, task: str) -> AsyncIterator[Store]:
        """What a task has left."""
        async with open_store(None, disk=list(self.disks[int(task.rpartition("/")[2])])) as store:
            if store.undecided is not None:
                counts = await self.broker.last_commit(task)
                frame = store.undecided
                await store.resolve(frame.commit_id, counts == (frame.number, frame.commit_id))
            yield store

    def inheritance(self, shard: Shard, owns: Callable[[bytes], bool], *, eldest: bool = True) -> Inheritance:
        """What a shard's task begins with."""
        return Inheritance(
            self.name(shard.number),
            self.group,
            [f"{TOPIC}[{shard.number}]"],
            [self.name(parent) for parent in shard.parents],
            owns,
            self._opened,
            ledger=self.broker,
            eldest=eldest,
            spans={self.name(number): span for number, span in self.spans.items()},
            new_id=random_ids(),
        )

    def _opened(self, task: str) -> AbstractAsyncContextManager[Store]:
        return self.state_of(task)

    async def run(self, shard: Shard) -> None:
        """Read a shard to its end, and commit that."""
        live = await self.open(shard)
        try:
            while await live.fetch(self.commit_every - 1):
                while await live.step():
                    pass
                await live.commit_if_due()
            await live.end()
        finally:
            await live.close()

    async def open(self, shard: Shard) -> LiveTask:
        """The task of a shard, which takes over what its parents have left."""
        if OUT not in await self.broker.topics():
            for topic, partitions in ((TOPIC, 16), (OUT, 1), ("dead-letters", 1)):
                await self.broker.create(topic, partitions)
        if shard.number not in self.spans:
            await self.broker.put(TOPIC, [(key, value, 0) for key, value in shard.records], shard.number)
        self.spans[shard.number] = shard.span
        owns = self.broker.keys_in(shard.span)
        task = self.name(shard.number)
        claim = await self.broker.claim(task, "")
        live = LiveTask(
            self.app,
            self.group,
            shard.number,
            len(self.spans),
            broker=self.broker,
            topics={OUT: 1, "dead-letters": 1},
            sinks={},
            store=open_store(None, disk=self.disks.setdefault(shard.number, [])),
            epoch=claim.epoch,
            clock=self.broker._clock,
            options=WorkerOptions(commit_every=self.commit_every),
            new_id=random_ids(),
            begin=self.inheritance(shard, owns) if shard.parents else None,
            owns=owns,
            keys_in=self.broker.keys_in,
        )
        await live.open()
        return live

    def told(self) -> list[Mapping[str, Any]]:
        """All that was put out."""
        (log,) = self.broker.store.topics[OUT]
        values = log.columns[1]
        return [msgspec.json.decode(value) for value in values if value is not None]

    def dead(self) -> int:
        """How many dead letters there are."""
        (log,) = self.broker.store.topics["dead-letters"]
        return len(log.columns[1])
