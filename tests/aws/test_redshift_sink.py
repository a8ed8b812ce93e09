"""Redshift as a destination, on PostgreSQL and moto's S3: see tests/aws/redshift.py for what stands in for what."""

import asyncio
import json
import random
import ssl
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from flowkit import ConfigError
from flowkit.aws import AwsOptions, open_client
from flowkit.clock import VirtualClock
from flowkit.errors import SinkError
from flowkit.sink import Rejected, SinkTask, destination, redshift_sink, redshift_wire
from flowkit.sink.redshift_sink import RedshiftSink
from flowkit.store import Frame, Store, open_store
from flowkit.worker.outlets import Outgoing
from tests.aws.broken import COUNT, BrokenOff, Reading, copying, readings, run_through
from tests.aws.postgres import PASSWORD, USER, Postgres
from tests.aws.proxy import Fault, proxy_to
from tests.aws.redshift import AsRedshift, data_api

ROLE = "arn:aws:iam::123456789012:role/copy"


@pytest.fixture
def server(postgres_server: Postgres) -> Postgres:
    return postgres_server


class Cluster:
    """The stand-in, a bucket and a table; `step` is asked at each statement of the sink."""

    def __init__(self, server: Postgres, admin: Any, s3: Any, name: str) -> None:
        self.server, self.admin, self.s3, self.name = server, admin, s3, name
        self.step: Callable[[str, str], Any] | None = None
        self.statements: list[str] = []
        self.isolation = "serializable"

    def url(self, more: str = "", scheme: str = "redshift") -> str:
        host = f"localhost:{self.server.port}" if scheme == "redshift" else "group"
        tls = f"&tls_ca={self.server.ca}" if scheme == "redshift" else ""
        return f"{scheme}://{host}/postgres/{self.name}.out?stage=s3://{self.name}/x/y&role={ROLE}{tls}{more}"

    async def connect(self, address: Any = None) -> AsRedshift:
        trusted = ssl.create_default_context(cafile=str(self.server.ca))
        connection = await asyncpg.connect(
            host="localhost", port=self.server.port, database="postgres", user=USER, password=PASSWORD, ssl=trusted
        )
        return AsRedshift(connection, self.s3, self._step)

    def _step(self, when: str, sql: str) -> Any:
        if when == "before":
            self.statements.append(sql)
        return None if self.step is None else self.step(when, sql)

    async def rows(self, columns: str = "id, n, at") -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.admin.fetch(f'SELECT {columns} FROM "{self.name}".out')]

    async def objects(self) -> list[str]:
        found = await self.s3.list_objects_v2(Bucket=self.name)
        return [each["Key"] for each in found.get("Contents", ())]

    async def again(self, columns: str = "id VARCHAR(20) NOT NULL, n BIGINT, at BIGINT") -> None:
        """Make the table anew."""
        await self.admin.execute(f'DROP TABLE IF EXISTS "{self.name}".out, "{self.name}".out_flowkit_commits')
        await self.admin.execute(f'CREATE TABLE "{self.name}".out ({columns})')


