"""`memory://NAME`: a broker in this process's memory, for tests, by the same rules as the embedded one.

Brokers on one `MemoryStore` see the same topics and tasks, as processes see one directory: that is how a test plays
a crash, a zombie, or several workers. A store is for one event loop at a time.
"""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec

from flowkit.clock import Clock
from flowkit.errors import Fenced
from flowkit.options import OutOfRange, Start
from flowkit.source.local import LogSource, Records
from flowkit.source.memory_store import Log, Member, MemoryStore
from flowkit.source.placement import Placing, place_by_leases
from flowkit.source.rules import (
    DEFAULT_TTL_MS,
    Claimed,
    Columns,
    KeyValueTime,
    Lease,
    check_same_partitions,
    check_topic,
    claimed,
    columns_of,
    group_outputs,
    must_apply,
    place,
    unknown_partition,
    unknown_topic,
)
from flowkit.source.seam import Output
from flowkit.store import Frame


class MemoryBroker:
    """A broker on `store` (None: on a store of its own). What the methods mean stands at `EmbeddedBroker`."""

    def __init__(self, clock: Clock, store: MemoryStore | None = None, name: str = "") -> None:
        self.url = f"memory://{name}"
        self.store = MemoryStore() if store is None else store
        self._clock = clock
        self._worker = f"process {os.getpid()}"

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- topics ---

    async def topics(self) -> dict[str, int]:
        """The number of partitions by topic."""
        return {topic: len(logs) for topic, logs in sorted(self.store.topics.items())}

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 if it does not exist."""
        return len(self.store.topics.get(topic, ()))

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        """Make a topic. Raises ConfigError if it exists with another number, or the name cannot be one."""
        check_topic(topic, partitions)
        if topic in self.store.topics:
            check_same_partitions(topic, self.url, len(self.store.topics[topic]), partitions)
            return
        self.store.topics[topic] = [Log() for _ in range(partitions)]
        self.store.changed()

    async def end_offsets(self, topic: str) -> list[int]:
        """By partition, the offset that the next record will have. Raises ConfigError if there is no such topic."""
        return [log.end for log in self._logs(topic)]

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The offsets of the oldest record that is left, and of the next one to come."""
        log = self._log(topic, partition)
        return log.start, log.end

    async def put(self, topic: str, records: Sequence[KeyValueTime], partition: int | None = None) -> None:
        """Append (key, value, time in ms) from outside, all or none: to `partition`, or by key, or round robin."""
        logs = self._logs(topic)
        groups = place(records, len(logs), partition, turn=sum(log.end for log in logs))
        self._append({(topic, at): columns_of(topic, group) for at, group in groups.items()})

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Records:
        """At most `limit` records from `offset` on, or from the oldest that is left."""
        log = self._log(topic, partition)
        first = max(offset, log.start)
        keys, values, times = log.columns
        at = slice(first - log.start, first - log.start + max(limit, 0))
        return Records(topic, partition, first, keys[at], values[at], times[at])

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`."""
        log = self._log(topic, partition)
        count = max(0, min(offset, log.end) - log.start)
        for column in log.columns:
            del column[:count]
        log.start += count

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> LogSource:
        """The topic as the worker reads it."""
        return LogSource(self, topic, start=start, out_of_range=out_of_range)

    async def wait(self, timeout_ms: float, seen: int | None = None) -> int:
        """Return once anyone has written anything, or after `timeout_ms`; see `EmbeddedBroker.wait`."""
        store = self.store
        if seen is not None and seen != store.version:
            return store.version
        event = anyio.Event()
        store.waiting.add(event)
        try:
            async with anyio.create_task_group() as tasks:

                async def time_out() -> None:
                    await self._clock.sleep(timeout_ms)
                    event.set()

                tasks.start_soon(time_out)
                await event.wait()
                tasks.cancel_scope.cancel()
        finally:
            store.waiting.discard(event)
        return store.version

    def _logs(self, topic: str) -> list[Log]:
        if topic not in self.store.topics:
            raise unknown_topic(topic, self.url, self.store.topics)
        return self.store.topics[topic]

    def _log(self, topic: str, partition: int) -> Log:
        logs = self.store.topics.get(topic, [])
        if not 0 <= partition < len(logs):
            topics = {name: len(at) for name, at in self.store.topics.items()}
            raise unknown_partition(topic, partition, self.url, topics)
        return logs[partition]

    def _append(self, groups: dict[tuple[str, int], Columns]) -> None:
        logs = [(self._log(topic, partition), columns) for (topic, partition), columns in groups.items()]
        for log, columns in logs:  # all of them exist: from here on nothing fails
            log.extend(columns)
        self.store.changed()

    # --- tasks ---

    async def claim(self, task: str, state: str, *, worker: str | None = None, seen: int | None = None) -> Claimed:
        """Become the task's owner: fences every earlier one. Given `seen`, Fenced if the epoch is another by now."""
        owner = self._worker if worker is None else worker
        before = self.store.leases.get(task)
        lease = claimed(before, task, owner, state, self._clock.now_ms() + self._ttl(owner), seen)
        self.store.leases[task] = lease
        self.store.changed()
        return Claimed(lease.epoch, lease.number, lease.commit_id, before.state if before is not None else "")

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        """Number and id of the last commit of `task` that counts (0, None: none yet)."""
        lease = self.store.leases.get(task)
        return (0, None) if lease is None else (lease.number, lease.commit_id)

    async def positions(self, task: str) -> Any:
        """The positions in the last commit that counts; None if there is none yet."""
        blob = self.store.positions.get(task)
        return None if blob is None else msgspec.msgpack.decode(blob)

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
        """Outputs, positions and identity at once. Raises Fenced, CommitError, ConfigError as `EmbeddedBroker` does."""
        lease = self.store.leases.get(task)
        groups, blob = group_outputs(outputs), msgspec.msgpack.encode(positions)
        if must_apply(lease, task, epoch, number, commit_id):
            assert lease is not None
            self._append(groups)
            self.store.leases[task] = msgspec.structs.replace(lease, number=number, commit_id=commit_id)
            self.store.positions[task] = blob

    async def place(self, worker: str, tasks: Sequence[str], held: set[str]) -> Placing:
        """What `worker`, which runs the tasks `held`, has to claim and to release, so that all `tasks` are shared."""
        return await place_by_leases(self, worker, tasks, held, self._clock.now_ms())

    async def leases(self, prefix: str = "") -> list[Lease]:
        """The tasks whose name begins with `prefix` and that were ever claimed, by name."""
        return [lease for task, lease in sorted(self.store.leases.items()) if task.startswith(prefix)]

    async def ran(self, tasks: str) -> int:
        """How many tasks there have been whose names begin with `tasks` (`APP/GROUP/`); 0: none yet."""
        return max((int(lease.task.removeprefix(tasks)) + 1 for lease in await self.leases(tasks)), default=0)

    async def renew(self, worker: str, tasks: Sequence[str]) -> list[str]:
        """Prolong the worker's leases. The answer: which of the tasks it does not own any more."""
        lost = []
        for task in tasks:
            lease = self.store.leases.get(task)
            if lease is None or lease.owner != worker:
                lost.append(task)
            else:
                expires_ms = self._clock.now_ms() + self._ttl(worker)
                self.store.leases[task] = msgspec.structs.replace(lease, expires_ms=expires_ms)
        return lost

    async def release(self, task: str, epoch: int) -> None:
        """Give the task up; does nothing if another has claimed it. Commits under `epoch` are fenced from now on."""
        lease = self.store.leases.get(task)
        if lease is not None and lease.epoch == epoch:
            self.store.leases[task] = msgspec.structs.replace(lease, owner="")
            self.store.changed()

    async def join(self, worker: str, ttl_ms: int, tasks: Sequence[str] = ()) -> None:
        """Become a member until `ttl_ms` after the last heartbeat. Claims are made under this name from now on."""
        self.store.workers[worker] = Member(ttl_ms, self._clock.now_ms() + ttl_ms)
        self.store.changed()
        self._worker = worker

    async def heartbeat(self, worker: str) -> None:
        """A sign of life. Raises Fenced if the worker is unknown."""
        member = self.store.workers.get(worker)
        if member is None:
            raise Fenced(f"worker {worker} is no member: join first")
        member.expires_ms = self._clock.now_ms() + member.ttl_ms

    async def leave(self, worker: str) -> None:
        """Be no member any more, and give all tasks up."""
        self.store.workers.pop(worker, None)
        for lease in await self.leases():
            if lease.owner == worker:
                await self.release(lease.task, lease.epoch)

    async def members(self, prefix: str = "") -> list[str]:
        """The living workers whose name begins with `prefix`, by name."""
        now = self._clock.now_ms()
        alive = (worker for worker, member in self.store.workers.items() if member.expires_ms > now)
        return sorted(worker for worker in alive if worker.startswith(prefix))

    def _ttl(self, worker: str) -> int:
        member = self.store.workers.get(worker)
        return DEFAULT_TTL_MS if member is None else member.ttl_ms
