"""Streams as topics: their shards, which are the splits, and the hash ranges by which keys belong to them.

A shard's number is the last part of its id: `shardId-000000000007` is split 7. Numbers are never given twice in a
stream. A stream that is resharded closes shards and opens others, each with one or two parents.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, NamedTuple, TypeVar

import structlog

from flowkit.aws import AwsOptions, Blame, Right, arn, blame_of, code_of, hash_of, open_client, told
from flowkit.clock import Clock
from flowkit.errors import BrokerError, BrokerRefused, ConfigError
from flowkit.source.rules import KeyValueTime

T = TypeVar("T")
log = structlog.get_logger("flowkit.kinesis")

ALL = 2**128 - 1
"""The highest hash of a key."""
FRESH_MS = 5_000
"""So long what is known of a stream's shards is taken as it is."""
CREATE_SECONDS = 120
SUBSCRIPTIONS = 1000
"""The most shards that can be pushed to one process."""
SILENT_SECONDS = 30.0
"""An event comes every few seconds, if only to say that there is nothing."""
PUT_RECORDS, PUT_BYTES = 500, 4 << 20


class Shard(NamedTuple):
    """One shard: takes the keys whose hash is from `first` to `last`. `closed`: nothing more will be put into it."""

    number: int
    id: str
    parents: tuple[int, ...]
    first: int
    last: int
    closed: bool

    def owns(self, key: bytes) -> bool:
        """True if a record with this partition key belongs here.

        >>> Shard(0, "shardId-000000000000", (), 0, ALL // 2, False).owns(b"a")
        True
        """
        return self.first <= hash_of(key) <= self.last

    @property
    def span(self) -> str:
        """Its first and its last hash, in hexadecimal digits."""
        return f"{self.first:x}-{self.last:x}"

    @property
    def is_all(self) -> bool:
        """True if every key belongs here."""
        return self.first == 0 and self.last >= ALL


def milliseconds(said: Any) -> int:
    """A time as Kinesis says it, in seconds (or in words). botocore's way, by a datetime, takes 9 of 15 µs a record."""
    if isinstance(said, int | float):
        return round(said * 1000)
    from botocore.utils import parse_timestamp

    return int(parse_timestamp(said).timestamp() * 1000)


def keys_in(span: str) -> Callable[[bytes], bool]:
    """True for the keys that belong to a shard of this span.

    >>> keys_in(Shard(0, "shardId-000000000000", (), 0, ALL // 2, False).span)(b"a")
    True
    """
    first, last = (int(word, 16) for word in span.split("-"))
    return lambda key: first <= hash_of(key) <= last


def number_of(shard_id: str) -> int:
    """The number of a shard.

    >>> number_of("shardId-000000000007")
    7
    """
    return int(shard_id.rpartition("-")[2])


def id_of(number: int) -> str:
    """The id of a shard.

    >>> id_of(7)
    'shardId-000000000007'
    """
    return f"shardId-{number:012d}"


