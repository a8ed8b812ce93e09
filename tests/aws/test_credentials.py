"""Credentials that expire while they are used: fresh ones are had and nothing is lost; without any it is waited."""

import asyncio
import gzip
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
from botocore.exceptions import ClientError

from flowkit.aws import AwsOptions, Blame, blame_of, open_client, renewing
from tests.aws.issuer import Issuer, Way, issuer
from tests.aws.proxy import Fault, Proxy, Request, proxy_to
from tests.aws.servers import aws_environment
from tests.aws.workers import Fleet, check_counts, dead

ONCE = AwsOptions(tries=1, timeout=5)


class Gate:
    """Lets in who has one of the keys that are `good`; of others it says `fault`."""

    def __init__(self, proxy: Proxy, *good: str, fault: Fault = "expired") -> None:
        self.good, self.fault, self.refused = set(good), fault, 0
        proxy.fault = self._decide

    def _decide(self, request: Request) -> Fault | None:
        if request.key in self.good:
            return None
        self.refused += 1
        return self.fault


@asynccontextmanager
async def place_of(
    url: str, path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, fault: Fault = "expired"
) -> AsyncIterator[tuple[Issuer, Gate, Any]]:
    """An issuer that gives A, a gate that is content with A, and a client between them."""
    async with issuer(path) as gives, proxy_to(url) as proxy:
        for name, value in {**aws_environment(proxy.url), **gives.environ(way)}.items():
            monkeypatch.setenv(name, value)
        gives.give("A")
        gate = Gate(proxy, "A", fault=fault)
        async with open_client("dynamodb", ONCE, "dynamodb://x") as client:
            await client.list_tables()
            yield gives, gate, client


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain may be asked as often as one likes."""
    monkeypatch.setattr(renewing, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(renewing, "LONGEST_WAIT", 0.0)
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("fault", ["expired", "unknown"])
async def test_fresh_ones_are_had_each_way(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, fault: Fault
) -> None:
    async with place_of(ministack_url, tmp_path, monkeypatch, way, fault) as (gives, gate, client):
        for key in ("B", "C"):
            gate.good, gate.refused = {key}, 0
            gives.give(key)
            await client.list_tables()
            assert gate.refused == 1


async def test_many_calls_at_once_ask_the_chain_once(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place_of(ministack_url, tmp_path, monkeypatch, "container") as (gives, gate, client):
        before = gives.asked["container"]
        gate.good = {"B"}
        gives.give("B")
        await asyncio.gather(*(client.list_tables() for _ in range(20)))
        assert gives.asked["container"] == before + 1


@pytest.mark.parametrize("fault", ["expired", "unknown"])
@pytest.mark.parametrize("nothing", [None, "A"], ids=["none", "the same"])
async def test_without_fresh_ones_it_passes_and_is_told_once(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, nothing: str | None
) -> None:
    async with place_of(ministack_url, tmp_path, monkeypatch, "process", fault) as (gives, gate, client):
        gate.good = {"B"}
        gives.give(nothing)
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                with pytest.raises(ClientError) as caught:
                    await client.list_tables()
                assert blame_of(caught.value) is Blame.PASSING
            gives.give("B")
            await client.list_tables()
        assert [line["event"] for line in logs] == [
            "credentials have expired, and there are no fresh ones; waiting for some",
            "credentials renewed",
            "credentials are good again",
        ]
        assert "secret" not in str(logs)


async def test_where_their_time_is_over_and_nobody_gives_others(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place_of(ministack_url, tmp_path, monkeypatch, "container") as (gives, gate, client):
        gives.hours = 0.001  # botocore refreshes what ends within minutes
        gives.give("B")
        gate.good = {"B"}
        await client.list_tables()
        gives.give(None)
        with pytest.raises(renewing.NoCredentialsNow) as caught:
            await client.list_tables()
        assert blame_of(caught.value) is Blame.PASSING
        gives.hours = 6.0
        gives.give("C")
        gate.good = {"C"}
        await client.list_tables()


async def test_the_chain_is_not_asked_with_every_call(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewing, "FIRST_WAIT", 1000.0)
    async with place_of(ministack_url, tmp_path, monkeypatch, "container") as (gives, gate, client):
        before, gate.good = gives.asked["container"], set()
        for _ in range(10):
            with pytest.raises(ClientError):
                await client.list_tables()
        assert gives.asked["container"] == before + 1


async def test_keys_that_have_never_worked_are_for_a_person(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with issuer(tmp_path) as gives, proxy_to(ministack_url) as proxy:
        for name, value in {**aws_environment(proxy.url), **gives.environ("process")}.items():
            monkeypatch.setenv(name, value)
        gives.give("A")
        Gate(proxy, fault="unknown")
        async with open_client("dynamodb", ONCE, "dynamodb://x") as client:
            with pytest.raises(ClientError) as caught:
                await client.list_tables()
        assert blame_of(caught.value) is Blame.PERSON


async def test_others_that_are_no_better_are_tried_a_few_times_only(
    ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place_of(ministack_url, tmp_path, monkeypatch, "process") as (gives, gate, client):
        gate.good = set()
        client.meta.events.register("before-send", lambda **_: gives.give(uuid.uuid4().hex))
        with pytest.raises(ClientError):
            await client.list_tables()
        assert gate.refused == renewing.MOST + 1


async def made(name: str) -> None:
    """A bucket and a table."""
    async with open_client("s3", AwsOptions(), "s3") as s3, open_client("dynamodb", AwsOptions(), "x") as dynamodb:
        await s3.create_bucket(Bucket=name)
        await dynamodb.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )


async def kept(name: str) -> tuple[dict[str, int], list[tuple[str, int, int]]]:
    """The table's totals by key, and all rows in the bucket's archive."""
    rows: list[tuple[str, int, int]] = []
    async with open_client("s3", AwsOptions(), "s3") as s3, open_client("dynamodb", AwsOptions(), "x") as dynamodb:
        found = (await s3.list_objects_v2(Bucket=name, Prefix="archive/")).get("Contents", ())
        for each in found:
            data = await (await s3.get_object(Bucket=name, Key=each["Key"]))["Body"].read()
            lines = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).splitlines()
            rows += [(row["key"], row["number"], row["total"]) for row in map(json.loads, lines)]
        items = (await dynamodb.scan(TableName=name))["Items"]
    return {item["key"]["S"]: int(item["total"]["N"]) for item in items if "total" in item}, rows


def told(log: Path, event: str) -> int:
    """How often a worker has said something."""
    return sum(json.loads(line).get("event") == event for line in log.read_text().split("\n")[:-1] if line[:1] == "{")


@pytest.mark.parametrize("fan_out", ["no", "yes"])
async def test_a_worker_goes_on_with_fresh_ones_and_waits_for_them(
    ministack: str, tmp_path: Path, fan_out: str
) -> None:
    name = f"c-{uuid.uuid4().hex[:8]}"
    await made(name)
    app = Path(__file__).parent / "iam_app.py"
    async with issuer(tmp_path) as gives, proxy_to(ministack, watched=False) as proxy:
        environ = {**aws_environment(proxy.url), **gives.environ("process")}
        gives.give("A")
        gate = Gate(proxy, "A")
        options = f"&frames=s3://{name}/frames&fan_out={fan_out}"
        async with Fleet(tmp_path, environ, options=options, app=app) as fleet:
            binds = (f"features=dynamodb://{name}", f"archive=s3://{name}/archive?roll_after=1s")
            words = [word for bind in binds for word in ("--bind", bind)]
            log = tmp_path / "a.log"
            fleet.start("a", *words)
            await fleet.put(range(200))
            await fleet.until(200)
            gives.give("B")
            gate.good = {"B"}
            await fleet.put(range(200, 400))
            await fleet.until(400)
            assert told(log, "credentials renewed") >= 3
            opened = told(log, "task opened")
            gate.good, gate.fault = {"C"}, "unknown"
            await fleet.put(range(400, 600))
            wait = "credentials have expired, and there are no fresh ones; waiting for some"
            async with asyncio.timeout(30):
                while not told(log, wait):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            proxy.cut()
            refused, began = gate.refused, time.monotonic()
            async with asyncio.timeout(60):  # longer than a lease lasts
                while gate.refused - refused < 10 or time.monotonic() - began < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert fleet.workers["a"].poll() is None
            assert (gate.refused - refused) / (time.monotonic() - began) < 50
            gives.give("C")
            check_counts(await fleet.until(600), 600)
            assert told(log, "task opened") - opened <= 8
            async with asyncio.timeout(20):
                while len((await kept(name))[1]) < 600:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            assert await fleet.stop("a") == 0
    totals, rows = await kept(name)
    assert totals == {f"k{n}": 30 for n in range(20) if n != 1}
    assert sorted(rows) == sorted((f"k{n % 20}", n, n // 20 + 1) for n in range(600))
    assert dead(tmp_path) == []
