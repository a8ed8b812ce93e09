"""Where a harness runs its app: on a broker in memory, or on a real one, under names that no other test has.

A real broker takes its time. Here what has been written is waited for, so that a fetch gives the same as in memory:
whatever there is. Time goes by the harness's clock in either place.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol, cast

import anyio

from flowkit.clock import Clock, SystemClock
from flowkit.errors import BrokerError, ConfigError
from flowkit.options import Guarantee, OutOfRange, Start
from flowkit.source import (
    Batch,
    Broker,
    Claim,
    EndsForOthers,
    MemoryBroker,
    MemoryStore,
    Output,
    Reader,
    SendsEarly,
    Source,
    open_broker,
)
from flowkit.store import Frame

Row = tuple[bytes | None, bytes | None, int]
"""A record from outside: key, value, time (ms)."""

PATIENCE_S = 30
"""So long may a real broker take until it shows what has been written."""
LOOK_MS = 20
FETCH = 10_000


class Place(Protocol):
    """A broker for the tasks, and a look at its topics from outside."""

    broker: Broker

    async def open(self, topics: Mapping[str, int], tasks: Mapping[str, int]) -> None:
        """Make the topics, and what tasks (of a group, with their number) need."""

    async def close(self) -> None: ...

    @property
    def looks(self) -> Any:
        """The broker, as who looks for topics asks it."""

    async def make(self, topic: str, partitions: int) -> None:
        """Make a topic later on."""

    async def put(self, topic: str, rows: Sequence[Row]) -> None:
        """Append from outside; returns once it is there."""

    async def look(self) -> None:
        """Everything has been written that will be: `sent` shows it from now on."""

    def sent(self, topic: str) -> list[bytes | None]:
        """The values in a topic, by partition."""


def place_of(url: str | None, clock: Clock, guarantee: Guarantee) -> Place:
    """The place that `url` names; None: what FLOWKIT_TEST_BROKER names, else memory. Raises ConfigError."""
    url = url or os.environ.get("FLOWKIT_TEST_BROKER") or "memory://"
    if url == "memory://":
        return MemoryPlace(clock)
    if url.startswith("memory://"):
        raise ConfigError(f"broker {url!r}: a harness has a memory of its own: use memory://, without a name")
    if url.startswith("kinesis://"):
        raise ConfigError(f"broker {url!r}: a harness runs on memory://, embedded:// or kafka://, not on streams")
    return RealPlace(url, guarantee)


class MemoryPlace:
    """A broker in memory, which is as fast as it gets."""

    def __init__(self, clock: Clock) -> None:
        self._memory = MemoryBroker(clock, MemoryStore())
        self.broker: Broker = self._memory

    async def open(self, topics: Mapping[str, int], tasks: Mapping[str, int]) -> None:
        await self._memory.open()
        for topic, partitions in topics.items():
            await self._memory.create(topic, partitions)

    async def close(self) -> None:
        await self._memory.close()

    @property
    def looks(self) -> Any:
        return self._memory

    async def make(self, topic: str, partitions: int) -> None:
        await self._memory.create(topic, partitions)

    async def put(self, topic: str, rows: Sequence[Row]) -> None:
        await self._memory.put(topic, rows)

    async def look(self) -> None:
        return None

    def sent(self, topic: str) -> list[bytes | None]:
        return [value for log in self._memory.store.topics[topic] for value in log.columns[1]]


class RealPlace:
    """A broker by its URL: one connection for the tasks, and one for who looks from outside."""

    def __init__(self, url: str, guarantee: Guarantee) -> None:
        self.prefix = self._prefix = f"flowkit-test-{os.urandom(4).hex()}."
        # Of a broker nothing is virtual: it waits by the system's clock.
        self._outside: Any = open_broker(url, SystemClock(), guarantee)
        self._inside: Any = open_broker(url, SystemClock(), guarantee)
        self.broker: Broker = NamedApart(self._inside, self._prefix, self)
        self._topics: dict[str, int] = {}
        self._ends: dict[str, list[int]] = {}
        """By topic: where it ended when it was asked; missing once anything may have been written."""
        self._readers: dict[str, list[WaitingReader]] = {}
        self._seen: dict[str, list[list[bytes | None]]] = {}
        self._stack = AsyncExitStack()

    async def open(self, topics: Mapping[str, int], tasks: Mapping[str, int]) -> None:
        try:
            await self._stack.enter_async_context(self._outside)
            self._stack.push_async_callback(self._forget)
            await self._stack.enter_async_context(self._inside)
            for topic, partitions in topics.items():
                await self.make(topic, partitions)
            for group, count in tasks.items():
                if count > 1:  # one who claims makes room for the tasks up to its own
                    last = f"{self._prefix}{group}/{count - 1}"
                    await self._inside.release(last, (await self._inside.claim(last, "memory")).epoch)
        except BaseException:
            await self._stack.aclose()
            raise

    async def make(self, topic: str, partitions: int) -> None:
        # Event times of tests are of long ago, and a broker deletes by them: not what is internal.
        await self._outside.create(self._prefix + topic, partitions, internal=True)
        self._topics[topic] = partitions
        self._seen[topic] = [[] for _ in range(partitions)]
        source = self._outside.source(self._prefix + topic)
        opened = [await source.open(number, None) for number in range(partitions)]
        self._readers[topic] = [WaitingReader(reader, self, topic, n) for n, reader in enumerate(opened)]
        for reader in opened:
            self._stack.push_async_callback(reader.close)

    @property
    def looks(self) -> Any:
        return self.broker

    async def close(self) -> None:
        await self._stack.aclose()

    async def _forget(self) -> None:
        """Delete what was made, where that can be done."""
        delete = getattr(self._outside, "delete", None)
        if delete is not None:
            await delete([topic for topic in await self._outside.topics() if topic.startswith(self._prefix)])

    async def put(self, topic: str, rows: Sequence[Row]) -> None:
        turn = sum(map(len, self._seen[topic]))  # as the broker in memory has it
        for row in rows if any(row[0] is None for row in rows) else ():
            at = None if row[0] is not None else turn % self._topics[topic]
            turn += row[0] is None
            await self._outside.put(self._prefix + topic, [row], at)
        if all(row[0] is not None for row in rows):
            await self._outside.put(self._prefix + topic, rows)
        self.written(topic)

    def written(self, *topics: str) -> None:
        """Something may have been written there (nowhere in particular: anywhere)."""
        for topic in topics or tuple(self._ends):
            self._ends.pop(topic, None)

    async def end(self, topic: str, partition: int) -> int:
        """Where a partition ends."""
        if topic not in self._ends:
            self._ends[topic] = await self._outside.end_offsets(self._prefix + topic)
        return self._ends[topic][partition]

    async def look(self) -> None:
        for topic, readers in self._readers.items():
            for reader, seen in zip(readers, self._seen[topic], strict=True):
                while (batch := await reader.fetch(FETCH)) is not None:
                    seen += batch.values

    def sent(self, topic: str) -> list[bytes | None]:
        return [value for partition in self._seen[topic] for value in partition]


class WaitingReader:
    """Gives what has been written, however long the broker takes to show it."""

    at_end = False

    def __init__(self, reader: Reader, place: RealPlace, topic: str, split: int) -> None:
        self._reader: Any = reader
        self._place, self._topic, self._split = place, topic, split

    @property
    def offset(self) -> int:
        """Of the next record that it gives."""
        return int(self._reader.offset)

    async def fetch(self, max_records: int) -> "Batch | None":
        """All there is, or `max_records`. Raises BrokerError if the broker does not show it."""
        end = await self._place.end(self._topic, self._split)
        parts: list[Batch] = []
        taken = 0
        try:
            with anyio.fail_after(PATIENCE_S):
                while self.offset < end and taken < max_records:
                    batch = await self._reader.fetch(max_records - taken)
                    if batch is not None and len(batch):
                        parts.append(batch)
                        taken += len(batch)
                    elif self.offset < end:
                        await anyio.sleep(LOOK_MS / 1000)
        except TimeoutError:
            raise BrokerError(
                f"{self._topic}[{self._split}]: holds records up to offset {end}, but after {PATIENCE_S} s readers are "
                f"shown none from {self.offset} on: is a transaction left open there?"
            ) from None
        return Several(parts, self._place.prefix) if parts else None

    async def close(self) -> None:
        await self._reader.close()


class Several:
    """Batches that follow each other, as one, of a topic whose name begins with `prefix` only at the broker."""

    def __init__(self, parts: Sequence[Batch], prefix: str) -> None:
        self._prefix = prefix
        self._at = [(part, n) for part in parts for n in range(len(part))]
        self.values: Sequence[bytes | None] = [value for part in parts for value in part.values]
        self.keys: Sequence[bytes | None] | None = [key for part in parts for key in part.keys or ()]
        self.times: Sequence[int] | None = [time for part in parts for time in part.times or ()]

    def __len__(self) -> int:
        return len(self._at)

    def position(self, count: int) -> Any:
        part, n = self._at[max(count - 1, 0)]
        return part.position(n + 1 if count else 0)

    def offset(self, index: int) -> int:
        part, n = self._at[index]
        return part.offset(n)

    def where(self, index: int) -> str:
        part, n = self._at[index]
        return part.where(n).removeprefix(self._prefix)


class WaitingSource:
    """A topic whose readers wait for what has been written."""

    def __init__(self, source: Source, place: RealPlace, topic: str) -> None:
        self.codec = source.codec
        self._source, self._place, self._topic = source, place, topic

    async def splits(self) -> Sequence[int]:
        return await self._source.splits()

    async def open(self, split: int, position: Any) -> WaitingReader:
        return WaitingReader(await self._source.open(split, position), self._place, self._topic, split)


class _Out(NamedTuple):
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    time: int


class NamedApart:
    """A broker whose topics and tasks are called otherwise than the app calls them, so that no two tests meet."""

    def __init__(self, broker: Any, prefix: str, place: RealPlace) -> None:
        self._broker, self._prefix, self._place = broker, prefix, place
        self.guarantee: Guarantee = broker.guarantee if isinstance(broker, SendsEarly) else "exactly once"

    async def topics(self) -> dict[str, int]:
        found = (await self._broker.topics()).items()
        return {name.removeprefix(self._prefix): count for name, count in found if name.startswith(self._prefix)}

    async def end_offsets(self, topic: str) -> Any:
        return await self._broker.end_offsets(self._prefix + topic)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return cast("tuple[int, int]", await self._broker.bounds(self._prefix + topic, partition))

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Any:
        return await self._broker.read(self._prefix + topic, partition, offset, limit)

    async def partitions(self, topic: str) -> int:
        return cast(int, await self._broker.partitions(self._prefix + topic))

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        await self._broker.create(self._prefix + topic, partitions, internal=internal)

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        await self._broker.delete_before(self._prefix + topic, partition, offset)

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> WaitingSource:
        source = self._broker.source(self._prefix + topic, start=start, out_of_range=out_of_range, shared=shared)
        return WaitingSource(source, self._place, topic)

    async def claim(self, task: str, state: str) -> Claim:
        if isinstance(self._broker, EndsForOthers):
            self._broker.writes = {self._prefix + topic: count for topic, count in self._place._topics.items()}
        try:
            return cast(Claim, await self._broker.claim(self._prefix + task, state))
        finally:
            self._place.written()  # what an earlier owner had begun is ended, which takes an offset

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        return cast("tuple[int, bytes | None]", await self._broker.last_commit(self._prefix + task))

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Output],
        frame: Frame | None = None,
    ) -> None:
        named = self._named(outputs)
        await self._broker.commit(self._prefix + task, epoch, number, commit_id, positions, named, frame)
        self._place.written(*{output.topic for output in outputs} or {""})

    async def send(self, task: str, epoch: int, outputs: Sequence[Output]) -> None:
        await self._broker.send(self._prefix + task, epoch, self._named(outputs))
        self._place.written(*{output.topic for output in outputs})

    def _named(self, outputs: Sequence[Output]) -> list[Output]:
        return [_Out(self._prefix + out.topic, out.partition, out.key, out.value, out.time) for out in outputs]
