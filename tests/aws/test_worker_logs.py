"""A worker's log lines and metrics in CloudWatch Logs: a real process, on moto, which may also not answer at all."""

import asyncio
import json
import signal
import socket
import time
import uuid
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.aws import AwsOptions, open_client
from flowkit.cli.log_shipping import Shipper
from tests.aws.proxy import proxy_to
from tests.cli.conftest import place
from tests.cli.place import Place, until

WORKER = ("worker", "app.py", "--broker", "embedded://topics", "--bind", "reports=reports.jsonl", "--state", "state")

__all__ = ["place"]


async def read(group: str, stream: str) -> list[dict[str, Any]]:
    async with open_client("logs", AwsOptions(), "logs") as logs:
        page = await logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)
        return [{"at": event["timestamp"], **json.loads(event["message"])} for event in page["events"]]


async def test_a_worker_says_what_it_says_and_its_metrics_there_too(
    place: Place, moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = f"/flowkit/{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("FLOWKIT_LOGS", f"logs://{group}/{{host}}?create=yes")
    place.app()
    began = time.time() * 1000
    worker = place.spawn(*WORKER, "--emf", "logs?namespace=shop&every=1s&level=task")
    until(lambda: worker.poll() is not None or place.call("health", "--state", "state").code == 0)
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    said = [json.loads(line) for line in err.splitlines()]
    events = await read(group, socket.gethostname())
    assert all(began <= event["at"] <= time.time() * 1000 for event in events)
    logged = [{name: event[name] for name in event if name != "at"} for event in events if "_aws" not in event]
    assert logged == said  # each line, in order
    metrics = [event for event in events if "_aws" in event]
    assert {event.get("Task") for event in metrics} >= {None}
    assert all(event["Application"] == "shop" for event in metrics)


def test_metrics_on_standard_output(place: Place) -> None:
    place.app()
    worker = place.spawn(*WORKER, "--emf", "stdout?namespace=shop&every=1s")
    until(lambda: worker.poll() is not None or place.call("health", "--state", "state").code == 0)
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines  # the last one at its end, if none before
    assert all(line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "shop" for line in lines)


def test_a_worker_whose_logs_go_nowhere_works_and_stops(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        monkeypatch.setenv("FLOWKIT_LOGS", f"logs://g/s?create=yes&endpoint={url}&region=us-east-1")
        place.app()
        worker = place.spawn(*WORKER)
        until(lambda: worker.poll() is not None or place.call("health", "--state", "state").code == 0)
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    assert b"log lines were not sent" in err


async def test_what_finds_no_room_is_dropped_at_once_and_told(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = f"g-{uuid.uuid4().hex[:8]}"
    async with proxy_to(moto) as proxy:
        blocked = True
        proxy.fault = lambda _: "throttle" if blocked else None
        shipper = Shipper(f"logs://{group}/s?create=yes&endpoint={proxy.url}&tries=1", room=100, every=0.01)
        shipper.start()
        began = time.monotonic()
        for n in range(1_000):
            shipper.processor(None, "", {"event": "said", "n": n})
        assert time.monotonic() - began < 1.0
        assert shipper.dropped == 900
        blocked = False
        await asyncio.to_thread(shipper.stop, 20.0)
    events = await read(group, "s")
    assert [event["n"] for event in events] == list(range(100))
    assert (shipper.sent, shipper.dropped) == (100, 900)


def test_a_place_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="needs logs://GROUP/STREAM"):
        Shipper("kinesis://x")
