"""What a task works on, piece by piece, and going back to the last commit.

A feed gives out *pieces*: records of a split, or a fact about one (it has ended, it is idle). It remembers what it gave
out since the last commit, so that the task can take everything back and come again. The bounded feed merges all inputs
by (time, order of declaration), the topics between agents among them, so that a bounded run is a pure function of its
inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from flowkit.record import MIN_TIME, DeadLetter
from flowkit.source import Batch, Position, Reader
from flowkit.window import Split
from flowkit.worker.engine import Engine
from flowkit.worker.inlet import Decoded, Inlet
from flowkit.worker.outlets import BoundOutlet, Outgoing


@dataclass(slots=True)
class Records:
    """Records `[start, stop)` of one split, for one engine. The task says how many it took (`Feed.taken`)."""

    engine: Engine
    topic: str
    split: Split
    decoded: Decoded
    start: int
    stop: int


@dataclass(slots=True)
class Ended:
    """A split has no more records: it no longer holds the watermark."""

    engine: Engine
    split: Split


@dataclass(slots=True)
class Finished:
    """All inputs of an engine have ended."""

    engine: Engine


@dataclass(slots=True)
class Idle:
    """A split has been silent for too long: it no longer holds the watermark until it speaks again."""

    engine: Engine
    split: Split


@dataclass(slots=True)
class ClockMark:
    """All inputs are silent: the watermark goes on by the clock (ms)."""

    engine: Engine
    watermark: int


@dataclass(slots=True)
class Tick:
    """The clock has moved: what waits for it is looked at."""

    engine: Engine


@dataclass(slots=True)
class Waiting:
    """An input has nothing for now and is not at its end (standard input): time to commit, or to stop."""


Piece = Records | Ended | Finished | Idle | ClockMark | Tick


class Feed(Protocol):
    """Where a task takes its pieces from."""

    async def next(self, limit: int) -> Piece | Waiting | None:
        """The next piece, of at most `limit` records; None: nothing more (for now)."""

    def taken(self, piece: Piece, count: int) -> None:
        """The piece was handled; of its records, the first `count`."""

    def commit(self) -> dict[str, Any]:
        """Everything given out so far is behind: what must be kept to go on from here (msgpack-able)."""

    async def rewind(self) -> None:
        """Go back to the last `commit`."""

    async def close(self) -> None: ...


class Head:
    """One split of a bounded run: what was fetched since the last commit, and how far it is consumed."""

    linked = False

    def __init__(
        self, engine: Engine, topic: str, split: Split, inlet: Inlet, reader: Reader | None, batch_size: int
    ) -> None:
        self.engine, self.topic, self.split, self.inlet, self.reader = engine, topic, split, inlet, reader
        self.batch_size = batch_size
        self.decoded: list[Decoded] = []
        self.at = self.index = 0
        self.start = 0
        self.position: Position = None
        self.last = self.before = MIN_TIME
        """The time (ms) of the last record decoded, and of the one before those that are kept."""
        self.waiting = False
        """True if the last `fill` found nothing though the end is not reached."""

    async def fill(self) -> bool:
        """True if there is a record to look at."""
        self.waiting = False
        while True:
            if self.at < len(self.decoded):
                if self.index < len(self.decoded[self.at]):
                    return True
                self.at, self.index = self.at + 1, 0
                continue
            if self.reader is None or self.reader.at_end:
                return False
            batch = await self.reader.fetch(self.batch_size)
            if batch is not None and len(batch):
                self.decoded.append(self._decode(batch))
            elif not self.reader.at_end:
                self.waiting = True
                return False

    def _decode(self, batch: Batch) -> Decoded:
        decoded = self.inlet.decode(batch)
        # An unusable record keeps its place in the order by the record before it, also if that was in another batch.
        for index in range(len(decoded)):
            if index not in decoded.bad or decoded.times[index] != MIN_TIME:
                break
            decoded.times[index] = self.last
        self.last = decoded.times[-1]
        return decoded

    @property
    def time(self) -> int:
        return self.decoded[self.at].times[self.index]

    def until(self, limit: int, rival: int | None, wins_ties: bool) -> int:
        """How far the present batch goes before a rival's head (its time) comes first."""
        decoded = self.decoded[self.at]
        stop = min(len(decoded), self.index + limit)
        if rival is None:
            return stop
        for n in range(self.index + 1, stop):
            t = decoded.times[n]
            if t > rival or (t == rival and not wins_ties):
                return n
        return stop

    def take(self, count: int) -> None:
        self.index += count

    def commit(self) -> None:
        if self.at < len(self.decoded):
            self.position = self.decoded[self.at].batch.position(self.index)
        elif self.decoded:
            last = self.decoded[-1]
            self.position = last.batch.position(len(last))
        if self.at > 0:
            self.before = self.decoded[self.at - 1].times[-1]
        del self.decoded[: self.at]
        self.at, self.start = 0, self.index if self.decoded else 0
        self.index = self.start

    def save(self) -> list[Any]:
        """Where to go on from the last commit, and the time (ms) of the record before."""
        return [self.position, self.decoded[0].times[self.start - 1] if self.start else self.before]

    def load(self, saved: list[Any] | None) -> None:
        """Take up what `save` gave in an earlier run."""
        if saved is not None:
            self.position, self.before = saved
            self.last = self.before

    def rewind(self) -> None:
        # Anew from the bytes: an agent may have changed the records that it was given.
        self.last = self.before
        self.decoded = [self._decode(decoded.batch) for decoded in self.decoded]
        self.at, self.index = 0, self.start