@pytest.fixture
async def cluster(server: Postgres, moto: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("PGUSER", USER)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    name = f"t{uuid.uuid4().hex[:8]}"  # of the bucket and of the schema
    async with open_client("s3", AwsOptions(), "s3") as s3:
        await s3.create_bucket(Bucket=name)
        made = Cluster(server, None, s3, name)
        made.admin = (await made.connect()).connection
        real = redshift_wire.connect

        async def connect(address: Any) -> AsRedshift:
            connection = await real(address)
            await connection.execute(f"SET default_transaction_isolation = '{made.isolation}'")
            return AsRedshift(connection, made.s3, made._step)

        monkeypatch.setattr(redshift_wire, "connect", connect)
        await made.admin.execute(f'CREATE SCHEMA "{made.name}"')
        await made.again()
        yield made
        await made.admin.close()


class Bench:
    """A sink with a store, cut by hand."""

    def __init__(self, sink: RedshiftSink, store: Store) -> None:
        self.sink, self.store = sink, store

    async def cut(self, records: Sequence[Outgoing], *, final: bool = True) -> Any:
        handoff, changes = self.sink.stage(records, final), list(self.sink.changes())
        frame = Frame(self.store.number + 1, b"%d" % self.store.number, self.store.commit_id, 1, {}, changes)
        await self.store.prepare(frame)
        await self.store.resolve(frame.commit_id, applied=True)
        return handoff

    async def load(self, *values: Any, key: str = "id") -> Sequence[Rejected]:
        """One load of these values; a bare text is the key of a tombstone."""
        return await self.sink.deliver(await self.cut([outgoing(value, key) for value in values]))


def outgoing(value: Any, key: str = "id") -> Outgoing:
    if isinstance(value, str | int):
        return Outgoing(str(value).encode(), None, 0)
    return Outgoing(str(value.get(key)).encode(), json.dumps(value).encode(), 0)


@asynccontextmanager
async def bench(url: str, fields: Sequence[str] | None = ("id", "n", "at")) -> AsyncIterator[Bench]:
    to: Any = destination(url, fields)
    to.check()
    async with to, open_store(None) as store:
        sink = to.sink(SinkTask("app", "group", 0, 1, VirtualClock(0)))
        sink.attach(store, "sink out")
        await sink.open(None)
        yield Bench(sink, store)


def as_rows(rows: Sequence[Reading]) -> Counter[tuple[Any, ...]]:
    return Counter((row.id, row.n, row.at) for row in rows)


async def end_backend(connection: Any) -> None:
    """The server ends this connection: what comes next finds it broken."""
    await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def trouble(seed: int, share: float) -> Callable[[str, str], Any]:
    """At that share of statements the connection breaks: before it, or after it was done."""
    rng = random.Random(seed)

    def step(when: str, sql: str) -> Any:
        if rng.random() >= share:
            return None
        if when == "before":
            return end_backend
        raise ConnectionResetError("the answer is lost")

    return step


@pytest.mark.parametrize("mode", ["append", "merge&key=id"])
async def test_all_is_in_the_table_once_though_everything_breaks(cluster: Cluster, tmp_path: Path, mode: str) -> None:
    rows = readings(keys=500, count=COUNT if mode == "append" else COUNT // 4)
    cluster.step = trouble(seed=7, share=0.01)
    faults: Iterator[Fault | None] = cycle(("lost", "half", "broken", "reset", "throttle", None, None))
    async with proxy_to(await _s3_url(cluster)) as proxy:
        proxy.fault = lambda seen: next(faults) if seen.action == "PUT" else None
        url = cluster.url(f"&mode={mode}&roll_bytes={len(rows) * 5}&endpoint={proxy.url}&tries=1&region=us-east-1")
        assert await run_through(copying(), rows, url, tmp_path, commit_every=len(rows) // 20) >= 6
    found = Counter(await cluster.rows())
    assert found == (as_rows(rows) if mode == "append" else as_rows(list({row.id: row for row in rows}.values())))
    assert (tmp_path / "dead.jsonl").read_bytes() == b""
    loads = await cluster.admin.fetchval(f'SELECT count(*) FROM "{cluster.name}".out_flowkit_commits')
    assert 8 <= loads <= 15  # of twenty commits some go together


async def _s3_url(cluster: Cluster) -> str:
    return str(cluster.s3.meta.endpoint_url)


@pytest.mark.parametrize(("mode", "lost"), [("merge&key=id", False), ("append", True)])
async def test_killed_or_cut_off_between_any_two_steps_of_a_load_it_is_loaded_once(
    cluster: Cluster, mode: str, lost: bool
) -> None:
    rows = readings(keys=5, count=40)
    values = [{"id": row.id, "n": row.n, "at": row.at} for row in rows]
    expected = as_rows(rows) if mode == "append" else as_rows(list({row.id: row for row in rows}.values()))
    async with bench(cluster.url(f"&mode={mode}")) as b:
        steps, n = 1, 0
        while n < steps:
            await cluster.again()
            b.sink._table._target = None  # type: ignore[attr-defined]  # as if the worker began
            handoff = await b.cut([outgoing(value) for value in values])
            seen = 0

            def step(when: str, sql: str, at: int = n) -> None:
                nonlocal seen
                seen += 1
                if seen == at + 1:
                    raise ConnectionResetError if lost else BrokenOff(sql)

            cluster.step = step
            if lost:
                assert await b.sink.deliver(handoff) == []
            else:
                with suppress(BrokenOff):
                    await b.sink.deliver(handoff)
            steps = n + 2 if seen > n else n
            cluster.step = None
            assert await b.sink.deliver(handoff) == []
            assert Counter(await cluster.rows()) == expected, n
            assert await cluster.objects() == []
            n += 1
    assert n > 20  # a dozen statements, before and after each


async def test_the_last_record_of_a_key_is_its_row_and_a_tombstone_takes_it_away(cluster: Cluster) -> None:
    async with bench(cluster.url("&mode=merge&key=id")) as b:
        assert await b.load({"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}) == []
        assert sorted(await cluster.rows("id, n")) == [("a", 3), ("b", 2)]
        assert await b.load("a", {"id": "c", "n": 4}, "c", {"id": "c", "n": 5}, "nobody") == []
        assert sorted(await cluster.rows("id, n")) == [("b", 2), ("c", 5)]
        assert await b.load({"id": "b", "n": None}) == []
        assert sorted(await cluster.rows("id, n")) == [("b", None), ("c", 5)]


async def test_keys_of_several_columns_and_names_in_any_case(cluster: Cluster) -> None:
    await cluster.again("id VARCHAR(20), n BIGINT, total DOUBLE PRECISION")
    async with bench(cluster.url("&mode=merge&key=id,N"), ("id", "N", "Total")) as b:
        rejected = await b.load(
            {"id": "a", "N": 1, "Total": 1.5}, {"id": "a", "N": 2, "Total": 2.5}, {"id": "a", "N": 1, "Total": 3.5},
            {"id": "a", "N": None, "Total": 1}, "a",
        )  # fmt: skip
        assert [each.error for each in rejected] == ["NoKey", "NoKey"]
        assert sorted(await cluster.rows("id, n, total")) == [("a", 1, 3.5), ("a", 2, 2.5)]


@pytest.mark.parametrize("mode", ["append", "merge&key=id"])
async def test_records_that_the_table_refuses_are_rejected_the_others_loaded_and_again_the_same(
    cluster: Cluster, mode: str
) -> None:
    await cluster.again("id VARCHAR(20) NOT NULL, n BIGINT CHECK (n <> 13), at BIGINT")
    good = [{"id": f"k{n}", "n": n + 100} for n in range(100)]
    bad = [{"id": "x" * 21, "n": 1}, {"id": "y", "n": "one"}, {"id": "z", "n": 13}]
    values = [*good[:40], bad[0], *good[40:70], bad[1], bad[2], *good[70:]]
    async with bench(cluster.url(f"&mode={mode}")) as b:
        handoff = await b.cut([outgoing(value) for value in values])
        rejected = await b.sink.deliver(handoff)
        assert [json.loads(each.value or b"") for each in rejected] == bad
        assert all(each.error and each.reason for each in rejected)
        before = sorted(await cluster.rows("id, n"))
        assert before == sorted((each["id"], each["n"]) for each in good)
        # Killed before the commit that would have held the dead letters: all of it once more.
        assert await b.sink.deliver(handoff) == rejected
        assert sorted(await cluster.rows("id, n")) == before
        assert await cluster.objects() == []


async def test_killed_amid_halves_each_is_loaded_once(cluster: Cluster) -> None:
    values = [{"id": f"k{n}" if n != 37 else "x" * 21, "n": n} for n in range(64)]
    async with bench(cluster.url()) as b:
        for at in range(1, 8):  # one makes the commits table, six are halves
            await cluster.again()
            handoff = await b.cut([outgoing(value) for value in values])
            commits = 0

            def step(when: str, sql: str, at: int = at) -> None:
                nonlocal commits
                commits += (when, sql) == ("after", "COMMIT")
                if commits == at:
                    raise BrokenOff

            b.sink._table._target = None  # type: ignore[attr-defined]
            cluster.step = step
            with pytest.raises(BrokenOff):
                await b.sink.deliver(handoff)
            cluster.step = None
            (rejected,) = await b.sink.deliver(handoff)
            assert rejected.key == b"x" * 21
            assert sorted(n for _, n in await cluster.rows("id, n")) == [n for n in range(64) if n != 37]


async def test_a_table_that_nothing_fits_is_told_instead_of_emptying_all_into_dead_letters(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redshift_sink, "MOST_REFUSED", 10)
    async with bench(cluster.url()) as b:
        with pytest.raises(SinkError, match="refuses more than 10 records of one load"):
            await b.load(*({"id": "x" * 30, "n": n} for n in range(20)))


async def test_a_load_of_another_under_the_same_name_is_told_and_not_passed_over(cluster: Cluster) -> None:
    async with bench(cluster.url()) as b:
        state = b.sink.state()
        await b.load({"id": "a", "n": 1})
        await b.sink.open(state)
        handoff = await b.cut([outgoing({"id": "b", "n": 2})])
        with pytest.raises(SinkError, match="another run has loaded under the name"):
            await b.sink.deliver(handoff)
        await b.sink.open(b.sink.forked(state))
        assert await b.load({"id": "b", "n": 2}) == []
        assert sorted(await cluster.rows("id, n")) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])  # Redshift's other one is SNAPSHOT
async def test_two_that_load_the_same_at_once_load_it_once(cluster: Cluster, isolation: str) -> None:
    url, cluster.isolation = cluster.url(), isolation
    async with bench(url) as ours, bench(url) as theirs:  # a worker that was thought dead, and its successor
        theirs.sink.attach(ours.store, "sink out")
        await theirs.sink.open(ours.sink.state())
        for n in range(5):
            handoff = await ours.cut([outgoing({"id": "a", "n": n})])
            await asyncio.gather(ours.sink.deliver(handoff), theirs.sink.deliver(handoff))
        assert sorted(await cluster.rows("id, n")) == [("a", n) for n in range(5)]
        assert sum(sql.startswith("COPY") for sql in cluster.statements) > 5  # they did meet


async def test_commits_go_together_until_a_load_is_large_or_old_enough(cluster: Cluster) -> None:
    async with bench(cluster.url("&roll_bytes=1000&roll_after=5s")) as b:
        clock: Any = b.sink._task.clock
        assert await b.cut([outgoing({"id": "a", "n": 1})], final=False) is None
        assert await b.cut([], final=False) is None
        assert not b.sink.look(0)
        clock.advance(5_000)
        assert b.sink.look(0)
        handoff = await b.cut([outgoing({"id": "a", "n": 2})], final=False)
        assert handoff["chunks"] == 2
        await b.sink.deliver(handoff)
        assert sorted(await cluster.rows("id, n")) == [("a", 1), ("a", 2)]
        assert await b.cut([], final=False) is None  # what was loaded goes
        assert list(b.store.scan(("sink out", None))) == []
        assert await b.cut([outgoing({"id": "b" * 18, "n": n}) for n in range(30)], final=False) is not None


async def test_what_is_wrong_with_the_table_or_the_way_there_is_told(cluster: Cluster) -> None:
    cases = {
        cluster.url().replace(".out?", ".nowhere?"): "there is no table",
        cluster.url("&mode=merge&key=id").replace("tls_ca", "tls=verify&tls_c_a"): "unknown option",
        cluster.url("&user=nobody"): "password authentication failed",
        cluster.url().replace("/postgres/", "/elsewhere/"): "does not exist",
        cluster.url().partition("&tls_ca")[0]: "tls_ca=FILE",
    }
    for url, said in cases.items():
        with pytest.raises(ConfigError, match=said) as caught:
            async with destination(url, ["id", "n"]):
                pass
        assert PASSWORD not in str(caught.value)
    with pytest.raises(ConfigError, match="has no column 'city', 'zip'; it has id, n, at"):
        async with destination(cluster.url(), ["id", "zip", "city"]):
            pass


async def test_a_cluster_that_is_not_there_yet_is_waited_for(cluster: Cluster) -> None:
    tries = 0

    def step(when: str, sql: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ConnectionRefusedError("not yet")

    cluster.step = step
    async with bench(cluster.url()) as b:
        assert await b.load({"id": "a", "n": 1}) == []
    assert await cluster.rows("id, n") == [("a", 1)]


async def test_by_the_data_api_too(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with data_api(cluster.connect) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL_REDSHIFT_DATA", url)
        target = cluster.url("&mode=merge&key=id&roll_bytes=50000", "redshift-data")
        rows = readings(keys=100, count=5_000)
        assert await run_through(copying(), rows, target, tmp_path, commit_every=500) >= 4
        assert Counter(await cluster.rows()) == as_rows(list({row.id: row for row in rows}.values()))
        assert (tmp_path / "dead.jsonl").read_bytes() == b""
        batches = [given["Sqls"] for action, given in asked if action == "BatchExecuteStatement"]
        assert batches
        assert all(sqls[0].startswith(("LOCK TABLE", "CREATE TABLE IF NOT EXISTS")) for sqls in batches)
        async with bench(target) as b:
            rejected = await b.load({"id": "a", "n": 1}, {"id": "x" * 21, "n": 2}, {"id": "b", "n": 3})
            assert [each.key for each in rejected] == [b"x" * 21]
        with pytest.raises(ConfigError, match="there is no table"):
            async with destination(target.replace(".out?", ".nowhere?"), None):
                pass


async def test_requests_of_the_data_api_are_as_moto_takes_them(moto: str) -> None:
    """Moto never ends a statement, and gives the same three rows for all: the shapes are all that is tested."""
    async with open_client("redshift-data", AwsOptions(), "x") as client:
        wire = redshift_wire.DataWire(client, redshift_wire.Cluster(None, "cluster", "dev", user="me"), "x")

        async def ended(number: str) -> None:
            assert (await client.describe_statement(Id=number))["QueryString"] == "SELECT 1"

        wire._ended = ended  # type: ignore[method-assign]
        assert await wire.rows("SELECT 1") == [
            (10, "Alpha st", "Vancouver"),
            (50, "Beta st", "Toronto"),
            (100, "Gamma av", "Seattle"),
        ]
