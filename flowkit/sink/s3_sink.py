"""One task's part of an S3 output: records wait in the task's store, and become objects at decisions that are logged.

    stage      each record's line goes to the open object of its partition. An object is *rolled* once it is large
               enough, old enough, or its partition is over; which ones are is the commit's hand-off
    deliver    rolled objects are made of their lines, piece by piece, and written
    next cut   their lines are dropped

    space (NAME, number)    an object's lines, in chunks: key u64 big-endian, value lines with their ends
    state      {"id", "next": number of the next object, "high": latest time (ms) of a record, "open": [Open …],
                "done": numbers of the objects that this commit hands over}
    hand-off   [[number, key, chunks] …]

Commits are of no consequence to where objects end. That hangs on the records alone in a bounded run: its objects are
those of an unbroken one. In a live run age (by the clock) and the watermark count too, as they stood at a cut.
"""

import os
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import anyio.to_thread
import structlog

from flowkit.errors import StoreCorrupt
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.sink.s3_formats import Encoder, Format
from flowkit.sink.s3_layout import Layout
from flowkit.sink.s3_upload import Objects, side_by_side
from flowkit.sink.seam import Outgoing, Rejected, SinkTask
from flowkit.store import Space, SpaceChange, Store

log = structlog.get_logger("flowkit.sink")

CHUNK_BYTES = 256 << 10
CHUNKS_AT_ONCE = 16
"""So many are read of the store at once."""
OBJECTS_AT_ONCE = 4
KNOWN_PATHS = 10_000
MOST_OPEN = 1_000
"""One more, and the one that was opened first is rolled: each is told of in every commit."""


class Rolling(NamedTuple):
    """When an object is complete: at `bytes` of lines, `after` ms, or `delay` ms past its partition's end."""

    bytes: int
    after: int
    delay: int


@dataclass(slots=True)
class Open:
    """An object that is not complete. `opened` by the clock (ms).

    `end` is that of its partition by event time; None: it has none, or was over already when this was opened.
    """

    path: str
    number: int
    size: int
    chunks: int
    opened: int
    end: int | None

    def saved(self) -> list[Any]:
        """As the state holds it."""
        return [self.path, self.number, self.size, self.chunks, self.opened, self.end]


