"""How the state of a claimed task comes to the commit that counts: from directories, checkpoints, and frames.

    a directory that has that commit    its files by hard link
    a checkpoint of that commit         fetched
    the newest of both that is part     and the frames that follow it, where the broker keeps them
    of the history
    the savepoint that the task began with, and all of its frames

What is damaged, or of another history, is told and passed over for the next. Whatever way is taken, the end is that
commit exactly, or an error: computing on from an older state would be wrong in silence.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from flowkit.errors import FlowkitError, StoreCorrupt, StoreError, StoreKeyError
from flowkit.source import Claim
from flowkit.store import Checkpoint, Frame, KeyProvider, LsmStore, OnProgress, Step, read_store
from flowkit.worker.beginning import TaskBeginning
from flowkit.worker.checkpointing import TaskCheckpoints

log = structlog.get_logger("flowkit.state")

Frames = Callable[[int], AsyncGenerator[Frame, None]]
"""The frames of a task that count after a number, in order."""

LOOK_SECONDS = 0.5
"""Who waits for its turn looks so often whether it is still wanted."""

TELL_SECONDS = 5.0
"""Long work says so often how far it is."""


class BrokenOff(StoreError):
    """The task is to be handed over, or is another's: nobody waits for its state any more."""


class Beginning(NamedTuple):
    """A state that may be part of the history, as of commit `number`. Of equal ones a directory comes first."""

    number: int
    directory: Path | None
    checkpoint: Checkpoint | None

    @property
    def where(self) -> str:
        """For people."""
        return str(self.directory) if self.checkpoint is None else f"checkpoint {self.checkpoint.name}"


