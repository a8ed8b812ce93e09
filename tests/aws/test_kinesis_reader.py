"""Shards as workers read them: all of it in order, from any position, to a closed shard's end, through bad weather."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from flowkit.aws import AwsOptions
from flowkit.clock import SystemClock
from flowkit.errors import InputError
from flowkit.options import OutOfRange, Start
from flowkit.source import kinesis_reader
from flowkit.source.kinesis_aggregated import MAGIC
from flowkit.source.kinesis_batch import Arrivals, KinesisBatch
from flowkit.source.kinesis_reader import KinesisReader, KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams
from tests.aws.proxy import Fault, Request, proxy_to
from tests.aws.pusher import pusher
from tests.aws.servers import aws_environment

T = TypeVar("T")
ONCE = AwsOptions(tries=1, timeout=5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server here does not count calls."""
    monkeypatch.setattr(kinesis_reader, "CALL_SECONDS", 0.01)
    monkeypatch.setattr(kinesis_reader, "IDLE_SECONDS", 0.05)


@asynccontextmanager
async def streams_of(shards: int = 2) -> AsyncIterator[tuple[KinesisStreams, str]]:
    """A stream that no other test has."""
    streams = KinesisStreams(ONCE, SystemClock(), "kinesis://")
    name = f"orders-{uuid.uuid4().hex[:8]}"
    await streams.open()
    try:
        await streams.create(name, shards)
        yield streams, name
    finally:
        await streams.close()


def source_of(
    streams: KinesisStreams,
    name: str,
    start: Start = "earliest",
    out_of_range: OutOfRange = "fail",
    *,
    end: bool = False,
) -> KinesisSource:
    return KinesisSource(streams, Arrivals(), name, start=start, out_of_range=out_of_range, until_end=end)


async def rows_of(reader: KinesisReader, count: int = 10**9, limit: int = 100) -> list[tuple[Any, bytes | None, Any]]:
    """(key, value, position after it) of all up to the end, or of `count`."""
    found: list[tuple[Any, bytes | None, Any]] = []
    async with asyncio.timeout(30):
        while len(found) < count and not reader.at_end:
            batch = await reader.fetch(limit)
            if batch is None:
                await reader._source.arrivals.wait(50, None)
                continue
            found += rows_in(batch)
    return found


async def until(look: Callable[[], Awaitable[T]], right: Callable[[T], bool]) -> None:
    """Look until it is as it should be."""
    async with asyncio.timeout(20):
        while not right(await look()):
            pass


def rows_in(batch: KinesisBatch) -> list[tuple[Any, bytes | None, Any]]:
    assert batch.keys is not None
    return [(batch.keys[i], batch.values[i], batch.position(i + 1)) for i in range(len(batch))]


def aggregated(rows: list[tuple[str, bytes]]) -> bytes:
    """What the Kinesis Producer Library makes of rows."""

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    def varint(number: int) -> bytes:
        out = b""
        while number > 127:
            out += bytes([number & 127 | 128])
            number >>= 7
        return out + bytes([number])

    keys = list(dict.fromkeys(key for key, _ in rows))
    message = b"".join(field(1, key.encode()) for key in keys)
    message += b"".join(field(3, b"\x08" + varint(keys.index(key)) + field(3, value)) for key, value in rows)
    return MAGIC + message + hashlib.md5(message).digest()


async def test_all_is_read_in_order_and_from_any_position(kinesalite: str) -> None:
    async with streams_of() as (streams, name):
        records = [(b"k%d" % (n % 7), b"%d" % n, 0) for n in range(300)]
        await streams.put(name, records)
        found: list[tuple[Any, bytes | None, Any]] = []
        for shard in await streams.shards(name):
            reader = await source_of(streams, name, end=True).open(shard.number, None)
            rows = await rows_of(reader, limit=7)
            await reader.close()
            assert all(shard.owns(key) for key, _, _ in rows)
            found += rows
            for at in (0, len(rows) // 2, len(rows) - 1):
                again = await source_of(streams, name, end=True).open(shard.number, rows[at][2])
                assert await rows_of(again) == rows[at + 1 :]
                await again.close()
        assert sorted(int(value or b"") for _, value, _ in found) == list(range(300))
        for key in {key for key, _, _ in found}:
            of_key = [int(value or b"") for k, value, _ in found if k == key]
            assert of_key == sorted(of_key)


async def test_aggregated_records_are_taken_apart_and_gone_on_with_amid_one(kinesalite: str) -> None:
    async with streams_of(1) as (streams, name):
        packed = aggregated([("a", b"1"), ("b", b"2"), ("a", b"3")])
        broken = packed[:-1] + bytes([packed[-1] ^ 1])
        await streams.put(name, [(b"x", b"0", 0), (b"x", packed, 0), (b"x", broken, 0), (b"y", b"4", 0)], 0)
        reader = await source_of(streams, name, end=True).open(0, None)
        rows = await rows_of(reader, limit=2)
        await reader.close()
        assert [row[:2] for row in rows] == [
            (b"x", b"0"), (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"x", broken), (b"y", b"4"),
        ]  # fmt: skip
        for at in range(len(rows)):
            again = await source_of(streams, name, end=True).open(0, rows[at][2])
            assert await rows_of(again) == rows[at + 1 :]
            await again.close()


async def test_a_closed_shard_ends_and_its_children_have_the_rest(kinesalite: str) -> None:
    async with streams_of(1) as (streams, name):
        await streams.put(name, [(b"k%d" % n, b"%d" % n, 0) for n in range(20)])
        reader = await source_of(streams, name).open(0, None)
        assert len(await rows_of(reader, 20)) == 20
        await streams.client.split_shard(
            StreamName=name, ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**127)
        )
        await until(lambda: streams.shards(name, fresh=True), lambda shards: len(shards) == 3)
        shards = await streams.shards(name)
        assert await rows_of(reader) == []
        assert reader.at_end
        await reader.close()
        assert [(s.number, s.parents, s.closed) for s in shards] == [(0, (), True), (1, (0,), False), (2, (0,), False)]
        assert await source_of(streams, name).splits() == [1, 2]
        await streams.put(name, [(b"k%d" % n, b"%d" % n, 0) for n in range(20, 40)])
        children = [await source_of(streams, name).open(n, None) for n in (1, 2)]
        shares = [
            await rows_of(child, len([k for k in range(20, 40) if s.owns(b"k%d" % k)]))
            for child, s in zip(children, shards[1:], strict=True)
        ]
        assert sorted(int(v or b"") for share in shares for _, v, _ in share) == list(range(20, 40))
        for child in children:
            await child.close()


