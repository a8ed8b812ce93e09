"""Workers on Kinesis: tasks shared out by leases, killed and taken over, with nothing lost or counted twice."""

import asyncio
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from flowkit.aws import AwsOptions, open_client
from flowkit.clock import SystemClock
from flowkit.source.kinesis_streams import KinesisStreams
from tests.aws.servers import aws_environment
from tests.aws.workers import Fleet, check_counts, dead, merge, split


@pytest.mark.parametrize("hop", [False, True], ids=["straight", "re-keyed"])
async def test_two_workers_one_killed_and_started_again(ministack: str, tmp_path: Path, hop: bool) -> None:
    environ = {**aws_environment(ministack), **({"KINESIS_APP_HOP": "1"} if hop else {})}
    async with Fleet(tmp_path, environ) as fleet:
        fleet.start("a")
        await fleet.put(range(400))
        await fleet.until(400)
        fleet.start("b")
        await fleet.put(range(400, 800))
        await fleet.until(800)
        fleet.kill("a")
        await fleet.put(range(800, 1200))
        fleet.start("a")
        check_counts(await fleet.until(1200), 1200)
        assert (await fleet.stop("a"), await fleet.stop("b")) == (0, 0)
    assert dead(tmp_path) == []


async def test_on_another_machine_it_goes_on_from_the_frames_in_s3(ministack: str, tmp_path: Path) -> None:
    bucket = f"b-{uuid.uuid4().hex[:8]}"
    async with open_client("s3", AwsOptions(), "s3://") as client:
        await client.create_bucket(Bucket=bucket)
    async with Fleet(tmp_path, aws_environment(ministack), options=f"&frames=s3://{bucket}/app") as fleet:
        fleet.start("a")
        await fleet.put(range(300))
        await fleet.until(300)
        fleet.kill("a")
        shutil.rmtree(tmp_path / "a")
        await fleet.put(range(300, 600))
        fleet.start("b", "--checkpoints", f"s3://{bucket}/checkpoints", "--checkpoint-interval", "300")
        await fleet.until(600)
        fleet.kill("b")
        shutil.rmtree(tmp_path / "b")
        await fleet.put(range(600, 900))
        fleet.start("c", "--checkpoints", f"s3://{bucket}/checkpoints")
        check_counts(await fleet.until(900), 900)
        assert await fleet.stop("c") == 0
    assert dead(tmp_path) == []


async def test_streams_are_listed_and_fed_by_hand(kinesalite: str, tmp_path: Path) -> None:
    name = f"s-{uuid.uuid4().hex[:8]}"
    streams = KinesisStreams(AwsOptions(), SystemClock(), "kinesis://")
    await streams.open()
    await streams.create(name, 2)
    await streams.close()

    async def flowkit(*words: str) -> str:
        words = ("-m", "flowkit", "topics", *words, "--broker", f"kinesis://us-east-1?leases=file://{tmp_path}")
        pipes: Any = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        running = await asyncio.create_subprocess_exec(sys.executable, *words, **pipes)
        out, _ = await running.communicate(b'{"k": 1}\n')
        assert running.returncode == 0
        return out.decode()

    listed, _ = await asyncio.gather(flowkit("list", "--json"), flowkit("put", name))
    assert {"topic": name, "partitions": 2, "records": None, "internal": False} in map(json.loads, listed.splitlines())


@pytest.mark.parametrize("hop", [False, True], ids=["straight", "re-keyed"])
async def test_resharding_moves_state_with_its_keys(resharding: dict[str, str], tmp_path: Path, hop: bool) -> None:
    environ = {**resharding, **({"KINESIS_APP_HOP": "1"} if hop else {})}
    async with Fleet(tmp_path, environ, shards=2) as fleet:
        stream = f"{fleet.name}-in"
        fleet.start("a")
        fleet.start("b")
        await fleet.put(range(200))
        await fleet.until(200)
        await split(fleet.streams, stream, 0)
        await fleet.put(range(200, 400))
        await fleet.until(400)
        fleet.kill("a")
        await split(fleet.streams, stream, 1)
        await fleet.put(range(400, 600))
        fleet.start("a")
        await fleet.until(600)
        await merge(fleet.streams, stream, 3, 4)  # the halves that lie beside each other
        await fleet.put(range(600, 800))
        check_counts(await fleet.until(800), 800)
        assert (await fleet.stop("a"), await fleet.stop("b")) == (0, 0)
    assert dead(tmp_path) == []


