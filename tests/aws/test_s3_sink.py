"""The S3 sink on servers that speak its protocol: exactly once whatever breaks off, and every byte the same."""

import asyncio
import gzip
import io
import itertools
import json
import os
import random
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit import App, Closed, ConfigError, Record, Stream, Tumbling, hours
from flowkit.aws import AwsOptions, open_client
from flowkit.clock import VirtualClock
from flowkit.errors import SinkError
from flowkit.options import WorkerOptions
from flowkit.sink import SinkTask, destination
from flowkit.sink.s3_sink import S3Sink
from flowkit.store import MemoryStore
from flowkit.testing.harness_app import StillClock
from flowkit.worker import Summary, Worker, run
from flowkit.worker.outlets import Outgoing
from tests.aws.proxy import Fault, Proxy, Request, proxy_to

START = 1_767_225_600_000
HOUR = 3_600_000
BIG = 5 << 20


class Reading(Record):
    id: str
    value: int
    at: int
    filler: str = ""


class Total(Record):
    id: str
    total: int
    until: int


def app_of() -> App:
    app = App("plant")
    readings = app.topic("readings", Reading, key="id", time="at")
    totals = app.table("totals", str, int, window=Tumbling(hours(1)))
    out = app.sink("out", Reading, key="id")
    results = app.sink("results", Total, key="id")

    @app.agent(readings, tables=[totals], sinks=[out])
    async def keep(stream: Stream[Reading]) -> AsyncIterator[Reading]:
        async for reading in stream:
            totals[reading.id] += reading.value
            yield reading

    @app.each(totals.closed, sinks=[results])
    def close(window: Closed[str, int]) -> Total:
        return Total(window.key, window.value, window.end)

    return app


