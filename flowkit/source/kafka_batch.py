"""Consecutive records of one Kafka partition, in columns. Offsets have gaps: transactions and compaction leave them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(slots=True)
class KafkaBatch:
    """`first` is where reading began. `headers_at` has the headers of those records that have some."""

    topic: str
    partition: int
    first: int
    offsets: Sequence[int]
    keys: Sequence[bytes | None] | None
    values: Sequence[bytes | None]
    times: Sequence[int] | None
    headers_at: Mapping[int, Headers]

    @classmethod
    def of(cls, topic: str, partition: int, first: int, records: Sequence[Any]) -> "KafkaBatch":
        """Of records as aiokafka has them, of one partition, in order; `first` counts if there are none."""
        offsets: Sequence[int] = ()
        if records:
            first, end = records[0].offset, records[-1].offset + 1
            offsets = range(first, end)
            if len(offsets) > len(records):
                offsets = [record.offset for record in records]
        return cls(
            topic,
            partition,
            first,
            offsets,
            [record.key for record in records],
            [record.value for record in records],
            [record.timestamp for record in records],
            {n: headers for n, record in enumerate(records) if (headers := record.headers)},
        )

    def __len__(self) -> int:
        return len(self.values)

    def position(self, count: int) -> Any:
        """Where to go on after the first `count` records: the offset after the last of them."""
        return self.offsets[count - 1] + 1 if count else self.first

    def offset(self, index: int) -> int:
        """The offset of record `index`."""
        return self.offsets[index]

    def where(self, index: int) -> str:
        """Where record `index` lies, for a person: `payments[3] offset 99`."""
        return f"{self.topic}[{self.partition}] offset {self.offsets[index]}"

    def headers(self, index: int) -> Headers:
        """The headers of record `index`, in their order; a name may come again."""
        return self.headers_at.get(index, ())

    def part(self, start: int, stop: int) -> "KafkaBatch":
        """The records from `start` up to `stop`, counted within this batch."""
        headers = {n - start: self.headers_at[n] for n in range(start, stop) if n in self.headers_at}
        return KafkaBatch(
            self.topic,
            self.partition,
            self.position(start),
            self.offsets[start:stop],
            self.keys and self.keys[start:stop],
            self.values[start:stop],
            self.times and self.times[start:stop],
            headers if self.headers_at else {},
        )