class S3Sink:
    """See the head of this file. `name` stands in objects' names instead of a random id."""

    def __init__(
        self, task: SinkTask, objects: Objects, layout: Layout, form: Format, rolling: Rolling, name: str = ""
    ) -> None:
        self.codec: str | None = form.codec
        self.repeats = False
        self._task, self._objects, self._layout, self._format, self._rolling = task, objects, layout, form, rolling
        self._named = name
        self._id, self._next, self._high, self._watermark = "", 0, MIN_TIME, MIN_TIME
        self._open: dict[str, Open] = {}
        """By path, in the order in which they were opened."""
        self._paths: dict[Any, str] = {}
        self._soonest = MIN_TIME
        """No open object is of a partition that ends before (ms): none need be looked at until then."""
        self._ending = False
        self._done: list[int] = []
        self._drop: list[int] = []
        self._rolled: list[Open] = []
        self._lines: dict[int, list[bytes]] = {}
        """By object: what this commit adds to it, as pieces of whole lines."""
        self._changes: list[SpaceChange] = []
        self._store: Store
        self._space = ""
        self._words = {"app": task.app, "group": task.group, "partition": str(task.partition)}

    def attach(self, store: Store, space: str) -> None:
        """As the protocol says."""
        self._store, self._space = store, space

    async def open(self, state: Any) -> None:
        """Go on after `state`, and let go of what a killed worker has begun to upload."""
        known = state or {"id": self._new_id(), "next": 0, "high": MIN_TIME, "open": [], "done": []}
        self._id, self._next, self._high = known["id"], known["next"], known["high"]
        self._open = {row[0]: Open(*row) for row in known["open"]}
        self._done = list(known["done"])
        if state is not None:
            # Without a state there is nothing: an upload begins after the commit that tells of its object.
            ours = f"{self._name}-"
            found = await self._objects.abort(self._layout.stem, lambda key: key.rpartition("/")[2].startswith(ours))
            if found:
                log.info("uploads that were not completed are gone", task=self._task.name, uploads=found)

    def look(self, watermark: int) -> bool:
        """As the protocol says."""
        if self._task.bounded:
            return False
        self._watermark = max(self._watermark, watermark)
        now = self._task.clock.now_ms()
        return any(self._is_due(each, now) for each in self._open.values())

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """As the protocol says. Tombstones are left out.

        At a clean stop a live run keeps what is not complete: it goes on later, or another does in its place, unless
        this is the task's `end`. A bounded one writes everything, also if it is stopped before the end of its input.
        """
        self._drop, self._done, self._rolled = self._done, [], []
        values: list[Any] = [record.value for record in records]
        if None in values:
            records = [record for record in records if record.value is not None]
            values = [record.value for record in records]
        if values:
            times = [record.time for record in records]
            for key, start, stop, latest in self._layout.runs(times, values):
                self._add(key, values[start:stop], latest)
        if self._ending or (self._task.bounded and final):
            for each in list(self._open.values()):
                self._roll(each)
        elif not self._task.bounded:
            now = self._task.clock.now_ms()
            for each in [each for each in self._open.values() if self._is_due(each, now)]:
                self._roll(each)
        self._changes = self._cut()
        self._done = [each.number for each in self._rolled]
        return [[each.number, self._key(each), each.chunks] for each in self._rolled] or None

    def end(self) -> None:
        """As the protocol says."""
        self._ending = True

    def state(self) -> Any:
        """As the protocol says."""
        opened = [each.saved() for each in self._open.values()]
        return {"id": self._id, "next": self._next, "high": self._high, "open": opened, "done": self._done}

    def forked(self, state: Any) -> Any:
        """As the protocol says: objects from here on have another id in their names."""
        return {**state, "id": self._new_id()}

    def changes(self) -> Sequence[SpaceChange]:
        """As the protocol says."""
        changes, self._changes = self._changes, []
        return changes

    def drops(self) -> Sequence[Space]:
        """As the protocol says."""
        return [(self._space, number) for number in self._drop]

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        """Write the objects of a hand-off: again, they are the same. Raises SinkError, StoreCorrupt."""
        rejected: dict[int, list[Rejected]] = {}

        def writing(number: int, key: str, chunks: int) -> Callable[[], Awaitable[None]]:
            return lambda: self._write(number, key, chunks, rejected)

        await side_by_side([writing(*row) for row in handoff or ()], OBJECTS_AT_ONCE)
        return [each for number in sorted(rejected) for each in rejected[number]]

    async def close(self) -> None:
        """As the protocol says."""

    # Names

    @property
    def _name(self) -> str:
        return f"{self._task.name}-{self._id}"

    def _new_id(self) -> str:
        return self._named or os.urandom(4).hex()

    def _key(self, each: Open) -> str:
        return f"{each.path}{'/' if each.path else ''}{self._name}-{each.number:08}{self._format.suffix}"

    # Staging

    def _add(self, key: Any, values: list[bytes], latest: int) -> None:
        """Records of one partition, of which none is later than `latest`."""
        path = self._paths.get(key)
        if path is None:
            if len(self._paths) >= KNOWN_PATHS:
                self._paths.clear()
            path = self._paths[key] = self._layout.path(key, self._words)
        self._high = max(self._high, latest)
        if self._task.bounded and self._soonest + self._rolling.delay <= self._high:
            self._roll_over()
        # Joined at once and cut in the bytes: 0.1 µs a line less than to add up how long the lines are.
        data = b"\n".join([*values, b""])
        ends: list[int] | None = None
        start = 0
        while start < len(data):
            each = self._open.get(path) or self._begin(path, self._layout.end(key))
            stop = least = start + self._rolling.bytes - each.size
            if least >= len(data):
                stop = len(data)
            elif self._format.codec == "json":  # has no line ends within a line
                stop = data.index(b"\n", least - 1) + 1
            else:
                ends = ends or list(accumulate(map((1).__add__, map(len, values))))
                stop = ends[bisect_left(ends, least)]
            each.size += stop - start
            self._lines.setdefault(each.number, []).append(data[start:stop])
            if each.size >= self._rolling.bytes:
                self._roll(each)
            start = stop

    def _roll_over(self) -> None:
        """Roll what is of partitions that are over, by the records' times."""
        high, soonest = self._high - self._rolling.delay, END_OF_TIME
        for each in list(self._open.values()):
            if each.end is not None:
                if each.end <= high:
                    self._roll(each)
                else:
                    soonest = min(soonest, each.end)
        self._soonest = soonest

    def _begin(self, path: str, end: int | None) -> Open:
        if len(self._open) >= MOST_OPEN:
            self._roll(next(iter(self._open.values())))
        passed = self._high if self._task.bounded else self._watermark + 1
        if end is not None and end + self._rolling.delay <= passed:
            end = None  # what is late gathers too: it is rolled by its size and age, not with every commit
        made = self._open[path] = Open(path, self._next, 0, 0, self._task.clock.now_ms(), end)
        self._next += 1
        if end is not None:
            self._soonest = min(self._soonest, end)
        return made

    def _roll(self, each: Open) -> None:
        del self._open[each.path]
        self._rolled.append(each)

    def _is_due(self, each: Open, now: int) -> bool:
        if each.opened + self._rolling.after <= now:
            return True
        return each.end is not None and each.end + self._rolling.delay <= self._watermark + 1

    def _cut(self) -> list[SpaceChange]:
        """What was added, as chunks."""
        by_number = {each.number: each for each in (*self._open.values(), *self._rolled)}
        changes = []
        for number, pieces in self._lines.items():
            each = by_number[number]
            chunks = _chunks(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            keys = [_chunk_key(each.chunks + n) for n in range(len(chunks))]
            each.chunks += len(chunks)
            changes.append(SpaceChange(self._space, number, keys, chunks))
        self._lines = {}
        return changes

    # Writing

    async def _write(self, number: int, key: str, chunks: int, rejected: dict[int, list[Rejected]]) -> None:
        encoders: list[Encoder] = []

        def anew() -> AsyncGenerator[bytes, None]:
            encoders.append(self._format.begin())
            return self._bytes(number, chunks, encoders[-1])

        await self._objects.write(key, self._format.content_type, anew)
        rejected[number] = [Rejected(None, line, 0, "Unfit", reason) for line, reason in encoders[-1].refused]
        log.debug("object written", task=self._task.name, key=key)

    async def _bytes(self, number: int, chunks: int, encoder: Encoder) -> AsyncGenerator[bytes, None]:
        space: Space = (self._space, number)
        for at in range(0, chunks, CHUNKS_AT_ONCE):
            stop = min(at + CHUNKS_AT_ONCE, chunks)
            found = [value for _, value in self._store.scan(space, _chunk_key(at), _chunk_key(stop))]
            if len(found) != stop - at:
                raise StoreCorrupt(
                    f"task {self._task.name}: {stop - at - len(found)} chunks of lines for object {number} are missing"
                )
            data = b"".join(found)
            yield await anyio.to_thread.run_sync(encoder.feed, data) if self._format.is_work else encoder.feed(data)
        yield await anyio.to_thread.run_sync(encoder.finish) if self._format.is_work else encoder.finish()


def _chunk_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _chunks(lines: bytes) -> list[bytes]:
    """Lines as pieces of CHUNK_BYTES and a little more, each with its line ends. Where they are cut never shows."""
    chunks, start = [], 0
    while len(lines) - start > 2 * CHUNK_BYTES:
        stop = lines.index(b"\n", start + CHUNK_BYTES) + 1
        chunks.append(lines[start:stop])
        start = stop
    if start < len(lines):
        chunks.append(lines[start:] if start else lines)
    return chunks
