"""One shard read in order: polled ahead of those who fetch, as often as Amazon allows; or pushed: `kinesis_fan_out`.

    poll     at most 5 calls a second and shard (all consumers together); less often where nothing comes; half as often
             each time that the service says it is too much, and slowly more again
    ahead    two answers at most wait (10 MiB each); then nothing is asked until one is taken
    end      a closed shard that is read to its end

A position is [sequence number, n]: after that record, or, where there are several in it and n is not 0, after the
first n of those in it. In a stream of flowkit's own {sender: its next number} follows (`codec.parcel`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import structlog

from flowkit.aws import Blame, Right, arn, blame_of, code_of, failures, told
from flowkit.codec import PARCEL, decode_parcel
from flowkit.errors import BrokerError, ConfigError, InputError
from flowkit.options import OutOfRange, Start
from flowkit.source.kinesis_aggregated import MAGIC, taken_apart
from flowkit.source.kinesis_batch import Arrivals, KinesisBatch
from flowkit.source.kinesis_fan_out import Consumer, NoFanOut, Subscription
from flowkit.source.kinesis_streams import KinesisStreams, Shard
from flowkit.source.seam import is_end

log = structlog.get_logger("flowkit.kinesis")

CALL_SECONDS = 0.2
"""Five calls a second (GetRecords: "up to five transactions per second" a shard)."""
IDLE_SECONDS = 1.0
SLOWEST_SECONDS = 10.0
RECORDS = 10_000
"""The most that one call gives; 10 MiB are another limit."""
AHEAD = 2
TELL_SECONDS = SILENT_SECONDS = 10.0
PACKED = frozenset((MAGIC[:1], PARCEL[:1]))
"""What records begin with in which there are others."""


class KinesisSource:
    """One stream. A reader without a position begins at `start`; of `until_end`, it ends where the shard ends now."""

    codec: str | None = None

    def __init__(
        self,
        streams: KinesisStreams,
        arrivals: Arrivals,
        stream: str,
        *,
        start: Start,
        out_of_range: OutOfRange,
        until_end: bool = False,
    ) -> None:
        self.streams, self.arrivals, self.stream, self.out_of_range = streams, arrivals, stream, out_of_range
        self.consumer: Consumer | None = None
        """To whom records are pushed; None: they are polled for."""
        self._start, self._until_end = start, until_end

    def rights(self) -> Sequence[Right]:
        """What has to be allowed for reading it."""
        streams = self.streams
        read = Right(
            "kinesis", ("GetRecords", "GetShardIterator"), arn("kinesis", f"stream/{self.stream}", streams.aws.region)
        )
        return (streams.looking(self.stream), read)

    async def splits(self) -> Sequence[int]:
        """The numbers of the shards: the open ones; all that hold records, if it is to be read to its end."""
        shards = await self.streams.shards(self.stream)
        if not shards:
            raise ConfigError(f"no stream {self.stream!r} at {self.streams.url}{await self._known()}")
        return [shard.number for shard in shards if self._until_end or not shard.closed]

    async def _known(self) -> str:
        """Which streams there are, where that may be asked: a worker's role need not."""
        try:
            return f" (streams: {', '.join(await self.streams.topics()) or 'none'})"
        except BrokerError:
            return ""

    async def open(self, split: int, position: Any) -> "KinesisReader":
        """A reader of a shard. Raises ConfigError if there is none of that number, InputError if it has expired."""
        shard = await self._shard(split)
        reader = KinesisReader(self, shard, position, until_end=self._until_end)
        reader.begin()
        return reader

    async def _shard(self, split: int) -> Shard:
        for fresh in (False, True):
            for shard in await self.streams.shards(self.stream, fresh=fresh):
                if shard.number == split:
                    return shard
        raise InputError(f"{self.stream}[{split}] at {self.streams.url}: there is no such shard (any more)")

    def iterator_of(self, shard: Shard, position: Any) -> dict[str, Any]:
        """What GetShardIterator is asked for."""
        asked: dict[str, Any] = {"StreamName": self.stream, "ShardId": shard.id}
        if position is not None and position[0]:
            sequence, part, *_ = position
            kind = "AT_SEQUENCE_NUMBER" if part else "AFTER_SEQUENCE_NUMBER"
            return {**asked, "ShardIteratorType": kind, "StartingSequenceNumber": sequence}
        match "earliest" if position is not None else self._start:
            case "earliest":
                return {**asked, "ShardIteratorType": "TRIM_HORIZON"}
            case "latest":
                return {**asked, "ShardIteratorType": "LATEST"}
            case int(time_ms):
                at = datetime.fromtimestamp(time_ms / 1000, UTC)
                return {**asked, "ShardIteratorType": "AT_TIMESTAMP", "Timestamp": at}
            case sequences:
                sequence = sequences.get(shard.number)
                if sequence is None:
                    return {**asked, "ShardIteratorType": "TRIM_HORIZON"}
                return {
                    **asked,
                    "ShardIteratorType": "AT_SEQUENCE_NUMBER",
                    "StartingSequenceNumber": str(sequence),
                }


