"""`embedded://DIR`: durable partitioned topics, exactly-once commits and placement by leases in one SQLite file.

Several processes share the directory; any of them may be killed at any time. Outputs, positions, identity and the
epoch check of a commit are one transaction, which is why it is one file: SQLite's transactions over several files are
not atomic in WAL mode.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anyio

from flowkit.clock import Clock
from flowkit.options import OutOfRange, Start
from flowkit.source import embedded_log as logs
from flowkit.source import embedded_tasks as ledger
from flowkit.source.embedded_file import BrokerFile
from flowkit.source.embedded_thread import FileThread
from flowkit.source.local import LogSource, Records
from flowkit.source.placement import Placing, place_by_leases
from flowkit.source.rules import Claimed, KeyValueTime, Lease, check_topic
from flowkit.source.seam import Output
from flowkit.store import Frame

POLL_MS = 5
"""How often `wait` looks whether the file has changed; a look costs about 0.1 ms in another thread."""


class EmbeddedBroker:
    """A broker in `directory`, which it makes if need be. Use it within `async with`, or `open` and `close` it.

    Reads and writes have a connection and a thread each: a fetch never waits for a commit's fsync. Every method may
    raise StoreError (StoreLocked, StoreCorrupt), naming the file; those that write may raise OutcomeUnknown as well.
    `sync="normal"` saves the fsync a commit: a power cut may then take the last commits, a killed process none.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        clock: Clock,
        *,
        sync: Literal["full", "normal"] = "full",
        wait_ms: int = 30_000,
    ) -> None:
        self.directory = Path(directory)
        self.url = f"embedded://{self.directory}"
        self._clock = clock
        self._sync = sync
        self._wait_ms = wait_ms
        self._worker = f"process {os.getpid()}"
        self._writer, self._reader = FileThread(), FileThread()
        self._version, self._looked_at_ms = 0, 0

    async def open(self) -> None:
        """Open the file, or make it.

        Raises ConfigError if the directory cannot be used or is of a newer format, StoreCorrupt if it is damaged.
        """
        make: Callable[..., BrokerFile] = partial(BrokerFile, self.directory, sync=self._sync, wait_ms=self._wait_ms)
        await self._writer.open(make)
        try:
            await self._reader.open(partial(make, writes=False))
            await self._look()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what has been asked for and close the file. Leases stay until they expire or are released."""
        with anyio.CancelScope(shield=True):  # a cancelled worker still has to let go of its threads
            await self._reader.close()
            await self._writer.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- topics ---

    async def topics(self) -> dict[str, int]:
        """The number of partitions by topic."""
        return await self._reader.run(logs.topics)

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 if it does not exist."""
        return await self._reader.run(logs.partitions, topic)

    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None:
        """Make a topic. Raises ConfigError if it exists with another number, or the name cannot be one."""
        check_topic(topic, partitions)
        await self._writer.run(logs.create, self.url, topic, partitions)

    async def end_offsets(self, topic: str) -> list[int]:
        """By partition, the offset that the next record will have. Raises ConfigError if there is no such topic."""
        return await self._reader.run(logs.end_offsets, self.url, topic)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The offsets of the oldest record that is left, and of the next one to come."""
        _, start, end = await self._reader.run(logs.log_of, self.url, topic, partition)
        return start, end

    async def put(self, topic: str, records: Sequence[KeyValueTime], partition: int | None = None) -> None:
        """Append (key, value, time in ms) from outside, all or none: to `partition`, or by key, or round robin.

        Raises ConfigError if there is no such topic or partition.
        """
        await self._writer.run(logs.put, self.url, topic, records, partition)

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Records:
        """At most `limit` records from `offset` on, or from the oldest that is left; fewer if they are big."""
        return await self._reader.run(logs.read, self.url, topic, partition, offset, limit)

    async def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Forget the records before `offset`; their room in the file is used again."""
        await self._writer.run(logs.delete_before, self.url, topic, partition, offset)

    def source(
        self, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail", shared: bool = False
    ) -> LogSource:
        """The topic as the worker reads it."""
        return LogSource(self, topic, start=start, out_of_range=out_of_range)

    async def wait(self, timeout_ms: float, seen: int | None = None) -> int:
        """Return once anyone has written anything, in this or another process, or after `timeout_ms`.

        The answer is a mark; given as `seen` to the next call it makes that return at once if something was written
        in between. So: fetch everything after one call, then call again with its mark, and nothing is overlooked.
        """
        version = await self._look()
        seen = version if seen is None else seen
        until = self._clock.now_ms() + timeout_ms
        while version == seen and (left := until - self._clock.now_ms()) > 0:
            await self._clock.sleep(min(POLL_MS, left))
            if self._clock.now_ms() - self._looked_at_ms >= POLL_MS:  # else another waiter has just looked
                await self._look()
            version = self._version
        return version

    async def _look(self) -> int:
        """SQLite's mark of the last change by another connection (our own writer is another one, too)."""
        self._looked_at_ms = self._clock.now_ms()
        self._version = await self._reader.run(_data_version)
        return self._version

    # --- tasks ---

    async def claim(self, task: str, state: str, *, worker: str | None = None, seen: int | None = None) -> Claimed:
        """Become the task's owner: fences every earlier one. `state` is where the task's state will be kept.

        The owner's name is `worker`, or that of the last `join`. Given `seen`, the epoch that made the task look free
        (0: never claimed), a claim that comes second raises Fenced instead of taking the task from the first.
        """
        owner = self._worker if worker is None else worker
        return await self._writer.run(ledger.claim, task, owner, state, self._clock.now_ms(), seen)

    async def last_commit(self, task: str) -> tuple[int, bytes | None]:
        """Number and id of the last commit of `task` that counts (0, None: none yet)."""
        return await self._writer.run(ledger.last_commit, task)

    async def positions(self, task: str) -> Any:
        """The positions in the last commit that counts; None if there is none yet."""
        return await self._reader.run(ledger.positions, task)

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
        """Outputs, positions and identity in one transaction. A commit that counts already succeeds and does nothing.

        Raises Fenced if `epoch` is not the task's any more, CommitError if another commit has the number,
        OutcomeUnknown if nobody knows what became of the transaction, ConfigError if a topic or partition is missing.
        """
        await self._writer.run(ledger.commit, self.url, task, epoch, number, commit_id, positions, outputs)

    async def place(self, worker: str, tasks: Sequence[str], held: set[str]) -> Placing:
        """What `worker`, which runs the tasks `held`, has to claim and to release, so that all `tasks` are shared."""
        return await place_by_leases(self, worker, tasks, held, self._clock.now_ms())

    async def leases(self, prefix: str = "") -> list[Lease]:
        """The tasks whose name begins with `prefix` and that were ever claimed, by name."""
        return await self._reader.run(ledger.leases, prefix)

    async def ran(self, tasks: str) -> int:
        """How many tasks there have been whose names begin with `tasks` (`APP/GROUP/`); 0: none yet."""
        return max((int(lease.task.removeprefix(tasks)) + 1 for lease in await self.leases(tasks)), default=0)

    async def renew(self, worker: str, tasks: Sequence[str]) -> list[str]:
        """Prolong the worker's leases. The answer: which of the tasks it does not own any more."""
        return await self._writer.run(ledger.renew, worker, tasks, self._clock.now_ms())

    async def release(self, task: str, epoch: int) -> None:
        """Give the task up; does nothing if another has claimed it. Commits under `epoch` are fenced from now on."""
        await self._writer.run(ledger.release, task, epoch)

    async def join(self, worker: str, ttl_ms: int, tasks: Sequence[str] = ()) -> None:
        """Become a member until `ttl_ms` after the last heartbeat. Claims are made under this name from now on."""
        await self._writer.run(ledger.join, worker, ttl_ms, self._clock.now_ms())
        self._worker = worker

    async def heartbeat(self, worker: str) -> None:
        """A sign of life. Raises Fenced if the worker is unknown (it left, or was dead for a day)."""
        await self._writer.run(ledger.heartbeat, worker, self._clock.now_ms())

    async def leave(self, worker: str) -> None:
        """Be no member any more, and give all tasks up."""
        await self._writer.run(ledger.leave, worker)

    async def members(self, prefix: str = "") -> list[str]:
        """The living workers whose name begins with `prefix`, by name."""
        return await self._reader.run(ledger.members, prefix, self._clock.now_ms())


def _data_version(file: BrokerFile) -> int:
    (version,) = file.sql.execute("PRAGMA data_version").fetchone()
    return int(version)
