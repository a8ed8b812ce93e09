"""A shard's first commits: the state of its parents' tasks, as far as its keys go, a portion a commit.

    commits 1 …   of each table the keys in the shard's range, and their timers; where it stands is in `inheriting`
    the last      all else, as `heritage` has it; from here on it is a task like any other

Portions are bounded, whatever the state is: no frame is larger than what memory and a frame log take. A worker that
dies in between has left the portions that count, and whoever opens the task next goes on after them.

A parent's state is where a next owner would find it: where the last one kept it, in a checkpoint, or in the frames.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import structlog

from flowkit.agent import Group
from flowkit.errors import Fenced, StoreCorrupt
from flowkit.sink import Sink
from flowkit.source import BEGIN, is_end
from flowkit.store import Frame, SpaceChange, Store
from flowkit.worker.floors import Owns
from flowkit.worker.heritage import Parent, heritage

log = structlog.get_logger("flowkit.shards")

TIME_BYTES = 8
"""What an entry of a table's timers has before its key."""
PORTION_BYTES = 4 << 20
"""Of keys and values in one commit; one value more may be in it."""
ROW_BYTES = 64
"""What a row takes beside its bytes."""

Portion = tuple[Any, list[SpaceChange]]
"""Where it ends (a parent's number, its table, the space's end, key), and its rows."""


class Ledger(Protocol):
    """What is asked of a broker here."""

    async def positions(self, task: str) -> Any: ...
    async def last_commit(self, task: str) -> tuple[int, bytes | None]: ...
    async def came_from(self, task: str, shards: Sequence[int]) -> None: ...

    async def commit(
        self,
        task: str,
        epoch: int,
        number: int,
        commit_id: bytes,
        positions: Any,
        outputs: Sequence[Any],
        frame: Frame | None = None,
    ) -> None: ...


