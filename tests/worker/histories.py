"""A task's history as a broker keeps it: commits of one owner after the other, and the frames since the last trim."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowkit.clock import Clock, VirtualClock
from flowkit.errors import StoreCorrupt
from flowkit.source.rules import Claimed, Lease
from flowkit.store import Checkpoints, DirectoryBlobs, Frame, LsmStore, SpaceChange, Store
from flowkit.worker import Meter
from flowkit.worker.checkpointing import TaskCheckpoints

TASK = "app/group/0"


@dataclass
class History:
    """What counts of one task: a broker that keeps frames, as far as checkpoints and restoring ask it anything."""

    kept: list[Frame] = field(default_factory=list)
    number: int = 0
    commit_id: bytes | None = None
    given_to_another: int = 0
    """The epoch of another owner; 0 if there is none."""
    trimmed: list[int] = field(default_factory=list)
    reads: int = 0
    fail_after: int | None = None
    """After so many frames were read, the broker goes away."""

    def claim(self, epoch: int = 1) -> Claimed:
        return Claimed(epoch, self.number, self.commit_id, "")

    async def commit(self, store: Store, value: str, *, counts: bool = True) -> Frame:
        """One commit: keys "k" and "k<number>" have a value."""
        number = store.number + 1
        rows = [b"k", b"k%d" % number]
        changes = [SpaceChange("t", None, rows, [value.encode()] * 2)]
        frame = Frame(number, f"{number} {value}".encode(), store.commit_id, 1, {}, changes)
        await store.prepare(frame)
        if counts:
            self.number, self.commit_id = number, frame.commit_id
            self.kept.append(frame)
            await store.resolve(frame.commit_id, applied=True)
        return frame

    async def frames(self, task: str, after: int) -> AsyncGenerator[Frame, None]:
        expected = after + 1
        for frame in [frame for frame in self.kept if frame.number > after]:
            if self.fail_after is not None and self.reads >= self.fail_after:
                raise ConnectionError("the broker is away")
            self.reads += 1
            if frame.number > expected:
                raise StoreCorrupt(f"commit {expected} is not there, the next one is {frame.number}")
            yield frame
            expected += 1

    async def trim(self, task: str, number: int) -> None:
        self.trimmed.append(number)
        self.kept = [frame for frame in self.kept if frame.number >= number] or self.kept[-1:]

    async def leases(self, prefix: str = "") -> Sequence[Lease]:
        return [Lease(prefix, "w2", self.given_to_another, 0, "")] if self.given_to_another else []


def checkpoints_of(
    history: History,
    path: Path,
    *,
    epoch: int = 1,
    frames: bool = True,
    interval: int = 1_000,
    clock: Clock | None = None,
    made: Checkpoints | None = None,
) -> TaskCheckpoints:
    """A task's checkpoints as files in `path`."""
    return TaskCheckpoints(
        TASK,
        made or Checkpoints(DirectoryBlobs(path), clock=clock or VirtualClock()),
        epoch,
        where=str(path),
        leases=history,
        frames=history if frames else None,
        interval=interval,
        clock=clock or VirtualClock(),
        meter=Meter(),
    )


async def publish(store: Store, path: Path) -> str:
    """A checkpoint of `store`; its name."""
    assert isinstance(store, LsmStore)
    made = Checkpoints(DirectoryBlobs(path), keys=store.keys)
    await made.claim()
    return (await made.publish(store)).name