class Restoring:
    """Brings `store`, which lies in `place`, to what `claim` says. `origins` are directories that may have its state.

    `frames` and `checkpoints` are None where there are none. Once the task is no longer `wanted`, BrokenOff is raised.
    Afterwards `seen` are the directories that are needed no more once a commit counts here.

    Checkpoints are fetched in `turns`: tasks that came together would all share the way from the storage, and all begin
    when the last byte is there. In turn, half of them work already when half of the bytes are.
    """

    def __init__(
        self,
        store: LsmStore,
        task: str,
        place: Path,
        claim: Claim,
        origins: Sequence[Path],
        *,
        frames: Frames | None = None,
        checkpoints: TaskCheckpoints | None = None,
        keys: KeyProvider | None = None,
        progress: OnProgress | None = None,
        wanted: Callable[[], bool] = lambda: True,
        begin: TaskBeginning | None = None,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        self.store, self.task, self.place, self.claim, self.origins = store, task, place, claim, origins
        self.frames, self.checkpoints, self.keys = frames, checkpoints, keys
        self.seen: list[Path] = []
        self.problems: list[FlowkitError] = []
        """Why what was looked at could not be taken."""
        self._progress, self._wanted, self._savepoint = progress, wanted, begin
        self._turns = turns or asyncio.Semaphore()
        self._told = 0.0
        self._kept: list[Checkpoint] = []

    async def run(self) -> None:
        """Do it. Raises StoreCorrupt if the state is nowhere to be found, StoreError if that cannot be told now."""
        store, claim = self.store, self.claim
        if self.frames is None and (store.number or store.undecided is not None):
            raise StoreCorrupt(
                f"task {self.task}: commit {claim.number} counts, but {self.place} is at commit {store.number}: bring "
                "back the directory as it was, or run the app under another name to begin anew"
            )
        if store.undecided is not None:  # if it counts, it is among the frames
            await store.resolve(store.undecided.commit_id, False)
        if store.number:
            await self._go_on()
            return
        if await self._from_directory():
            return
        if self.checkpoints is not None:
            await self._look_at_checkpoints(self.checkpoints)
        if self.frames is not None:
            await self._from_frames(self.frames)
        elif not await self._from_checkpoint():
            raise self._nowhere()

    # Whole

    async def _from_directory(self) -> bool:
        """Take the state of the nearest directory that has the commit."""
        for before in self.origins:
            self.seen.append(before)
            try:
                found = await self.store.adopt(before, self.claim.commit_id or b"")
            except (StoreCorrupt, StoreKeyError) as error:
                self._pass_over(str(before), error)
                continue
            if found:
                log.info("state taken over", task=self.task, path=str(before), commit=self.claim.number)
                return True
        return False

    async def _look_at_checkpoints(self, checkpoints: TaskCheckpoints) -> None:
        try:
            self._kept = await checkpoints.usable()
        except StoreError as error:
            self._pass_over(f"checkpoints in {checkpoints.where}", error)

    async def _from_checkpoint(self) -> bool:
        """Take the checkpoint of the very commit, if there is one: nothing here leads from any other one to it."""
        for kept in self._kept:
            if bytes.fromhex(kept.commit_id) == self.claim.commit_id:
                try:
                    await self._fetch(kept)
                except StoreCorrupt as error:
                    self._pass_over(f"checkpoint {kept.name}", error)
                else:
                    return True
        return False

    # With frames

    async def _go_on(self) -> None:
        """The store is on its way already: bringing it there was broken off, or another owner has committed since."""
        frame = await self._frame(self.store.number)
        if frame is None or frame.commit_id != self.store.commit_id:
            raise StoreCorrupt(
                f"task {self.task}: commit {self.store.number} in {self.place} never counted: remove the directory"
            )
        await self._follow(str(self.place))

    async def _from_frames(self, frames: Frames) -> None:
        """Begin with the newest state that is part of the history, and apply the frames that follow it."""
        began = "nothing"
        for beginning in await self._beginnings():
            try:
                if await self._begin(beginning):
                    began = beginning.where
                    break
                log.warning("not part of the history", task=self.task, path=beginning.where, commit=beginning.number)
            except StoreError as error:
                if self.store.number or isinstance(error, BrokenOff):
                    raise
                self._pass_over(beginning.where, error)
        if not self.store.number and await self._from_savepoint(frames):
            began = "a savepoint"
        try:
            await self._follow(began)
        except StoreCorrupt as error:
            if self.store.number:
                raise
            self.problems.append(error)
            raise self._nowhere() from error

    async def _from_savepoint(self, frames: Frames) -> bool:
        """Take what the task began with, if its first frame is still there."""
        if (begin := self._savepoint) is None:
            return False
        with contextlib.suppress(StoreCorrupt):  # the frames do not reach back so far
            async with aclosing(frames(begin.seal.commit)) as following:
                async for frame in following:
                    if frame.parent == begin.commit_id:
                        await begin.bring(self.store, self.place, self._fetched)
                        return True
                    break
        return False

    async def _beginnings(self) -> list[Beginning]:
        known = [Beginning(kept.commit, None, kept) for kept in self._kept]
        for before in self.seen:
            with contextlib.suppress(FlowkitError):  # half of a directory, or one without its keys: another one will do
                look = await asyncio.to_thread(read_store, before, self.keys)
                known.append(Beginning(look.number, before, None))
        possible = [each for each in known if 0 < each.number <= self.claim.number]
        return sorted(possible, key=lambda each: (each.number, each.checkpoint is None), reverse=True)

    async def _begin(self, beginning: Beginning) -> bool:
        """Make it the store's state, if its commit is part of the history. Raises StoreError."""
        frame = await self._frame(beginning.number)
        if frame is None:
            return False
        if beginning.checkpoint is not None:
            if bytes.fromhex(beginning.checkpoint.commit_id) != frame.commit_id:
                return False
            await self._fetch(beginning.checkpoint)
            return True
        assert beginning.directory is not None
        if await self.store.adopt(beginning.directory, frame.commit_id):
            return True
        # Its last frame never counted: it was another of that number, or the one before is its last.
        return bool(frame.parent) and await self.store.adopt(beginning.directory, frame.parent)

    async def _frame(self, number: int) -> Frame | None:
        """The frame of that number. Raises StoreCorrupt if it is gone and later ones are there."""
        assert self.frames is not None
        async with aclosing(self.frames(number - 1)) as following:
            async for frame in following:
                return frame
        return None

    async def _follow(self, began: str) -> None:
        """Apply the frames from where the store is. Raises StoreCorrupt unless they lead to the commit that counts."""
        assert self.frames is not None
        store, claim, first = self.store, self.claim, self.store.number
        started = self._told = time.monotonic()
        async with aclosing(self.frames(first)) as following:
            async for frame in following:
                await store.prepare(frame)
                await store.resolve(frame.commit_id, True)
                if self._go_on_and_tell():
                    log.info("applying frames", task=self.task, commit=store.number, to=claim.number)
        if store.commit_id != claim.commit_id:
            raise StoreCorrupt(
                f"task {self.task}: commit {claim.number} counts, but its frames lead to commit {store.number}: start "
                "the app under another name to begin anew"
            )
        log.info(
            "state restored from frames",
            task=self.task,
            commit=claim.number,
            began_with=began,
            frames=store.number - first,
            seconds=round(time.monotonic() - started, 3),
        )

    # Fetching

    async def _fetch(self, kept: Checkpoint) -> None:
        """Make a checkpoint the store's state, when it is our turn. Raises StoreCorrupt, StoreError."""
        async with self._turn(kept):
            await self._fetch_now(kept)

    @asynccontextmanager
    async def _turn(self, kept: Checkpoint) -> AsyncIterator[None]:
        """Wait for a turn, in the order in which they came; no longer than the task is wanted."""
        self._told = time.monotonic()
        waiting = asyncio.create_task(self._turns.acquire())
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=LOOK_SECONDS)
                if self._go_on_and_tell():
                    log.info("others are restored before", task=self.task, checkpoint=kept.name, bytes=kept.bytes)
            yield
        finally:
            if waiting.done():
                self._turns.release()
            else:
                waiting.cancel()

    async def _fetch_now(self, kept: Checkpoint) -> None:
        """By way of a directory beside the store's."""
        assert self.checkpoints is not None
        started = time.monotonic()
        facts = {"task": self.task, "checkpoint": kept.name, "commit": kept.commit, "bytes": kept.bytes}
        log.info("restoring a checkpoint", **facts, files=kept.files, where=self.checkpoints.where)
        self._told = started
        scratch = self.place.parent / f"restored-{os.urandom(4).hex()}"
        self.seen.append(scratch)
        try:
            await self.checkpoints.restore(kept.name, scratch, self._fetched)
            if not await self.store.adopt(scratch, bytes.fromhex(kept.commit_id)):
                raise StoreCorrupt(f"{kept.name}: is not of commit {kept.commit_id}, as it says")
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        log.info("checkpoint restored", **facts, seconds=round(time.monotonic() - started, 3))

    def _fetched(self, step: Step) -> None:
        if self._progress is not None:
            self._progress(step)
        if self._go_on_and_tell():
            log.info("restoring", task=self.task, file=step.name, bytes=step.done, of=step.total)

    # Telling

    def _go_on_and_tell(self) -> bool:
        """True if it is time to say how far it is. Raises BrokenOff."""
        if not self._wanted():
            raise BrokenOff(f"task {self.task}: bringing its state here was broken off")
        if time.monotonic() - self._told < TELL_SECONDS:
            return False
        self._told = time.monotonic()
        return True

    def _pass_over(self, where: str, error: FlowkitError) -> None:
        self.problems.append(error)
        log.error("state cannot be taken from there; trying what is left", task=self.task, path=where, error=str(error))

    def _nowhere(self) -> StoreError:
        looked = ", ".join(map(str, self.origins)) or "nowhere"
        told = "".join(f"; {error}" for error in self.problems)
        if self._kept:
            newest = self._kept[0]
            why = "its frames do not lead on from there" if self.frames else "this broker keeps no frames to lead on"
            told += f"; checkpoint {newest.name} is of commit {newest.commit}, and {why}"
        # What cannot be reached just now may be there the next time.
        lasting = all(isinstance(error, StoreCorrupt | StoreKeyError) for error in self.problems)
        anew = "bring the directory back, or run the app under another name to begin anew"
        cure = anew if lasting else "it may be where nothing could be read now, which is tried again"
        return (StoreCorrupt if lasting else StoreError)(
            f"task {self.task}: its state at commit {self.claim.number} was looked for in {looked} and is not "
            f"there{told}: {cure}"
        )