class KinesisReader:
    """Reads one shard. Made by `KinesisSource.open`."""

    def __init__(self, source: KinesisSource, shard: Shard, position: Any, *, until_end: bool) -> None:
        self.shard, self.at_end = shard, is_end(position)
        self._behind: int | None = None
        self._answered = 0.0
        self._source, self._until_end = source, until_end
        self._asked = position
        """Where what was polled last ends; None: nothing was, and it begins at `_begin`."""
        self._begin: dict[str, Any] = {}
        self._at_tip = False
        """True while it has begun at the latest record, and nothing has come since."""
        self._skip = 0
        """How many parts of the first record to come are done already."""
        self._heard: dict[str, int] = dict(position[2]) if position is not None and len(position) > 2 else {}
        """By sender, in a stream of flowkit's own: the number of its next record."""
        self._ready: deque[KinesisBatch] = deque()
        self._room = asyncio.Event()
        self._ended = False
        self._pause = CALL_SECONDS
        self._told = 0.0
        self._job: asyncio.Task[None]

    @property
    def behind_ms(self) -> int | None:
        """How far behind the newest record it is, by the service's word (`MillisBehindLatest`); None before the first.

        Where that is old, since nothing can be read or there is no room, it is as far behind as it may be by now.
        """
        if self._behind is None or self._ended:
            return self._behind
        silent = time.monotonic() - self._answered
        return self._behind + (round(silent * 1000) if silent > SILENT_SECONDS else 0)

    def begin(self) -> None:
        """Begin to read ahead."""
        self._job = asyncio.create_task(self._read_on(), name=f"read {self._source.stream} {self.shard.id}")

    async def fetch(self, max_records: int) -> KinesisBatch | None:
        """The next records; None if there are none for now. Raises InputError, BrokerError."""
        if not self._ready:
            if self._job.done():
                self._job.result()
            self.at_end = self._ended
            return None
        batch = self._ready[0]
        if len(batch) > max_records:
            self._ready[0] = batch.part(max_records, len(batch))
            batch = batch.part(0, max_records)
        else:
            self._ready.popleft()
            self._room.set()
        self.at_end = self._ended and not self._ready
        return batch

    async def close(self) -> None:
        """Stop reading."""
        self._job.cancel()
        await asyncio.gather(self._job, return_exceptions=True)

    async def _read_on(self) -> None:
        try:
            if self._source.consumer is None or not await self._subscribe(self._source.consumer):
                await self._poll()
        finally:
            self._source.arrivals.came()

    async def _subscribe(self, consumer: Consumer) -> bool:
        """Have records pushed, up to the shard's end; False if that cannot be had."""
        if self.at_end:
            return False
        try:
            await Subscription(consumer, self.shard.id, self).run()
        except NoFanOut as error:
            consumer.give_up(str(error))
            return False
        self._behind, self._ended = 0, True
        return True

    async def _poll(self) -> None:
        iterator = None if self.at_end else await self._iterator()
        while iterator is not None:
            await self.room()
            began = time.monotonic()
            iterator, found = await self._call(iterator)
            idle = found == 0 and self._behind == 0
            if idle and self._until_end:
                break
            self._pause = min(IDLE_SECONDS, self._pause * 1.5) if idle else max(CALL_SECONDS, self._pause / 2)
            await asyncio.sleep(max(0.0, began + self._pause - time.monotonic()))
        self._behind, self._ended = 0, True

    async def room(self) -> None:
        """Return once what is to come has a place to wait."""
        while len(self._ready) >= AHEAD:
            self._room.clear()
            await self._room.wait()

    def start(self) -> dict[str, Any]:
        """What GetShardIterator is asked for, to go on from where what came last ends."""
        begun = not self._begin and self._asked is not None and self._asked[0]
        self._skip = self._asked[1] if begun else 0
        found = self._begin or self._source.iterator_of(self.shard, self._asked)
        self._at_tip = self._at_tip or found["ShardIteratorType"] == "LATEST"
        return found

    def goes_on(self, sequence: str) -> None:
        """All up to this sequence number has come, though there may be no such record."""
        if not self._skip:  # else the record that was begun has not come yet
            self._begin = {**self._of_shard, "ShardIteratorType": "AFTER_SEQUENCE_NUMBER"}
            self._begin["StartingSequenceNumber"] = sequence
            self._at_tip = False
        self._pause = CALL_SECONDS

    @property
    def _of_shard(self) -> dict[str, Any]:
        return {"StreamName": self._source.stream, "ShardId": self.shard.id}

    async def _iterator(self) -> str:
        while True:
            try:
                answer = await self._source.streams.client.get_shard_iterator(**self.start())
            except failures() as error:
                await self.bear(error)
            else:
                return str(answer["ShardIterator"])

    async def _call(self, iterator: str) -> tuple[str | None, int | None]:
        """One call: the next iterator (None at the shard's end), and how many records it gave (None: no answer)."""
        try:
            answer = await self._source.streams.client.get_records(ShardIterator=iterator, Limit=RECORDS)
        except failures() as error:
            if code_of(error) == "ExpiredIteratorException":
                return await self._iterator(), None
            await self.bear(error)
            # An answer may have been lost that had records: the iterator gives them once more.
            return iterator, None
        self.take(answer["Records"], answer.get("MillisBehindLatest"))
        if self._at_tip:
            self._at_tip = not answer["Records"]
            if self._at_tip:  # "latest" once more, as when its iterator expires, would lose what came meanwhile
                since = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": _answered(answer) - timedelta(seconds=1)}
                self._begin = {**self._of_shard, **since}
        return answer.get("NextShardIterator") or None, len(answer["Records"])

    async def bear(self, error: BaseException) -> None:
        """Wait, if it passes; else raise."""
        streams = self._source.streams
        blame = blame_of(error)
        if code_of(error) == "ResourceNotFoundException":
            raise InputError(
                f"{self._source.stream} {self.shard.id} at {streams.url}: the stream was deleted, or the shard has "
                "expired before it was read to its end"
            ) from error
        sequence = self._begin.get("StartingSequenceNumber") if self._begin else self._asked and self._asked[0]
        if code_of(error) == "InvalidArgumentException" and sequence:
            self._out_of_range(sequence, error)
            return
        if blame not in (Blame.SLOW, Blame.PASSING):
            raise streams.failed(f"reading {self._source.stream} {self.shard.id}", error) from error
        self._pause = min(SLOWEST_SECONDS, self._pause * 2)
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            log.warning(
                "shard cannot be read for now; trying again", stream=self._source.stream, shard=self.shard.id,
                reason=told(error), pause=round(self._pause, 2),
            )  # fmt: skip
        await asyncio.sleep(self._pause)

    def _out_of_range(self, sequence: str, error: BaseException) -> None:
        policy = self._source.out_of_range
        if policy == "fail":
            raise InputError(
                f"{self._source.stream} {self.shard.id} at {self._source.streams.url} has no record {sequence}: "
                "it expired before it was read, or this is not the stream that the state belongs to; to go on all the "
                f"same, set out_of_range to earliest or latest ({told(error)})"
            ) from error
        log.warning("position not in the shard", stream=self._source.stream, shard=self.shard.id, policy=policy)
        kind = "TRIM_HORIZON" if policy == "earliest" else "LATEST"
        self._asked = None
        self._begin = {**self._of_shard, "ShardIteratorType": kind}

    def take(self, records: Sequence[Any], behind_ms: int | None) -> None:
        """Lay what came before those who fetch. `behind_ms` is what the service says of it."""
        self._behind, self._answered = behind_ms, time.monotonic()
        rows: list[tuple[str, int]] = []
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        times: list[int] = []
        heard: list[tuple[str, int]] = []
        for record in records:
            sequence, data = record["SequenceNumber"], record["Data"]
            start = self._skip
            self._skip = 0
            if data[:1] not in PACKED:  # most are not: 0.3 of 1.1 µs a record
                rows.append((sequence, 0))
                keys.append(record["PartitionKey"].encode())
                values.append(data)
                times.append(record["ApproximateArrivalTimestamp"])
                continue
            parcel = decode_parcel(data)
            if parcel is not None:
                start = max(start, self._heard.get(parcel.sender, 1) - parcel.first)
                after = range(parcel.first + start + 1, parcel.first + len(parcel.keys) + 1)
                heard += [("", 0)] * (len(rows) - len(heard))  # before it: somebody else's, in a stream of ours
                heard += [(parcel.sender, number) for number in after]
                self._heard[parcel.sender] = max(self._heard.get(parcel.sender, 1), parcel.first + len(parcel.keys))
                own_keys, own_values, own_times = parcel.keys, parcel.values, parcel.times
            else:
                parts = taken_apart(data, record["PartitionKey"].encode())
                own_keys, own_values = [key for key, _ in parts], [value for _, value in parts]
                own_times = [record["ApproximateArrivalTimestamp"]] * len(parts)
            rows += [(sequence, (n + 1) % len(own_keys)) for n in range(start, len(own_keys))]
            keys += own_keys[start:]
            values += own_values[start:]
            times += own_times[start:]
        if rows:
            if heard:
                heard += [("", 0)] * (len(rows) - len(heard))
            batch = KinesisBatch(self._source.stream, self.shard.id, self._asked, rows, keys, values, times, heard)
            self._asked, self._begin = batch.position(len(batch)), {}
            self._ready.append(batch)
            self._source.arrivals.came()


def _answered(answer: Any) -> datetime:
    """When a service gave an answer, by its own clock, to the second."""
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return datetime.now(UTC)
