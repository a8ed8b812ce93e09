"""A server that pushes one shard's records as Kinesis does, and does with each subscription what the test says.

    Push(n)          n events, and then the stream of events ends, as Amazon's does after five minutes
    Push(n, "cut")   the connection is reset after them
    Push(n, "torn")  half of the event after them comes, and the connection ends in good order
    Push(n, CODE)    this exception comes in the stream after them
    Refuse(CODE)     the call is refused; a code of digits is the status, too
    (none left)      all events, those put later too

Once it is `closed`, the last event names children. `written` counts the bytes that were handed to the connection.
"""

import asyncio
import base64
import json
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web

from tests.aws.proxy import EVENTS
from tests.aws.serving import serving

STREAM = "arn:aws:kinesis:us-east-1:000000000000:stream/orders"


class Push(NamedTuple):
    events: int
    then: str = "end"


class Refuse(NamedTuple):
    code: str


@dataclass
class Pusher:
    """See the head of this file. Each of `batches` is one event's records, by their values."""

    batches: list[list[bytes]] = field(default_factory=list)
    steps: list[Push | Refuse] = field(default_factory=list)
    registering: list[str] = field(default_factory=list)
    """Codes by which RegisterStreamConsumer is refused, one after the other."""
    statuses: list[str] = field(default_factory=lambda: ["ACTIVE"])
    """What DescribeStreamConsumer says, one after the other; the last one from then on."""
    polls: list[str] = field(default_factory=list)
    """Codes by which GetRecords is refused, one after the other."""
    arrived: dict[int, float] = field(default_factory=dict)
    """By the number of an event that came later: when."""
    closed: bool = False
    behind_ms: int = 0
    url: str = ""
    consumers: dict[str, int] = field(default_factory=dict)
    """By name, how often it was registered."""
    known: set[str] = field(default_factory=set)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    written: int = 0
    pushing: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, *values: bytes) -> None:
        """One more event."""
        self.arrived[len(self.batches)] = time.time()
        self.batches.append(list(values))
        self.more.set()

    def close(self) -> None:
        """The shard is closed."""
        self.closed = True
        self.more.set()

    def calls(self, action: str) -> list[dict[str, Any]]:
        """What an action was asked with."""
        return [body for name, body in self.asked if name == action]

    def answer(self, action: str, body: dict[str, Any]) -> dict[str, Any] | str:
        """To all but SubscribeToShard; a text is an error's code."""
        name = body.get("ConsumerName", "")
        match action:
            case "DescribeStreamSummary":
                return {"StreamDescriptionSummary": {**_SUMMARY, "StreamARN": STREAM}}
            case "ListShards":
                hashes = {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)}
                shard = {"ShardId": "shardId-000000000000", "HashKeyRange": hashes}
                return {"Shards": [{**shard, "SequenceNumberRange": {"StartingSequenceNumber": "0"}}]}
            case "RegisterStreamConsumer":
                if self.registering:
                    return self.registering.pop(0)
                self.consumers[name] = self.consumers.get(name, 0) + 1
                self.known.add(self.arn(name))
                return {"Consumer": self.consumer(name, "CREATING")}
            case "DescribeStreamConsumer":
                if self.arn(name) not in self.known:
                    return "ResourceNotFoundException"
                status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
                return {"ConsumerDescription": {**self.consumer(name, status), "StreamARN": STREAM}}
            case "GetShardIterator":
                return {"ShardIterator": str(self.begin(body))}
            case "GetRecords":
                if self.polls:
                    return self.polls.pop(0)
                at = int(body["ShardIterator"])
                found = [record for record in self.records() if int(record["SequenceNumber"]) >= at]
                at = int(found[-1]["SequenceNumber"]) + 1 if found else at
                return {"Records": found, "NextShardIterator": str(at), "MillisBehindLatest": 0}
        return "UnknownOperationException"

    def arn(self, name: str) -> str:
        """Another one each time that it is registered."""
        return f"{STREAM}/consumer/{name}:{self.consumers.get(name, 0)}"

    def consumer(self, name: str, status: str) -> dict[str, Any]:
        """What is told of one."""
        told = {"ConsumerName": name, "ConsumerARN": self.arn(name), "ConsumerStatus": status}
        return {**told, "ConsumerCreationTimestamp": 1.0}

    def records(self) -> list[dict[str, Any]]:
        """All of them."""
        return [record for n in range(len(self.batches)) for record in self.event(n)["Records"]]

    def event(self, number: int) -> dict[str, Any]:
        """What event `number` says."""
        before = sum(len(batch) for batch in self.batches[:number])
        records = [
            {
                "SequenceNumber": f"{before + n + 1:021d}",
                "ApproximateArrivalTimestamp": self.arrived.get(number, 1000.0),
                "Data": base64.b64encode(value).decode(),
                "PartitionKey": "k",
            }
            for n, value in enumerate(self.batches[number])
        ]
        last = f"{before + len(records):021d}"
        return {"Records": records, "ContinuationSequenceNumber": last, "MillisBehindLatest": self.behind_ms}

    def begin(self, asked: dict[str, Any]) -> int:
        """The sequence number that an iterator begins with."""
        match asked["ShardIteratorType"]:
            case "LATEST":
                return len(self.records()) + 1
            case "AT_TIMESTAMP":
                early = [r for r in self.records() if r["ApproximateArrivalTimestamp"] < asked["Timestamp"]]
                return len(early) + 1
        after = asked["ShardIteratorType"] == "AFTER_SEQUENCE_NUMBER"
        return int(asked.get("StartingSequenceNumber", "0")) + int(after)

    def first(self, position: dict[str, Any]) -> int:
        """The number of the event that a subscription begins with."""
        match position["Type"]:
            case "LATEST":
                return len(self.batches)
            case "AFTER_SEQUENCE_NUMBER" | "AT_SEQUENCE_NUMBER":
                at, number = int(position["SequenceNumber"]), 0
                at -= position["Type"] == "AT_SEQUENCE_NUMBER"
                while number < len(self.batches) and at >= len(self.batches[number]):
                    at -= len(self.batches[number])
                    number += 1
                assert at == 0 or position["Type"] == "AT_SEQUENCE_NUMBER", "amid an event"
                return number
        return 0

    async def push(self, body: dict[str, Any], step: Push | None, response: web.StreamResponse) -> None:
        """One subscription."""
        await self.write(response, message("initial-response", {}))
        number, left = self.first(body["StartingPosition"]), 10**9 if step is None else step.events
        if number == len(self.batches):
            last = f"{sum(map(len, self.batches)):021d}"
            told = {"Records": [], "ContinuationSequenceNumber": last, "MillisBehindLatest": 0}
            await self.write(response, message("SubscribeToShardEvent", told))
        while left:
            while number < len(self.batches) and left:
                await self.write(response, message("SubscribeToShardEvent", self.event(number)))
                number, left = number + 1, left - 1
            if not left:
                break
            if self.closed and number == len(self.batches):
                hashes = {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)}
                child = {"ShardId": "shardId-000000000001", "ParentShards": ["shardId-000000000000"]}
                told = {"Records": [], "MillisBehindLatest": 0, "ChildShards": [{**child, "HashKeyRange": hashes}]}
                await self.write(response, message("SubscribeToShardEvent", told))
                return
            self.more.clear()
            await self.more.wait()
        if step is not None and step.then == "torn" and number < len(self.batches):
            whole = message("SubscribeToShardEvent", self.event(number))
            await self.write(response, whole[: len(whole) // 2])
        elif step is not None and step.then not in ("end", "cut", "torn"):
            await self.write(response, message(step.then, {"message": "it is so"}, kind="exception"))

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        """Count what goes out once there is room for it."""
        await response.write(data)
        self.written += len(data)


_SUMMARY = {
    "StreamName": "orders", "StreamStatus": "ACTIVE", "RetentionPeriodHours": 24, "StreamCreationTimestamp": 1.0,
    "EnhancedMonitoring": [], "OpenShardCount": 1,
}  # fmt: skip


def message(name: str, payload: Any, kind: str = "event") -> bytes:
    """One message of a stream of events."""
    named = {":message-type": kind, f":{kind}-type": name, ":content-type": "application/json"}
    headers = b"".join(
        bytes([len(key)]) + key.encode() + b"\x07" + len(value).to_bytes(2, "big") + value.encode()
        for key, value in named.items()
    )
    body = json.dumps(payload).encode()
    prelude = (16 + len(headers) + len(body)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    head = prelude + zlib.crc32(prelude).to_bytes(4, "big") + headers + body
    return head + zlib.crc32(head).to_bytes(4, "big")


@asynccontextmanager
async def pusher(batches: Sequence[list[bytes]] = (), *steps: Push | Refuse) -> AsyncIterator[Pusher]:
    """Such a server, on a free loopback port."""
    ours = Pusher(list(batches), list(steps))

    async def handle(request: web.BaseRequest) -> Any:
        body = json.loads(await request.read())
        action = request.headers["X-Amz-Target"].rpartition(".")[2]
        ours.asked.append((action, body))
        if action != "SubscribeToShard":
            found = ours.answer(action, body)
            return _refusal(found) if isinstance(found, str) else web.json_response(found)
        step = ours.steps.pop(0) if ours.steps else None
        if isinstance(step, Refuse):
            return _refusal(step.code)
        if body["ConsumerARN"] not in ours.known:
            return _refusal("ResourceNotFoundException")
        response = web.StreamResponse(headers={"Content-Type": EVENTS})
        await response.prepare(request)
        ours.pushing += 1
        try:
            with suppress(ConnectionError):  # the client has gone
                await ours.push(body, step, response)
        finally:
            ours.pushing -= 1
        if step is not None and step.then == "cut" and request.transport is not None:
            request.transport.abort()
        return response

    async with serving(handle) as ours.url:
        yield ours


def _refusal(code: str) -> web.Response:
    return web.json_response({"__type": code, "message": "it is so"}, status=int(code) if code.isdigit() else 400)
