"""Shards whose records are pushed: as whole as polled ones, through bad weather and refusals; polled where need be."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from flowkit.aws import AwsOptions
from flowkit.clock import SystemClock
from flowkit.errors import InputError
from flowkit.options import OutOfRange, Start
from flowkit.source import kinesis_fan_out, kinesis_reader
from flowkit.source.kinesis_batch import Arrivals
from flowkit.source.kinesis_fan_out import Consumer
from flowkit.source.kinesis_reader import KinesisReader, KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams
from tests.aws.proxy import Fault, Request, proxy_to
from tests.aws.pusher import Push, Pusher, Refuse, pusher
from tests.aws.servers import aws_environment
from tests.aws.test_kinesis_reader import aggregated, rows_of, streams_of, until
from tests.aws.workers import split_in_two

ONCE = AwsOptions(tries=1, timeout=5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers here do not count calls."""
    monkeypatch.setattr(kinesis_reader, "CALL_SECONDS", 0.01)
    monkeypatch.setattr(kinesis_reader, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(kinesis_fan_out, "CALL_SECONDS", 0.02)


def pushed(
    streams: KinesisStreams,
    name: str,
    start: Start = "earliest",
    out_of_range: OutOfRange = "fail",
    consumer: str = "shop.count",
) -> KinesisSource:
    source = KinesisSource(streams, Arrivals(), name, start=start, out_of_range=out_of_range)
    source.consumer = Consumer(streams, name, consumer)
    return source


@asynccontextmanager
async def served(
    monkeypatch: pytest.MonkeyPatch, batches: Sequence[list[bytes]], *steps: Push | Refuse
) -> AsyncIterator[tuple[Pusher, KinesisStreams]]:
    async with pusher(batches, *steps) as server, streams_at(server.url, monkeypatch) as streams:
        yield server, streams


@asynccontextmanager
async def streams_at(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KinesisStreams]:
    for variable, value in aws_environment(url).items():
        monkeypatch.setenv(variable, value)
    streams = KinesisStreams(ONCE, SystemClock(), "kinesis://")
    await streams.open()
    try:
        yield streams
    finally:
        await streams.close()


async def values_of(reader: KinesisReader, count: int) -> list[int]:
    return [int(value or b"") for _, value, _ in await rows_of(reader, count)]


def refusals(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"] == "no enhanced fan-out; polling"]


# --- against ministack


async def test_all_is_pushed_in_order_and_from_any_position(ministack: str) -> None:
    async with streams_of() as (streams, name):
        await streams.put(name, [(b"k%d" % (n % 7), b"%d" % n, 0) for n in range(300)])
        found: list[tuple[Any, bytes | None, Any]] = []
        async with proxy_to(ministack) as proxy:
            through = KinesisStreams(ONCE._replace(endpoint=proxy.url), SystemClock(), "kinesis://")
            await through.open()
            for shard in await through.shards(name):
                mine = sum(shard.owns(b"k%d" % (n % 7)) for n in range(300))
                source = pushed(through, name)
                reader = await source.open(shard.number, None)
                rows = await rows_of(reader, mine, limit=7)
                await reader.close()
                assert all(shard.owns(key) for key, _, _ in rows)
                assert reader.behind_ms == 0
                found += rows
                again = await pushed(through, name, consumer="again").open(shard.number, rows[mine // 2][2])
                assert await rows_of(again, mine - mine // 2 - 1) == rows[mine // 2 + 1 :]
                await again.close()
            await through.close()
            assert proxy.times("GetRecords") == proxy.times("GetShardIterator") == 0
            assert proxy.times("RegisterStreamConsumer") == 2
        assert sorted(int(value or b"") for _, value, _ in found) == list(range(300))


async def test_aggregated_records_are_gone_on_with_amid_one(ministack: str) -> None:
    async with streams_of(1) as (streams, name):
        packed = aggregated([("a", b"1"), ("b", b"2"), ("a", b"3")])
        await streams.put(name, [(b"x", b"0", 0), (b"x", packed, 0), (b"y", b"4", 0)], 0)
        reader = await pushed(streams, name).open(0, None)
        rows = await rows_of(reader, 5, limit=2)
        await reader.close()
        assert [row[:2] for row in rows] == [(b"x", b"0"), (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"y", b"4")]
        for at in range(4):
            again = await pushed(streams, name, consumer=f"again-{at}").open(0, rows[at][2])
            assert await rows_of(again, 4 - at) == rows[at + 1 :]
            await again.close()


async def test_a_closed_shard_ends_and_its_children_begin(ministack: str) -> None:
    async with streams_of(1) as (streams, name):
        await streams.put(name, [(b"k%d" % n, b"%d" % n, 0) for n in range(20)])
        parent = await pushed(streams, name).open(0, None)
        assert await values_of(parent, 20) == list(range(20))  # this server forgets a parent at once
        await split_in_two(streams, name)
        assert await rows_of(parent) == []
        assert parent.at_end
        await parent.close()
        await streams.put(name, [(b"k%d" % n, b"%d" % n, 0) for n in range(20, 40)])
        shards = [shard for shard in await streams.shards(name, fresh=True) if shard.number]
        found = []
        for shard in shards:
            child = await pushed(streams, name).open(shard.number, None)
            found += await values_of(child, sum(shard.owns(b"k%d" % n) for n in range(20, 40)))
            await child.close()
        assert sorted(found) == list(range(20, 40))


async def test_broken_connections_lose_and_repeat_nothing(ministack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with streams_of(1) as (streams, name), proxy_to(ministack) as proxy:
        async with streams_at(proxy.url, monkeypatch) as through:
            reader = await pushed(through, name).open(0, None)
            found = []
            for turn in range(6):
                await streams.put(name, [(b"k", b"%d" % n, 0) for n in range(turn * 50, turn * 50 + 50)])
                found += await values_of(reader, 50)
                if turn % 2:
                    assert proxy.cut() == 1
            assert found == list(range(300))
            await reader.close()
        assert proxy.times("SubscribeToShard") >= 4


@pytest.mark.parametrize("fault", ["throttle", "broken", "reset", "lost", "half", "slow"])
async def test_bad_weather(ministack: str, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    def once(request: Request) -> Fault | None:
        return fault if proxy.times(request.action) == 1 else None

    async with streams_of(1) as (streams, name), proxy_to(ministack) as proxy:
        await streams.put(name, [(b"k", b"%d" % n, 0) for n in range(100)])
        async with streams_at(proxy.url, monkeypatch) as through:
            await through.shards(name)
            proxy.requests.clear()
            proxy.fault = once
            source = pushed(through, name)
            reader = await source.open(0, None)
            assert await values_of(reader, 100) == list(range(100))
            await reader.close()
            assert source.consumer is not None
            assert source.consumer.refused == ""


# --- against a server that does what the test says


async def test_it_is_taken_out_again_when_it_ends_and_goes_on_behind_what_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [[b"%d" % (n * 3 + i) for i in range(3)] for n in range(20)]
    steps = (Push(2), Push(0), Push(3, "cut"), Push(1, "torn"), Push(4, "InternalFailureException"), Push(2))
    async with served(monkeypatch, batches, *steps) as (server, streams):
        reader = await pushed(streams, "orders").open(0, None)
        server.close()
        assert [int(value or b"") for _, value, _ in await rows_of(reader)] == list(range(60))
        assert reader.at_end
        starts = [body["StartingPosition"] for body in server.calls("SubscribeToShard")]
        assert starts[0] == {"Type": "TRIM_HORIZON"}
        assert starts[1] == {"Type": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": f"{6:021d}"}
        assert len(starts) == 7
        assert server.consumers == {"shop.count": 1}
        await reader.close()


async def test_where_nothing_comes_it_goes_on_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(monkeypatch, [[b"0"]], Push(0), Push(0, "cut")) as (server, streams):
        reader = await pushed(streams, "orders", "latest").open(0, None)
        await until(lambda: asyncio.sleep(0.01), lambda _: len(server.calls("SubscribeToShard")) >= 1)
        server.put(b"1")  # between two subscriptions: "latest" once more would lose it
        assert await values_of(reader, 1) == [1]
        await reader.close()


async def test_amid_an_aggregated_record_a_continuation_does_not_pass_it(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = aggregated([("a", b"1"), ("a", b"2"), ("a", b"3")])
    async with served(monkeypatch, [[packed], [b"4"]], Push(0), Push(0, "cut")) as (_server, streams):
        reader = await pushed(streams, "orders").open(0, [f"{1:021d}", 2])
        assert await values_of(reader, 2) == [3, 4]
        await reader.close()


async def test_refusals_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        *(Refuse("ResourceInUseException"), Push(1), Refuse("LimitExceededException"), Push(1)),
        *(Refuse("ResourceInUseException"), Refuse("500"), Refuse("503"), Refuse("500"), Refuse("500"), Push(1)),
    )
    monkeypatch.setattr(kinesis_fan_out, "TAKEN_SECONDS", 0.01)
    async with pusher([[b"%d" % n] for n in range(10)], *steps, Push(1, "ResourceInUseException")) as server:
        server.registering = ["LimitExceededException", "LimitExceededException", "ResourceInUseException"]
        server.statuses = ["CREATING", "CREATING", "ACTIVE"]
        async with streams_at(server.url, monkeypatch) as streams:
            with structlog.testing.capture_logs() as logs:
                reader = await pushed(streams, "orders").open(0, None)
                assert await values_of(reader, 10) == list(range(10))
            assert refusals(logs) == []
            assert len([line for line in logs if "taken the shard's" in line["event"]]) == 1
            assert server.calls("GetRecords") == []
            await reader.close()


async def test_a_consumer_that_someone_has_deregistered_is_registered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(monkeypatch, [[b"0"], [b"1"]], Push(1, "ResourceNotFoundException")) as (server, streams):
        reader = await pushed(streams, "orders").open(0, None)
        assert await values_of(reader, 1) == [0]
        server.known.clear()
        assert await values_of(reader, 1) == [1]
        assert server.consumers == {"shop.count": 2}
        await reader.close()


async def test_a_shard_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Refuse("ResourceNotFoundException")] * 2
    async with served(monkeypatch, [[b"0"]], *steps) as (_server, streams):
        reader = await pushed(streams, "orders").open(0, None)
        with pytest.raises(InputError, match="was deleted, or the shard has expired"):
            await rows_of(reader, 1)
        await reader.close()


@pytest.mark.parametrize("policy", ["fail", "earliest"])
async def test_a_position_that_is_gone(monkeypatch: pytest.MonkeyPatch, policy: OutOfRange) -> None:
    async with served(monkeypatch, [[b"0"], [b"1"]], Refuse("InvalidArgumentException")) as (_server, streams):
        reader = await pushed(streams, "orders", out_of_range=policy).open(0, ["00", 0])
        if policy == "fail":
            with pytest.raises(InputError, match="has no record 00"):
                await rows_of(reader, 1)
        else:
            assert await values_of(reader, 2) == [0, 1]
        await reader.close()


async def test_what_is_not_read_waits_at_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    value = bytes(750_000)
    async with served(monkeypatch, [[value] for _ in range(100)]) as (server, streams):
        reader = await pushed(streams, "orders").open(0, None)
        written = -1
        async with asyncio.timeout(20):
            while written != server.written or not written:
                written = server.written
                await asyncio.sleep(0.5)
        assert len(reader._ready) == kinesis_reader.AHEAD
        assert written < 30_000_000  # of a hundred million: what the network's buffers hold
        assert len(await rows_of(reader, 100)) == 100
        await reader.close()


async def test_how_far_behind_it_is_follows_the_service_and_grows_while_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served(monkeypatch, [[b"0"]]) as (server, streams):
        server.behind_ms = 5_000
        reader = await pushed(streams, "orders").open(0, None)
        assert reader.behind_ms is None
        assert await values_of(reader, 1) == [0]
        assert reader.behind_ms == 5_000
        server.behind_ms = 0
        server.put(b"1")
        assert await values_of(reader, 1) == [1]
        assert reader.behind_ms == 0
        monkeypatch.setattr(kinesis_reader, "SILENT_SECONDS", 0.0)
        await until(lambda: asyncio.sleep(0.01), lambda _: (reader.behind_ms or 0) > 20)
        server.close()
        await rows_of(reader)
        assert reader.behind_ms == 0  # there is nothing more to come
        await reader.close()


# --- polled, where it cannot be pushed


REFUSED = {
    "denied": ("AccessDeniedException", "not allowed"),
    "unknown": ("UnknownOperationException", "the server has none"),
    "full": ("LimitExceededException", "as many consumers as it may"),
}


@pytest.mark.parametrize("why", list(REFUSED))
async def test_without_a_consumer_it_is_polled_and_told_once(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    code, told = REFUSED[why]
    async with served(monkeypatch, [[b"%d" % n] for n in range(10)]) as (server, streams):
        server.registering = [code] * 10
        source = pushed(streams, "orders")
        with structlog.testing.capture_logs() as logs:
            readers = [await source.open(0, None) for _ in range(3)]
            for reader in readers:
                assert await values_of(reader, 10) == list(range(10))
                await reader.close()
        (line,) = refusals(logs)
        assert told in line["reason"]
        assert [each for each in logs if each["log_level"] != "info"] == [line]
        assert server.calls("SubscribeToShard") == []


async def test_what_was_pushed_is_not_polled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(monkeypatch, [[b"%d" % n] for n in range(10)], Push(4), Refuse("AccessDeniedException")) as (
        _server,
        streams,
    ):
        with structlog.testing.capture_logs() as logs:
            reader = await pushed(streams, "orders").open(0, None)
            assert await values_of(reader, 10) == list(range(10))
            await reader.close()
        assert len(refusals(logs)) == 1


@pytest.mark.parametrize("kind", ["moto", "kinesalite"])
async def test_servers_that_have_none(kind: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(kind)
    async with streams_of(1) as (streams, name):
        await streams.put(name, [(b"k", b"%d" % n, 0) for n in range(100)])
        with structlog.testing.capture_logs() as logs:
            reader = await pushed(streams, name).open(0, None)
            assert await values_of(reader, 100) == list(range(100))
            await reader.close()
        (line,) = [each for each in logs if each["log_level"] == "warning"]
        assert line["event"] == "no enhanced fan-out; polling"
