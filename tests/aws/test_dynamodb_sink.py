"""DynamoDB as a destination, on DynamoDB Local, ministack and moto."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit import App, Closed, ConfigError, Record, Stream, Timer, Tumbling, seconds
from flowkit.aws import AwsOptions, open_client
from flowkit.clock import VirtualClock
from flowkit.errors import SinkError
from flowkit.sink import Destination, SinkTask, destination
from flowkit.worker.outlets import Outgoing
from tests.aws.broken import COUNT, Reading, all_faults, copying, readings, run_through
from tests.aws.proxy import Request, proxy_to

ALL = pytest.mark.parametrize("server", ["dynamodb", "ministack", "moto"])


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(server)
    return found


@asynccontextmanager
async def table(hash_key: str = "id", range_key: str = "", *, ttl: str = "") -> AsyncIterator[tuple[str, Any]]:
    """The name of a new table (keys as `name` or `name:N`), and a client."""
    keys = [key.partition(":") for key in (hash_key, range_key) if key]
    name = f"t-{uuid.uuid4().hex[:8]}"
    async with open_client("dynamodb", AwsOptions(), "dynamodb://x") as client:
        await client.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind or "S"} for key, _, kind in keys],
            KeySchema=[
                {"AttributeName": key, "KeyType": kind}
                for (key, _, _), kind in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        if ttl:
            spec = {"Enabled": True, "AttributeName": ttl}
            await client.update_time_to_live(TableName=name, TimeToLiveSpecification=spec)
        yield name, client


async def read_all(client: Any, name: str) -> list[dict[str, Any]]:
    """All items of a table."""
    found = []
    async for page in client.get_paginator("scan").paginate(TableName=name, ConsistentRead=True):
        found += page["Items"]
    return found


async def hand_off(to: Destination, *records: Outgoing, now: int = 1_000) -> tuple[Any, Any]:
    """What a new task, whose clock says `now`, would hand off, and its sink."""
    sink = to.sink(SinkTask("app", "group", 0, 1, VirtualClock(now)))
    await sink.open(None)
    return sink.stage(records, final=False), sink


def record(value: bytes, *, key: bytes = b"a", time: int = 0, window: int | None = None, pane: int = 1) -> Outgoing:
    return Outgoing(key, value, time, order=None if window is None else window << 2 | pane)


async def value_of(client: Any, name: str, key: str = "a") -> Any:
    """What field `v` of an item is; None if there is no item."""
    got = await client.get_item(TableName=name, Key={"id": {"S": key}}, ConsistentRead=True)
    return int(got["Item"]["v"]["N"]) if "Item" in got else None


@pytest.mark.parametrize(
    ("server", "write"),
    [("dynamodb", "conditional"), ("ministack", "conditional"), ("dynamodb", "batch"), ("moto", "batch")],
)
async def test_through_all_faults_each_item_is_the_last_record_of_its_key(
    server: str, url: str, write: str, tmp_path: Path
) -> None:
    rows = readings(keys=400 if write == "batch" else 60)  # of one commit an item is written once
    action = "BatchWriteItem" if write == "batch" else "PutItem"
    async with table() as (name, client), proxy_to(url) as proxy:
        proxy.fault = all_faults(action, seed=3, share=0.25 if write == "batch" else 0.06)
        target = f"dynamodb://{name}?endpoint={proxy.url}&tries=1&timeout=5&write={write}"
        assert await run_through(copying(), rows, target, tmp_path, commit_every=2_000, proxy=proxy) == 8
        faults = {seen.fault for seen in proxy.requests if seen.action == action}
        assert faults >= {"throttle", "broken", "reset", "lost", "half", "slow", "part"}
        items = await read_all(client, name)
    found = {item["id"]["S"]: (int(item["n"]["N"]), int(item["at"]["N"])) for item in items}
    assert found == {row.id: (row.n, row.at) for row in rows}
    assert (tmp_path / "dead.jsonl").read_bytes() == b""
    assert all(("flowkit_version" in item) is (write == "conditional") for item in items)


@pytest.mark.parametrize("server", ["ministack"])
async def test_every_record_is_an_item_where_the_table_tells_them_apart(server: str, url: str, tmp_path: Path) -> None:
    rows = readings(keys=300)
    async with table("id", "n:N") as (name, client), proxy_to(url) as proxy:
        proxy.fault = all_faults("BatchWriteItem", seed=4, share=0.05)
        target = f"dynamodb://{name}?endpoint={proxy.url}&tries=1&timeout=5&write=batch"
        await run_through(copying(), rows, target, tmp_path, proxy=proxy)
        items = await read_all(client, name)
    assert len(items) == COUNT
    assert {(item["id"]["S"], int(item["n"]["N"])) for item in items} == {(row.id, row.n) for row in rows}


@ALL
async def test_what_comes_again_or_late_or_from_a_zombie_changes_nothing(server: str, url: str) -> None:
    async with table() as (name, client), destination(f"dynamodb://{name}", None) as to:
        old, sink = await hand_off(to, record(b'{"id":"a","v":1}'))
        new, heir = await hand_off(to, record(b'{"id":"a","v":2}'), now=2_000)
        await sink.deliver(old)
        await heir.deliver(new)
        assert await value_of(client, name) == 2
        for again in (old, new, old):
            assert await sink.deliver(again) == []
            assert await value_of(client, name) == 2
        newer = sink.stage([record(b'{"id":"a","v":3}')], final=False)  # the same task, its clock stands still
        assert newer["from"] == old["from"] + 1
        await sink.deliver(newer)
        assert await value_of(client, name) == 2


@ALL
async def test_among_windows_the_later_end_wins_then_the_pane_then_the_number(server: str, url: str) -> None:
    async with table() as (name, client), destination(f"dynamodb://{name}", None) as to:

        async def deliver(v: int, now: int, window: int, pane: int = 1) -> Any:
            row = record(b'{"id":"a","v":%d}' % v, window=window, pane=pane)
            handed, sink = await hand_off(to, row, now=now)
            await sink.deliver(handed)
            return await value_of(client, name)

        assert await deliver(1, 5_000, window=10) == 1
        assert await deliver(2, 1_000, window=20) == 2  # of a task whose clock goes behind
        assert await deliver(3, 9_000, window=10) == 2  # a late firing of the window before
        assert await deliver(4, 900, window=20, pane=2) == 4
        assert await deliver(5, 9_000, window=20, pane=1) == 4
        assert await deliver(6, 800, window=20, pane=2) == 4
        assert await deliver(7, 9_000, window=20, pane=2) == 7  # the same window, computed again


@ALL
async def test_what_is_no_window_is_compared_by_number_also_with_windows(server: str, url: str) -> None:
    async with table() as (name, client), destination(f"dynamodb://{name}", None) as to:
        handed = []
        for now, row in [
            (1_000, record(b'{"id":"a","v":1}', window=10**12)),
            (2_000, record(b'{"id":"a","v":0}')),  # a reset, by a timer
            (3_000, record(b'{"id":"a","v":3}', window=10**12 + 10)),
        ]:
            of_this, sink = await hand_off(to, row, now=now)
            await sink.deliver(of_this)
            handed.append(of_this)
            assert await value_of(client, name) == [1, 0, 3][len(handed) - 1]
            for before in handed:
                await sink.deliver(before)
                assert await value_of(client, name) == [1, 0, 3][len(handed) - 1]


@ALL
async def test_a_tombstone_removes_or_marks_under_the_same_condition(server: str, url: str) -> None:
    async with table() as (name, client), destination(f"dynamodb://{name}", None) as to:
        put, sink = await hand_off(to, record(b'{"id":"a","v":1}'), now=2_000)
        await sink.deliver(put)
        late, zombie = await hand_off(to, record(b"null"))
        await zombie.deliver(late)
        assert await value_of(client, name) == 1
        await sink.deliver(sink.stage([Outgoing(b"a", None, 0)], final=False))
        assert await value_of(client, name) is None
        async with destination(f"dynamodb://{name}?tombstone=mark", None) as marking:
            gone, marker = await hand_off(marking, record(b"null"), now=3_000)
            await marker.deliver(gone)
            await sink.deliver(put)  # of before, alone and late
        (item,) = await read_all(client, name)
        assert item == {"id": {"S": "a"}, "flowkit_deleted": {"BOOL": True}, "flowkit_version": {"N": str(3_000 << 16)}}


@ALL
async def test_values_arrive_as_they_are(server: str, url: str) -> None:
    async with table("id:N", "at:B") as (name, client), destination(f"dynamodb://{name}?version=ver", None) as to:
        text = '{"id":7.50,"at":"AP8=","a":[1,-2.5e-7,"",null,true,{}],"m":{"ü":{"x":[]}},"big":1' + "0" * 36 + "1}"
        handed, sink = await hand_off(to, record(text.encode()))
        assert await sink.deliver(handed) == []
        (item,) = await read_all(client, name)
    assert item.pop("at") == {"B": b"\0\xff"}
    assert float(item.pop("id")["N"]) == 7.5
    assert item.pop("ver") == {"N": str(1_000 << 16)}
    assert item.pop("big") == {"N": str(10**37 + 1)}
    assert item.pop("m") == {"M": {"ü": {"M": {"x": {"L": []}}}}}
    one, small, *others = item.pop("a")["L"]
    assert (one, float(small["N"])) == ({"N": "1"}, -2.5e-7)
    assert others == [{"S": ""}, {"NULL": True}, {"BOOL": True}, {"M": {}}]
    assert item == {}


@pytest.mark.parametrize("server", ["dynamodb"])
async def test_the_size_that_is_counted_is_the_one_that_counts(server: str, url: str) -> None:
    """One byte more is refused here; and what is let through the service takes."""
    async with table() as (name, _), destination(f"dynamodb://{name}", None) as to:

        def of_size(n: int) -> Outgoing:
            return record(b'{"id":"a","f":"%b"}' % (b"x" * n))

        most = 400 * 1024 - len("idafflowkit_version") - 11
        fits, sink = await hand_off(to, of_size(most))
        assert await sink.deliver(fits) == []
        (refused,) = await sink.deliver(sink.stage([of_size(most + 1)], final=False))
        assert (refused.error, refused.reason) == (
            "ItemTooLarge",
            "409601 bytes as DynamoDB counts, and an item may have 409600",
        )


@pytest.mark.parametrize("server", ["dynamodb"])
@pytest.mark.parametrize("write", ["conditional", "batch"])
async def test_what_the_table_refuses_is_a_dead_letter_and_the_rest_arrives(server: str, url: str, write: str) -> None:
    """An index on `kind` takes no null there, which only the service can tell."""
    async with open_client("dynamodb", AwsOptions(), "dynamodb://x") as client:
        name = f"t-{uuid.uuid4().hex[:8]}"
        await client.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("id", "kind")],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "kinds",
                    "KeySchema": [{"AttributeName": "kind", "KeyType": "HASH"}],
                    "Projection": {"ProjectionType": "KEYS_ONLY"},
                }
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        rows = [record(b'{"id":"%d","kind":%b}' % (n, b"null" if n in (3, 9) else b'"k"')) for n in range(12)]
        async with destination(f"dynamodb://{name}?write={write}", None) as to:
            handed, sink = await hand_off(to, *rows)
            refused = await sink.deliver(handed)
        assert [(letter.value, letter.error) for letter in refused] == [
            (rows[n].value, "ValidationException") for n in (3, 9)
        ]
        assert "Invalid attribute value type" in refused[0].reason
        assert len(await read_all(client, name)) == 10


@ALL
async def test_the_tables_key_and_ttl_are_looked_at_when_it_is_opened(server: str, url: str) -> None:
    async def problem(name: str, options: str = "", fields: tuple[str, ...] | None = ("id", "n", "at")) -> str:
        with pytest.raises(ConfigError) as caught:
            async with destination(f"dynamodb://{name}{options}", fields):
                pass
        return str(caught.value)

    assert "is not there" in await problem("nowhere")
    async with table("user", "n:N") as (name, _):
        told = await problem(name)
        assert "the table's key is 'user' and 'n', and the records have 'id', 'n', 'at': 'user' is missing" in told
        told = await problem(name, "?ttl=expires&ttl_after=1d", ("user", "n"))
        assert "TTL is off" in told
        assert "update-time-to-live --table-name" in told
    async with table(ttl="gone_at") as (name, _):
        assert "say ttl=gone_at" in await problem(name, "?ttl=expires&ttl_after=1d")
        async with destination(f"dynamodb://{name}?ttl=gone_at&ttl_after=1d", ("id",)):
            pass


@pytest.mark.parametrize("server", ["ministack"])
async def test_what_may_not_be_done_is_told_with_the_right_that_is_missing(server: str, url: str) -> None:
    async with table() as (name, client), proxy_to(url) as proxy:
        proxy.fault = lambda seen: "denied" if seen.action == "DescribeTable" else None
        with pytest.raises(ConfigError, match=r"AccessDenied.*: allow dynamodb:DescribeTable"):
            async with destination(f"dynamodb://{name}?endpoint={proxy.url}", None):
                pass
        proxy.fault = lambda seen: "denied" if seen.action == "PutItem" else None
        async with destination(f"dynamodb://{name}?endpoint={proxy.url}", None) as to:
            handed, sink = await hand_off(to, record(b'{"id":"a","v":1}'))
            with pytest.raises(SinkError, match="AccessDenied"):
                await sink.deliver(handed)
            proxy.fault = lambda _: None  # it is still there, for the one who has mended it
            assert await sink.deliver(handed) == []
        assert await value_of(client, name) == 1


@pytest.mark.parametrize("server", ["ministack"])
async def test_a_service_that_is_away_when_it_is_opened_holds_up_the_records_only(server: str, url: str) -> None:
    async with table() as (name, client), proxy_to(url) as proxy:
        away = 3

        def fault(request: Request) -> Any:
            nonlocal away
            away -= 1
            return "broken" if away >= 0 else None

        proxy.fault = fault
        async with destination(f"dynamodb://{name}?endpoint={proxy.url}&tries=1", None) as to:
            handed, sink = await hand_off(to, record(b'{"id":"a","v":1}'))
            assert await sink.deliver(handed) == []
        assert await value_of(client, name) == 1
    assert proxy.times("DescribeTable") == 4


class Spent(Record):
    """A card's feature: what was spent in the window until `until`."""

    id: str
    until: int
    v: int


