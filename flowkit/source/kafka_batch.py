"""Consecutive records of one Kafka partition. Their offsets have gaps: transactions and compaction leave them."""

from collections.abc import Sequence
from typing import Any


class KafkaBatch:
    """`records` are aiokafka's, of one partition, in order; `first` is where reading began, if there are none."""

    __slots__ = ("_records", "first", "keys", "partition", "times", "topic", "values")

    def __init__(self, topic: str, partition: int, first: int, records: Sequence[Any]) -> None:
        self.topic, self.partition = topic, partition
        self.first: int = records[0].offset if records else first
        self._records = records
        self.keys: Sequence[bytes | None] | None = [record.key for record in records]
        self.values: Sequence[bytes | None] = [record.value for record in records]
        self.times: Sequence[int] | None = [record.timestamp for record in records]

    def __len__(self) -> int:
        return len(self._records)

    def position(self, count: int) -> Any:
        """Where to go on after the first `count` records: the offset after the last of them."""
        return self._records[count - 1].offset + 1 if count else self.first

    def offset(self, index: int) -> int:
        """The offset of record `index`."""
        return int(self._records[index].offset)

    def where(self, index: int) -> str:
        """Where record `index` lies, for a person: `payments[3] offset 99`."""
        return f"{self.topic}[{self.partition}] offset {self._records[index].offset}"

    def headers(self, index: int) -> Sequence[tuple[str, bytes | None]]:
        """The headers of record `index`, in their order; a name may come again."""
        found: Sequence[tuple[str, bytes | None]] = self._records[index].headers
        return found

    def part(self, start: int, stop: int) -> "KafkaBatch":
        """The records from `start` up to `stop`, counted within this batch."""
        return KafkaBatch(self.topic, self.partition, self.position(start), self._records[start:stop])
