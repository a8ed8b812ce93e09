"""`flowkit worker --processes N`: the dead come again, all end together, none outlives the supervisor."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Crew, Process, crew_in, until
from tests.integration.test_worker_kill import PARTITIONS, Outside, check

pytestmark = pytest.mark.integration

APP = str(Path(__file__).with_name("chain_app.py"))
QUICK = {"FLOWKIT_LEASE_TTL": "1500", "FLOWKIT_COMMIT_INTERVAL": "50"}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with Outside(tmp_path / "topics", 3) as outside:
        yield outside


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with crew_in(tmp_path) as crew:
        yield crew


def started(crew: Crew, *words: str, app: str = APP) -> Process:
    topics = f"embedded://{crew.directory / 'topics'}"
    words = (
        "worker",
        app,
        "--broker",
        topics,
        "--state",
        "state",
        "--processes",
        "2",
        "--bind",
        "ledger=ledger-{partition}.jsonl",
        *words,
    )
    return crew.flowkit("supervisor", *words, env=QUICK)


def children(supervisor: Process) -> dict[int, int]:
    """The pid of each worker process, as of its last start."""
    return {log["process"]: log["pid"] for log in supervisor.logs("worker process started")}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def health(crew: Crew) -> dict[str, object]:
    try:
        return dict(json.loads((crew.directory / "state" / "health.json").read_bytes()))
    except FileNotFoundError:
        return {}


def all_hold_something(crew: Crew) -> bool:
    told = [crew.directory / "state" / f"process-{n}" / "health.json" for n in range(2)]
    return all(path.exists() and json.loads(path.read_bytes())["tasks"] for path in told)


def test_a_worker_that_is_killed_comes_again_and_goes_on_where_it_was(crew: Crew, outside: Outside) -> None:
    supervisor = started(crew)
    outside.put(500)
    until(lambda: all_hold_something(crew) and health(crew).get("ready"), "both ready")
    before = children(supervisor)
    os.kill(before[1], signal.SIGKILL)
    died = supervisor.heard("worker process died")
    assert (died["process"], died["code"], died["again_in"]) == (1, -signal.SIGKILL, 1.0)
    until(lambda: children(supervisor)[1] != before[1], "started again")
    assert children(supervisor)[0] == before[0]
    until(lambda: all_hold_something(crew) and health(crew).get("ready"), "both ready again")
    assert crew.flowkit("health", "health", "--state", "state").wait() == 0
    outside.put(500)
    outside.put_last()
    until(lambda: not outside.behind(), "everything is committed")
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert not any(alive(pid) for pid in children(supervisor).values())
    check(outside, crew.directory)
    # What one looks into is the state of all of them.
    look = crew.flowkit("tables", "tables", "list", APP, "--state", "state", "--json")
    assert look.wait() == 0, look.said()
    tables = {row["table"]: row["tasks"] for row in map(json.loads, look.out.read_text().splitlines())}
    assert tables["sums"] == PARTITIONS["events"]
    stores = crew.flowkit("stores", "store", "verify", "state")
    assert stores.wait() == 0, stores.said()
    assert not (crew.directory / "state" / "health.json").exists()
    assert crew.flowkit("health", "health", "--state", "state").wait() == 1


def test_workers_end_with_a_supervisor_that_is_killed(crew: Crew, outside: Outside) -> None:
    supervisor = started(crew)
    until(lambda: all_hold_something(crew), "both at work")
    supervisor.kill()
    until(lambda: not any(alive(pid) for pid in children(supervisor).values()), "the workers are gone")


ENDLESS = """
from pathlib import Path
import flowkit

app = flowkit.App("chain")

class Event(flowkit.Record):
    key: str
    at: int
    value: int

@app.each(app.topic("events", Event, key="key", time="at"))
def compute(event: Event) -> None:
    Path("computing").touch()
    while True:
        pass
"""


def test_a_worker_that_computes_for_ever_ends_with_its_supervisor_after_its_grace(crew: Crew, outside: Outside) -> None:
    (crew.directory / "endless.py").write_text(ENDLESS)
    topics = f"embedded://{crew.directory / 'topics'}"
    words = ("worker", "endless.py", "--broker", topics, "--state", "state", "--processes", "2")
    supervisor = crew.flowkit("supervisor", *words, env={**QUICK, "FLOWKIT_GRACE": "100"})
    outside.put(10)
    until((crew.directory / "computing").exists, "one computes")
    supervisor.kill()
    until(lambda: not any(alive(pid) for pid in children(supervisor).values()), "the workers are gone")


def test_one_state_directory_has_one_supervisor(crew: Crew, outside: Outside) -> None:
    first = started(crew)
    until(lambda: all_hold_something(crew), "both at work")
    words = ["worker", APP, "--broker", f"embedded://{crew.directory / 'topics'}", "--state", "state"]
    words += ["--bind", "ledger=ledger-{partition}.jsonl"]
    for more in (["--processes", "2"], []):
        second = crew.flowkit(f"second {len(more)}", *words, *more, env=QUICK)
        assert second.wait() == 3
        assert f"in use by process {first.pid}" in second.said()
    first.send(signal.SIGTERM)
    assert first.wait() == 0


def test_what_every_start_would_say_again_stops_all(crew: Crew, outside: Outside) -> None:
    supervisor = started(crew, "--bind", "nothing=x.jsonl")
    assert supervisor.wait() == 2
    assert "has no topic or sink 'nothing'" in supervisor.said()
    assert "a worker says that it is configured wrongly: all stop" in supervisor.said()
