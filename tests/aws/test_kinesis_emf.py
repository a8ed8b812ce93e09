"""What a worker on Kinesis tells CloudWatch and Prometheus of itself, in a real process."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowkit.clock import SystemClock
from flowkit.source import open_storage
from flowkit.worker import Requests
from tests.aws.servers import aws_environment, free_port
from tests.aws.workers import Fleet, check_counts
from tests.jsonl import whole_lines


async def test_lags_counts_and_checkpoints_are_told_in_lines_and_a_savepoint_is_refused(
    ministack: str, tmp_path: Path
) -> None:
    metrics, kept = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"

    def lines() -> list[dict[str, Any]]:
        return whole_lines(metrics)

    async with Fleet(tmp_path, aws_environment(ministack)) as fleet:
        await fleet.put(range(300))
        words = ("--checkpoints", str(kept), "--checkpoint-interval", "300")
        fleet.start("a", "--emf", f"{metrics}?namespace=shop&every=1s&level=task", *words)
        check_counts(await fleet.until(300), 300)
        async with asyncio.timeout(30):
            wanted = ("lastCheckpointSize", "uptime")
            while not all(any(line.get(name) for line in lines()) for name in wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        async with open_storage(str(kept)) as storage:
            requests = Requests(storage, fleet.name, SystemClock())
            await requests.ask(str(tmp_path / "saved"), stop=False, within=60_000)
            async with asyncio.timeout(20):
                while (asked := await requests.last()) is None or asked.state == "asked":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        assert (asked.state, asked.why) == ("failed", "there are none on kinesis://us-east-1 yet")
        assert await fleet.stop("a") == 0
    whole = [line for line in lines() if "Task" not in line]
    tasks = [line for line in lines() if "Task" in line]
    assert {line["Application"] for line in whole} == {fleet.name}
    assert len({line["Task"] for line in tasks}) == 2  # of two shards
    for told in (whole, tasks):  # each way all of it once
        assert sum(line.get("numRecordsIn", 0) for line in told) == 300
        assert sum(line.get("numRecordsOut", 0) for line in told) == 300
    assert any(line.get("millisBehindLatest") == 0 for line in whole)
    assert any(line.get("lastCheckpointSize", 0) > 0 for line in whole)
    assert max(line["uptime"] for line in whole) > 0


@pytest.mark.parametrize("fan_out", ["no", "yes"])
async def test_lags_are_scraped_by_shard_and_are_zero_at_the_tip(ministack: str, tmp_path: Path, fan_out: str) -> None:
    async with Fleet(tmp_path, aws_environment(ministack), options=f"&fan_out={fan_out}") as fleet:
        await fleet.put(range(100))
        port = free_port()
        fleet.start("a", "--http", str(port))
        check_counts(await fleet.until(100), 100)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/metrics") as answer:
                families = {f.name: f for f in text_string_to_metric_families(await answer.text())}
            async with session.get("/flow") as answer:
                tasks = (await answer.json())["tasks"]
        assert await fleet.stop("a") == 0
    stream = f"{fleet.name}-in"
    found = {
        (s.labels["topic"], s.labels["partition"]): s.value for s in families["flowkit_source_lag_seconds"].samples
    }
    assert found == {(stream, "0"): 0, (stream, "1"): 0}
    lags = {name: late for task in tasks for name, late in task["source_lag_ms"].items()}
    assert lags == {f"{stream}[0]": 0, f"{stream}[1]": 0}
