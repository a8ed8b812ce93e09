"""What resharding could break: the last hand-off of a shard, streams read together, streams of flowkit's own."""

import asyncio
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from flowkit.aws import AwsOptions, open_client
from tests.aws.proxy import Fault, Request, proxy_to
from tests.aws.workers import Fleet, dead, split


async def until_ended(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a worker that ends by itself."""
    return await asyncio.to_thread(process.wait, 40)


async def test_a_worker_that_dies_while_it_delivers_a_shards_last_results_loses_none(
    resharding: dict[str, str], tmp_path: Path
) -> None:
    async with (
        Fleet(tmp_path, resharding, shards=1) as fleet,
        proxy_to(resharding["AWS_ENDPOINT_URL_KINESIS"], watched=False) as proxy,
        open_client("dynamodb", AwsOptions(), "dynamodb://") as dynamodb,
    ):
        tried = asyncio.Event()

        def fault(request: Request) -> Fault | None:
            if request.action == "PutRecords" and request.json["StreamName"].endswith("-out"):
                tried.set()
                return "throttle"
            return None

        proxy.fault = fault
        await fleet.put(range(40))
        await split(fleet.streams, f"{fleet.name}-in", 0)  # all of it is in a shard that has ended
        environ = {"AWS_ENDPOINT_URL_KINESIS": proxy.url, "FLOWKIT_COMMIT_INTERVAL": "60000"}
        fleet.start("a", environ=environ)
        await asyncio.wait_for(tried.wait(), 30)
        row = await dynamodb.get_item(
            TableName=f"leases-{fleet.name}", Key={"leaseKey": {"S": f"{fleet.name}/totals/0"}}
        )
        assert int(row["Item"]["number"]["N"]) == 1  # all is done and committed, and nothing delivered
        fleet.kill("a")
        fleet.start("a")
        await fleet.until(40)
        await fleet.put(range(40, 80))
        found = await fleet.until(80)
        assert sorted({row for rows in found.values() for row in rows}) == sorted(
            (number, number // 20 + 1) for number in range(80)
        )
        assert await fleet.stop("a") == 0
    assert dead(tmp_path) == []


async def test_a_stream_of_flowkits_own_that_somebody_reshards_stops_the_app_and_says_why(
    resharding: dict[str, str], tmp_path: Path
) -> None:
    async with Fleet(tmp_path, {**resharding, "KINESIS_APP_HOP": "1"}) as fleet:
        fleet.start("a")
        await fleet.put(range(100))
        await fleet.until(100)
        own = f"{fleet.name}.moved"
        await split(fleet.streams, own, 0)
        assert await until_ended(fleet.workers["a"]) == 2
        fleet.start("a")
        assert await until_ended(fleet.workers["a"]) == 2
        (log,) = [path.read_text() for path in tmp_path.glob("a.log")]  # noqa: ASYNC240
        why = f"stream '{own}' is flowkit's own, and was resharded (closed shards: [0])"
        assert " ".join(log.split()).count(why) >= 2


async def put_both(fleet: Fleet, numbers: Iterable[int]) -> None:
    """Events into two streams in turn; each of ten keys is in both."""
    rows = [(b"k%d" % (n // 2 % 10), json.dumps({"key": f"k{n // 2 % 10}", "number": n}).encode(), 0) for n in numbers]
    await fleet.streams.put(f"{fleet.name}-in", rows[::2])
    await fleet.streams.put(f"{fleet.name}-more", rows[1::2])


async def test_streams_of_the_same_shards_are_read_together_also_once_both_are_split(
    resharding: dict[str, str], tmp_path: Path
) -> None:
    async with Fleet(tmp_path, {**resharding, "KINESIS_APP_MORE": "1"}) as fleet:
        await fleet.streams.create(f"{fleet.name}-more", 2)
        fleet.start("a")
        fleet.start("b")
        await put_both(fleet, range(200))
        await fleet.until(200)
        await split(fleet.streams, f"{fleet.name}-in", 1)
        await put_both(fleet, range(200, 300))  # what one stream has in new shards waits for the other
        await split(fleet.streams, f"{fleet.name}-more", 1)
        await put_both(fleet, range(300, 400))
        fleet.kill("b")
        found = await fleet.until(400)
        for key in range(10):
            rows = dict.fromkeys(found[f"k{key}"])
            assert [total for _, total in rows] == list(range(1, 41)), key
            assert {number for number, _ in rows} == {n for n in range(400) if n // 2 % 10 == key}
        assert await fleet.stop("a") == 0
    assert dead(tmp_path) == []


async def test_streams_of_other_shards_are_refused_at_the_start(resharding: dict[str, str], tmp_path: Path) -> None:
    async with Fleet(tmp_path, {**resharding, "KINESIS_APP_MORE": "1"}) as fleet:
        await fleet.streams.create(f"{fleet.name}-more", 3)
        fleet.start("a")
        assert await until_ended(fleet.workers["a"]) == 2
        (log,) = [path.read_text() for path in tmp_path.glob("a.log")]  # noqa: ASYNC240
        told = " ".join(log.split())
        assert (
            f"reads the streams {fleet.name}-in, {fleet.name}-more together, whose open shards are not the same" in told
        )
        assert "reshard them in the same way" in told


async def test_a_file_that_several_shards_would_write_and_a_stream_that_is_deleted_end_a_worker(
    resharding: dict[str, str], tmp_path: Path
) -> None:
    async with Fleet(tmp_path, resharding, shards=1) as fleet:
        await fleet.put(range(20))
        await split(fleet.streams, f"{fleet.name}-in", 0)
        fleet.start("a", "--bind", "dead-letters=dead.jsonl")
        assert await until_ended(fleet.workers["a"]) == 2
        fleet.start("a")
        await fleet.until(20)
        await fleet.streams.client.delete_stream(StreamName=f"{fleet.name}-in")
        assert await until_ended(fleet.workers["a"]) == 2
        log = (tmp_path / "a.log").read_text()
        assert "dead-letters=dead.jsonl: 3 tasks write it, and a file has one writer: put {partition} into" in log
        assert f"stream '{fleet.name}-in' was deleted: what of it was not read is lost" in log