def written(path: Path, count: int, step: int = 20_000, filler: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(count)
    rows = [
        {"id": f"k{n % 7}", "value": n, "at": START + n * step, "filler": chance.randbytes(filler // 2).hex()}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture(params=["moto", "ministack"])
def server(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


@asynccontextmanager
async def bucket() -> AsyncIterator[tuple[Any, str]]:
    """A client, and a bucket of its own."""
    async with open_client("s3", AwsOptions(), "test") as client:
        name = f"b-{uuid.uuid4().hex[:12]}"
        await client.create_bucket(Bucket=name)
        yield client, name


async def objects(client: Any, name: str, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    async for page in client.get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=prefix):
        for each in page.get("Contents", ()):
            got = await client.get_object(Bucket=name, Key=each["Key"])
            found[each["Key"].removeprefix(prefix)] = await got["Body"].read()
    return found


async def uploads(client: Any, name: str) -> list[str]:
    return [each["Key"] for each in (await client.list_multipart_uploads(Bucket=name)).get("Uploads", ())]


def rows_of(found: Mapping[str, bytes]) -> list[Any]:
    """The records in gzipped lines."""
    return [json.loads(line) for key in sorted(found) for line in gzip.decompress(found[key]).splitlines()]


class Killed(Exception):
    pass


async def run_it(source: Path, state: Path, url: str, stop: str = "", after: int = 0, every: int = 60) -> Summary:
    seen = 0

    async def hook(step: str) -> None:
        nonlocal seen
        seen += step == stop
        if seen > after:
            raise Killed

    return await run(
        app_of(),
        [("readings", str(source))],
        [("out", url), ("results", url.replace("/out/", "/results/"))],
        state=state,
        options=WorkerOptions(commit_every=every, commit_interval=60_000),
        hook=hook,
    )


STEPS = [*(("moto", step) for step in ("cut", "prepared", "resolved", "delivered")), ("ministack", "resolved")]


@pytest.mark.parametrize(("where", "stop"), STEPS)
async def test_broken_off_at_any_step_the_objects_are_those_of_an_unbroken_run(
    request: pytest.FixtureRequest, tmp_path: Path, where: str, stop: str
) -> None:
    request.getfixturevalue(where)
    source = tmp_path / "in.jsonl"
    written(source, 300)
    async with bucket() as (client, name):
        url = f"s3://{name}/%s/out/dt={{dt}}/hour={{hour}}?roll_bytes=5KB&name=run"
        await run_it(source, tmp_path / "whole", url % "whole", every=1_000)
        whole = await objects(client, name, "whole/")
        assert len(whole) > 5
        for after in (0, 3):
            place = f"broken-{after}"
            with pytest.raises(Killed):
                await run_it(source, tmp_path / place, url % place, stop, after)
            await run_it(source, tmp_path / place, url % place, every=40)
            assert await objects(client, name, f"{place}/") == whole


FORMATS = ["format=csv&compress=zst", "format=parquet", "format=jsonl&compress=none"]


@pytest.mark.parametrize("form", FORMATS)
async def test_broken_off_in_any_format(moto: str, tmp_path: Path, form: str) -> None:
    source = tmp_path / "in.jsonl"
    written(source, 500)
    async with bucket() as (client, name):
        url = f"s3://{name}/%s/out/{{id}}/{{year}}-{{month}}-{{day}}?{form}&name=run"
        await run_it(source, tmp_path / "whole", url % "whole", every=1_000)
        whole = await objects(client, name, "whole/")
        assert len(whole) == 14
        with pytest.raises(Killed):
            await run_it(source, tmp_path / "state", url % "broken", "resolved", 5)
        await run_it(source, tmp_path / "state", url % "broken", every=70)
        assert await objects(client, name, "broken/") == whole


async def test_parquet_is_read_back(server: str, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = written(tmp_path / "in.jsonl", 500)
    async with bucket() as (client, name):
        await run_it(tmp_path / "in.jsonl", tmp_path / "s", f"s3://{name}/out/dt={{dt}}/hour={{hour}}?format=parquet")
        found = await objects(client, name, "out/")
        assert [row for key in sorted(found) for row in pq.read_table(io.BytesIO(found[key])).to_pylist()] == rows


async def test_a_run_that_is_done_again_writes_beside_it_or_if_it_is_named_over_it(moto: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    written(source, 50)
    async with bucket() as (client, name):
        for state in ("a", "b"):
            await run_it(source, tmp_path / state, f"s3://{name}/out/")
            await run_it(source, tmp_path / f"{state}-named", f"s3://{name}/named/out/?name=monday")
        assert len(await objects(client, name, "out/")) == 2
        assert list(await objects(client, name, "named/out/")) == ["plant-run-0-monday-00000000.jsonl.gz"]


# Faults


async def test_20000_records_arrive_once_each_through_a_network_that_is_as_bad_as_can_be(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.jsonl"
    rows = written(source, 20_000, step=5_000)
    kinds: list[Fault] = ["throttle", "broken", "reset", "lost", "half", "slow"]
    turns = itertools.cycle([None, None, *itertools.chain(*((kind, None) for kind in kinds)), *kinds])

    def fault(request: Request) -> Fault | None:
        return next(turns)

    async with bucket() as (client, name), proxy_to(server) as proxy:
        proxy.delay = 0.02
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fault = fault
        url = f"s3://{name}/out/dt={{dt}}/hour={{hour}}?tries=1&roll_bytes=30KB"
        seen = 0

        async def hook(step: str) -> None:
            nonlocal seen
            seen += step == "resolved"
            if seen in (2, 4):
                seen += 1
                raise Killed

        options = WorkerOptions(commit_every=4_000, commit_interval=60_000)
        killed = 0
        while True:
            try:
                await run(
                    app_of(),
                    [("readings", str(source))],
                    [("out", url)],
                    state=tmp_path / "s",
                    options=options,
                    hook=hook,
                )
            except Killed:
                killed += 1
                continue
            break
        assert killed == 2
        assert {request.fault for request in proxy.requests} == {None, *kinds}
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        found = rows_of(await objects(client, name, "out/"))
        assert sorted(row["value"] for row in found) == [row["value"] for row in rows]
        assert {row["value"]: row for row in found} == {row["value"]: row for row in rows}
        assert await uploads(client, name) == []


async def test_large_objects_go_in_parts_and_one_that_was_broken_off_is_done_anew_with_nothing_left_over(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.jsonl"
    rows = written(source, 4_000, step=1, filler=3_000)
    async with bucket() as (client, name), proxy_to(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        # Nothing gets through any more, not even that the upload is let go of: as with a worker that is killed here.
        proxy.fault = lambda r: "denied" if "uploadId" in r.path and r.action in ("POST", "DELETE") else None
        url = f"s3://{name}/out/x?compress=none&part_bytes=5MiB&name=run"
        options = WorkerOptions(commit_every=1_000, commit_interval=60_000)

        async def go() -> None:
            await run(app_of(), [("readings", str(source))], [("out", url)], state=tmp_path / "s", options=options)

        with pytest.raises(SinkError, match="complete_multipart_upload: AccessDenied"):
            await go()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        assert len(await uploads(client, name)) == 1
        assert await objects(client, name) == {}
        await go()
        assert await uploads(client, name) == []
        [data] = (await objects(client, name)).values()
        assert [json.loads(line) for line in data.splitlines()] == rows
        assert len(data) > 2 * BIG
        assert proxy.times("PUT") == len(data) // BIG + 1


APP = """
from collections.abc import AsyncIterator
from flowkit import App, Record, Stream

class Reading(Record):
    id: str
    value: int
    at: int
    filler: str = ""

app = App("plant")
readings = app.topic("readings", Reading, key="id", time="at")
out = app.sink("out", Reading, key="id")

@app.agent(readings, sinks=[out])
async def keep(stream: Stream[Reading]) -> AsyncIterator[Reading]:
    async for reading in stream:
        yield reading
"""


async def test_a_process_that_is_killed_while_it_uploads_leaves_nothing_behind(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at requests of all kinds: among them between two parts, and before an upload is completed."""
    source, app = tmp_path / "in.jsonl", tmp_path / "app.py"
    written(source, 6_000, step=1_200, filler=3_000)
    app.write_text(APP)
    monkeypatch.setenv("FLOWKIT_COMMIT_EVERY", "500")
    async with bucket() as (client, name), proxy_to(moto) as proxy:
        url = f"s3://{name}/%s/dt={{dt}}/hour={{hour}}?compress=none&part_bytes=5MiB&name=run"
        child: asyncio.subprocess.Process
        seen, last = 0, 0

        def kill(request: Request) -> Fault | None:
            nonlocal seen
            seen += request.action in ("PUT", "POST")
            if seen == last:
                child.kill()
            return None

        async def go(place: str, endpoint: str) -> int:
            nonlocal child
            words = ["-m", "flowkit", "run", str(app), "-i", f"readings={source}", "-o", f"out={url % place}"]
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, *words, "--state", str(tmp_path / place)),
                env={**os.environ, "AWS_ENDPOINT_URL": endpoint},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            return await child.wait()

        assert await go("whole", moto) == 0
        whole = await objects(client, name, "whole/")
        assert len(whole) == 2
        assert min(map(len, whole.values())) > BIG
        proxy.fault = kill
        for at in (2, 3, 4):
            seen, last = 0, at
            assert await go("broken", proxy.url) == -signal.SIGKILL
        seen, last = 0, -1
        assert await go("broken", proxy.url) == 0
        assert await objects(client, name, "broken/") == whole
        assert await uploads(client, name) == []


async def test_uploads_of_others_are_left_alone(moto: str, tmp_path: Path) -> None:
    async with bucket() as (client, name):
        place = destination(f"s3://{name}/out/?name=run", None)
        async with place:
            sink = place.sink(SinkTask("plant", "g", 1, 20, VirtualClock()))
            for task in ("plant-g-1-run", "plant-g-11-run", "plant-g-1-other"):
                await client.create_multipart_upload(Bucket=name, Key=f"out/{task}-00000000.jsonl.gz")
            assert isinstance(sink, S3Sink)
            await sink.open(sink.state() | {"id": "run"})
        assert sorted(key.split("/")[1][:15] for key in await uploads(client, name)) == [
            "plant-g-1-other",
            "plant-g-11-run-",
        ]


async def test_a_zombie_that_delivers_late_changes_nothing(server: str) -> None:
    async with bucket() as (client, name):
        place = destination(f"s3://{name}/out/?name=run&roll_bytes=1KB", None)
        async with place:
            clock, store = VirtualClock(START), MemoryStore()
            sink = place.sink(SinkTask("plant", "g", 0, 1, clock, bounded=True))
            assert isinstance(sink, S3Sink)
            sink.attach(store, "sink out")
            await sink.open(None)
            old = sink.stage([Outgoing(None, b'{"n":%d}' % n, START) for n in range(1_000)], False)
            await store.commit({(c.table, c.end): dict(zip(c.keys, c.values, strict=True)) for c in sink.changes()})
            await sink.deliver(old)
            before = await objects(client, name)
            # The successor goes on with what the zombie has written, and more.
            twin = MemoryStore()
            await twin.commit({space: dict(store.scan(space)) for space in _spaces(store)})
            after = place.sink(SinkTask("plant", "g", 0, 1, clock, bounded=True))
            assert isinstance(after, S3Sink)
            after.attach(twin, "sink out")
            await after.open(sink.state())
            await after.deliver(old)
            new = after.stage([Outgoing(None, b'{"n":%d}' % n, START) for n in range(1_000, 2_000)], True)
            drops = after.drops()
            assert len(drops) == len(old)
            puts = {(c.table, c.end): dict(zip(c.keys, c.values, strict=True)) for c in after.changes()}
            await twin.commit(puts, drops)
            await after.deliver(new)
            now = await objects(client, name)
            await sink.deliver(old)
            assert await objects(client, name) == now
            assert {key: now[key] for key in before} == before
            assert [row["n"] for row in rows_of(now)] == list(range(2_000))


def _spaces(store: MemoryStore) -> list[tuple[str, int]]:
    return [("sink out", end) for end in store.ends("sink out")]


# A worker


async def test_a_worker_keeps_what_is_not_complete_when_it_stops_and_writes_it_when_it_is_old_enough(
    moto: str, tmp_path: Path
) -> None:
    from flowkit.source import MemoryBroker
    from flowkit.source.memory_store import store_named
    from flowkit.worker.task import Out

    clock = StillClock(START)  # a worker's own waits do not move it
    broker_name = f"m-{uuid.uuid4().hex}"
    async with bucket() as (client, name):
        binds = {"out": f"s3://{name}/out/dt={{dt}}?roll_after=10m", "results": f"s3://{name}/results/"}

        def worker() -> Worker:
            made = Worker(
                app_of(),
                f"memory://{broker_name}",
                tmp_path / "state",
                binds=binds,
                options=WorkerOptions(commit_every=10, commit_interval=50, partitions=1),
            )
            made.clock = clock  # type: ignore[assignment]
            return made

        async def until(is_so: Any) -> None:
            while not await is_so():  # noqa: ASYNC110  of a service, which tells nobody
                await asyncio.sleep(0.02)

        first = worker()
        running = asyncio.create_task(first.run())
        broker = MemoryBroker(clock, store_named(broker_name))
        await until(lambda: _ready(first))
        claim = await broker.claim("feeder", "")

        async def feed(commit: int, numbers: range) -> None:
            outs = [
                Out("readings", 0, b"k", json.dumps({"id": "k", "value": n, "at": START + n}).encode(), START)
                for n in numbers
            ]
            await broker.commit("feeder", claim.epoch, commit, bytes([commit]), {}, outs)

        await feed(1, range(25))
        await until(lambda: _committed(first, 25))
        first.stop()
        await running
        assert await objects(client, name) == {}
        clock.advance(600_000)
        second = worker()
        running = asyncio.create_task(second.run())
        await until(lambda: _objects(client, name, 1))
        await feed(2, range(25, 30))
        await until(lambda: _committed(second, 5))
        clock.advance(600_000)  # and nothing comes any more
        await until(lambda: _objects(client, name, 2))
        second.stop()
        await running
        assert [row["value"] for row in rows_of(await objects(client, name))] == list(range(30))


async def _ready(worker: Worker) -> bool:
    return any(owned.live is not None and owned.live.opened for owned in worker.owned.values())


async def _committed(worker: Worker, count: int) -> bool:
    lives = [owned.live for owned in worker.owned.values() if owned.live is not None and owned.live.opened]
    return sum(live.task._counted for live in lives) >= count and not any(live.task.committing() for live in lives)


async def _objects(client: Any, name: str, count: int) -> bool:
    return len(await objects(client, name)) >= count


# What a person has to mend


async def test_a_bucket_that_is_not_there_is_told_at_the_start(server: str) -> None:
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket-x/y: NoSuchBucket.*See that the bucket is there"):
        async with destination("s3://no-such-bucket-x/y", None):
            pass


async def test_whose_the_bucket_has_to_be_every_request_says(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No emulator looks at it: S3 refuses a request if the bucket is another account's."""
    written(tmp_path / "in.jsonl", 6_000, step=1, filler=3_000)
    async with bucket() as (_, name), proxy_to(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        url = f"s3://{name}/out/?owner=123456789012&compress=none"
        await run(app_of(), [("readings", str(tmp_path / "in.jsonl"))], [("out", url)])
        assert {request.headers.get("x-amz-expected-bucket-owner") for request in proxy.requests} == {"123456789012"}
        assert {request.action for request in proxy.requests} == {"GET", "POST", "PUT"}
        proxy.fault = lambda _: "denied"
        with pytest.raises(ConfigError, match=r"AccessDenied.*account 123456789012 owns it, and that s3:PutObject"):
            async with destination(url, None):
                pass


async def test_objects_are_encrypted_there_as_asked_for(moto: str, tmp_path: Path) -> None:
    written(tmp_path / "in.jsonl", 10)
    async with bucket() as (client, name):
        url = f"s3://{name}/out/?sse=aws:kms&kms_key=arn:aws:kms:us-east-1:123456789012:key/k&name=x"
        await run_it(tmp_path / "in.jsonl", tmp_path / "s", url)
        head = await client.head_object(Bucket=name, Key="out/plant-run-0-x-00000000.jsonl.gz")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"][-5:]) == ("aws:kms", "key/k")


async def test_rights_that_are_taken_away_end_the_run_which_goes_on_once_they_are_back(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path / "in.jsonl", 300)
    async with bucket() as (client, name), proxy_to(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fault = lambda request: "denied" if proxy.times("PUT") == 3 else None
        url = f"s3://{name}/out/dt={{dt}}/hour={{hour}}?roll_bytes=3KB"
        with pytest.raises(SinkError, match=f"s3://{name}/.*: put_object: AccessDenied"):
            await run_it(tmp_path / "in.jsonl", tmp_path / "s", url)
        proxy.fault = Proxy().fault
        await run_it(tmp_path / "in.jsonl", tmp_path / "s", url)
        assert sorted(row["value"] for row in rows_of(await objects(client, name, "out/"))) == [
            r["value"] for r in rows
        ]