class Inheritance:
    """What a task takes over from `parents`, whose last commits `open_` shows. `splits` are its shards, by stream.

    `spans` are those of the parents' keys, as far as they are known still. `eldest` is True for the one that takes what
    has no key: the first of a shard's children.
    """

    def __init__(
        self,
        task: str,
        group: Group,
        splits: Sequence[str],
        parents: Sequence[str],
        owns: Owns | None,
        open_: Callable[[str], AbstractAsyncContextManager[Store]],
        *,
        ledger: Ledger,
        eldest: bool,
        spans: Mapping[str, str],
        new_id: Callable[[], bytes],
    ) -> None:
        self.task, self.group, self.splits, self.parents, self.owns = task, group, splits, parents, owns
        self.eldest, self.ledger, self.spans = eldest, ledger, spans
        self._open, self._new_id = open_, new_id
        self._local = {table.name for table in group.tables if table.local}

    async def commit(self, store: Store, ledger: Any, epoch: int, commit_id: bytes, sinks: Mapping[str, Sink]) -> None:
        """Make the first commits, or those that are missing of them.

        None if no parent has ever committed: then the app began after they were closed.
        Raises StoreCorrupt, StoreError, Fenced, OutcomeUnknown.
        """
        if store.undecided is not None:
            counts = await self.ledger.last_commit(self.task)
            frame = store.undecided
            await store.resolve(frame.commit_id, counts == (frame.number, frame.commit_id))
        at = store.meta.get("inheriting")
        if store.number and at is None:
            return
        parents = [parent for parent in self.parents if await self._is_over(parent)]
        if not parents:
            return
        if at is None:
            await self.ledger.came_from(self.task, [int(parent.rpartition("/")[2]) for parent in parents])
        found: list[Parent] = []
        keys = 0
        for number, parent in enumerate(parents):
            async with self._open(parent) as theirs:
                found.append(Parent(self.spans.get(parent), dict(theirs.meta)))
                for at_, changes in self._portions(number, theirs, store, at):
                    meta = {
                        "app": theirs.meta["app"],
                        "inheriting": at_,
                        "positions": dict.fromkeys(self.splits, BEGIN),
                    }
                    await self._count(store, epoch, meta, changes)
                    keys += sum(len(change.keys) for change in changes if "!" not in change.table)
        await self._count(store, epoch, heritage(self.group, self.splits, found, self.owns, sinks), [])
        log.info(
            "state taken over from the shards that this one came from",
            task=self.task,
            parents=parents,
            keys=keys,
            commits=store.number,
        )

    async def _count(self, store: Store, epoch: int, meta: dict[str, Any], changes: list[SpaceChange]) -> None:
        """One commit."""
        frame = Frame(store.number + 1, self._new_id(), store.commit_id, epoch, meta, changes)
        await store.prepare(frame)
        try:
            await self.ledger.commit(self.task, epoch, frame.number, frame.commit_id, meta["positions"], [], frame)
        except Fenced:
            await store.resolve(frame.commit_id, False)
            raise
        await store.resolve(frame.commit_id, True)

    async def _is_over(self, parent: str) -> bool:
        """True if a parent has committed its end, False if it has never committed. Raises StoreCorrupt else."""
        positions = await self.ledger.positions(parent)
        if positions is None:
            return False
        if not all(map(is_end, positions.values())):
            raise StoreCorrupt(
                f"task {self.task}: its shard came from that of {parent}, which expired before it was read to its end: "
                "records are lost. Start the app under another name to begin anew"
            )
        return True

    # Keys

    def _portions(self, number: int, theirs: Store, ours: Store, at: Any) -> Iterator[Portion]:
        """What one parent has for us, behind `at`."""
        changes: list[SpaceChange] = []
        size = 0
        for order, table in enumerate(self.group.tables):
            for name, end in _spaces(theirs, table.name):
                place = [number, order, name, MIN_END if end is None else end]
                if at is not None and place < at[:4]:
                    continue
                after = at[4] + b"\0" if at is not None and place == at[:4] else None
                keys: list[bytes] = []
                values: list[Any] = []
                for key, value in self._rows(theirs, (name, end), after, ours):
                    keys.append(key)
                    values.append(value)
                    size += len(key) + len(value) + ROW_BYTES
                    if size >= PORTION_BYTES:
                        yield [*place, key], [*changes, SpaceChange(name, end, keys, values)]
                        changes, keys, values, size = [], [], [], 0
                if keys:
                    changes.append(SpaceChange(name, end, keys, values))
        if changes:
            yield [number + 1, 0, "", MIN_END, b""], changes

    def _rows(
        self, theirs: Store, space: tuple[str, int | None], after: bytes | None, ours: Store
    ) -> Iterator[tuple[bytes, Any]]:
        """The rows of one space that are ours."""
        name, _ = space
        table, mark, _ = name.partition("!")
        rows = theirs.scan(space, after)
        if table not in self._local:
            behind = TIME_BYTES if mark else 0
            return (row for row in rows if self.owns is None or self.owns(row[0][behind:]))
        if not self.eldest:
            return iter(())
        if after is None and ours.has(space) and next(theirs.scan(space), None) is not None:
            raise StoreCorrupt(
                f"task {self.task}: table {table!r} has keys that are each task's own, and two shards were merged: "
                "nobody knows what becomes of them"
            )
        return rows


MIN_END = -(2**63)
"""Where a space has no end: before all that have one."""


def _spaces(store: Store, table: str) -> list[tuple[str, int | None]]:
    """A table's spaces, and those of its timers (`TABLE!…`), in order."""
    names = sorted(name for name in store.tables() if name == table or name.startswith(f"{table}!"))
    return [(name, end) for name in names for end in (None, *sorted(store.ends(name))) if store.has((name, end))]


@asynccontextmanager
async def opened_for_a_while(place: Path, store: AbstractAsyncContextManager[Store]) -> AsyncIterator[Store]:
    """A store in a directory that is removed afterwards."""
    try:
        async with store as found:
            yield found
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