async def test_latest_and_a_time(kinesalite: str) -> None:
    async with streams_of(1) as (streams, name):
        await streams.put(name, [(b"a", b"old", 0)])
        latest = await source_of(streams, name, "latest").open(0, None)
        assert await latest.fetch(10) is None
        await until(lambda: asyncio.sleep(0.01), lambda _: latest.behind_ms is not None)
        await streams.put(name, [(b"a", b"new", 0)])
        assert [value for _, value, _ in await rows_of(latest, 1)] == [b"new"]
        await latest.close()
        timed = await source_of(streams, name, 0, end=True).open(0, None)
        assert [value for _, value, _ in await rows_of(timed)] == [b"old", b"new"]
        await timed.close()


async def test_latest_is_where_it_began_though_its_iterator_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pusher([[b"old"]]) as server:
        for variable, value in aws_environment(server.url).items():
            monkeypatch.setenv(variable, value)
        streams = KinesisStreams(ONCE, SystemClock(), "kinesis://")
        await streams.open()
        reader = await source_of(streams, "orders", "latest").open(0, None)
        await until(lambda: asyncio.sleep(0.01), lambda _: reader.behind_ms is not None)
        server.polls = ["ExpiredIteratorException"]
        server.put(b"new")
        assert [value for _, value, _ in await rows_of(reader, 1)] == [b"new"]
        assert len(server.calls("GetShardIterator")) == 2
        await reader.close()
        await streams.close()


@pytest.mark.parametrize("fault", ["throttle", "broken", "reset", "lost", "half", "slow"])
async def test_bad_weather_loses_and_repeats_nothing(
    kinesalite: str, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    async with streams_of(1) as (streams, name):
        await streams.put(name, [(b"k%d" % (n % 7), b"%d" % n, 0) for n in range(100)])
    calls = 0

    def sometimes(request: Request) -> Fault | None:
        nonlocal calls
        calls += request.action in ("GetRecords", "GetShardIterator")
        return fault if calls % 2 else None

    async with proxy_to(kinesalite) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(kinesis_reader, "RECORDS", 20)
        again = KinesisStreams(ONCE, SystemClock(), "kinesis://")
        await again.open()
        await again.shards(name)
        proxy.fault = sometimes
        reader = await source_of(again, name, end=True).open(0, None)
        assert [int(value or b"") for _, value, _ in await rows_of(reader)] == list(range(100))
        await reader.close()
        await again.close()


async def test_what_waits_is_bounded(kinesalite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinesis_reader, "RECORDS", 10)
    async with streams_of(1) as (streams, name):
        await streams.put(name, [(b"k", b"%d" % n, 0) for n in range(100)])
        async with proxy_to(kinesalite) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            again = KinesisStreams(ONCE, SystemClock(), "kinesis://")
            await again.open()
            reader = await source_of(again, name, end=True).open(0, None)
            await until(lambda: asyncio.sleep(0.01), lambda _: proxy.times("GetRecords") >= 2)
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert proxy.times("GetRecords") == 2
            assert len(await rows_of(reader)) == 100
            await reader.close()
            await again.close()


async def test_a_shard_that_is_not_there_is_told(kinesalite: str) -> None:
    async with streams_of(1) as (streams, name):
        with pytest.raises(InputError, match="there is no such shard"):
            await source_of(streams, name).open(7, None)
        reader = await source_of(streams, name).open(0, None)
        await streams.client.delete_stream(StreamName=name)
        with pytest.raises(InputError, match="was deleted"):
            await rows_of(reader, 1)
        await reader.close()
