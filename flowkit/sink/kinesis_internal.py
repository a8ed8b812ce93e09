"""A stream of flowkit's own, by which events travel to where their new key belongs: `kinesis-internal://STREAM`.

What one commit sends to one shard goes in few parcels (`codec.parcel`), one after the other, so that the receiver can
tell by their numbers what it has had. A mark has no key and goes to every shard, behind the events of its commit.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self

from flowkit.aws import AwsOptions, Right, arn, hash_of, open_client
from flowkit.codec import encode_parcel
from flowkit.errors import ConfigError
from flowkit.sink.calls import called
from flowkit.sink.dispatch import Again, Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.seam import Outgoing, Rejected, SinkTask

PARCEL_BYTES = 900_000
"""Of keys and values in a parcel, below the 1 MiB that a record may have."""
CALL_BYTES = 4 << 20


class Range(NamedTuple):
    """A shard by its number, and the first hash that belongs to it."""

    first: int
    number: int


class InternalDestination:
    """One stream. See the head of this file."""

    codec: str | None = None
    guarantee = "exactly once, as far as the frames of its senders are kept"

    def __init__(self, stream: str, aws: AwsOptions, where: str) -> None:
        self.stream, self.aws, self.where = stream, aws, where
        self.ranges: list[Range] = []
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError if the stream was resharded: what has been sent would be read out of order."""
        self._client = await self._stack.enter_async_context(open_client("kinesis", self.aws, self.where))
        found: list[Any] = []
        more: dict[str, Any] = {"StreamName": self.stream}
        while True:
            page = await called(self.where, self._client.list_shards(**more))
            found += page["Shards"]
            if not page.get("NextToken"):
                break
            more = {"NextToken": page["NextToken"]}
        if any(shard["SequenceNumberRange"].get("EndingSequenceNumber") for shard in found):
            raise ConfigError(f"{self.where}: was resharded, which a stream of flowkit's own must not be")
        self.ranges = sorted(
            Range(int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["ShardId"].rpartition("-")[2]))
            for shard in found
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def check(self) -> None:
        """Nothing can be wrong with it from here."""

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        return (
            Right("kinesis", ("ListShards", "PutRecords"), arn("kinesis", f"stream/{self.stream}", self.aws.region)),
        )

    def sink(self, task: SinkTask) -> "InternalSink":
        """As the protocol says."""
        return InternalSink(self, f"{task.group}/{task.partition}")

    async def send(self, items: Sequence[Item]) -> Sequence[Outcome]:
        """One call."""
        entries = [{"Data": item.body[1], "PartitionKey": "p", "ExplicitHashKey": item.body[0]} for item in items]
        answer = await called(self.where, self._client.put_records(StreamName=self.stream, Records=entries))
        return [
            Again(str(record.get("ErrorMessage")), slow="Throughput" in record["ErrorCode"])
            if record.get("ErrorCode")
            else None
            for record in answer["Records"]
        ]


class InternalSink:
    """One task's part. A hand-off is a list of [shard's number, parcel], in order."""

    codec: str | None = None
    repeats = False

    def __init__(self, destination: InternalDestination, sender: str) -> None:
        self.destination, self.sender = destination, sender
        self._next: dict[int, int] = {}
        self._dispatch = Dispatch(destination.where, destination.send, Limits(500, CALL_BYTES, 4))

    async def open(self, state: Any) -> None:
        """As the protocol says."""
        self._next = dict(state or {})

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """As the protocol says."""
        ranges = self.destination.ranges
        firsts = [each.first for each in ranges]
        by_shard: dict[int, list[tuple[bytes | None, bytes | None, int]]] = {each.number: [] for each in ranges}
        for record in records:
            row = (record.key, record.value, record.time)
            if record.key is None:
                for rows in by_shard.values():
                    rows.append(row)
            else:
                by_shard[ranges[bisect_right(firsts, hash_of(record.key)) - 1].number].append(row)
        parcels = [[number, parcel] for number, rows in by_shard.items() for parcel in self._parcels(number, rows)]
        return parcels or None

    def _parcels(self, number: int, rows: Sequence[tuple[bytes | None, bytes | None, int]]) -> Sequence[bytes]:
        parcels: list[bytes] = []
        part: list[tuple[bytes | None, bytes | None, int]] = []
        size = 0
        for row in [*rows, None]:
            added = 0 if row is None else len(row[0] or b"") + len(row[1] or b"") + 16
            if part and (row is None or size + added > PARCEL_BYTES):
                first = self._next.get(number, 1)
                parcels.append(encode_parcel(self.sender, first, part))
                self._next[number] = first + len(part)
                part, size = [], 0
            if row is not None:
                part.append(row)
                size += added
        return parcels

    def state(self) -> Any:
        """By shard the number of the next record."""
        return dict(self._next)

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        """As the protocol says."""
        starts = {each.number: str(each.first) for each in self.destination.ranges}
        items = [
            Item(row, b"%d" % number, len(parcel), (starts[number], parcel))
            for row, (number, parcel) in enumerate(handoff or ())
        ]
        never: list[tuple[int, Never]] = await self._dispatch.run(items)
        return [
            Rejected(None, handoff[row][1], 0, why.error, f"to {self.destination.stream}: {why.reason}")
            for row, why in never
        ]

    async def close(self) -> None:
        """The client is the destination's."""


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> InternalDestination:
    """As the registry asks for it."""
    aws, _ = AwsOptions.take(options, where)
    return InternalDestination(place, aws, where)
