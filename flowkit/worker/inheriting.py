"""A shard's first commit: the state of its parents' tasks, as far as its keys go, as one frame.

    keys      of each table those in the shard's range; its timers with them
    time      how far the furthest parent was: what it has closed stays closed
    sinks     go on after what the parents' have sent; nothing is left to hand over
    the rest  begins anew: marks to others, counts

A parent's state is where a next owner would find it: where the last one kept it, in a checkpoint, or in the frames.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import structlog

from flowkit.agent import Group
from flowkit.errors import Fenced, StoreCorrupt
from flowkit.record import MIN_TIME
from flowkit.sink import Heir, Sink
from flowkit.source import BEGIN, is_end
from flowkit.store import Frame, SpaceChange, Store

log = structlog.get_logger("flowkit.shards")

TIME_BYTES = 8
"""What an entry of a table's timers has before its key."""

Owns = Callable[[bytes], bool]


class Ledger(Protocol):
    """What is asked of a broker here."""

    async def positions(self, task: str) -> Any: ...
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
    """What the task of shard `split` takes over from `parents`, tasks whose last commits `open_` shows.

    `eldest` is True for the one that takes what has no key: the first of a shard's children.
    """

    def __init__(
        self,
        task: str,
        group: Group,
        split: str,
        parents: Sequence[str],
        owns: Owns | None,
        open_: Callable[[str], AbstractAsyncContextManager[Store]],
        *,
        ledger: Ledger,
        eldest: bool,
    ) -> None:
        self.task, self.group, self.split, self.parents, self.owns = task, group, split, parents, owns
        self.eldest, self.ledger = eldest, ledger
        self._open = open_

    async def commit(self, store: Store, ledger: Any, epoch: int, commit_id: bytes, sinks: Mapping[str, Sink]) -> None:
        """Make it the first commit, unless no parent has ever committed: then the app began after they were closed.

        Raises StoreCorrupt, StoreError, Fenced, OutcomeUnknown.
        """
        if store.undecided is not None:  # nobody knows of a commit, so this one does not count
            await store.resolve(store.undecided.commit_id, False)
        parents = [parent for parent in self.parents if await self._is_over(parent)]
        if not parents:
            return
        await self.ledger.came_from(self.task, [int(parent.rpartition("/")[2]) for parent in parents])
        metas: list[dict[str, Any]] = []
        spaces: dict[tuple[str, int | None], tuple[list[bytes], list[Any]]] = {}
        for parent in parents:
            async with self._open(parent) as theirs:
                metas.append(dict(theirs.meta))
                self._take(theirs, spaces)
        changes = []
        for (name, end), (keys, values) in spaces.items():
            order = sorted(range(len(keys)), key=keys.__getitem__)
            changes.append(SpaceChange(name, end, [keys[n] for n in order], [values[n] for n in order]))
        meta = {**self._meta(metas), "sinks": _sinks(metas, sinks)}
        frame = Frame(1, commit_id, store.commit_id, epoch, meta, changes)
        await store.prepare(frame)
        try:
            await self.ledger.commit(self.task, epoch, 1, commit_id, meta["positions"], [], frame)
        except Fenced:
            await store.resolve(commit_id, False)
            raise
        await store.resolve(commit_id, True)
        log.info(
            "state taken over from the shards that this one came from",
            task=self.task,
            parents=parents,
            keys=sum(len(keys) for (name, _), (keys, _) in spaces.items() if "!" not in name),
        )

    async def _is_over(self, parent: str) -> bool:
        """True if a parent has committed its end, False if it has never committed. Raises StoreCorrupt else."""
        positions = await self.ledger.positions(parent)
        if positions is None:
            return False
        if not any(map(is_end, positions.values())):
            raise StoreCorrupt(
                f"task {self.task}: its shard came from that of {parent}, which expired before it was read to its end: "
                "records are lost. Start the app under another name to begin anew"
            )
        return True

    # Keys

    def _take(self, theirs: Store, spaces: dict[tuple[str, int | None], tuple[list[bytes], list[Any]]]) -> None:
        local = {table.name for table in self.group.tables if table.local}
        for table in self.group.tables:
            for space in _spaces(theirs, table.name):
                name, _ = space
                behind = TIME_BYTES if "!" in name else 0
                rows = theirs.scan(space)
                if table.name in local:
                    kept = list(rows) if self.eldest else []
                    if kept and space in spaces:
                        raise StoreCorrupt(
                            f"task {self.task}: table {table.name!r} has keys that are each task's own, and two shards "
                            "were merged: nobody knows what becomes of them"
                        )
                else:
                    kept = [row for row in rows if self.owns is None or self.owns(row[0][behind:])]
                if kept:
                    keys, values = spaces.setdefault(space, ([], []))
                    keys += [key for key, _ in kept]
                    values += [value for _, value in kept]

    # Time

    def _meta(self, metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        groups = [meta.get("groups", {}).get(self.group.name, {}) for meta in metas]
        splits = [group["splits"] for group in groups if group]
        rows = [row for each in splits for row in each["splits"].values()]
        times = [each["time"] for each in groups if each.get("time")]
        group: dict[str, Any] = {
            "splits": {
                "floor": max((each["floor"] for each in splits), default=MIN_TIME),
                "by_clock": False,
                "splits": {self.split: [max((row[0] for row in rows), default=MIN_TIME), False, False]},
            },
            "tables": {
                table.name: self._table([g["tables"][table.name] for g in groups if table.name in g.get("tables", {})])
                for table in self.group.tables
            },
            "time": list(map(max, zip(*times, strict=True))) or None,
            "batches": {},
            "since": {},
        }
        schemas: dict[str, Any] = {}
        for meta in metas:
            schemas |= meta.get("schemas", {})
        return {
            "app": metas[0]["app"],
            "groups": {self.group.name: group},
            "schemas": schemas,
            "counts": {},
            "positions": {self.split: BEGIN},
            "heard": {},
        }

    def _table(self, metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What tables note of themselves, of several as one."""
        merged: dict[str, Any] = {}
        for meta in metas:
            for name, value in meta.items():
                merged[name] = value if name not in merged else _merged(name, merged[name], value)
        if isinstance(merged.get("open"), list):
            merged["open"] = [list(pair) for pair in dict(map(tuple, merged["open"])).items()]
        if merged.get("early"):
            merged["early"] = self._early(merged["early"])
        return merged

    def _early(self, early: Sequence[Any]) -> list[Any]:
        owns = self.owns or (lambda _: True)
        if isinstance(early[0], bytes):
            return sorted({key for key in early if owns(key)})
        by_end: dict[int, set[bytes]] = {}
        for end, keys in early:
            by_end.setdefault(end, set()).update(key for key in keys if owns(key))
        return [[end, sorted(keys)] for end, keys in by_end.items()]


def _sinks(metas: Sequence[Mapping[str, Any]], sinks: Mapping[str, Sink]) -> dict[str, Any]:
    found = {}
    for name, sink in sinks.items():
        states = [meta["sinks"][name][0] for meta in metas if name in meta.get("sinks", {})]
        if states and isinstance(sink, Heir):
            found[name] = [sink.inherited(states), None]
    return found


def _spaces(store: Store, table: str) -> list[tuple[str, int | None]]:
    """A table's spaces, and those of its timers (`TABLE!…`)."""
    names = [name for name in store.tables() if name == table or name.startswith(f"{table}!")]
    return [(name, end) for name in names for end in (None, *store.ends(name)) if store.has((name, end))]


def _merged(name: str, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, list):
        return [*ours, *theirs]
    if name == "next":  # of ticks: the first that is to come
        return min((each for each in (ours, theirs) if each is not None), default=None)
    return max(ours, theirs) if isinstance(ours, int) and isinstance(theirs, int) else ours


@asynccontextmanager
async def opened_for_a_while(place: Path, store: AbstractAsyncContextManager[Store]) -> AsyncIterator[Store]:
    """A store in a directory that is removed afterwards."""
    try:
        async with store as found:
            yield found
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