def feature_store(*, reset: bool) -> App:
    """Features of cards, by ten seconds. With `reset` a card that is quiet for two windows gets a feature of 0."""
    app = App("features")
    payments = app.topic("readings", Reading, key="id", time="at")
    spend = app.table("spend", str, int, window=Tumbling(seconds(10)))
    quiet = app.timers("quiet", str)
    features = app.sink("out", Spent, key="id")

    @app.agent(payments, tables=[spend])
    async def keep(stream: Stream[Reading]) -> None:
        async for payment in stream:
            spend[payment.id] += payment.n

    @app.each(spend.closed, tables=[quiet], sinks=[features])
    def closed(window: Closed[str, int]) -> Spent:
        if reset:
            quiet.set(window.key, window.end + seconds(20))
        return Spent(window.key, window.end, window.value)

    @app.each(quiet, sinks=[features])
    def emptied(timer: Timer[str]) -> Spent:
        return Spent(timer.key, timer.at, 0)

    return app


PAYMENTS = [Reading("a", 1, at) for at in range(0, 60_000, 1_000)] + [Reading("b", 5, at) for at in (500, 12_500)]
"""Card a pays all the time, b in the first two windows."""


async def read_feature(client: Any, name: str, card: str, now_ms: int) -> int | None:
    """As whoever serves features has to read: DynamoDB removes what has expired when it finds time."""
    got = await client.get_item(TableName=name, Key={"id": {"S": card}}, ConsistentRead=True)
    item = got.get("Item")
    if item is None or int(item["expires"]["N"]) * 1000 <= now_ms:
        return None
    return int(item["v"]["N"])