class LinkBatch:
    """Records that one agent emitted for another in the same run."""

    def __init__(self, topic: str, first: int, records: Sequence[Outgoing]) -> None:
        self.topic, self.first = topic, first
        self.values: Sequence[bytes | None] = [
            record.value if record.link is None else record.link for record in records
        ]
        self.keys: Sequence[bytes | None] | None = [record.key for record in records]
        self.times: Sequence[int] | None = [record.time for record in records]

    def __len__(self) -> int:
        return len(self.values)

    def position(self, count: int) -> Position:
        return None

    def offset(self, index: int) -> int:
        return self.first + index

    def where(self, index: int) -> str:
        return f"{self.topic} (in memory) record {self.first + index}"


class LinkHead(Head):
    """A topic between agents of the run: filled by outlets instead of a reader."""

    linked = True

    def __init__(self, engine: Engine, topic: str, split: Split, inlet: Inlet) -> None:
        super().__init__(engine, topic, split, inlet, None, 0)
        self.count = 0
        self.kept = 0

    def push(self, records: Sequence[Outgoing]) -> None:
        self.decoded.append(self._decode(LinkBatch(self.topic, self.count, records)))
        self.count += len(records)

    def commit(self) -> None:
        super().commit()
        self.kept = len(self.decoded)

    def rewind(self) -> None:
        self.count -= sum(len(decoded) for decoded in self.decoded[self.kept :])
        del self.decoded[self.kept :]
        super().rewind()

    def save(self) -> list[Any]:
        """What was emitted and not yet read, and the number of its first record."""
        rows: list[Outgoing] = []
        for n, decoded in enumerate(self.decoded):
            batch = decoded.batch
            assert batch.keys is not None
            assert batch.times is not None
            begin = self.start if n == 0 else 0
            rows += [Outgoing(batch.keys[i], batch.values[i], batch.times[i]) for i in range(begin, len(batch))]
        return [self.count - len(rows), rows]

    def load(self, saved: list[Any] | None) -> None:
        if saved is not None:
            self.count, rows = saved
            if rows:
                self.push([Outgoing(*row) for row in rows])
                self.kept = 1


