"""A task's checkpoints while it runs: published in the background, from time to time, under the epoch of its ownership.

What goes wrong is told and tried again: the last checkpoint stands, and commits go on. Only that another owner has
claimed the checkpoints ends the task, for it is that owner's now. After each checkpoint the broker may forget the
frames that no checkpoint needs any more.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from flowkit.clock import Clock
from flowkit.errors import Fenced, FlowkitError
from flowkit.source import KeepsFrames, Known
from flowkit.store import Checkpoint, Checkpoints, LsmStore, OnProgress
from flowkit.worker.meter import Meter

log = structlog.get_logger("flowkit.checkpoints")

FIRST_WAIT_MS, LONGEST_WAIT_MS = 1_000, 60_000
"""What failed is tried again after 1, 2, 4 … s, at most 60, and never later than the next one would be due."""


class Leases(Protocol):
    """What is asked of a broker here."""

    async def leases(self, prefix: str = "") -> Sequence[Known]: ...


class TaskCheckpoints:
    """The checkpoints of a task that this worker has claimed under `epoch`.

    One is published about every `interval` ms, if there was a commit; `frames` is the broker, if it keeps them.
    """

    def __init__(
        self,
        task: str,
        checkpoints: Checkpoints,
        epoch: int,
        *,
        where: str,
        leases: Leases,
        frames: KeepsFrames | None,
        interval: int,
        clock: Clock,
        meter: Meter,
    ) -> None:
        self.task, self.checkpoints, self.epoch, self.where = task, checkpoints, epoch, where
        self.interval, self.clock, self.meter = interval, clock, meter
        self._leases, self._frames = leases, frames
        self._job: asyncio.Task[None] | None = None
        self._newest: str | None = None
        """The commit (hex) of the newest checkpoint; None before it is known."""
        self._untrimmed = True

    # Owning

    async def claim(self) -> None:
        """Become the owner, if that has not been done yet. Raises Fenced, StoreError."""
        if self.checkpoints.epoch is not None:
            return
        try:
            await self.checkpoints.claim(self.epoch)
        except Fenced as error:
            for lease in await self._leases.leases(self.task):
                if lease.task == self.task and lease.epoch > self.epoch:
                    raise
            # The task is ours. A broker that was made anew gives epochs out again, Kafka's changelog that of an owner
            # who never committed, and an answer that was lost makes ours look like another's.
            epoch = await self.checkpoints.claim()
            log.info("checkpoints claimed under a later epoch", task=self.task, epoch=epoch, why=str(error))

    # Restoring

    async def usable(self) -> list[Checkpoint]:
        """Those that are kept, the newest first; what cannot be read is left out, and told. Raises Fenced, StoreError.

        Claimed first, so that none of them is deleted meanwhile.
        """
        await self.claim()
        return await self.checkpoints.kept(skip_damaged=True)

    async def restore(self, name: str, path: Path, progress: OnProgress) -> None:
        """Make a store in `path` of a checkpoint. Raises StoreCorrupt, StoreError."""
        await self.checkpoints.restore(path, name, progress)

    # Publishing

    def start(self, store: LsmStore) -> None:
        """Publish in the background from now on, until `stop`."""
        self._job = asyncio.create_task(self._publish(store), name=f"checkpoints of {self.task}")

    def check(self) -> None:
        """Raise Fenced if another owner has claimed the checkpoints."""
        if self._job is not None and self._job.done() and not self._job.cancelled():
            self._job.result()

    async def stop(self) -> None:
        """Break off what is under way: the last checkpoint stands."""
        if self._job is not None:
            self._job.cancel()
            with contextlib.suppress(asyncio.CancelledError, FlowkitError):
                await self._job

    async def finish(self, store: LsmStore, seconds: float) -> None:
        """The last commit is through. Without frames only a checkpoint of that very commit is of use: publish it."""
        if self._frames is None:
            await self.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._try("last checkpoint not published", lambda: self._once(store))

    async def _publish(self, store: LsmStore) -> None:
        # At once: without transactions, one whom nobody has told yet may go on publishing what does not count.
        await self._try("checkpoints not claimed; trying again with the first of them", self.claim)
        # Each task at a moment of its own, or all of them would write at once.
        await self.clock.sleep(round(self.interval * zlib.crc32(self.task.encode()) / 2**32))
        wait = FIRST_WAIT_MS
        while True:
            if await self._try("checkpoint not published; trying again", lambda: self._once(store)):
                # What is not forgotten this time takes room, and nothing else: it is no reason to hurry.
                await self._try("frames not trimmed; trying again with the next checkpoint", self._trim)
                wait = FIRST_WAIT_MS
                await self.clock.sleep(self.interval)
            else:
                await self.clock.sleep(min(wait, self.interval))
                wait = min(wait * 2, LONGEST_WAIT_MS)

    async def _try(self, failed: str, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except Fenced:
            raise
        except Exception as error:
            self.meter.checkpoint_failures += 1
            log.warning(
                failed,
                task=self.task,
                where=self.where,
                error=str(error) or type(error).__name__,
                exc_info=not isinstance(error, FlowkitError),
            )
            return False
        return True

    async def _once(self, store: LsmStore) -> None:
        await self.claim()
        if self._newest is None:
            kept = await self.checkpoints.kept(skip_damaged=True)
            self._newest = kept[0].commit_id if kept else ""
        if not store.number:
            return
        if store.commit_id.hex() != self._newest:
            began = time.monotonic()
            done = await self.checkpoints.publish(store)
            self._newest, self._untrimmed = done.commit_id, True
            log.info(
                "checkpoint published",
                task=self.task,
                checkpoint=done.name,
                commit=done.commit,
                bytes=done.bytes,
                uploaded=done.uploaded_bytes,
                seconds=round(time.monotonic() - began, 3),
            )
        self.meter.checkpointed_at = self.clock.now_ms()

    async def _trim(self) -> None:
        """Let the broker forget the frames from before the oldest checkpoint, if there are as many as are to be kept.

        With fewer, what stands in for one that turns out to be damaged is the frames themselves.
        """
        if self._frames is None or not self._untrimmed:
            return
        kept = await self.checkpoints.kept(skip_damaged=True)
        if len(kept) >= self.checkpoints.keep:
            await self._frames.trim(self.task, min(each.commit for each in kept))
        self._untrimmed = False
