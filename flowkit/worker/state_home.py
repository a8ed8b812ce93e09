"""Where a worker keeps the state of its tasks: a directory for each ownership of a task, never shared.

    STATE/worker                          the last worker that used the directory, by its name at the broker
    STATE/instance                        what they are all known by where members of a group may come again
    STATE/commits.json                    about how far each task is: its last commit of a second ago
    STATE/tasks/TASK/OWNERSHIP/…          a store, and FROM: where the state was before, until the first commit here

A worker that takes a task over begins a directory of its own and copies what the last commit that counts left, so that
a zombie which still writes to the old one can spoil nothing. Which commit counts is the broker's word.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from flowkit.errors import ConfigError, StoreError, StoreLocked
from flowkit.source import Claim
from flowkit.store import Host, KeyProvider, LsmStore, OnProgress, Store, claim_directory, open_store, sync_directory
from flowkit.worker.beginning import TaskBeginning
from flowkit.worker.checkpointing import TaskCheckpoints
from flowkit.worker.restoring import Frames, Restoring

RESTORED_AT_ONCE = 2
"""So many tasks fetch their checkpoints at a time, each some files at once: that fills the way from an object store,
and while one syncs, another's bytes come."""


class StateHome:
    """The state directory of one worker. Paths are absolute: other workers, who run elsewhere, read them.

    `host` is what all its stores share; with `keys` they are encrypted.
    """

    def __init__(self, root: Path, host: Host | None = None, keys: KeyProvider | None = None) -> None:
        self.root, self.host, self.keys = root.absolute(), host, keys
        self._left: dict[Path, list[Path]] = {}
        """By directory: those that its state came from."""
        self._instance = ""
        self._commits: dict[str, int] | None = None
        self._turns = asyncio.Semaphore(RESTORED_AT_ONCE)

    def directory(self, task: str) -> Path:
        return self.root / "tasks" / quote(task, safe="")

    # Who uses it

    def predecessor(self) -> str:
        """The name of the worker that used the directory before ('' if none): dead, for its lock is ours now."""
        try:
            return (self.root / "worker").read_text().strip()
        except OSError:
            return ""

    def sign(self, worker: str) -> None:
        """Leave the worker's name for its successor. Without it the successor only waits for the leases to run out."""
        self._put("worker", f"{worker}\n")

    def instance(self) -> str:
        """The same for all workers that use the directory one after the other; a new directory gets a new one.

        Without room for it on the disk it lasts as long as this worker.
        """
        if not self._instance:
            with contextlib.suppress(OSError, ValueError):
                self._instance = bytes.fromhex((self.root / "instance").read_text()).hex()
        if not self._instance:
            self.other_instance()
        return self._instance

    def other_instance(self) -> None:
        """From now on another one: the directory is a copy, and a worker in the other one is alive."""
        self._instance = os.urandom(16).hex()
        self._put("instance", f"{self._instance}\n")

    # What there is

    def note(self, commits: Mapping[str, int]) -> None:
        """Remember how far tasks are: a hint, for those that place them when nobody has them."""
        known = self._noted()
        if any(known.get(task) != number for task, number in commits.items()):
            known |= commits
            self._put("commits.json", msgspec.json.encode(known).decode())

    def newest(self) -> dict[str, int]:
        """By task whose state is here: the number of its last commit, or one of a second before."""
        return {task: number for task, number in self._noted().items() if self._has_any(task)}

    def _has_any(self, task: str) -> bool:
        try:
            return any(self.directory(task).iterdir())
        except OSError:
            return False

    def _noted(self) -> dict[str, int]:
        if self._commits is None:
            self._commits = {}
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                self._commits = msgspec.json.decode((self.root / "commits.json").read_bytes(), type=dict[str, int])
        return self._commits

    def _put(self, name: str, text: str) -> None:
        draft = self.root / f".{name}"
        with contextlib.suppress(OSError):
            draft.write_text(text)
            draft.replace(self.root / name)

    # The directories of a task

    def begin(self, task: str, before: str) -> Path:
        """A new directory for a task whose state has been in `before` ('' if nowhere); durable before it is claimed.

        Raises StoreError if the disk does not take it.
        """
        place = self.directory(task) / os.urandom(8).hex()
        try:
            place.mkdir(parents=True)
            draft = place / ".FROM"
            draft.write_text(before)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.rename(place / "FROM")
            sync_directory(place)
            sync_directory(place.parent)
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise _trouble(place, error) from error
        return place

    @asynccontextmanager
    async def open(
        self,
        task: str,
        place: Path,
        claim: Claim,
        frames: Frames | None = None,
        checkpoints: TaskCheckpoints | None = None,
        progress: OnProgress | None = None,
        wanted: Callable[[], bool] = lambda: True,
        begin: TaskBeginning | None = None,
    ) -> AsyncIterator[Store]:
        """The store of a claimed task, as the last commit that counts left it: see `Restoring`.

        `frames` gives those that count after a number, where the broker keeps them: then the state may be behind, or
        nowhere. `progress` is told how much of a checkpoint is here. Once the task is no longer `wanted`, BrokenOff is
        raised before long. A task that has no commit yet has the state that it is to `begin` with, if any.

        Raises StoreCorrupt if that state is nowhere to be found: computing on from an older one would be wrong in
        silence. StoreError if the disk is full, or fails.
        """
        async with AsyncExitStack() as stack:
            try:
                store = await stack.enter_async_context(open_store(place, host=self.host, keys=self.keys))
            except ConfigError as error:
                # The directory was in order when the worker started: what is wrong now is the disk.
                if isinstance(error.__cause__, OSError):
                    raise _trouble(place, error.__cause__) from error
                raise
            if begin is not None and not claim.number:
                assert isinstance(store, LsmStore)
                await begin.bring(store, place, progress)
            if claim.number and not _has(store, claim.commit_id):
                assert isinstance(store, LsmStore)
                restoring = Restoring(
                    store,
                    task,
                    place,
                    claim,
                    list(_origins(place, claim.state)),
                    frames=frames,
                    checkpoints=checkpoints,
                    keys=self.keys,
                    progress=progress,
                    wanted=wanted,
                    begin=begin,
                    turns=self._turns,
                )
                await restoring.run()
                self._left[place] = restoring.seen
            yield store

    def sweep(self, place: Path) -> None:
        """Remove what the state in `place` came from, once a commit there counts; never one whose owner is alive."""
        for path in {*self._left.pop(place, []), *_beside(place)}:
            with contextlib.suppress(StoreLocked, ConfigError, OSError), claim_directory(path):
                shutil.rmtree(path)


def _has(store: Store, commit_id: bytes | None) -> bool:
    undecided = store.undecided
    return store.commit_id == commit_id or (undecided is not None and undecided.commit_id == commit_id)


def _origins(place: Path, last: str) -> Iterator[Path]:
    """Where the state may lie: in the directories that it came from, the last first, and where the `last` owner had it.

    Else beside `place`: the whole state directory may have been moved, and the names in it be out of date.
    """
    seen = {place}
    here = place
    while (before := _origin(here)) is not None and before not in seen:
        seen.add(before)
        yield before
        here = before
    if last and Path(last) not in seen:
        seen.add(Path(last))
        yield Path(last)
    yield from (path for path in _beside(place) if path not in seen)


def _origin(place: Path) -> Path | None:
    try:
        text = (place / "FROM").read_text()
    except OSError:
        return None
    return Path(text) if text else None


def _beside(place: Path) -> list[Path]:
    return [path for path in sorted(place.parent.iterdir()) if path != place and path.is_dir()]


def _trouble(place: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{place}: cannot be written ({error.strerror}): make room or mend the disk; what was committed is safe"
    )
