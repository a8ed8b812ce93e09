"""What a worker on Kinesis loads, in a process of its own: what it uses, and no more."""

import asyncio
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from flowkit.aws import AwsOptions, open_client
from tests.aws.servers import aws_environment
from tests.aws.workers import Fleet, check_counts

APP = Path(__file__).parent / "kinesis_app.py"

OTHERS = {
    *("aiokafka", "asyncpg", "pyarrow", "boto3", "httpx", "rich", "opentelemetry", "prometheus_client", "sqlglot"),
    *("river", "hypothesis", "croniter", "cryptography", "zstandard", "pandas", "sqlite3"),
}
"""What workers of other kinds load."""
SINKS = {
    *("calls", "destinations", "dispatch", "file", "file_target", "kinesis", "record_id", "records", "seam"),
    "url_options",
}
"""What of `flowkit.sink` a worker needs that puts out into streams, and dead letters into a file."""


def of(room: str, modules: list[str]) -> set[str]:
    """What was loaded of a room."""
    return {name.split(".")[2] for name in modules if name.startswith(f"flowkit.{room}.")}


async def loaded(tmp_path: Path, url: str, options: str = "") -> dict[str, Any]:
    """What a worker has loaded in the midst of its work."""
    there = tmp_path / "loaded.json"
    environ = {**aws_environment(url), "LOADED": str(there), "LOADED_AT": "150"}
    async with Fleet(tmp_path, environ, options=options, app=APP) as fleet:
        fleet.start("a")
        await fleet.put(range(200))
        check_counts(await fleet.until(200), 200)
        assert await fleet.stop("a") == 0
    found: dict[str, Any] = json.loads(await asyncio.to_thread(there.read_text))
    return found


@pytest.mark.parametrize("fan_out", ["no", "yes"])
async def test_a_worker_on_kinesis_loads_nothing_of_other_services(
    ministack: str, tmp_path: Path, fan_out: str
) -> None:
    found = await loaded(tmp_path, ministack, f"&fan_out={fan_out}")
    assert found["clients"] == ["dynamodb", "kinesis"]
    assert OTHERS & {name.split(".")[0] for name in found["modules"]} == set()
    assert of("sink", found["modules"]) - SINKS == set()
    assert {name for name in of("source", found["modules"]) if "kafka" in name or "s3" in name} == set()


async def test_with_frames_it_loads_what_s3_needs_too(ministack: str, tmp_path: Path) -> None:
    bucket = f"b-{uuid.uuid4().hex[:8]}"
    async with open_client("s3", AwsOptions(), "s3://") as client:
        await client.create_bucket(Bucket=bucket)
    found = await loaded(tmp_path, ministack, f"&frames=s3://{bucket}/app")
    assert found["clients"] == ["dynamodb", "kinesis", "s3"]
    assert OTHERS & {name.split(".")[0] for name in found["modules"]} == set()
    assert of("sink", found["modules"]) - SINKS == set()


@pytest.mark.parametrize("what", ["flowkit", "flowkit.aws", "flowkit.source", "flowkit.sink", "flowkit.worker"])
def test_no_import_loads_a_client(what: str) -> None:
    code = f"import sys, {what}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"aiobotocore", "botocore", "aiohttp", *(OTHERS - {"rich"})}
    assert heavy & set(done.stdout.split()) == set()