KEYS, EVERY, LAST = 12, 3_000, 10_000_000


def events_of(start: int, stop: int) -> list[tuple[bytes, bytes, int]]:
    """One event of each key every three seconds, with a pause of a minute after each twentieth."""
    rows = []
    for n in range(start, stop):
        at = n * EVERY + n // 20 * 60_000
        rows += [(b"k%d" % k, json.dumps({"key": f"k{k}", "at": at}).encode(), 0) for k in range(KEYS)]
    return rows


def told_of(count: int) -> set[tuple[str, int, int]]:
    """What is to be told of one key after so many events: (kind, end, n)."""
    times = [n * EVERY + n // 20 * 60_000 for n in range(count)]
    found = {("total", 0, n + 1) for n in range(count + 1)} | {("minute", 60_000, 0)} | {("ten", 0, 10)}
    for size, kind in ((10_000, "tumbling"), (20_000, "sliding")):
        ends = {at // 10_000 * 10_000 + more for at in times for more in range(10_000, size + 1, 10_000)}
        found |= {(kind, end, len([at for at in times if end - size <= at < end])) for end in ends}
    for n in range(0, count, 20):
        session = times[n : n + 20]
        found.add(("session", session[-1] + 8_000, len(session)))
    return found


async def test_windows_sessions_timers_and_counts_move_with_their_keys(
    resharding: dict[str, str], tmp_path: Path
) -> None:
    app = Path(__file__).parent / "kinesis_windows_app.py"
    async with Fleet(tmp_path, resharding, shards=1, app=app) as fleet:
        stream = f"{fleet.name}-in"
        fleet.start("a")
        fleet.start("b")
        await fleet.streams.put(stream, events_of(0, 25))
        await split(fleet.streams, stream, 0)
        await fleet.streams.put(stream, events_of(25, 45))
        await split(fleet.streams, stream, 2)
        await fleet.streams.put(stream, events_of(45, 50))
        await merge(fleet.streams, stream, 1, 3)
        await fleet.streams.put(stream, events_of(50, 65))
        last = [(b"k%d" % k, json.dumps({"key": f"k{k}", "at": LAST}).encode(), 0) for k in range(KEYS)]
        await fleet.streams.put(stream, last)
        wanted = told_of(65)
        found: dict[str, set[tuple[str, int, int]]] = {}
        async with asyncio.timeout(100):
            while len(found) < KEYS or any(len(told) < len(wanted) for told in found.values()):
                found = {f"k{k}": set() for k in range(KEYS)}
                for row in await fleet.rows():
                    if row["end"] < LAST:  # the last events' own windows are not over in every shard
                        found[row["key"]].add((row["kind"], row["end"], row["n"]))
                await asyncio.sleep(0.5)
        assert (await fleet.stop("a"), await fleet.stop("b")) == (0, 0)
        for key, told in found.items():
            assert told == wanted, key
        async with open_client("dynamodb", AwsOptions(), "x") as client:
            rows = (await client.scan(TableName=f"leases-{fleet.name}"))["Items"]
    came_from = {
        row["leaseKey"]["S"].rpartition("/")[2]: row["parentShardId"]["SS"]
        for row in rows
        if "epoch" in row and "parentShardId" in row
    }
    first, one, two, three = (f"shardId-{n:012d}" for n in range(4))
    assert came_from == {"1": [first], "2": [first], "3": [two], "4": [two], "5": [one, three]}
    assert dead(tmp_path) == []
