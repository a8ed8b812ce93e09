"""Lambda as a destination, on ministack, which runs a function's Python code."""

import asyncio
import base64
import io
import json
import uuid
import zipfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.aws import AwsOptions, open_client
from flowkit.clock import SystemClock
from flowkit.errors import SinkError
from flowkit.sink import SinkTask, destination
from flowkit.worker.outlets import Outgoing
from tests.aws.broken import COUNT, all_faults, copying, readings, run_through
from tests.aws.proxy import proxy_to

CODE = """
import json, os

def handler(event, context):
    values = [record["value"] for record in event["records"]]
    poison = [value["n"] for value in values if value["n"] % 10007 == 13]
    with open(os.environ["OUT"], "a") as out:  # one write: several of us append to it
        out.write(json.dumps({**event, "poison": poison}) + chr(10))
    if poison:
        raise ValueError(f"poison: {poison}")
    names = [record["id"] for record in event["records"] if record["value"]["n"] % 4001 == 17]
    return {"batchItemFailures": [{"itemIdentifier": name} for name in names]}
"""
POISON, NAMED = list(range(13, COUNT, 10_007)), list(range(17, COUNT, 4001))


@asynccontextmanager
async def function(place: Path, code: str = CODE) -> AsyncIterator[tuple[str, Path]]:
    """The name of a new function, and the file that it writes what it gets into."""
    name, out, archive = f"f-{uuid.uuid4().hex[:8]}", place / "seen.jsonl", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("app.py", code)
    async with open_client("lambda", AwsOptions(), "lambda://x") as client:
        await client.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Handler="app.handler",
            Role="arn:aws:iam::123456789012:role/r",
            Code={"ZipFile": archive.getvalue()},
            Environment={"Variables": {"OUT": str(out)}},
            Timeout=10,
        )
        out.touch()
        yield name, out
        await client.delete_function(FunctionName=name)


def seen(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


async def test_a_function_that_looks_at_batch_ids_gets_each_record_once(ministack: str, tmp_path: Path) -> None:
    """Broken off at each step, behind a bad network: batches come again as they were, or divided, never otherwise."""
    async with function(tmp_path) as (name, out), proxy_to(ministack) as proxy:
        proxy.fault = all_faults("Invoke", seed=3)
        url = f"lambda://{name}?endpoint={proxy.url}&tries=1&timeout=15&batch=1000&calls=2&attempts=2"
        assert await run_through(copying(), readings(keys=500), url, tmp_path, proxy=proxy) == 8
        faults = {asked.fault for asked in proxy.requests if asked.action == "Invoke"}
        assert faults >= {"throttle", "broken", "reset", "lost", "half", "slow"}
        batches = seen(out)
    by_id: dict[str, Any] = {}
    for batch in batches:
        assert by_id.setdefault(batch["id"], batch) == batch
    assert len(by_id) < len(batches)  # some did come again, or this has tested little
    taken: dict[str, list[int]] = defaultdict(list)
    records: dict[str, int] = {}
    for batch in by_id.values():
        for record in batch["records"]:
            assert record["key"] == record["value"]["id"]
            number = record["value"]["n"]
            assert records.setdefault(record["id"], number) == number
            if not batch["poison"] and number not in NAMED:
                taken[record["key"]].append(number)
    assert all(numbers == sorted(numbers) for numbers in taken.values())
    assert sorted(n for numbers in taken.values() for n in numbers) == sorted(
        set(range(COUNT)) - set(POISON) - set(NAMED)
    )
    dead = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    letters = {json.loads(base64.b64decode(letter["value"]))["n"]: letter for letter in dead}
    assert sorted(letters) == sorted([*POISON, *NAMED])
    assert len(letters) == len(dead)
    assert {letters[n]["error"] for n in NAMED} == {"BatchItemFailure"}
    assert [letters[n]["reason"] for n in POISON] == [f"poison: [{n}]" for n in POISON]


async def test_events_all_reach_the_function(ministack: str, tmp_path: Path) -> None:
    rows = readings(keys=50, count=2_000)
    async with function(tmp_path) as (name, out), proxy_to(ministack) as proxy:
        proxy.fault = all_faults("Invoke", seed=4)
        url = f"lambda://{name}:$LATEST?endpoint={proxy.url}&tries=1&timeout=15&batch=100&mode=event"
        assert await run_through(copying(), rows, url, tmp_path, commit_every=200, proxy=proxy) == 8
        assert (tmp_path / "dead.jsonl").read_bytes() == b""
        async with asyncio.timeout(30):
            while len({r["id"] for b in seen(out) for r in b["records"]}) < len(rows):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    found = {record["id"]: record["value"]["n"] for batch in seen(out) for record in batch["records"]}
    assert sorted(found.values()) == list(range(len(rows)))


async def test_an_absent_function_is_told_and_one_that_went_away_ends_the_run(ministack: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not there .*create-function"):
        async with destination("lambda://nowhere", None):
            pass
    async with function(tmp_path) as (name, _):
        to = await destination(f"lambda://{name}", None).__aenter__()
    sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
    await sink.open(None)
    with pytest.raises(SinkError, match="ResourceNotFoundException"):
        await sink.deliver(sink.stage([Outgoing(b"k", b"1", 0)], final=False))
    await to.__aexit__(None, None, None)


async def test_a_function_may_take_longer_than_the_time_out(ministack: str, tmp_path: Path) -> None:
    """Its own time-out (10 s) goes before: a call that is given up would be made twice at once."""
    code = CODE.replace("def handler", "import time\n\ndef handler").replace(
        "if poison", "time.sleep(1)\n    if poison"
    )
    async with function(tmp_path, code) as (name, out), destination(f"lambda://{name}?timeout=0.3", None) as to:
        sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
        await sink.open(None)
        assert await sink.deliver(sink.stage([Outgoing(b"k", b'{"n":1}', 0)], final=False)) == []
    assert len(seen(out)) == 1
