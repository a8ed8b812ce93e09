"""Topics of a broker without a server, as the worker reads them: batches, sources, readers over dense logs."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from flowkit.errors import InputError
from flowkit.options import OutOfRange, Start
from flowkit.source.rules import unknown_topic

log = structlog.get_logger("flowkit.source")

READ_AHEAD = 5_000
"""Records that a reader takes at once, however few it is asked for: a small batch must not cost a trip to the disk."""


class Records:
    """Consecutive records of one partition, from offset `first` on; offsets are dense."""

    __slots__ = ("first", "keys", "partition", "times", "topic", "values")

    def __init__(
        self,
        topic: str,
        partition: int,
        first: int,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        times: Sequence[int],
    ) -> None:
        self.topic, self.partition, self.first = topic, partition, first
        self.keys: Sequence[bytes | None] | None = keys
        self.values = values
        self.times: Sequence[int] | None = times

    def __len__(self) -> int:
        return len(self.values)

    def position(self, count: int) -> Any:
        """Where to go on after the first `count` records: an offset."""
        return self.first + count

    def offset(self, index: int) -> int:
        """The offset of record `index`."""
        return self.first + index

    def where(self, index: int) -> str:
        """Where record `index` lies, for a person: `payments[3] offset 99`."""
        return f"{self.topic}[{self.partition}] offset {self.first + index}"

    def part(self, start: int, stop: int) -> "Records":
        """The records from `start` up to `stop`, counted within this batch."""
        assert self.keys is not None
        assert self.times is not None
        return Records(
            self.topic,
            self.partition,
            self.first + start,
            self.keys[start:stop],
            self.values[start:stop],
            self.times[start:stop],
        )


class LogBroker(Protocol):
    """What readers need of a broker."""

    url: str

    async def topics(self) -> dict[str, int]: ...
    async def bounds(self, topic: str, partition: int) -> tuple[int, int]: ...
    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Records: ...


class LogSource:
    """One topic of a local broker."""

    codec: str | None = None

    def __init__(
        self, broker: LogBroker, topic: str, *, start: Start = "earliest", out_of_range: OutOfRange = "fail"
    ) -> None:
        self.broker, self.topic, self._start, self.out_of_range = broker, topic, start, out_of_range

    async def splits(self) -> Sequence[int]:
        """The partitions. Raises ConfigError if there is no such topic."""
        topics = await self.broker.topics()
        if self.topic not in topics:
            raise unknown_topic(self.topic, self.broker.url, topics)
        return range(topics[self.topic])

    async def open(self, split: int, position: Any) -> "LogReader":
        """A reader from offset `position` (None: from where the source starts).

        Raises InputError if records from there on have been deleted, or if there never were so many, unless it is to
        go on all the same: that loses records.
        """
        start, end = await self.broker.bounds(self.topic, split)
        offset = await self._begin(split, start, end) if position is None else position
        if not start <= offset <= end:
            offset = self.instead(split, offset, start, end)
        return LogReader(self, split, offset)

    async def _begin(self, split: int, start: int, end: int) -> int:
        match self._start:
            case "earliest":
                return start
            case "latest":
                return end
            case Mapping() as offsets:
                return int(offsets.get(split, start))
            case time:
                assert isinstance(time, int)
                return await self._at(split, time, start, end)

    async def _at(self, split: int, time: int, start: int, end: int) -> int:
        """The offset of the first record that is not older."""
        while start < end:
            batch = await self.broker.read(self.topic, split, start, READ_AHEAD)
            assert batch.times is not None
            for n, at in enumerate(batch.times):
                if at >= time:
                    return batch.first + n
            start = batch.first + len(batch)
        return end

    def instead(self, split: int, offset: int, start: int, end: int) -> int:
        """Where to go on instead of at `offset`, which is not there. Raises InputError if that must not be."""
        if self.out_of_range == "fail":
            raise _gap(self.broker.url, self.topic, split, offset, start, end)
        there = start if self.out_of_range == "earliest" else end
        log.warning(
            "position out of range: going on elsewhere",
            topic=self.topic,
            split=split,
            position=offset,
            start=start,
            end=end,
            goes_on_at=there,
        )
        return there


class LogReader:
    """Reads one partition in order."""

    at_end = False  # someone may always append

    def __init__(self, source: LogSource, split: int, offset: int) -> None:
        self._source, self._split = source, split
        self.offset = offset
        """Of the next record that it gives."""
        self._broker, self._topic = source.broker, source.topic
        self._ahead: Records | None = None

    async def fetch(self, max_records: int) -> Records | None:
        """The next records, at most `max_records`; None if there are none for now."""
        batch, self._ahead = self._ahead, None
        if batch is None:
            batch = await self._broker.read(self._topic, self._split, self.offset, max(max_records, READ_AHEAD))
            if not len(batch):
                return None
            if batch.first != self.offset:  # retention was faster than this reader
                start, end = await self._broker.bounds(self._topic, self._split)
                self.offset = self._source.instead(self._split, self.offset, start, end)
                return None  # the next call begins there
        if len(batch) > max_records:
            self._ahead = batch.part(max_records, len(batch))
            batch = batch.part(0, max_records)
        self.offset += len(batch)
        return batch

    async def close(self) -> None:
        self._ahead = None


def _gap(url: str, topic: str, partition: int, offset: int, start: int, end: int) -> InputError:
    return InputError(
        f"{topic}[{partition}] at {url} holds offsets {start} to {end - 1}, but the reader is at {offset}: records "
        "were deleted before they were read, or this is not the broker that the state belongs to"
    )