class KinesisStreams:
    """The streams of one account and region. Use `open` and `close`. Every method may raise BrokerError."""

    def __init__(self, aws: AwsOptions, clock: Clock, url: str) -> None:
        self.aws, self.url = aws, url
        self.client: Any = None
        self._clock = clock
        self._stack = AsyncExitStack()
        self._shards: dict[str, tuple[int, list[Shard]]] = {}
        self._pushing: Any = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Make a client; nothing is asked yet."""
        self.client = await self._stack.enter_async_context(self._opening(self.aws, 100))

    async def pushing(self) -> Any:
        """A client for what goes on for minutes: a connection each, on which something has to come now and then."""
        async with self._turn:
            if self._pushing is None:
                aws = self.aws._replace(timeout=max(SILENT_SECONDS, self.aws.timeout))
                self._pushing = await self._stack.enter_async_context(self._opening(aws, SUBSCRIPTIONS))
            return self._pushing

    def _opening(self, aws: AwsOptions, connections: int) -> AbstractAsyncContextManager[Any]:
        return open_client("kinesis", aws, self.url, connections=connections, times=milliseconds)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()
        self._pushing = None

    async def topics(self) -> dict[str, int]:
        """How many open shards each stream has."""
        names: list[str] = []
        more: dict[str, Any] = {}
        while True:
            page = await self.do("listing streams", self.client.list_streams(**more))
            names += page["StreamNames"]
            if not page.get("HasMoreStreams") or not page["StreamNames"]:
                break
            more = {"ExclusiveStartStreamName": page["StreamNames"][-1]}
        return {name: len([s for s in await self.shards(name) if not s.closed]) for name in sorted(names)}

    async def shards(self, stream: str, *, fresh: bool = False) -> list[Shard]:
        """All shards that hold records still, open or closed, by number; none if there is no such stream."""
        now = self._clock.now_ms()
        known = self._shards.get(stream)
        if known is not None and not fresh and now - known[0] < FRESH_MS:
            return known[1]
        found: list[Shard] = []
        more: dict[str, Any] = {"StreamName": stream}
        while True:
            try:
                page = await self.client.list_shards(**more)
            except Exception as error:
                if code_of(error) == "ResourceNotFoundException":
                    return []
                raise self.failed(f"looking at stream {stream!r}", error) from error
            found += map(_shard, page["Shards"])
            if not page.get("NextToken"):
                break
            more = {"NextToken": page["NextToken"]}
        found.sort()
        if known is not None and found != known[1]:
            log.info("shards have changed", stream=stream, open=[s.number for s in found if not s.closed])
        self._shards[stream] = (now, found)
        return found

    def outdated(self, stream: str) -> None:
        """The stream has other shards by now: look anew when they are asked for."""
        if stream in self._shards:
            self._shards[stream] = (self._clock.now_ms() - FRESH_MS, self._shards[stream][1])

    async def create(self, stream: str, shards: int) -> None:
        """Make a stream and wait until it can be used."""
        try:
            await self.client.create_stream(StreamName=stream, ShardCount=shards)
        except Exception as error:
            if code_of(error) != "ResourceInUseException":  # another worker has just made it
                raise self.failed(f"making stream {stream!r}", error) from error
        for _ in range(CREATE_SECONDS):
            summary = await self.do(f"looking at {stream!r}", self.client.describe_stream_summary(StreamName=stream))
            if summary["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                break
            await self._clock.sleep(1000)
        else:
            raise BrokerError(f"{self.url}: stream {stream!r} is not active after {CREATE_SECONDS} s")
        found = [shard for shard in await self.shards(stream, fresh=True) if not shard.closed]
        if len(found) != shards:
            raise ConfigError(f"stream {stream!r} at {self.url} exists with {len(found)} open shards, not {shards}")

    async def partitions(self, stream: str) -> int:
        """How many open shards the stream has; 0 if it does not exist."""
        return len([shard for shard in await self.shards(stream) if not shard.closed])

    def looking(self, stream: str) -> Right:
        """What has to be allowed for `shards`."""
        return Right("kinesis", ("ListShards",), arn("kinesis", f"stream/{stream}", self.aws.region))

    def making(self, stream: str) -> Right:
        """What has to be allowed for `create`, beside `looking`."""
        actions = ("CreateStream", "DescribeStreamSummary")
        return Right("kinesis", actions, arn("kinesis", f"stream/{stream}", self.aws.region))

    async def put(self, stream: str, records: Sequence[KeyValueTime], partition: int | None = None) -> None:
        """Put (key, value, time) from outside, into shard `partition` or by key. Their times do not travel.

        Raises ConfigError if a record has no value: a stream knows no tombstones.
        """
        shards = {shard.number: shard for shard in await self.shards(stream)}
        if partition is not None and partition not in shards:
            raise ConfigError(f"stream {stream!r} at {self.url} has no shard {partition} (it has {sorted(shards)})")
        entries = []
        for number, (key, value, _) in enumerate(records):
            if value is None:
                raise ConfigError(f"stream {stream!r}: a record without a value cannot be put into a stream")
            entry = {"Data": value, "PartitionKey": (key or b"%d" % number).decode(errors="replace")[:256] or "-"}
            if partition is not None:
                entry["ExplicitHashKey"] = str(shards[partition].first)
            entries.append(entry)
        left = entries
        wait = 50.0
        while left:
            batch: list[dict[str, Any]] = []
            size = 0
            while len(batch) < min(PUT_RECORDS, len(left)) and (not batch or size < PUT_BYTES):
                size += len(left[len(batch)]["Data"]) + 256
                batch.append(left[len(batch)])
            answer = await self.do(
                f"putting into {stream!r}", self.client.put_records(StreamName=stream, Records=batch)
            )
            again = [e for e, r in zip(batch, answer["Records"], strict=True) if r.get("ErrorCode")]
            left = again + left[len(batch) :]
            if again:
                await asyncio.sleep(wait / 1000)
                wait = min(wait * 2, 5_000)

    async def do(self, doing: str, call: Awaitable[T]) -> T:
        """What a call gives. Raises BrokerError that tells what was being done, and the cause."""
        try:
            return await call
        except Exception as error:
            raise self.failed(doing, error) from error

    def failed(self, doing: str, error: BaseException) -> BaseException:
        """The error to raise for one of the client's; another one as it is."""
        blame = blame_of(error)
        if blame is None:
            return error
        if blame is Blame.PERSON:
            return BrokerRefused(f"{self.url}: {doing}: {told(error)}: see to names, region and rights")
        return BrokerError(f"{self.url}: {doing}: {told(error)}")


def _shard(found: dict[str, Any]) -> Shard:
    ids = [found[name] for name in ("ParentShardId", "AdjacentParentShardId") if found.get(name)]
    hashes = found["HashKeyRange"]
    return Shard(
        number_of(found["ShardId"]),
        found["ShardId"],
        tuple(sorted(map(number_of, ids))),
        int(hashes["StartingHashKey"]),
        int(hashes["EndingHashKey"]),
        bool(found["SequenceNumberRange"].get("EndingSequenceNumber")),
    )