@pytest.mark.parametrize("server", ["dynamodb", "ministack"])
async def test_a_feature_store_keeps_what_windows_say_until_it_expires(server: str, url: str, tmp_path: Path) -> None:
    rows = sorted(PAYMENTS, key=lambda row: row.at)
    async with table(ttl="expires") as (name, client):
        target = f"dynamodb://{name}?ttl=expires&ttl_after=20s"
        await run_through(feature_store(reset=False), rows, target, tmp_path, commit_every=9)
        a, b = sorted(await read_all(client, name), key=lambda item: str(item["id"]))
        assert (int(a["until"]["N"]), int(b["until"]["N"])) == (60_000, 20_000)
        assert (a["flowkit_version_window"]["N"], b["flowkit_version_window"]["N"]) == ("240001", "80001")
        # A window's result has the time of its end - 1 ms, whenever it was computed.
        assert (a["expires"], b["expires"]) == ({"N": "79"}, {"N": "39"})
        assert [await read_feature(client, name, "a", now) for now in (60_000, 78_000, 79_000)] == [10, 10, None]
        assert [await read_feature(client, name, "b", now) for now in (38_000, 39_000)] == [5, None]


@pytest.mark.parametrize("server", ["dynamodb"])
async def test_a_feature_store_resets_what_windows_have_left(server: str, url: str, tmp_path: Path) -> None:
    rows = sorted(PAYMENTS, key=lambda row: row.at)
    async with table() as (name, client):
        await run_through(feature_store(reset=True), rows, f"dynamodb://{name}?every=yes", tmp_path, commit_every=9)
        found = {
            item["id"]["S"]: (int(item["until"]["N"]), int(item["v"]["N"])) for item in await read_all(client, name)
        }
    assert found == {"a": (60_000, 10), "b": (40_000, 0)}
