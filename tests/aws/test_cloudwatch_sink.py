"""CloudWatch's metrics and logs as destinations, on moto.

Moto gives the index of the last event that is too old where the service gives the one behind it: that answer is tested
in tests/sink/test_cloudwatch.py.
"""

import gzip
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.aws import AwsOptions, open_client
from flowkit.clock import SystemClock
from flowkit.sink import SinkTask, destination
from flowkit.worker.outlets import Outgoing
from tests.aws.broken import COUNT, Reading, all_faults, copying, readings, run_through
from tests.aws.proxy import proxy_to

HOUR = 3_600_000


def of_late(keys: int) -> list[Reading]:
    """Readings of the last half hour and a bit."""
    begin = int(time.time()) * 1000 - COUNT * 100
    return [Reading(row.id, row.n, begin + row.at) for row in readings(keys)]


@asynccontextmanager
async def client(service: str) -> AsyncIterator[Any]:
    async with open_client(service, AwsOptions(), service) as opened:
        yield opened


async def test_every_value_arrives_at_its_time_compressed_under_all_faults(moto: str, tmp_path: Path) -> None:
    rows, space = of_late(keys=4), f"flowkit/{uuid.uuid4().hex[:8]}"
    async with proxy_to(moto) as proxy, client("cloudwatch") as cloudwatch:
        proxy.fault = all_faults("PutMetricData", seed=3)
        target = f"cloudwatch://{space}?value=n&metric=reading&dimensions=id&unit=Count&endpoint={proxy.url}&tries=1"
        assert await run_through(copying(), rows, target, tmp_path) == 6
        faults = {seen.fault for seen in proxy.requests}
        assert faults >= {"throttle", "broken", "reset", "lost", "half", "slow"}
        taken = []
        for seen in proxy.requests:
            assert seen.body.startswith(b"\x1f\x8b")  # gzip, and a large saving
            if seen.fault in (None, "slow", "lost", "half", "part"):
                assert seen.status == 200
                assert len(gzip.decompress(seen.body)) < 1_000_000
                assert len(seen.json["MetricData"]) <= 1_000
                taken += seen.json["MetricData"]
        assert len(taken) > COUNT  # some came again
        found = {(d["Dimensions"][0]["Value"], d["Value"], round(float(d["Timestamp"]) * 1000)) for d in taken}
        assert found == {(row.id, float(row.n), row.at) for row in rows}
        counted = 0
        for key in sorted({row.id for row in rows}):
            asked = await cloudwatch.get_metric_statistics(
                Namespace=space, MetricName="reading", Dimensions=[{"Name": "id", "Value": key}], Unit="Count",
                StartTime=datetime.now(UTC) - timedelta(hours=2), EndTime=datetime.now(UTC) + timedelta(hours=1),
                Period=6 * 3600, Statistics=["SampleCount", "Maximum", "Minimum"],
            )  # fmt: skip
            numbers = [row.n for row in rows if row.id == key]
            assert max(point["Maximum"] for point in asked["Datapoints"]) == max(numbers)
            assert min(point["Minimum"] for point in asked["Datapoints"]) == min(numbers)
            counted += sum(point["SampleCount"] for point in asked["Datapoints"])
        assert counted == len(taken)  # what the service has is what it said that it took
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


async def test_every_event_arrives_at_its_time_under_all_faults(moto: str, tmp_path: Path) -> None:
    rows, group = of_late(keys=50), f"/flowkit/{uuid.uuid4().hex[:8]}"
    async with proxy_to(moto) as proxy, client("logs") as logs:
        proxy.fault = all_faults("PutLogEvents", seed=4)
        target = f"logs://{group}/main?create=yes&endpoint={proxy.url}&tries=1"
        assert await run_through(copying(), rows, target, tmp_path, commit_every=1_000) == 6
        faults = {seen.fault for seen in proxy.requests}
        assert faults >= {"throttle", "broken", "reset", "lost", "half", "slow"}
        events = await read(logs, group, "main")
    assert len(events) > COUNT
    found = {(event["timestamp"], event["message"]) for event in events}
    assert found == {
        (row.at, json.dumps({"id": row.id, "n": row.n, "at": row.at}, separators=(",", ":"))) for row in rows
    }
    assert (tmp_path / "dead.jsonl").read_bytes() == b""


async def read(logs: Any, group: str, stream: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    more: dict[str, str] = {}
    while True:
        page = await logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **more)
        if not page["events"]:
            return events
        events += page["events"]
        more = {"nextToken": page["nextForwardToken"]}


async def test_events_days_apart_go_in_calls_of_their_own_and_what_is_too_new_is_rejected(moto: str) -> None:
    group, now = f"g-{uuid.uuid4().hex[:8]}", int(time.time() * 1000)
    rows = [Outgoing(None, b"%d" % n, now - n % 5 * 24 * HOUR + n) for n in range(50)]
    rows += [Outgoing(b"k", b"soon", now + 3 * HOUR), Outgoing(b"k", None, now), Outgoing(b"k", b"\xff", now)]
    async with proxy_to(moto) as proxy, client("logs") as logs:
        async with destination(f"logs://{group}/s?create=yes&endpoint={proxy.url}", None) as to:
            sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
            await sink.open(None)
            rejected = await sink.deliver(sink.stage(rows, False))
        assert [(each.key, each.value, each.error) for each in rejected] == [
            (b"k", b"soon", "TooNew"),
            (b"k", b"\xff", "NoText"),
        ]
        events = await read(logs, group, "s")
        assert sorted(event["message"] for event in events) == sorted([*(str(n) for n in range(50)), "null"])
        for seen in (seen for seen in proxy.requests if seen.action == "PutLogEvents"):
            times = [event["timestamp"] for event in seen.json["logEvents"]]
            assert times == sorted(times)
            assert times[-1] - times[0] < 24 * HOUR


async def test_a_group_or_stream_that_is_not_there_is_told_or_made(moto: str) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    with pytest.raises(ConfigError, match=r"is not there .*create=yes"):
        async with destination(f"logs://{group}/s", None):
            pass
    async with destination(f"logs://{group}/s-1?create=yes", None), destination(f"logs://{group}/s-1?create=yes", None):
        pass
    with pytest.raises(ConfigError, match="has no stream 's'"):  # though another's name begins so
        async with destination(f"logs://{group}/s", None):
            pass
    async with destination(f"logs://{group}/s-1", None):
        pass


async def test_a_service_that_does_not_answer_at_first_is_waited_for(moto: str) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    async with proxy_to(moto) as proxy, client("logs") as logs:
        proxy.fault = lambda seen: "broken" if len(proxy.requests) < 4 else None
        async with destination(f"logs://{group}/s?create=yes&endpoint={proxy.url}&tries=1", None) as to:
            sink = to.sink(SinkTask("app", "group", 0, 1, SystemClock()))
            await sink.open(None)
            now = int(time.time() * 1000)
            assert list(await sink.deliver(sink.stage([Outgoing(None, b"x", now)], False))) == []
        assert [event["message"] for event in await read(logs, group, "s")] == ["x"]