class BoundedFeed:
    """Merges the heads of all inputs by (time, order)."""

    def __init__(self, engines: Sequence[Engine], outlets: dict[str, BoundOutlet]) -> None:
        self.engines, self.outlets = list(engines), outlets
        self.heads: list[Head] = []
        self.links: dict[str, BoundOutlet] = {}
        self.moved: dict[str, int] = {}
        self.finished: list[Engine] = []
        self.finished_before: list[Engine] = []

    def add(self, head: Head) -> None:
        """Merge one more input; ties in time go to the one added first."""
        self.heads.append(head)
        if head.linked:
            self.links[head.topic] = self.outlets[head.topic]
            self.links[head.topic].linked = True
            self.moved[head.topic] = 0
            # What a group sends itself, and dead letters, come after their cause: waiting for them would hold up both.
            head.split.holds = not self._sends_itself(head) and head.topic != head.engine.app.dead_letters.name

    def position(self, engine: Engine, split: Split, saved: dict[str, Any]) -> Position:
        """Where an earlier run, of which `commit` gave `saved`, stood in a split."""
        found = saved.get("heads", {}).get(engine.group.name, {}).get(split.name)
        return None if found is None else found[0]

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `commit` gave in an earlier run. Readers are opened at their positions by the caller."""
        for head in self.heads:
            head.load(saved.get("heads", {}).get(head.engine.group.name, {}).get(head.split.name))
        self.finished = [engine for engine in self.engines if engine.group.name in saved.get("finished", [])]
        self.finished_before = list(self.finished)

    async def next(self, limit: int) -> Piece | Waiting | None:
        while True:
            self._move_links()
            ready: list[tuple[int, int, Head]] = []
            for order, head in enumerate(self.heads):
                if await head.fill():
                    ready.append((head.time, order, head))
                elif head.waiting:
                    return Waiting()
                elif not head.split.ended and self._has_ended(head):
                    return Ended(head.engine, head.split)
            if ready:
                ready.sort(key=_by_time_and_order)
                _, order, head = ready[0]
                rival = ready[1] if len(ready) > 1 else None
                stop = head.until(limit, None if rival is None else rival[0], rival is None or order < rival[1])
                return Records(head.engine, head.topic, head.split, head.decoded[head.at], head.index, stop)
            return self._end_of_an_engine()

    def _end_of_an_engine(self) -> Ended | Finished | None:
        """There is nothing to read: the next engine may end, those that read dead letters last of all."""
        left = [engine for engine in self.engines if engine not in self.finished]
        left = [engine for engine in left if not self._reads_dead_letters(engine)] or left
        waiting: list[Head] = []
        for engine in left:
            links = [h for h in self.heads if h.engine is engine and self._may_end(h)]
            writers = [writer for head in links for writer in self._writers(head)]
            if all(writer in self.finished or writer is engine for writer in writers):
                # What it sends to itself comes to an end first: windows that fire then still find its agents at work.
                return Ended(engine, links[0].split) if links else Finished(engine)
            waiting += links
        # Groups that feed each other in a circle.
        return Ended(waiting[0].engine, waiting[0].split) if waiting else None

    def _may_end(self, head: Head) -> bool:
        return head.linked and not head.split.ended and head.topic != head.engine.app.dead_letters.name

    def _reads_dead_letters(self, engine: Engine) -> bool:
        return any(head.engine is engine and head.topic == engine.app.dead_letters.name for head in self.heads)

    def _writers(self, head: Head) -> list[Engine]:
        return [engine for engine in self.engines if head.topic in {o.name for o in engine.group.outlets}]

    def _sends_itself(self, head: Head) -> bool:
        return head.linked and head.engine in self._writers(head)

    def _move_links(self) -> None:
        for name, outlet in self.links.items():
            new = outlet.records[self.moved[name] :]
            self.moved[name] = len(outlet.records)
            if name == self.engines[0].app.dead_letters.name:
                # An agent that cannot handle a dead letter makes another one, which it would be given for ever.
                new = [record for record in new if not _is_about(name, record)]
            if new:
                for head in self.heads:
                    if head.topic == name and isinstance(head, LinkHead):
                        head.push(new)

    def _has_ended(self, head: Head) -> bool:
        if not head.linked:
            return True
        return head.topic != head.engine.app.dead_letters.name and all(e in self.finished for e in self._writers(head))

    def taken(self, piece: Piece, count: int) -> None:
        if isinstance(piece, Records):
            head = next(h for h in self.heads if h.split is piece.split and h.engine is piece.engine)
            head.take(count)
        elif isinstance(piece, Finished):
            self.finished.append(piece.engine)

    def commit(self) -> dict[str, Any]:
        self._move_links()
        heads: dict[str, dict[str, Any]] = {}
        for head in self.heads:
            head.commit()
            # By group: several may read a broadcast topic, and one may be ahead of the other.
            heads.setdefault(head.engine.group.name, {})[head.split.name] = head.save()
        self.moved = dict.fromkeys(self.links, 0)
        self.finished_before = list(self.finished)
        return {"heads": heads, "finished": [engine.group.name for engine in self.finished]}

    async def rewind(self) -> None:
        for head in self.heads:
            head.rewind()
        self.moved = dict.fromkeys(self.links, 0)
        self.finished = list(self.finished_before)

    async def close(self) -> None:
        for head in self.heads:
            if head.reader is not None:
                await head.reader.close()


def _is_about(topic: str, record: Outgoing) -> bool:
    data = record.value if record.link is None else record.link
    return data is not None and msgspec.json.decode(data, type=DeadLetter).topic == topic


def _by_time_and_order(row: tuple[int, int, Head]) -> tuple[int, int]:
    return row[:2]


class LiveFeed:
    """Pieces in the order in which the world gave them: that order is an input too, and is kept until the commit."""

    def __init__(self, inlets: dict[tuple[str, int], Inlet], positions: dict[str, Position]) -> None:
        self.inlets = inlets
        self.journal: list[Piece] = []
        self.at = 0
        self.positions = dict(positions)
        self._committed = dict(positions)

    def give(self, piece: Piece) -> None:
        """Add a piece; records whole batches at a time."""
        self.journal.append(piece)

    async def next(self, limit: int) -> Piece | None:
        if self.at == len(self.journal):
            return None
        piece = self.journal[self.at]
        if isinstance(piece, Records):
            return Records(
                piece.engine, piece.topic, piece.split, piece.decoded, piece.start, min(piece.stop, piece.start + limit)
            )
        return piece

    def taken(self, piece: Piece, count: int) -> None:
        given = self.journal[self.at]
        if isinstance(given, Records) and isinstance(piece, Records):
            done = given.start + count
            self.positions[given.split.name] = given.decoded.batch.position(done)
            if done < given.stop:
                # What is done and what is left, so that a rewind gives out the same again.
                given_rest = Records(given.engine, given.topic, given.split, given.decoded, done, given.stop)
                self.journal[self.at : self.at + 1] = [
                    Records(given.engine, given.topic, given.split, given.decoded, given.start, done),
                    given_rest,
                ]
        self.at += 1

    def commit(self) -> dict[str, Any]:
        del self.journal[: self.at]
        self.at = 0
        self._committed = dict(self.positions)
        return {"positions": dict(self.positions)}

    async def rewind(self) -> None:
        # Also the positions: the next commit may come before everything has been given out again.
        self.positions = dict(self._committed)
        fresh: dict[int, Decoded] = {}
        for piece in self.journal:
            if isinstance(piece, Records):
                old = piece.decoded
                if id(old) not in fresh:
                    fresh[id(old)] = self.inlets[(piece.topic, piece.split.number)].decode(old.batch)
                piece.decoded = fresh[id(old)]
        self.at = 0

    async def close(self) -> None:
        self.journal.clear()


__all__ = [
    "BoundedFeed",
    "ClockMark",
    "Ended",
    "Feed",
    "Finished",
    "Head",
    "Idle",
    "LinkHead",
    "LiveFeed",
    "Piece",
    "Records",
    "Tick",
    "Waiting",
]
