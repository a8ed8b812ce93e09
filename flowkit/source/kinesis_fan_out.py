"""Enhanced fan-out: a shard's records are pushed to a registered consumer, with 2 MB a second of its own.

consumer       NAME.GROUP, one a stream and group; registered by whoever comes first, and by nobody deregistered:
other workers may read under it, and it costs until `aws kinesis deregister-stream-consumer`
subscription   of one shard; Amazon ends it after five minutes, and it is taken out anew behind what came last
ahead          an event is read once there is room for it; until then it waits at the server
end            the event that names the shard's children
falling back   where it may not be had, is not known, or the stream has as many consumers as it may: it is polled,
until the worker starts again
"""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Protocol

import structlog

from flowkit.aws import Blame, Right, arn, blame_of, code_of, failures, status_of
from flowkit.aws import told as told_of
from flowkit.source.kinesis_streams import KinesisStreams

log = structlog.get_logger("flowkit.kinesis")

CALL_SECONDS = 1.0
"""SubscribeToShard: "one call … per second per registered consumer per shard"."""
TAKEN_SECONDS = 10.0
"""One whose subscription was taken over leaves it to the other for so long: that is the younger one."""
IN_USE_SECONDS = 20.0
"""So long it is no news that a subscription of the shard is open still; Amazon's lasts five seconds at least."""
TRIES = 5
"""So often a service may answer that it failed (botocore has tried each time, too), before it counts as unable."""
ACTIVE_SECONDS = 120
LIMIT_TRIES = 10
"""No more than five calls a second, and five new consumers at a time: only after so many seconds it is the stream's."""
LONGEST = 128

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
UNKNOWN = ("UnknownOperationException", "InvalidAction", "NotImplemented", "UnsupportedOperation", "404", "405", "501")


class NoFanOut(Exception):
    """It cannot be had, and why."""


class Fed(Protocol):
    """Who takes what is pushed."""

    async def room(self) -> None:
        """Return once what is to come has a place to wait."""

    def start(self) -> dict[str, Any]:
        """Where to go on, in GetShardIterator's words."""

    def take(self, records: Sequence[Any], behind_ms: int | None) -> None:
        """These came."""

    def goes_on(self, sequence: str) -> None:
        """All up to this sequence number has come."""

    async def bear(self, error: BaseException) -> None:
        """Wait, if it passes; else raise."""


