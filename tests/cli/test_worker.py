"""`flowkit worker` and `flowkit health` in real processes."""

import json
import os
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.cli.place import APP, Place, sale, until

BROKER = ("--broker", "embedded://topics")
WORKER = ("worker", "app.py", *BROKER, "--bind", "reports=reports.jsonl", "--state", "state")


def start(place: Place, *words: str) -> "subprocess.Popen[bytes]":
    worker = place.spawn(*WORKER, *words)
    until(lambda: worker.poll() is not None or place.call("health", "--state", "state").code == 0)
    return worker


def stop(worker: "subprocess.Popen[bytes]", number: int = signal.SIGTERM) -> str:
    worker.send_signal(number)
    _, err = worker.communicate(timeout=30)
    return (err or b"").decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_works_is_healthy_and_stops_cleanly(place: Place, number: int) -> None:
    place.app()
    place.call("topics", "create", "sales", "big", *BROKER)
    worker = start(place)
    try:
        place.lines("in.jsonl", sale("ann", 150.0, 0), sale("bob", 1.0, 90_000))
        place.call("topics", "put", "sales", "in.jsonl", "--key", "user", "--time", "at", *BROKER)
        until(lambda: "ann\t" in place.call("topics", "tail", "big", *BROKER).out)
        until(lambda: (place.path / "reports.jsonl").exists() and place.read("reports.jsonl"))
        shown = place.call("tables", "get", "app.py", "seen", "ann", "--state", "state", "--json")
        assert json.loads(shown.out) == {"task": "seen/0", "key": "ann", "value": 1}
    finally:
        err = stop(worker, number)
    assert worker.returncode == 0, err
    assert all(json.loads(line)["level"] == "info" for line in err.splitlines()), err
    assert place.call("health", "--state", "state").code == 1
    shown = place.call("tables", "get", "app.py", "seen", "bob", "--state", "state", "--json")
    assert json.loads(shown.out)["value"] == 1


def test_dead_letters_of_a_worker_can_be_replayed(place: Place) -> None:
    place.app()
    place.call("topics", "create", "sales", *BROKER)
    place.lines("in.jsonl", sale("ann", -1.0, 0))
    place.call("topics", "put", "sales", "in.jsonl", "--key", "user", "--time", "at", *BROKER)
    worker = start(place)
    try:
        until(lambda: "negative amount" in place.call("dlq", "list", *BROKER).out)
    finally:
        stop(worker)
    done = place.call("dlq", "replay", *BROKER, "--to", "embedded://topics")
    assert done.err == "1 record put back into sales\n"
    rows = place.call("topics", "tail", "sales", *BROKER).out.splitlines()
    assert rows[0] == rows[1]


def test_a_worker_takes_all_it_needs_from_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.app()
    monkeypatch.setenv("FLOWKIT_APP", "app")
    monkeypatch.setenv("FLOWKIT_BROKER", "embedded://topics")
    monkeypatch.setenv("FLOWKIT_STATE", "state")
    worker = place.spawn("worker", "--bind", "reports=reports.jsonl")
    try:
        until(lambda: worker.poll() is not None or place.call("health").code == 0)
    finally:
        stop(worker)
    assert worker.returncode == 0


def test_a_second_worker_on_one_state_directory_is_told(place: Place) -> None:
    place.app()
    worker = start(place)
    try:
        done = place.call(*WORKER)
        assert done.code == 3
        assert f"state: in use by process {worker.pid}" in done.err
    finally:
        stop(worker)


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["worker", "app.py", *BROKER, "--state", "state"],
            "sink 'reports' leads nowhere: bind it with --bind reports=FILE",
        ),
        ([*WORKER, "--bind", "nope=x.jsonl"], "has no topic or sink 'nope'"),
        ([*WORKER, "--bind", "nope"], "--bind nope: write --bind NAME=FILE"),
        (["worker", "app.py", "--broker", "kinesis://x/y", *WORKER[4:]], "write kinesis://REGION"),
        (["worker", "app.py", "--state", "state"], "Missing option '--broker'"),
        ([*WORKER, "--commit-every", "0"], "must be at least 1"),
        ([*WORKER, "--log-level", "loud"], "log level 'loud'"),
        (["worker", "nope.py", *WORKER[2:]], "nope.py: no such file"),
    ],
)
def test_what_cannot_be_is_told(place: Place, words: list[str], told: str) -> None:
    place.app()
    done = place.call(*words)
    assert done.code == 2, done
    assert told in done.err
    assert "Traceback" not in done.err


def test_topics_that_do_not_fit_are_told(place: Place) -> None:
    place.app(APP + "more = app.topic('more', Sale, key='user', time='at')\n"
              "@app.each(more, reads=[seen])\ndef look(sale: Sale) -> None: ...\n")  # fmt: skip
    place.call("topics", "create", "sales", "-p", "2", *BROKER)
    place.call("topics", "create", "more", "-p", "3", *BROKER)
    done = place.call(*WORKER)
    assert done.code == 2
    assert "need equal partition counts: sales has 2, more has 3" in done.err


def test_a_worker_starts_again_when_its_source_changes(place: Place) -> None:
    place.app()
    place.call("topics", "create", "sales", *BROKER)
    log = place.path / "log"
    with log.open("wb") as file:
        worker = place.spawn(*WORKER, "--reload", stderr=file)
    try:
        until(lambda: place.call("health", "--state", "state").code == 0)
        first = json.loads((place.path / "state/health.json").read_text())["pid"]
        place.app("import nothing_of_this_name\n")
        until(lambda: "cannot import app.py: ModuleNotFoundError" in log.read_text())
        place.app(APP.replace("return Report(window.key,", "return Report(window.key.upper(),"))
        until(lambda: place.call("health", "--state", "state").code == 0)
        assert json.loads((place.path / "state/health.json").read_text())["pid"] != first
    finally:
        stop(worker)
    assert worker.returncode == 0, log.read_text()
    assert log.read_text().count("app.py has changed: starting again") == 2


# --- health, on files that a worker might have left -----------------------------------------------------------------


def healthy(**fields: Any) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "at_ms": time.time_ns() // 1_000_000,
        "ready": True,
        "stalled": [],
        "tasks": [],
        **fields,
    }


@pytest.mark.parametrize(
    "fields, code, told",
    [
        ({}, 0, "healthy"),
        ({"ready": False}, 1, "is not ready yet"),
        ({"ready": False, "broker": "kafka://a:9092: no answer"}, 1, "is not ready: kafka://a:9092: no answer"),
        ({"ready": False, "failing": {"shop/seen/0": "full"}}, 1, "is not ready: task shop/seen/0: full"),
        ({"waiting": {"shop/seen/0": "sink 'out' …"}}, 0, "healthy; task shop/seen/0: sink 'out' …"),
        ({"stalled": ["shop/seen/0"]}, 1, "makes no progress: shop/seen/0"),
        ({"at_ms": 0}, 1, "silent"),
        ({"pid": 2**22 + 1}, 1, "is dead"),
        ({"pid": "x"}, 1, "cannot be read"),
    ],
)
def test_health_is_told_by_the_exit_code(place: Place, fields: dict[str, Any], code: int, told: str) -> None:
    place.lines("state/health.json", healthy(**fields))
    done = place.call("health", "--state", "state")
    assert (done.code, told in done.out) == (code, True), done


def test_health_needs_a_state_directory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.call("health").code == 2
    assert place.call("health", "--state", "nowhere").code == 1
    place.lines("state/health.json", healthy())
    monkeypatch.setenv("FLOWKIT_STATE", "state")
    assert place.call("health").out == "healthy\n"
