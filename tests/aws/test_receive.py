"""Firehose's endpoint before a Kinesis stream, under faults: what was acknowledged is there, by two actions only."""

import asyncio
import base64
import json
import uuid

import aiohttp
import pytest

from flowkit.aws import AwsOptions
from flowkit.clock import SystemClock
from flowkit.source import Endpoint, Target, open_feed, serve_firehose
from flowkit.source.kinesis_batch import Arrivals
from flowkit.source.kinesis_reader import KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams
from tests.aws.proxy import Fault, proxy_to

RECORDS, A_REQUEST = 4_000, 100


async def test_a_stream_is_fed_and_has_all_that_was_acknowledged(
    ministack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, clock = f"s-{uuid.uuid4().hex[:8]}", SystemClock()
    streams = KinesisStreams(AwsOptions(), clock, "kinesis://")
    await streams.open()
    await streams.create(name, 2)
    async with proxy_to(ministack) as proxy:
        faults: list[Fault | None] = ["throttle", "broken", "lost", "half", None, "reset", None, None]
        proxy.fault = lambda _: faults[len(proxy.requests) % len(faults)]
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        async with open_feed("kinesis://us-east-1?tries=2", clock) as feed, aiohttp.ClientSession() as session:
            endpoint = Endpoint(feed, Target(name, "k"), clock)
            async with serve_firehose(endpoint, "127.0.0.1", 0) as port:
                url = f"http://127.0.0.1:{port}/"

                async def deliver(first: int) -> int:
                    numbers = range(first, first + A_REQUEST)
                    records = [{"data": base64.b64encode(b'{"k":"%d"}' % n).decode()} for n in numbers]
                    data = {"requestId": f"r{first}", "timestamp": 1, "records": records}
                    tries = 0
                    while True:
                        tries += 1
                        async with session.post(
                            url, json=data, headers={"X-Amz-Firehose-Request-Id": f"r{first}"}
                        ) as answer:
                            if answer.status == 200:
                                return tries
                            assert answer.status == 503, await answer.text()

                tries = await asyncio.gather(*(deliver(n) for n in range(0, RECORDS, A_REQUEST)))
    assert sum(tries) > len(tries)
    assert {(request.service, request.action) for request in proxy.requests} == {
        ("kinesis", "ListShards"),
        ("kinesis", "PutRecords"),
    }
    source = KinesisSource(streams, Arrivals(), name, start="earliest", out_of_range="fail", until_end=True)
    found = set()
    for split in await source.splits():
        reader = await source.open(split, None)
        while not reader.at_end:
            batch = await reader.fetch(10_000)
            if batch is None:
                await source.arrivals.wait(50, None)
                continue
            found |= {int(json.loads(value or b"")["k"]) for value in batch.values}
        await reader.close()
    await streams.close()
    assert found == set(range(RECORDS))