def consumer_name(told: str, group: str) -> str:
    """The name of a group's consumer.

    >>> consumer_name("shop", "count orders")
    'shop.count-orders'
    """
    name = re.sub(r"[^a-zA-Z0-9_.-]", "-", f"{told}.{group}")
    return name if len(name) <= LONGEST else name[: LONGEST - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


class Consumer:
    """A stream's consumer `name`: looked up, or registered, once for all of a process's readers."""

    def __init__(self, streams: KinesisStreams, stream: str, name: str) -> None:
        self.streams, self.stream, self.name = streams, stream, name
        self.refused = ""
        """Why it cannot be had; '' if it can, as far as is known."""
        self._arn: str | None = None
        self._stream_arn: str | None = None
        self._turn = asyncio.Lock()

    def rights(self) -> Sequence[Right]:
        """What has to be allowed, beside what polling needs, which is what it falls back to."""
        place, region = f"stream/{self.stream}", self.streams.aws.region
        found = Right("kinesis", ("DescribeStreamSummary", "RegisterStreamConsumer"), arn("kinesis", place, region))
        own = arn("kinesis", f"{place}/consumer/{self.name}:*", region)
        return (found, Right("kinesis", ("DescribeStreamConsumer", "SubscribeToShard"), own))

    def give_up(self, reason: str) -> None:
        """It cannot be had. Told once."""
        if not self.refused:
            self.refused = " ".join(reason.split())[:300]  # some servers answer with a page
            log.warning("no enhanced fan-out; polling", stream=self.stream, consumer=self.name, reason=self.refused)

    async def arn(self, not_this: str | None = None) -> str:
        """Its ARN, once it is active; looked up anew if it is `not_this`. Raises NoFanOut, or the client's error."""
        async with self._turn:
            if self.refused:
                raise NoFanOut(self.refused)
            if self._arn is None or self._arn == not_this:
                try:
                    self._arn = await self._found()
                except Exception as error:
                    if blame_of(error) is Blame.REQUEST:
                        raise NoFanOut(f"consumer {self.name}: {told_of(error)}") from error
                    raise
            return self._arn

    async def _found(self) -> str:
        client = self.streams.client
        if self._stream_arn is None:
            summary = await client.describe_stream_summary(StreamName=self.stream)
            self._stream_arn = str(summary["StreamDescriptionSummary"]["StreamARN"])
        named = {"StreamARN": self._stream_arn, "ConsumerName": self.name}
        limits = 0
        for _ in range(ACTIVE_SECONDS):
            try:
                found = (await client.describe_stream_consumer(**named))["ConsumerDescription"]
                if found["ConsumerStatus"] == "ACTIVE":
                    return str(found["ConsumerARN"])
            except Exception as error:
                if code_of(error) != "ResourceNotFoundException":
                    raise
                limits += await self._register(named, last=limits + 1 >= LIMIT_TRIES)
            await asyncio.sleep(CALL_SECONDS)
        raise NoFanOut(f"consumer {self.name} is not active after {ACTIVE_SECONDS} s")

    async def _register(self, named: dict[str, str], *, last: bool) -> bool:
        """Register it; True if there are too many for now."""
        try:
            await self.streams.client.register_stream_consumer(**named)
        except Exception as error:
            code = code_of(error)
            if code == "LimitExceededException":
                if last:
                    raise NoFanOut(f"the stream has as many consumers as it may: {told_of(error)}") from error
                return True
            if code == "ResourceInUseException":  # another worker has just done it
                return False
            raise
        log.info(
            "consumer registered: it stays, and costs, until `aws kinesis deregister-stream-consumer`",
            stream=self.stream, consumer=self.name,
        )  # fmt: skip
        return False


class Subscription:
    """The pushed records of one shard, for `reader`."""

    def __init__(self, consumer: Consumer, shard: str, reader: Fed) -> None:
        self.consumer, self.shard, self.reader = consumer, shard, reader
        self._arn: str | None = None
        """Of the consumer; as far as it is known to be right."""
        self._wrong: str | None = None
        self._pushed = False
        """True once anything has come."""
        self._failures = 0
        self._in_use_since: float | None = None
        self._not_before = 0.0

    async def run(self) -> None:
        """Read up to the shard's end. Raises NoFanOut, and what `bear` raises."""
        from botocore.eventstream import ParserError

        passing = (*failures(), ParserError)
        while not self.consumer.refused:
            await self.reader.room()
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            try:
                self._arn = await self.consumer.arn(self._wrong)
                if await self._subscribe():
                    return
            except passing as error:
                await self._bear(error)
        raise NoFanOut(self.consumer.refused)

    async def _subscribe(self) -> bool:
        """One subscription, to its end; True if that is the shard's."""
        client = await self.consumer.streams.pushing()
        start = self.reader.start()
        position = {"Type": start["ShardIteratorType"]}
        for ours, theirs in (("StartingSequenceNumber", "SequenceNumber"), ("Timestamp", "Timestamp")):
            if ours in start:
                position[theirs] = start[ours]
        self._not_before = time.monotonic() + CALL_SECONDS
        answer = await client.subscribe_to_shard(ConsumerARN=self._arn, ShardId=self.shard, StartingPosition=position)
        stream = answer["EventStream"]
        try:
            async with aclosing(aiter(stream)) as events:
                return await self._events(events)
        finally:
            stream.close()

    async def _events(self, events: Any) -> bool:
        while True:
            await self.reader.room()  # what is not asked for waits at the server
            event = await anext(events, None)
            if event is None:
                return False
            told = event.get("SubscribeToShardEvent")
            if told is None:
                continue
            self._wrong, self._in_use_since, self._pushed = None, None, True
            self.reader.take(told["Records"], told.get("MillisBehindLatest"))
            goes_on = told.get("ContinuationSequenceNumber")
            if told.get("ChildShards"):
                return True
            if not goes_on:
                raise NoFanOut("an event says neither where to go on nor that the shard is at its end")
            self.reader.goes_on(goes_on)

    async def _bear(self, error: BaseException) -> None:
        """Wait, if it passes. Raises NoFanOut if it is for want of fan-out, else what `bear` raises."""
        from botocore.exceptions import EventStreamError

        code, status = code_of(error), status_of(error)
        if code == "ResourceInUseException":
            await self._in_use(error, taken=isinstance(error, EventStreamError))
        elif code == "ResourceNotFoundException" and self._arn is not None and self._wrong is None:
            self._wrong = self._arn  # the consumer may be gone, and not the shard
        elif code in DENIED:
            raise NoFanOut(f"not allowed: {told_of(error)}") from error
        elif code in UNKNOWN or status in (404, 405, 501):
            raise NoFanOut(f"the server has none: {told_of(error)}") from error
        elif status >= 500 and not self._pushed:
            self._failures += 1
            if self._failures >= TRIES:
                raise NoFanOut(f"it fails: {told_of(error)}") from error
            self._not_before = time.monotonic() + CALL_SECONDS * self._failures
        else:
            broken = blame_of(error) is None  # what came is no stream of events
            await self.reader.bear(ConnectionError(f"{type(error).__name__}: {error}") if broken else error)

    async def _in_use(self, error: BaseException, *, taken: bool) -> None:
        """Another subscription of the shard is open, or has `taken` the place of this one."""
        if taken:
            log.warning(
                "another reader has taken the shard's subscription over; waiting", stream=self.consumer.stream,
                shard=self.shard, consumer=self.consumer.name,
            )  # fmt: skip
            self._not_before = time.monotonic() + TAKEN_SECONDS * (1 + random.random())
            return
        now = time.monotonic()
        self._in_use_since = now if self._in_use_since is None else self._in_use_since
        if now - self._in_use_since > IN_USE_SECONDS:
            await self.reader.bear(error)
        self._not_before = max(self._not_before, now + CALL_SECONDS)
