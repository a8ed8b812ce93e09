"""The heads of a bounded run's inputs: the next record of each, and how far it is consumed since the last commit."""

from collections.abc import Sequence
from typing import Any

from flowkit.record import MIN_TIME
from flowkit.source import Batch, Position, Reader
from flowkit.window import Split
from flowkit.worker.engine import Engine
from flowkit.worker.inlet import Decoded, Inlet
from flowkit.worker.outlets import Outgoing


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
        self._looked: tuple[int, int, bool, int] = (-1, 0, False, 0)
        """What `until` has found: in which batch, before which rival (time, wins_ties), how far no record is later."""

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
        # Mostly this was asked before, and one record was taken since: a look at all of them each time is quadratic.
        at, known_rival, known_ties, known = self._looked
        holds = at == self.at and (known_rival, known_ties) <= (rival, wins_ties)
        first = max(self.index + 1, known) if holds else self.index + 1
        if first > stop:
            return stop
        times, last = decoded.times, rival if wins_ties else rival - 1
        end = next((n for n in range(first, stop) if times[n] > last), stop)
        if holds or at != self.at or end > known:
            self._looked = self.at, rival, wins_ties, end
        return end

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
        self._looked = (-1, 0, False, 0)
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
        self._looked = (-1, 0, False, 0)


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
