"""One task's part of a Redshift table: records wait in the task's store, and are loaded when there are enough of them.

    stage      each commit adds its records to the load that is open; once it is large or old enough, or nothing will
               follow, the load is the commit's hand-off
    deliver    the records become an object in S3, and the object rows: see redshift_sql
    next cut   they are dropped from the store

    keys       number of the load u64, number of the chunk u32, big-endian; value: msgpack of Rows
    state      {"name": the sink's own, random; "number" of the open load, its "chunks", "size" and "opened" (ms by the
                clock, None: it is empty), "done": [number, chunks] that this commit hands over, or None}
    hand-off   {"number", "id": one that no other has, "chunks"}

A load that the database refuses for its data is halved until the record that is to blame stands alone. Halves are
transactions of their own, with lines of their own in the commits table, cut at the same rows whenever it is done again.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from flowkit.aws import Backoff
from flowkit.errors import SinkError, StoreCorrupt
from flowkit.sink.dispatch import Never, Refused, TryAgain
from flowkit.sink.redshift_lines import Lines
from flowkit.sink.redshift_sql import Load, Target, load_sql, loaded_sql, newest_sql
from flowkit.sink.redshift_stage import Stage
from flowkit.sink.redshift_wire import Wire
from flowkit.sink.seam import Outgoing, Rejected, SinkTask
from flowkit.store import SpaceChange, Store

log = structlog.get_logger("flowkit.sink")

CHUNK_BYTES = 256 << 10
MOST_REFUSED = 100
"""Records of one load. More, and the table does not fit: finding each takes a dozen loads."""

T = TypeVar("T")


class Rows(NamedTuple):
    """Records by column: a list for each would be more work to make than all the rest."""

    keys: list[bytes | None]
    values: list[bytes | None]
    times: list[int]


class Rolling(NamedTuple):
    """A load is complete at `bytes` of records, or `after` ms."""

    bytes: int
    after: int


class Table(Protocol):
    """What all tasks of a worker share."""

    where: str
    keys: tuple[str, ...]
    """The fields by which a row is found, as records name them."""
    wire: Wire
    stage: Stage

    async def ready(self) -> Target:
        """The table, once it could be looked at. Raises SinkError, TryAgain."""


class RedshiftSink:
    """See the head of this file."""

    codec: str | None = "json"
    repeats = False

    def __init__(self, task: SinkTask, table: Table, rolling: Rolling) -> None:
        self._task, self._table, self._rolling = task, table, rolling
        self._name, self._number, self._chunks, self._size = "", 0, 0, 0
        self._opened: int | None = None
        self._done: tuple[int, int] | None = None
        self._changes: list[SpaceChange] = []
        self._store: Store
        self._space = ""

    def attach(self, store: Store, space: str) -> None:
        """As the protocol says."""
        self._store, self._space = store, space

    async def open(self, state: Any) -> None:
        """As the protocol says."""
        known = state or {"name": _random(), "number": 0, "chunks": 0, "size": 0, "opened": None, "done": None}
        self._name, self._number, self._chunks = known["name"], known["number"], known["chunks"]
        self._size, self._opened = known["size"], known["opened"]
        self._done = None if known["done"] is None else (known["done"][0], known["done"][1])

    def look(self, watermark: int) -> bool:
        """True if the open load is old enough, so that a commit is wanted though nothing came."""
        return self._is_due()

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """As the protocol says."""
        self._changes = []
        if self._done is not None:
            number, chunks = self._done
            keys = [_key(number, chunk) for chunk in range(chunks)]
            self._changes.append(SpaceChange(self._space, None, keys, [None] * chunks))
            self._done = None
        if records:
            self._add(records)
        if self._opened is None or not (final or self._size >= self._rolling.bytes or self._is_due()):
            return None
        handoff = {"number": self._number, "id": _random(), "chunks": self._chunks}
        self._done = (self._number, self._chunks)
        self._number, self._chunks, self._size, self._opened = self._number + 1, 0, 0, None
        return handoff

    def state(self) -> Any:
        """As the protocol says."""
        return {
            "name": self._name,
            "number": self._number,
            "chunks": self._chunks,
            "size": self._size,
            "opened": self._opened,
            "done": None if self._done is None else list(self._done),
        }

    def forked(self, state: Any) -> Any:
        """What another sink than this one goes on from: its loads have another name in the commits table."""
        return {**state, "name": _random()}

    def changes(self) -> Sequence[SpaceChange]:
        """As the protocol says."""
        changes, self._changes = self._changes, []
        return changes

    def drops(self) -> Sequence[tuple[str, int | None]]:
        """None: chunks are deleted one by one."""
        return ()

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        """As the protocol says."""
        if handoff is None:
            return ()
        rows = self._rows(handoff["number"], handoff["chunks"])
        delivery = _Delivery(self._table, self._commits_task, handoff["number"], handoff["id"], rows)
        return await delivery.run()

    async def close(self) -> None:
        """As the protocol says."""

    @property
    def _commits_task(self) -> str:
        return re.sub(r"[^\w./-]", "_", f"{self._task.name}-{self._name}")

    def _is_due(self) -> bool:
        return self._opened is not None and self._task.clock.now_ms() - self._opened >= self._rolling.after

    def _add(self, records: Sequence[Outgoing]) -> None:
        """What a commit adds, in chunks."""
        if self._opened is None:
            self._opened = self._task.clock.now_ms()
        rows = Rows([r.key for r in records], [r.value for r in records], [r.time for r in records])
        size = sum(map(len, filter(None, rows.keys))) + sum(map(len, filter(None, rows.values))) + 16 * len(records)
        step = -(-len(records) // max(1, size // CHUNK_BYTES))
        chunks = [
            msgspec.msgpack.encode(Rows(*(column[at : at + step] for column in rows)))  # type: ignore[arg-type]
            for at in range(0, len(records), step)
        ]
        keys = [_key(self._number, self._chunks + n) for n in range(len(chunks))]
        self._chunks, self._size = self._chunks + len(chunks), self._size + size
        self._changes.append(SpaceChange(self._space, None, keys, chunks))

    def _rows(self, number: int, chunks: int) -> Rows:
        found = [value for _, value in self._store.scan((self._space, None), _key(number, 0), _key(number, chunks))]
        if len(found) != chunks:
            raise StoreCorrupt(f"task {self._task.name}: {chunks - len(found)} chunks of load {number} are missing")
        rows = Rows([], [], [])
        for chunk in map(msgspec.msgpack.decode, found):
            for column, part in zip(rows, chunk, strict=True):
                column += part
        return rows


class _Delivery:
    """One hand-off on its way into the table."""

    def __init__(self, table: Table, task: str, number: int, handoff: str, rows: Rows) -> None:
        self.table, self.task, self.number, self.handoff, self.rows = table, task, number, handoff, rows
        self.lines: list[bytes | None] = []
        """By row; None: nothing to send, which there is only if they are `gappy`."""
        self.gappy = True
        self.gone: set[int] = set()
        self.never: dict[int, Never] = {}
        self.refused = 0
        self.loaded: list[tuple[int, int]] = []
        self.target: Target

    async def run(self) -> list[Rejected]:
        self.target = await patiently(self.table.where, self.table.ready)
        self.loaded = await patiently(self.table.where, self._ask)
        keys, values, times = self.rows
        made = Lines(self.table.keys).of(keys, values)
        self.gappy = made is not values
        if self.gappy:
            self.never = {n: line for n, line in enumerate(made) if isinstance(line, Never)}
            self.gone = {n for n, line in enumerate(made) if values[n] is None and isinstance(line, bytes)}
        self.lines = [None if isinstance(line, Never) else line for line in made] if self.never else made  # type: ignore[assignment]
        await self._load(0, len(values))
        return [Rejected(keys[n], values[n], times[n], *why) for n, why in sorted(self.never.items())]

    async def _ask(self) -> list[tuple[int, int]]:
        """Which rows were loaded before. Raises SinkError if another has taken this one's name."""
        wire, target = self.table.wire, self.target
        found = await self._loaded()
        if not found:
            ((newest,),) = await wire.rows(newest_sql(target, self.task))
            if newest is not None and int(newest) >= self.number:
                found = await self._loaded()  # a worker that was thought dead may have loaded the very same meanwhile
                if not found:
                    raise SinkError(
                        f"{self.table.where}: another run has loaded under the name {self.task!r}, up to load {newest} "
                        f"where this one is at {self.number}: two go on from one savepoint, or from a copy of a state "
                        "directory. Let one of them begin anew, or give it another table"
                    )
        return found

    async def _loaded(self) -> list[tuple[int, int]]:
        rows = await self.table.wire.rows(loaded_sql(self.target, self.task, self.handoff))
        return [(int(row[0]), int(row[1])) for row in rows]

    async def _load(self, first: int, stop: int) -> None:
        """Load rows `[first, stop)`, but for what was loaded, and what never will be."""
        if any(begin <= first and stop <= end for begin, end in self.loaded):
            await self.table.stage.remove(self._object(first, stop))  # if it was killed before it did
            return
        present: Sequence[int] = range(first, stop)
        if self.gappy:
            present = [n for n in present if self.lines[n] is not None]
        if not present:
            return
        if any(begin < stop and first < end for begin, end in self.loaded):
            await self._halves(first, stop)
            return
        try:
            await patiently(self.table.where, lambda: self._once(first, stop, present))
        except Refused as error:
            if len(present) > 1:
                await self._halves(first, stop)
                return
            self.never[present[0]] = error.never
            self.refused += 1
            if self.refused > MOST_REFUSED:
                raise SinkError(
                    f"{self.table.where}: refuses more than {MOST_REFUSED} records of one load, the last one for "
                    f"{error.never.reason}: see whether table and records fit each other"
                ) from error

    async def _halves(self, first: int, stop: int) -> None:
        middle = (first + stop) // 2
        await self._load(first, middle)
        await self._load(middle, stop)

    async def _once(self, first: int, stop: int, present: Sequence[int]) -> None:
        lines = self.lines[first:stop] if len(present) == stop - first else [self.lines[n] for n in present]
        name = self._object(first, stop)
        copied = await self.table.stage.write(name, lines)  # type: ignore[arg-type]
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        load = Load(self.task, self.number, self.handoff, first, stop, not self.gone.isdisjoint(present), at)
        try:
            await self.table.wire.transaction(load_sql(self.target, load, copied))
        except Refused:
            await self.table.stage.remove(name)
            raise
        log.debug("loaded", sink=self.table.where, records=len(present), number=self.number)
        await self.table.stage.remove(name)

    def _object(self, first: int, stop: int) -> str:
        return f"{self.task}-{self.number:08}-{self.handoff}-{first}-{stop}.json.gz".replace("/", "_")


async def patiently(where: str, work: Callable[[], Awaitable[T]]) -> T:
    """Do it again until it passes, told now and then. Raises what does not pass."""
    backoff = Backoff()
    while True:
        try:
            return await work()
        except TryAgain as error:
            if backoff.is_to_tell():
                log.warning("not done; trying again", sink=where, reason=error.again.reason)
            await asyncio.sleep(backoff.wait())


def _key(number: int, chunk: int) -> bytes:
    return number.to_bytes(8, "big") + chunk.to_bytes(4, "big")


def _random() -> str:
    return os.urandom(8).hex()
