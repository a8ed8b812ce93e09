"""Amazon's services beside a bare client loop on the same server (an emulator in a process of its own), in turn.

    pytest tests/benchmarks/test_aws_s3.py -m benchmark -s

A ratio is the bare loop's time to ours: 1.0 is as quick, 0.9 the least that is wanted. CPU is this process's own.
"""

import asyncio
import gzip
import itertools
import os
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flowkit.aws import AwsOptions, open_client
from flowkit.clock import VirtualClock
from flowkit.sink import SinkTask, destination
from flowkit.sink.s3_formats import LineFormat
from flowkit.sink.s3_sink import S3Sink
from flowkit.source.s3 import S3Topic
from flowkit.store import MemoryStore
from flowkit.worker.outlets import Outgoing
from tests.aws import servers

LINES = 200_000
OBJECT_BYTES = 1 << 20
COMMIT = 50_000
TURNS = 5
START = 1_767_225_600_000


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """An emulator that every client goes to."""
    with servers.moto() as url:
        before = {name: os.environ.get(name) for name in servers.aws_environment(url)}
        os.environ.update(servers.aws_environment(url))
        yield url
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


async def _in_turn(what: str, ways: dict[str, Callable[[], Awaitable[None]]]) -> float:
    """Time two ways in turn (the first one is the bare loop), tell of them, and give the ratio of their CPU."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            started, busy = time.perf_counter(), time.process_time()
            await way()
            cpu[name].append(time.process_time() - busy)
            wall[name].append(time.perf_counter() - started)
    (bare, ours) = ways
    ratio = statistics.median(cpu[bare]) / statistics.median(cpu[ours])
    walls = statistics.median(wall[bare]) / statistics.median(wall[ours])
    print(
        f"\n{what}: {LINES / statistics.median(cpu[ours]):,.0f} lines a second of CPU; "
        f"ratio to {bare}: {ratio:.2f} of CPU, {walls:.2f} by the clock"
    )
    return ratio


@asynccontextmanager
async def _bucket() -> AsyncIterator[tuple[Any, str]]:
    async with open_client("s3", AwsOptions(), "benchmark", connections=32) as client:
        name = f"b-{uuid.uuid4().hex[:12]}"
        await client.create_bucket(Bucket=name)
        yield client, name


def _lines() -> list[bytes]:
    """JSON of some 170 bytes, as transactions have."""
    chance = random.Random(1)
    return [
        b'{"id":"%s","card":"card-%06d","amount":%d.%02d,"currency":"EUR","country":"%s","merchant":"m-%05d","at":%d,"n":%d}'
        % (
            chance.randbytes(8).hex().encode(),
            chance.randrange(9_999),
            chance.randrange(900),
            n % 100,
            chance.choice((b"DE", b"FR", b"IT")),
            chance.randrange(30_000),
            START + n * 13,
            n,
        )
        for n in range(LINES)
    ]


@pytest.mark.parametrize("compression", ["gz", "none"])
async def test_s3_sink(aws: str, compression: str) -> None:
    """Staging in a store in memory, and writing, beside a loop that joins, compresses and puts four at a time."""
    lines = _lines()
    records = [Outgoing(None, line, START) for line in lines]
    per_object = OBJECT_BYTES // (len(lines[0]) + 1)
    numbers = itertools.count()
    async with _bucket() as (client, name):

        async def bare() -> None:
            limit = asyncio.Semaphore(4)

            async def put(number: int, part: list[Outgoing]) -> None:
                async with limit:
                    body = b"\n".join([*(record.value or b"" for record in part), b""])
                    if compression == "gz":
                        body = await asyncio.to_thread(gzip.compress, body, 6)
                    await client.put_object(Bucket=name, Key=f"bare/{number}", Body=body)

            parts = [records[at : at + per_object] for at in range(0, LINES, per_object)]
            await asyncio.gather(*(put(next(numbers), part) for part in parts))

        url = f"s3://{name}/ours/dt={{dt}}?compress={compression}&roll_bytes={OBJECT_BYTES}B"
        async with destination(url, None) as place:

            async def ours() -> None:
                sink, store = place.sink(SinkTask("a", "g", 0, 1, VirtualClock(START), bounded=True)), MemoryStore()
                assert isinstance(sink, S3Sink)
                sink.attach(store, "sink out")
                await sink.open(None)
                for at in range(0, LINES, COMMIT):
                    handoff = sink.stage(records[at : at + COMMIT], at + COMMIT == LINES)
                    puts = {(c.table, c.end): dict(zip(c.keys, c.values, strict=True)) for c in sink.changes()}
                    await store.commit(puts, sink.drops())
                    await sink.deliver(handoff)

            ratio = await _in_turn(f"S3 sink, {compression}", {"a bare loop": bare, "the sink": ours})
    assert ratio > (0.85 if compression == "gz" else 0.6)


@pytest.mark.parametrize("compression", ["gz", "none"])
async def test_s3_source(aws: str, compression: str) -> None:
    """Reading lines, beside a loop that gets, decompresses and splits four at a time."""
    lines = _lines()
    per_object = OBJECT_BYTES // (len(lines[0]) + 1)
    async with _bucket() as (client, name):
        for n, at in enumerate(range(0, LINES, per_object)):
            encoder = LineFormat("jsonl", compression, None).begin()
            body = encoder.feed(b"\n".join([*lines[at : at + per_object], b""])) + encoder.finish()
            await client.put_object(Bucket=name, Key=f"in/{n:04}.jsonl", Body=body)
        keys = [each["Key"] for each in (await client.list_objects_v2(Bucket=name))["Contents"]]

        async def bare() -> None:
            limit = asyncio.Semaphore(4)
            count = 0

            async def get(key: str) -> int:
                async with limit:
                    got = await client.get_object(Bucket=name, Key=key)
                    body = await got["Body"].read()
                    if compression == "gz":
                        body = await asyncio.to_thread(gzip.decompress, body)
                    return len(body.split(b"\n")) - 1

            for found in await asyncio.gather(*map(get, keys)):
                count += found
            assert count == LINES

        async def ours() -> None:
            count = 0
            reader = await topic.open(0, None)
            while batch := await reader.fetch(4_096):
                count += len(batch)
            await reader.close()
            assert count == LINES

        topic = S3Topic(f"s3://{name}/in/?lanes=1")
        try:
            await topic.splits()
            ratio = await _in_turn(f"S3 source, {compression}", {"a bare loop": bare, "the source": ours})
        finally:
            await topic.close()
    assert ratio > 0.5
