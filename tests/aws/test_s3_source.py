"""Objects in S3 as a bounded input: every format, in order, gone on with anywhere, and nothing that has changed."""

import gzip
import io
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import cramjam
import pytest

from flowkit import App, Closed, ConfigError, Record, Stream, Tumbling, hours, seconds
from flowkit.errors import InputError
from flowkit.options import WorkerOptions
from flowkit.worker import Summary, run
from tests.aws.proxy import Fault, Request, proxy_to
from tests.aws.test_s3_sink import START, Killed, bucket

HOUR = 3_600_000


class Reading(Record):
    id: str
    value: int
    at: int


class Total(Record):
    id: str
    total: int
    until: int


def app_of() -> App:
    app = App("replay")
    readings = app.topic("readings", Reading, key="id", time="at", out_of_order=seconds(1))
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


def rows(count: int, step: int = 20_000) -> list[dict[str, Any]]:
    return [{"id": f"k{n % 5}", "value": n, "at": START + n * step} for n in range(count)]


def jsonl(part: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in part).encode()


def csv(part: Sequence[dict[str, Any]]) -> bytes:
    return ("id,value,at\n" + "".join(f"{row['id']},{row['value']},{row['at']}\n" for row in part)).encode()


def parquet(part: Sequence[dict[str, Any]]) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(part)), out, row_group_size=13)
    return out.getvalue()


def zst(make: Callable[[Sequence[dict[str, Any]]], bytes]) -> Callable[[Sequence[dict[str, Any]]], bytes]:
    return lambda part: bytes(cramjam.zstd.compress(make(part)))


def gz(make: Callable[[Sequence[dict[str, Any]]], bytes]) -> Callable[[Sequence[dict[str, Any]]], bytes]:
    return lambda part: gzip.compress(make(part))


def firehose(part: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) for row in part).encode()


async def fill(client: Any, name: str, found: dict[str, bytes]) -> None:
    for key, data in found.items():
        await client.put_object(Bucket=name, Key=key, Body=data)


async def run_it(url: str, place: Path, stop: str = "", after: int = 0, every: int = 70, batch: int = 20) -> Summary:
    seen = 0

    async def hook(step: str) -> None:
        nonlocal seen
        seen += step == stop
        if seen > after:
            raise Killed

    return await run(
        app_of(),
        [("readings", url)],
        [("out", f"{place}.out.jsonl"), ("results", f"{place}.results.jsonl")],
        state=place,
        options=WorkerOptions(commit_every=every, commit_interval=60_000, batch_size=batch),
        hook=hook,
    )


def output(place: Path, name: str = "out") -> list[Any]:
    return [json.loads(line) for line in Path(f"{place}.{name}.jsonl").read_text().splitlines()]


