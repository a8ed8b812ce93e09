"""Shards through flowkit's reader beside bare `get_records` and `subscribe_to_shard` of aiobotocore, in turn.

    pytest tests/benchmarks/test_kinesis.py -m benchmark -s

Told by the clock, which the server bounds, and by this process's CPU. Neither waits between calls: the server here does
not count them, as Amazon's does (5 a second and shard).
"""

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from flowkit.aws import AwsOptions
from flowkit.clock import SystemClock
from flowkit.source import kinesis_fan_out, kinesis_reader
from flowkit.source.kinesis_batch import Arrivals
from flowkit.source.kinesis_fan_out import Consumer
from flowkit.source.kinesis_reader import KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams, Shard
from tests.aws import servers
from tests.benchmarks.workload import show

RECORDS = int(os.environ.get("FLOWKIT_BENCH_AWS_RECORDS", "20000"))
VALUE = b'{"card":"card-4711","amount":12.5,"country":"DE","at":1700000000000}'


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with servers.ministack() as url:
        yield url


async def bare(client: Any, name: str, shard: Shard) -> int:
    """All records of a shard, by the client alone."""
    asked = {"StreamName": name, "ShardId": shard.id, "ShardIteratorType": "TRIM_HORIZON"}
    iterator = (await client.get_shard_iterator(**asked))["ShardIterator"]
    seen = 0
    while True:
        answer = await client.get_records(ShardIterator=iterator, Limit=10_000)
        seen += len(answer["Records"])
        iterator = answer["NextShardIterator"]
        if not answer["Records"]:
            return seen


async def ours(streams: KinesisStreams, name: str, shard: Shard) -> int:
    """The same by the reader, as a worker fetches it."""
    source = KinesisSource(streams, Arrivals(), name, start="earliest", out_of_range="fail", until_end=True)
    reader = await source.open(shard.number, None)
    seen = 0
    while not reader.at_end:
        batch = await reader.fetch(5_000)
        if batch is None:
            await source.arrivals.wait(50, None)
        else:
            seen += len(batch)
    await reader.close()
    return seen


async def bare_push(client: Any, name: str, arn: str) -> int:
    """All records of a shard as they are pushed, by the client alone."""
    asked: dict[str, Any] = {"ConsumerARN": arn, "ShardId": "shardId-000000000000"}
    answer = await client.subscribe_to_shard(**asked, StartingPosition={"Type": "TRIM_HORIZON"})
    seen = 0
    async for event in answer["EventStream"]:
        seen += len(event.get("SubscribeToShardEvent", {"Records": ()})["Records"])
        if seen >= RECORDS:
            break
    answer["EventStream"].close()
    return seen


async def our_push(streams: KinesisStreams, name: str, consumer: str) -> int:
    """The same by the reader."""
    source = KinesisSource(streams, Arrivals(), name, start="earliest", out_of_range="fail")
    source.consumer = Consumer(streams, name, consumer)
    reader = await source.open(0, None)
    seen = 0
    while seen < RECORDS:
        batch = await reader.fetch(5_000)
        if batch is None:
            await source.arrivals.wait(50, None)
        else:
            seen += len(batch)
    await reader.close()
    return seen


async def test_a_pushed_shard(server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for variable, value in servers.aws_environment(server).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(kinesis_fan_out, "CALL_SECONDS", 0.0)
    streams = KinesisStreams(AwsOptions(), SystemClock(), "kinesis://")
    await streams.open()
    plain = get_session().create_client("kinesis", config=AioConfig(max_pool_connections=100))
    client = await plain.__aenter__()
    name = f"bench-{uuid.uuid4().hex[:8]}"
    await streams.create(name, 1)
    await streams.put(name, [(b"k%d" % n, VALUE, 0) for n in range(RECORDS)])
    best: dict[Any, tuple[float, float]] = {}
    for turn in range(5):
        for way in (bare_push, our_push):
            consumer = f"{way.__name__}-{turn}"
            arn = await Consumer(streams, name, consumer).arn()
            wall, cpu = time.perf_counter(), time.process_time()
            assert (
                await (bare_push(client, name, arn) if way is bare_push else our_push(streams, name, consumer))
                == RECORDS
            )
            took = time.perf_counter() - wall, time.process_time() - cpu
            best[way] = min(best.get(way, took), took)
    await streams.close()
    await plain.__aexit__(None, None, None)
    (w0, c0), (w1, c1) = best[bare_push], best[our_push]
    show(
        capsys,
        f"{RECORDS:,} records pushed by one shard",
        f"subscribe_to_shard  {RECORDS / w0:>10,.0f} a second   {RECORDS / c0:>10,.0f} a CPU-second",
        f"the reader          {RECORDS / w1:>10,.0f} a second   {RECORDS / c1:>10,.0f} a CPU-second",
        f"ratio               {w0 / w1:>10.2f} by the clock {c0 / c1:>8.2f} by CPU   ≥ 0.9",
    )


@pytest.mark.parametrize("shards", [1, 8])
async def test_shards(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    for variable, value in servers.aws_environment(server).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(kinesis_reader, "CALL_SECONDS", 0.0)
    monkeypatch.setattr(kinesis_reader, "IDLE_SECONDS", 0.0)
    streams = KinesisStreams(AwsOptions(), SystemClock(), "kinesis://")
    await streams.open()
    plain = get_session().create_client("kinesis", config=AioConfig(max_pool_connections=100))
    client = await plain.__aenter__()
    name = f"bench-{uuid.uuid4().hex[:8]}"
    await streams.create(name, shards)
    found = await streams.shards(name)
    for shard in found:
        await streams.put(name, [(b"k%d" % n, VALUE, 0) for n in range(RECORDS // shards)], shard.number)
    best: dict[str, tuple[float, float]] = {}
    ways: list[tuple[str, Any]] = [("get_records alone", bare), ("the reader", ours)]
    for _ in range(5):
        for what, way in ways:
            wall, cpu = time.perf_counter(), time.process_time()
            using = client if way is bare else streams
            seen = sum(await asyncio.gather(*(way(using, name, shard) for shard in found)))
            took = time.perf_counter() - wall, time.process_time() - cpu
            assert seen == RECORDS // shards * shards
            best[what] = min(best.get(what, took), took)
    await streams.close()
    await plain.__aexit__(None, None, None)
    (w0, c0), (w1, c1) = best["get_records alone"], best["the reader"]
    show(
        capsys,
        f"{RECORDS:,} records in {shards} shards",
        f"get_records alone   {RECORDS / w0:>10,.0f} a second   {RECORDS / c0:>10,.0f} a CPU-second",
        f"the reader          {RECORDS / w1:>10,.0f} a second   {RECORDS / c1:>10,.0f} a CPU-second",
        f"ratio               {w0 / w1:>10.2f} by the clock {c0 / c1:>8.2f} by CPU   ≥ 0.9",
    )
