"""Firehose as a destination, on moto, which puts each batch as an object into a bucket at once."""

import json
import uuid
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
async def stream() -> AsyncIterator[tuple[str, Any]]:
    """The name of a new delivery stream, and a client of its bucket, which has the same name."""
    name = f"f-{uuid.uuid4().hex[:8]}"
    async with (
        open_client("firehose", AwsOptions(), "firehose://x") as firehose,
        open_client("s3", AwsOptions(), "s3://x") as s3,
    ):
        await s3.create_bucket(Bucket=name)
        to = {"RoleARN": "arn:aws:iam::123456789012:role/test", "BucketARN": f"arn:aws:s3:::{name}"}
        await firehose.create_delivery_stream(DeliveryStreamName=name, S3DestinationConfiguration=to)
        yield name, s3


async def read_all(s3: Any, bucket: str) -> bytes:
    """All that a bucket holds, object after object."""
    found = []
    async for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            got = await s3.get_object(Bucket=bucket, Key=entry["Key"])
            found.append(await got["Body"].read())
    return b"".join(found)


async def test_all_arrives_in_lines_and_again_only_under_the_same_id(moto: str, tmp_path: Path) -> None:
    rows = readings(keys=50)
    async with stream() as (name, s3), proxy_to(moto) as proxy:
        proxy.fault = all_faults("PutRecordBatch", seed=2)
        target = f"firehose://{name}?endpoint={proxy.url}&tries=1&timeout=5&id=record_id"
        assert await run_through(copying(), rows, target, tmp_path, commit_every=1_000, proxy=proxy) == 8
        faults = {seen.fault for seen in proxy.requests if seen.action == "PutRecordBatch"}
        assert faults >= {"throttle", "broken", "reset", "lost", "half", "slow", "part"}
        lines = (await read_all(s3, name)).splitlines()
    assert len(lines) > COUNT  # some did come again, or this has tested little
    by_id: dict[str, dict[str, Any]] = {}
    for line in lines:
        value = json.loads(line)
        assert by_id.setdefault(value.pop("record_id"), value) == value
    found = sorted(by_id.values(), key=lambda value: value["n"])
    assert found == [{"id": row.id, "n": row.n, "at": row.at} for row in rows]
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


async def test_an_absent_stream_and_one_with_another_source_are_told(moto: str) -> None:
    with pytest.raises(ConfigError, match=r"is not there .*create-delivery-stream"):
        async with destination("firehose://nowhere", None):
            pass
    source = {"KinesisStreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/s", "RoleARN": "arn:aws:iam::1:role/r"}
    name = f"f-{uuid.uuid4().hex[:8]}"
    async with open_client("firehose", AwsOptions(), "firehose://x") as firehose:
        to = {"RoleARN": "arn:aws:iam::123456789012:role/test", "BucketARN": "arn:aws:s3:::b"}
        await firehose.create_delivery_stream(
            DeliveryStreamName=name,
            DeliveryStreamType="KinesisStreamAsSource",
            KinesisStreamSourceConfiguration=source,
            S3DestinationConfiguration=to,
        )
    with pytest.raises(ConfigError, match="only a DirectPut stream"):
        async with destination(f"firehose://{name}", None):
            pass