FORMS: dict[str, tuple[str, Callable[[Sequence[dict[str, Any]]], bytes]]] = {
    "jsonl": (".jsonl", jsonl),
    "jsonl.gz": (".jsonl.gz", gz(jsonl)),
    "jsonl.zst": (".jsonl.zst", zst(jsonl)),
    "csv": (".csv", csv),
    "csv.gz": (".csv.gz", gz(csv)),
    "parquet": (".parquet", parquet),
    "firehose": ("", firehose),
    "firehose.gz": (".gz", gz(firehose)),
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_format_is_read_in_order_and_gone_on_with_in_the_middle_of_an_object(
    moto: str, tmp_path: Path, form: str
) -> None:
    suffix, make = FORMS[form]
    all_rows = rows(400)
    async with bucket() as (client, name):
        for n in range(4):
            part = all_rows[n * 100 : n * 100 + 100]
            await fill(client, name, {f"in/dt=2026-01-01/part-{n + 8}{suffix}": make(part)})
        await run_it(f"s3://{name}/in/?lanes=1", tmp_path / "whole")
        assert output(tmp_path / "whole") == all_rows
        for stop, after in (("resolved", 0), ("cut", 2), ("delivered", 4)):
            place = tmp_path / f"{stop}-{after}"
            with pytest.raises(Killed):
                await run_it(f"s3://{name}/in/?lanes=1", place, stop, after)
            await run_it(f"s3://{name}/in/?lanes=1", place, every=33)
            for out in ("out", "results"):
                assert output(place, out) == output(tmp_path / "whole", out)


async def test_objects_of_one_hour_are_merged_by_the_records_times(ministack: str, tmp_path: Path) -> None:
    """Three writers side by side: nothing is late, though each object spans its whole hour."""
    all_rows = rows(900)
    async with bucket() as (client, name):
        for row in all_rows:
            row["hour"] = (row["at"] - START) // HOUR
        for hour in {row["hour"] for row in all_rows}:
            for writer in range(3):
                part = [r for r in all_rows if r["hour"] == hour and r["value"] % 3 == writer]
                await fill(client, name, {f"in/dt=2026-01-01/hour={hour}/w{writer}-0.jsonl": jsonl(part)})
        await fill(client, name, {"in/dt=2026-01-01/hour=0/_SUCCESS": b"x", "in/dt=2026-01-01/empty.jsonl": b""})
        await run_it(f"s3://{name}/in/", tmp_path / "s")
        assert [row["value"] for row in output(tmp_path / "s")] == list(range(900))
        with pytest.raises(Killed):
            await run_it(f"s3://{name}/in/", tmp_path / "b", "resolved", 3)
        await run_it(f"s3://{name}/in/", tmp_path / "b", every=41)
        for out in ("out", "results"):
            assert output(tmp_path / "b", out) == output(tmp_path / "s", out)


async def test_what_firehose_wrote_is_read_in_its_layout_and_only_for_the_days_that_are_asked_for(
    moto: str, tmp_path: Path
) -> None:
    all_rows = rows(300, HOUR // 4)
    async with bucket() as (client, name):
        for n in range(0, 300, 10):
            at = 24 + (all_rows[n]["at"] - START) // HOUR
            folder = f"2026/01/{at // 24:02}/{at % 24:02}"
            data = firehose(all_rows[n : n + 10]) if n % 20 else gz(jsonl)(all_rows[n : n + 10])
            await fill(client, name, {f"orders/{folder}/orders-1-2026-{n:04}-uuid": data})
        await run_it(f"s3://{name}/orders/", tmp_path / "all")
        assert output(tmp_path / "all") == all_rows
        await run_it(f"s3://{name}/orders/?since=2026-01-02&until=2026-01-03T00:00", tmp_path / "one")
        values = [row["value"] for row in output(tmp_path / "one")]
        assert values == list(range(values[0], values[-1] + 1))
        assert 96 <= values[0] <= 100
        assert 190 <= values[-1] <= 199


async def test_an_object_that_has_changed_since_the_run_began_ends_it(moto: str, tmp_path: Path) -> None:
    all_rows = rows(300)
    async with bucket() as (client, name):
        await fill(client, name, {f"in/{n}.jsonl": jsonl(all_rows[n * 100 : n * 100 + 100]) for n in range(3)})
        url = f"s3://{name}/in/?lanes=1"
        with pytest.raises(Killed):
            await run_it(url, tmp_path / "s", "resolved", 1)
        await fill(client, name, {"in/1.jsonl": jsonl(all_rows[100:190])})
        with pytest.raises(InputError, match=r"has changed since the run began|is not what the run has begun with"):
            await run_it(url, tmp_path / "s")
        await client.delete_object(Bucket=name, Key="in/1.jsonl")
        with pytest.raises(InputError, match=r"it is gone|is not what the run has begun with"):
            await run_it(url, tmp_path / "s")


async def test_an_object_that_changes_under_the_reader_is_told(moto: str, tmp_path: Path) -> None:
    from flowkit.source.s3 import S3Topic

    async with bucket() as (client, name):
        await fill(client, name, {"in/0.jsonl": jsonl(rows(10)), "in/1.jsonl": jsonl(rows(10))})
        topic = S3Topic(f"s3://{name}/in/?lanes=1")
        try:
            await topic.splits()
            await fill(client, name, {"in/0.jsonl": jsonl(rows(11))})
            with pytest.raises(
                InputError, match=r"in/0.jsonl: has changed since the run began: its ETag was \"\w+\", and is"
            ):
                await topic.open(0, None)
        finally:
            await topic.close()


async def test_a_run_that_goes_on_takes_no_new_objects(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    all_rows = rows(300)
    async with bucket() as (client, name):
        await fill(client, name, {f"in/{n}.jsonl": jsonl(all_rows[n * 100 : n * 100 + 100]) for n in range(3)})
        url = f"s3://{name}/in/"
        with pytest.raises(Killed):
            await run_it(url, tmp_path / "s", "resolved", 1)
        await asyncio.sleep(1.1)  # S3 tells the time of an object in seconds
        await fill(client, name, {"in/1a.jsonl": jsonl(rows(50))})
        await run_it(url, tmp_path / "s")
        assert output(tmp_path / "s") == all_rows


async def test_20000_records_are_read_once_each_through_a_network_that_is_as_bad_as_can_be(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_rows = rows(20_000, 5_000)
    kinds: list[Fault] = ["throttle", "broken", "reset", "lost", "half", "slow"]
    turns = itertools.cycle([None, None, *itertools.chain(*((kind, None) for kind in kinds)), *kinds])

    def fault(request: Request) -> Fault | None:
        return next(turns)

    monkeypatch.setattr("flowkit.source.s3.RANGE_BYTES", 20_000)
    async with bucket() as (client, name), proxy_to(moto) as proxy:
        for n in range(0, 20_000, 1_000):
            make = jsonl if n % 2_000 else gz(jsonl)
            await fill(client, name, {f"in/{n}.jsonl": make(all_rows[n : n + 1_000])})
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fault, proxy.delay = fault, 0.02
        url = f"s3://{name}/in/?tries=1&lanes=2"
        with pytest.raises(Killed):
            await run_it(url, tmp_path / "s", "resolved", 2, every=4_000, batch=1_000)
        await run_it(url, tmp_path / "s", every=4_000, batch=1_000)
        assert output(tmp_path / "s") == all_rows
        assert {request.fault for request in proxy.requests} == {None, *kinds}


async def test_what_the_sink_wrote_the_very_same_app_reads_again(ministack: str, tmp_path: Path) -> None:
    """The batch side of the lambda architecture: an app's archive is its input."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(rows(600)))
    async with bucket() as (_, name):
        for form in ("jsonl", "csv&compress=zst", "parquet"):
            place, archive = tmp_path / form, f"s3://{name}/{form[:3]}/dt={{dt}}/hour={{hour}}?format={form}"
            await run(app_of(), [("readings", str(source))], [("out", archive), ("results", f"{place}.first.jsonl")])
            await run_it(f"s3://{name}/{form[:3]}/", place)
            assert output(place) == rows(600)
            assert output(place, "results") == output(place, "first")


WRONG = [
    (
        "s3://B_x/p?lanes=0&colour=red&order=random",
        ["no name of a bucket", "unknown option 'colour'", "order=", "lanes=0"],
    ),
    ("s3://bucket/p?format=xml", ["format=xml: there are jsonl, json"]),
    ("s3://bucket/p?since=yesterday", ["since=yesterday: write a day"]),
]


@pytest.mark.parametrize(("url", "told"), WRONG)
async def test_all_that_is_wrong_with_a_url_is_told(url: str, told: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        await run_it(url, tmp_path / "s")
    for problem, words in zip(caught.value.problems, told, strict=True):
        assert words in problem


async def test_nothing_to_read_and_no_bucket_are_told_before_anything_is_written(moto: str, tmp_path: Path) -> None:
    kept = tmp_path / "s.out.jsonl"
    kept.write_text("kept")
    async with bucket() as (client, name):
        with pytest.raises(InputError, match="no object to read is there"):
            await run_it(f"s3://{name}/nothing/", tmp_path / "s")
        await fill(client, name, {"in/a.csv": csv(rows(1)), "in/b.jsonl": jsonl(rows(1))})
        with pytest.raises(ConfigError, match=r"one topic has one format: in/a.csv is csv, in/b.jsonl is jsonl"):
            await run_it(f"s3://{name}/in/", tmp_path / "s")
    with pytest.raises(InputError, match=r"s3://no-such-bucket-y/p: NoSuchBucket"):
        await run_it("s3://no-such-bucket-y/p", tmp_path / "s")
    assert kept.read_text() == "kept"
