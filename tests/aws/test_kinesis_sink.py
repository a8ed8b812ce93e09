"""Kinesis as a destination, on kinesalite and ministack (moto loses records when calls of put_records meet)."""

import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.aws import AwsOptions, open_client
from flowkit.sink import destination
from tests.aws.broken import COUNT, all_faults, copying, readings, run_through
from tests.aws.proxy import proxy_to


@asynccontextmanager
async def stream(shards: int = 2) -> AsyncIterator[tuple[str, Any]]:
    """The name of a new stream, and a client."""
    name = f"s-{uuid.uuid4().hex[:8]}"
    async with open_client("kinesis", AwsOptions(), "kinesis://x") as client:
        await client.create_stream(StreamName=name, ShardCount=shards)
        await client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
        yield name, client


async def read_all(client: Any, name: str) -> list[dict[str, Any]]:
    """All that a stream holds, shard after shard."""
    found = []
    for shard in (await client.list_shards(StreamName=name))["Shards"]:
        asked = {"StreamName": name, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        at = (await client.get_shard_iterator(**asked))["ShardIterator"]
        empty = 0
        while empty < 2:
            got = await client.get_records(ShardIterator=at, Limit=10_000)
            found += got["Records"]
            empty = 0 if got["Records"] else empty + 1
            at = got["NextShardIterator"]
    return found


@pytest.mark.parametrize("server", ["kinesalite", "ministack"])
async def test_all_arrives_in_each_keys_order_and_again_only_under_the_same_id(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = request.getfixturevalue(server)
    rows = readings(keys=2_000)
    async with stream() as (name, client), proxy_to(url) as proxy:
        proxy.fault = all_faults("PutRecords", seed=1, share=0.15)
        target = f"kinesis://{name}?endpoint={proxy.url}&tries=1&timeout=5&id=record_id"
        assert await run_through(copying(), rows, target, tmp_path, proxy=proxy) == 8
        faults = {seen.fault for seen in proxy.requests if seen.action == "PutRecords"}
        assert faults >= {"throttle", "broken", "reset", "lost", "half", "slow", "part"}
        records = await read_all(client, name)
    assert len(records) > COUNT  # some did come again, or this has tested little
    by_id: dict[str, int] = {}
    by_key = defaultdict(list)
    for record in records:
        value = json.loads(record["Data"])
        assert record["PartitionKey"] == value["id"]
        assert by_id.setdefault(value["record_id"], value["n"]) == value["n"]
        by_key[value["id"]].append(value)
    assert sorted(by_id.values()) == list(range(COUNT))
    for values in by_key.values():
        first_seen = dict.fromkeys(value["n"] for value in values)
        assert list(first_seen) == sorted(first_seen)
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


async def test_an_absent_stream_is_told_with_what_to_do(kinesalite: str) -> None:
    with pytest.raises(ConfigError, match=r"is not there .*create-stream --stream-name nowhere"):
        async with destination("kinesis://nowhere", None):
            pass


async def test_a_service_that_does_not_answer_holds_up_no_start(kinesalite: str) -> None:
    async with proxy_to(kinesalite) as proxy:
        proxy.fault = lambda _: "broken"
        async with destination(f"kinesis://later?endpoint={proxy.url}&tries=1", None):
            pass
    assert [seen.action for seen in proxy.requests] == ["DescribeStreamSummary"]
