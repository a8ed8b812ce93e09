"""Beginning an app with a savepoint: each task with its state and positions, the internal topics anew.

    check    the app is as it was (groups, partitions), and nothing has been done under its name on this broker
    mark     the broker is told, once and for ever, with which savepoint the app begins: as the only commit of a task of
             its own, APP/~savepoint/0. Whoever begins with another one, or without, is refused
    begin    a task without commits takes its checkpoint, and commits that: from here it is a task like any other

All of it may be broken off and done again at any point, by any worker: only the marker decides what is begun with, and
only a task's first commit that it has been.

Internal topics were drained, so nothing of the old ones is needed: positions in them are dropped, and they must be new.
The app's name is in theirs, so that under another name they are others, on the same broker too.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio
import structlog

from flowkit.agent import Group
from flowkit.errors import CommitError, ConfigError, Fenced, StoreCorrupt
from flowkit.sink import FileSink, Forking, Sink
from flowkit.source import Claim, Known, Output
from flowkit.store import Checkpoints, Frame, KeyProvider, LsmStore, OnProgress, Storage, Store, folder_of
from flowkit.worker.savepoint import Manifest, Seal

log = structlog.get_logger("flowkit.savepoint")

TRIES = 5


class Commits(Protocol):
    """What a task asks of a broker here."""

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Output],
        frame: Frame | None = None,
    ) -> None: ...


class Remembers(Protocol):
    """What is asked of a broker that knows who has read a topic."""

    async def ran(self, tasks: str) -> int: ...
    async def left(self, app: str, groups: Sequence[str]) -> Mapping[str, Sequence[str]]: ...


class Ledger(Commits, Protocol):
    """What the app asks of a broker here."""

    async def end_offsets(self, topic: str) -> Sequence[int]: ...
    async def claim(self, task: str, state: str) -> Claim: ...
    async def release(self, task: str, epoch: int) -> None: ...
    async def last_commit(self, task: str) -> tuple[int, bytes | None]: ...


def marker_of(app: str) -> str:
    """The task whose only commit tells with which savepoint the app has begun."""
    return f"{app}/~savepoint/0"


async def begun_with(ledger: Ledger, app: str) -> str | None:
    """The id of the savepoint with which the app has begun on this broker; None if it has begun with none, or not."""
    _, commit_id = await ledger.last_commit(marker_of(app))
    return None if commit_id is None else commit_id.hex()


class Leased(Protocol):
    """What is asked of a broker that places tasks by leases."""

    async def leases(self, prefix: str = "") -> Sequence[Known]: ...
    async def positions(self, task: str) -> Any: ...


async def tell_names(broker: Leased, app: str, groups: Sequence[Group]) -> None:
    """As `check_names`, where tasks are placed by leases: those stay for ever, so it is no more than a warning."""
    tasks: dict[str, list[str]] = {}
    for lease in await broker.leases(f"{app}/"):
        tasks.setdefault(lease.task.split("/")[1], []).append(lease.task)
    for group in groups:
        if group.name in tasks:
            continue
        for other in tasks.keys() - {each.name for each in groups}:
            splits = [split for task in tasks[other] for split in await broker.positions(task) or ()]
            read = {topic for split in splits if group.input_of(topic := split.rpartition("[")[0]) is not None}
            if read:
                log.warning(
                    "a group of tasks begins anew, with empty tables, and reads what one that is gone has read: it is "
                    "called after the first of its tables by name",
                    group=group.name,
                    reads=sorted(read),
                    instead_of=other,
                )


async def check_names(broker: Remembers, app: str, groups: Sequence[Group]) -> None:
    """See that no group of tasks begins anew since it has got another name.

    Raises ConfigError if one that has not run yet would read what another has read that is in the app no more: its
    results would be sent once more, and its tables would be empty.
    """
    left = await broker.left(app, [group.name for group in groups])
    problems = []
    for group in groups:
        read = {topic: kept for topic, kept in sorted(left.items()) if group.input_of(topic) is not None}
        if read and not await broker.ran(f"{app}/{group.name}/"):
            kept = " and ".join(map(repr, sorted({name for names in read.values() for name in names})))
            tables = ", ".join(sorted(table.name for table in group.tables)) or "none"
            problems.append(
                f"group {group.name!r} (tables: {tables}) has not run yet and would read {', '.join(read)} from the "
                f"start, with empty tables, and send all once more: who has read that is in the app no more, its state "
                f"is in {kept}. A group is called after the first of its tables by name: bring back the one that "
                f"was renamed or taken away, or call a new one so that it is not the first; or, to begin anew, delete "
                f"topic {kept}"
            )
    if problems:
        raise ConfigError(*problems)


class Beginning:
    """Begins tasks of `app` with the savepoint `manifest`, which lies in `storage`."""

    def __init__(self, app: str, manifest: Manifest, storage: Storage, keys: KeyProvider | None) -> None:
        self.app, self.manifest, self.storage, self.keys = app, manifest, storage, keys
        self._seals = {seal.task.partition("/")[2]: seal for seal in manifest.seals}

    async def check(self, ledger: Ledger, tasks: Sequence[str], internal: Sequence[str]) -> None:
        """See whether the app can begin with it on this broker, and tell the broker that it does.

        Raises ConfigError if it has done anything there that did not begin so.
        """
        # Before the marker: what tasks that have begun send is none of what must not be there.
        filled = [topic for topic in internal if any(await ledger.end_offsets(topic))]
        begun = await begun_with(ledger, self.app)
        if begun is None:
            found = {task: (await ledger.last_commit(task))[0] for task in tasks}
            begun = await begun_with(ledger, self.app)  # by another worker, meanwhile
            if begun is None:
                self._check_new({task: number for task, number in found.items() if number}, filled)
                begun = await self._mark(ledger)
        if begun != self.manifest.id:
            raise ConfigError(
                f"--from {self.storage.url}: app {self.app!r} has begun with another savepoint on this broker "
                f"({begun}, not {self.manifest.id}): name that one, or start the app under another name or on another "
                "broker"
            )

    def _check_new(self, committed: Mapping[str, int], filled: Sequence[str]) -> None:
        cure = "start the app under another name or on another broker to begin with the savepoint"
        if committed:
            task, number = next(iter(committed.items()))
            raise ConfigError(
                f"--from {self.storage.url}: app {self.app!r} has commits of its own on this broker (task {task}: "
                f"commit {number}): leave --from out to go on from them, or {cure}"
            )
        if filled:
            raise ConfigError(
                f"--from {self.storage.url}: internal topic {filled[0]!r} is not empty, though app {self.app!r} has no "
                f"commits on this broker: delete the topic, or {cure}"
            )

    async def _mark(self, ledger: Ledger) -> str:
        """Tell the broker; the id of the savepoint that it was told of first."""
        marker, id_ = marker_of(self.app), bytes.fromhex(self.manifest.id)
        for tries_left in reversed(range(TRIES)):
            try:
                claim = await ledger.claim(marker, "")
                if not claim.number:
                    frame = Frame(1, id_, b"", claim.epoch, {"app": self.app}, [])
                    await ledger.commit(marker, claim.epoch, 1, id_, {}, [], frame)
                await ledger.release(marker, claim.epoch)
            except CommitError:  # another worker does the same, or nobody knows whether it counts
                if not tries_left:
                    raise
            begun = await begun_with(ledger, self.app)
            if begun is not None:
                return begun
        raise CommitError(f"app {self.app!r}: the broker does not keep with which savepoint it begins")

    def of(self, task: str) -> "TaskBeginning":
        """What one task begins with."""
        seal = self._seals[task.partition("/")[2]]
        checkpoints = Checkpoints(self.storage.blobs(*folder_of(seal.task)), keys=self.keys)
        return TaskBeginning(task, seal, checkpoints, self.manifest)


class TaskBeginning:
    """A task's part of a savepoint, to begin with."""

    def __init__(self, task: str, seal: Seal, checkpoints: Checkpoints, manifest: Manifest) -> None:
        self.task, self.seal, self.manifest = task, seal, manifest
        self.commit_id = bytes.fromhex(seal.commit_id)
        self._checkpoints = checkpoints

    async def bring(self, store: LsmStore, place: Path, progress: OnProgress | None = None) -> None:
        """Make its state that of `store`, which lies in `place`; what a try before this one has done is taken up.

        Raises StoreCorrupt, StoreKeyError, StoreError.
        """
        if store.undecided is not None:  # the broker knows of no commit, so this one does not count
            await store.resolve(store.undecided.commit_id, False)
        if store.number:
            if store.commit_id != self.commit_id:
                raise StoreCorrupt(f"{place}: is at commit {store.number}, which never counted: remove the directory")
            return
        log.info("state comes from a savepoint", task=self.task, id=self.manifest.id, bytes=self.seal.bytes)
        scratch = place.parent / f"restored-{os.urandom(4).hex()}"
        try:
            await self._checkpoints.restore(scratch, self.seal.name, progress)
            if not await store.adopt(scratch, self.commit_id):
                raise StoreCorrupt(f"{self.seal.name}: is not of commit {self.seal.commit_id}, as the savepoint says")
        finally:
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(scratch, ignore_errors=True))

    async def commit(
        self, store: Store, ledger: Commits, epoch: int, commit_id: bytes, sinks: Mapping[str, Sink]
    ) -> None:
        """The task's first commit: that it has begun so. Raises Fenced, OutcomeUnknown."""
        meta = self._meta(store.meta, sinks)
        frame = Frame(store.number + 1, commit_id, store.commit_id, epoch, meta, [])
        await store.prepare(frame)
        try:
            await ledger.commit(self.task, epoch, frame.number, commit_id, meta["positions"], [], frame)
        except Fenced:
            await store.resolve(commit_id, False)
            raise
        await store.resolve(commit_id, True)
        log.info("task begins with a savepoint", task=self.task, id=self.manifest.id, commit=frame.number)

    def _meta(self, meta: Mapping[str, Any], sinks: Mapping[str, Sink]) -> dict[str, Any]:
        """The state as it is to be: without what was of the old internal topics, or of files that are not here."""
        app = self.task.partition("/")[0]
        renamed = {topic: f"{app}.{topic.removeprefix(f'{self.manifest.app}.')}" for topic in self.manifest.internal}

        def kept(by_split: Mapping[str, Any]) -> dict[str, Any]:
            return {split: value for split, value in by_split.items() if split.rpartition("[")[0] not in renamed}

        def named(split: str) -> str:
            topic, bracket, number = split.rpartition("[")
            return f"{renamed.get(topic, topic)}{bracket}{number}"

        groups = {}
        for name, group in meta.get("groups", {}).items():
            # What the senders have said still holds: they will not say it again.
            splits = {named(split): row for split, row in group["splits"]["splits"].items()}
            groups[name] = {**group, "splits": {**group["splits"], "splits": splits}}
        files = {name: Path(sink.path) for name, sink in sinks.items() if isinstance(sink, FileSink)}
        here = {name for name in sinks if name not in files or files[name].exists()}
        return {
            **meta,
            "app": app,
            "groups": groups,
            "positions": kept(meta.get("positions", {})),
            "heard": kept(meta.get("heard", {})),
            # What it handed over was delivered before it sealed. A file that is here goes on as of then.
            "sinks": {
                name: [_forked(sinks[name], saved[0]), None]
                for name, saved in meta.get("sinks", {}).items()
                if name in here
            },
        }


def _forked(sink: Sink, state: Any) -> Any:
    return sink.forked(state) if isinstance(sink, Forking) else state
