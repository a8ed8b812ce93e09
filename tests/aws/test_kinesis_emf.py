"""What a worker on Kinesis tells CloudWatch of itself, in a real process."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.aws.servers import aws_environment
from tests.aws.workers import Fleet, check_counts


async def test_lags_counts_and_checkpoints_are_told_in_lines(ministack: str, tmp_path: Path) -> None:
    metrics, kept = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []

    async with Fleet(tmp_path, aws_environment(ministack)) as fleet:
        await fleet.put(range(300))
        words = ("--checkpoints", str(kept), "--checkpoint-interval", "300")
        fleet.start("a", "--emf", f"{metrics}?namespace=shop&every=1s&level=task", *words)
        check_counts(await fleet.until(300), 300)
        async with asyncio.timeout(30):
            wanted = ("lastCheckpointSize", "uptime")
            while not all(any(line.get(name) for line in lines()) for name in wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
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
