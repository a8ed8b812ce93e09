"""SQS, SNS and EventBridge as destinations, on ministack.

Ten messages a request are little for a service and much for an emulator: there are fewer than elsewhere. Topics and
buses are read by a queue that gets what they pass on.
"""

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.aws import AwsOptions, open_client
from flowkit.sink import destination
from tests.aws.broken import all_faults, copying, readings, run_through
from tests.aws.proxy import Request, proxy_to

FAULTS = {"throttle", "broken", "reset", "lost", "half", "slow", "part"}


class Place:
    """A queue, a topic or a bus of a test, and the queue that it is read from."""

    def __init__(self, sqs: Any, url: str, queue_url: str) -> None:
        self.sqs, self.url, self.queue_url = sqs, url, queue_url

    async def read(self) -> list[dict[str, Any]]:
        """All messages, in the order in which they come."""
        found: list[dict[str, Any]] = []
        at_once = 1 if self.queue_url.endswith(".fifo") else 8
        while True:
            asked = {"MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "AttributeNames": ["All"]}
            calls = (self.sqs.receive_message(QueueUrl=self.queue_url, **asked) for _ in range(at_once))
            got = [message for answer in await asyncio.gather(*calls) for message in answer.get("Messages", ())]
            if not got:
                return found
            found += got
            if at_once == 1:  # what is read of a group holds up the rest of it
                entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(got)]
                await self.sqs.delete_message_batch(QueueUrl=self.queue_url, Entries=entries)


@asynccontextmanager
async def place(kind: str) -> AsyncIterator[Place]:
    """A new one: sqs, sqs.fifo, sns or events."""
    service, _, fifo = kind.partition(".")
    name = f"m-{uuid.uuid4().hex[:8]}" + (".fifo" if fifo else "")
    more = {"FifoQueue": "true"} if fifo else {}
    async with AsyncExitStack() as stack:
        sqs = await stack.enter_async_context(open_client("sqs", AwsOptions(), "x"))
        made = await sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "600", **more})
        queue_url = made["QueueUrl"]
        told = await sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
        arn, url = told["Attributes"]["QueueArn"], f"sqs://{name}"
        if service == "sns":
            sns = await stack.enter_async_context(open_client("sns", AwsOptions(), "x"))
            topic = (await sns.create_topic(Name=name))["TopicArn"]
            raw = {"RawMessageDelivery": "true"}
            await sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
            url = f"sns://{topic}"
        elif service == "events":
            events = await stack.enter_async_context(open_client("events", AwsOptions(), "x"))
            await events.create_event_bus(Name=name)
            pattern = json.dumps({"source": ["shop"], "detail-type": ["reading"]})
            await events.put_rule(Name="all", EventBusName=name, EventPattern=pattern)
            await events.put_targets(Rule="all", EventBusName=name, Targets=[{"Id": "1", "Arn": arn}])
            url = f"events://{name}"
        yield Place(sqs, url, queue_url)


ACTIONS = {"sqs": "SendMessageBatch", "sns": "PublishBatch", "events": "PutEvents"}


async def run_into(to: Place, count: int, server: str, tmp_path: Path, more: str = "") -> list[Request]:
    """Readings of 500 keys, through all faults, broken off at each step. The requests that it took."""
    action = ACTIONS[to.url.partition("://")[0]]
    async with proxy_to(server) as proxy:
        proxy.fault = all_faults(action, seed=8, share=0.12)
        url = f"{to.url}?endpoint={proxy.url}&tries=1&timeout=5{more}"
        rows, every = readings(500, count), count // 10
        assert await run_through(copying(), rows, url, tmp_path, commit_every=every, proxy=proxy) == 8
        assert {seen.fault for seen in proxy.requests if seen.action == action} >= FAULTS
    assert (tmp_path / "dead.jsonl").read_bytes() == b""
    return [seen for seen in proxy.requests if seen.action == action]


@pytest.mark.parametrize(("kind", "count"), [("sqs", 4_000), ("sns", 2_000)])
async def test_all_arrives_and_again_only_under_the_same_id(
    ministack: str, tmp_path: Path, kind: str, count: int
) -> None:
    async with place(kind) as to:
        await run_into(to, count, ministack, tmp_path)
        messages = await to.read()
    assert len(messages) > count  # some did come again, or this has tested little
    by_id: dict[str, dict[str, Any]] = {}
    for message in messages:
        attributes, value = message["MessageAttributes"], json.loads(message["Body"])
        assert attributes["flowkit_key"]["StringValue"] == value["id"]
        assert by_id.setdefault(attributes["flowkit_id"]["StringValue"], value) == value
    found = sorted(by_id.values(), key=lambda value: value["n"])
    assert found == [{"id": row.id, "n": row.n, "at": row.at} for row in readings(500, count)]


async def test_a_fifo_has_each_message_once_in_its_keys_order(ministack: str, tmp_path: Path) -> None:
    count = 2_000
    async with place("sqs.fifo") as to:
        await run_into(to, count, ministack, tmp_path)
        messages = await to.read()
    by_group = defaultdict(list)
    for message in messages:
        value = json.loads(message["Body"])
        assert message["Attributes"]["MessageGroupId"] == value["id"]
        by_group[value["id"]].append(value["n"])
    assert all(numbers == sorted(numbers) for numbers in by_group.values())
    assert sorted(n for numbers in by_group.values() for n in numbers) == list(range(count))


async def test_events_all_arrive_with_their_own_time(ministack: str, tmp_path: Path) -> None:
    count = 2_000
    async with place("events") as to:
        sent = await run_into(to, count, ministack, tmp_path, "&source=shop&detail_type=reading&id=record_id")
        events = [json.loads(message["Body"]) for message in await to.read()]
    assert len(events) > count
    by_id: dict[str, dict[str, Any]] = {}
    for event in events:
        value = event["detail"]
        assert by_id.setdefault(value.pop("record_id"), value) == value
    found = sorted(by_id.values(), key=lambda value: value["n"])
    assert found == [{"id": row.id, "n": row.n, "at": row.at} for row in readings(500, count)]
    for entry in (entry for request in sent for entry in request.json["Entries"]):  # ministack passes on its own time
        assert entry["Time"] == json.loads(entry["Detail"])["at"] / 1000


@pytest.mark.parametrize(
    "url", ["sqs://nowhere", "sns://arn:aws:sns:us-east-1:000000000000:nowhere", "events://nowhere"]
)
async def test_what_is_not_there_is_told_with_what_to_do(ministack: str, url: str) -> None:
    with pytest.raises(ConfigError, match=r"is not there .*make it with `aws"):
        async with destination(url, None):
            pass
