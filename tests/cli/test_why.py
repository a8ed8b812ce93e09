"""`flowkit why`: what a window waits for is told by name, with the cure, from state, whoever holds it."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flowkit.cli.show import iso
from flowkit.cli.why_words import reason, say_why
from flowkit.worker import Facts, SplitFacts, TaskFacts, WindowFacts
from tests.cli.place import Place, sale, until

APP = """
import flowkit
from flowkit import *
app = flowkit.App("shop")
class Sale(flowkit.Record):
    user: str
    amount: float
    at: int
class Visit(flowkit.Record):
    user: str
    at: int
sales = app.topic("sales", Sale, key="user", time="at", out_of_order=seconds(5))
visits = app.topic("visits", Visit, key="user", time="at")
totals = app.table("totals", str, int, window=Tumbling(minutes(1)))
sessions = app.table("sessions", str, int, window=Session(seconds(10)), merge=lambda a, b: a + b)
fives = app.table("fives", str, int, window=Count(5))
sliding = app.table("sliding", of=sales, by="user", window=Sliding(minutes(2), every=minutes(1)), n=Count())
plain = app.table("plain", str, int)

@app.each(sales, visits, tables=[totals, sessions, fives, plain])
def add(event: Sale | Visit) -> None:
    totals[event.user] += 1
    sessions[event.user] += 1
    fives[event.user] += 1
    plain[event.user] += 1

@app.each(totals.closed)
def closed(w: Closed[str, int]) -> None:
    pass
"""
STATE = ("--state", "state")
MINUTE = 60_000


def why(place: Place, table: str, *words: str) -> dict[str, Any]:
    done = place.call("why", "app.py", "--window", table, *STATE, "--json", *words)
    assert done.code == 0, done.err
    return json.loads(done.out)  # type: ignore[no-any-return]


@pytest.fixture
def stopped(place: Place) -> Place:
    """The state of a run that was stopped amid its input: `visits`, of a topic that holds the watermark, are behind."""
    place.app(APP)
    place.lines("visits.jsonl", {"user": "ann", "at": 61_000})
    lines = [json.dumps(sale(user, 1.5, at)).encode() for user, at in [("ann", 30_000), ("bob", 62_000)]]
    run = place.spawn(
        "run", "app.py", "--input", "sales=-", "--input", "visits=visits.jsonl", *STATE, stdin=subprocess.PIPE
    )
    assert run.stdin is not None
    run.stdin.write(b"\n".join(lines) + b"\n")
    run.stdin.flush()
    try:
        until(lambda: "bob" in place.call("tables", "scan", "app.py", "plain", *STATE).out)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait(20)  # standard input stays open until then: its end would close the windows
        run.communicate()
    return place


def test_the_splits_the_windows_and_what_they_need_are_told(stopped: Place) -> None:
    (task,) = why(stopped, "totals")["tasks"]
    splits = {split["name"]: split for split in task["splits"]}
    assert splits["sales[0]"]["high"] == 62_000
    assert splits["sales[0]"]["out_of_order"] == 5_000
    assert task["watermark"] == 56_999
    assert [(w["start"], w["end"], w["keys"]) for w in task["windows"]] == [(0, MINUTE, 1), (MINUTE, 2 * MINUTE, 2)]
    assert (task["open"], task["records"], task["late"], task["fired"]) == (2, 3, 0, 0)
    said = stopped.call("why", "app.py", "--window", "totals", *STATE).out
    assert "3 s away" in said
    assert iso(MINUTE - 1) in said
    assert "no worker is running" in said
    assert said.startswith("table totals: tumbling 1 min, app shop")


def test_every_kind_of_window_is_told(stopped: Place) -> None:
    def windows(table: str, *words: str) -> list[tuple[int, int, int]]:
        (task,) = why(stopped, table, *words)["tasks"]
        return [(w["start"], w["end"], w["keys"]) for w in task["windows"]]

    assert windows("sliding") == [(-MINUTE, MINUTE, 1), (0, 2 * MINUTE, 2), (MINUTE, 3 * MINUTE, 1)]
    assert windows("sliding", "--key", "bob") == [(0, 2 * MINUTE, 1), (MINUTE, 3 * MINUTE, 1)]
    assert windows("sessions", "--key", "ann") == [(61_000, 71_000, 1)]  # the first has fired at 56,999
    assert windows("totals", "--key", "bob") == [(MINUTE, 2 * MINUTE, 1)]
    assert windows("totals", "--key", "nobody") == []
    assert windows("fives") == [(30_000, 61_001, 1), (62_000, 62_001, 1)]
    assert "by the number of events of a key" in stopped.call("why", "app.py", "-w", "fives", *STATE).out
    assert "No window of this key is open" in stopped.call("why", "app.py", "-w", "totals", "--key", "x", *STATE).out


def test_after_a_whole_run_there_is_nothing_to_wait_for(place: Place) -> None:
    place.app(APP)
    place.lines("in.jsonl", sale("ann", 1.0, 60_000), sale("bob", 1.0, 200_000), sale("ann", 1.0, 1_000))
    assert place.call("run", "app.py", "--input", "sales=in.jsonl", *STATE).code == 0
    (task,) = why(place, "totals")["tasks"]
    assert (task["windows"], task["late"], task["results"], task["fired"]) == ([], 1, 2, 2)
    assert "all windows have fired" in place.call("why", "app.py", "--window", "totals", *STATE).out


def test_a_running_worker_is_looked_at_through_its_state_and_through_its_server(place: Place) -> None:
    broker = ("--broker", "embedded://topics")
    place.app(APP)
    place.call("topics", "create", "sales", "visits", *broker)
    place.lines("in.jsonl", sale("ann", 1.0, 30_000))
    place.call("topics", "put", "sales", "in.jsonl", "--key", "user", "--time", "at", *broker)
    worker = place.spawn("worker", "app.py", *broker, *STATE, "--http", "0")
    assert worker.stderr is not None
    port = 0
    while not port:
        line = json.loads(worker.stderr.readline())
        port = line["port"] if line["event"] == "serving http" else 0
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: "ann" in place.call("tables", "scan", "app.py", "plain", *STATE).out)
        said = place.call("why", "app.py", "--window", "totals", *STATE)
        assert "Split visits[0] has sent nothing yet, and holds the watermark" in said.out
        assert "Topic 'visits' has no idle_after=: set it" in said.out
        assert "its worker is running" in said.out
        asked = place.call("why", "--window", "totals", "--url", url)
        assert asked.code == 0, asked.err
        assert "Split visits[0] has sent nothing yet" in asked.out
        facts = json.loads(place.call("why", "--window", "totals", "--key", "ann", "--url", url, "--json").out)
        (task,) = facts["tasks"]
        assert [(w["end"], w["keys"]) for w in task["windows"]] == [(MINUTE, 1)]
        heard = {split["name"]: split["heard"] for split in task["splits"]}
        assert heard["visits[0]"] is None
        assert 0 <= facts["now"] - heard["sales[0]"] < 60_000
        wrong = place.call("why", "--window", "total", "--url", url)
        assert (wrong.code, "did you mean 'totals'?" in wrong.err) == (2, True)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=30)
    assert worker.returncode == 0
    gone = place.call("why", "--window", "totals", "--url", url)
    assert gone.code == 2
    assert "is the worker running with --http?" in gone.err


def test_what_cannot_be_is_told(place: Place, tmp_path: Path) -> None:
    place.app(APP)
    for words, told in [
        (["app.py", "--window", "total", *STATE], "has no table 'total'; did you mean 'totals'?"),
        (["app.py", "--window", "xyz", *STATE], "those with windows are: fives, sessions, sliding, totals"),
        (["app.py", "--window", "plain", *STATE], "table 'plain' has no windows"),
        (["app.py", "--window", "totals", "--state", "nowhere"], "nowhere: is no state directory of flowkit"),
        (["app.py", "--window", "totals"], "which state? give --state DIR, or --url"),
        (["--window", "totals"], "which app? give MODULE"),
        (["--window", "totals", "--url", "ftp://x"], "write http://HOST:PORT"),
        (["app.py", *STATE], "Missing option '--window'"),
    ]:
        done = place.call("why", *words)
        assert done.code == 2, words
        assert told in done.err, words
        assert "Traceback" not in done.err


def test_a_state_without_a_commit_is_told_in_words(place: Place) -> None:
    place.app(APP)
    (place.path / "state").mkdir()
    (place.path / "state" / "flowkit.json").write_text('{"format": 1, "app": "shop"}')
    done = place.call("why", "app.py", "--window", "totals", *STATE)
    assert done.code == 0
    assert "Nothing has been committed yet" in done.out


# --- the reason, by the facts -----------------------------------------------------------------------------------------

NOW = 10_000_000


def split(name: str = "a[0]", high: int | None = 100_000, **fields: Any) -> SplitFacts:
    given = {"out_of_order": 0, "idle": False, "ended": False, "heard": NOW, **fields}
    return SplitFacts(name, high, **given)


def reason_of(
    *splits: SplitFacts, watermark: int | None = 99_999, end: int | None = 120_000, close: int | None = None,
    kind: str = "Tumbling(size=60000, offset=0)", late: int = 0, running: bool = True,
) -> str:  # fmt: skip
    windows = [] if end is None else [WindowFacts(end - MINUTE, end, 3)]
    task = TaskFacts("t/0", 7, watermark, list(splits), windows, len(windows), late=late)
    facts = Facts("app", "t", kind, 0, close, NOW, [task], running=running)
    assert reason(task, facts) in say_why(facts)
    return reason(task, facts)


def test_a_silent_split_is_named_with_its_silence_and_the_cure() -> None:
    told = reason_of(split("b[3]", heard=NOW - 12 * MINUTE, holds=True), split("a[0]", 500_000))
    assert told.startswith("Split b[3] holds the watermark and has been silent for 12 min.")
    assert "An event in b[3] at 1970-01-01T00:02:00Z or later brings it out." in told
    assert "Topic 'b' has no idle_after=: set it" in told


def test_every_split_that_is_not_so_far_is_named() -> None:
    told = reason_of(
        split("b[0]", heard=NOW - MINUTE, holds=True), split("a[0]", 110_000, out_of_order=1_000), split("c[0]", 10**6)
    )
    assert (
        "It comes out after events in b[0] at 1970-01-01T00:02:00Z or later, and in a[0] at 1970-01-01T00:02:01Z or "
        "later." in told
    )


def test_a_split_that_has_sent_nothing_is_named() -> None:
    told = reason_of(split("b[0]", None, heard=None, holds=True), split("a[0]"), watermark=None)
    assert told.startswith("Split b[0] has sent nothing yet, and holds the watermark until then.")
    assert "Topic 'b' has no idle_after=: set it" in told


def test_the_only_split_needs_an_event_or_the_clock() -> None:
    told = reason_of(split(heard=NOW - MINUTE, holds=True))
    assert "send one, or set close_after_idle=" in told
    assert "idle_after=: set it" not in told
    told = reason_of(split(heard=NOW - MINUTE, holds=True), close=15_000)
    assert "closes by the clock when all inputs have been silent for 20 s." in told  # 20 s of event time are missing
    told = reason_of(split(heard=NOW - MINUTE, holds=True), close=90_000)
    assert "silent for 1 min 30 s." in told


def test_disorder_is_told_where_it_is_what_holds() -> None:
    told = reason_of(split(high=121_000, out_of_order=5_000, holds=True), watermark=115_999)
    assert "may be out of order by 5 s" in told
    assert "An event in a[0] at 1970-01-01T00:02:05Z or later brings it out." in told


def test_a_split_that_goes_on_is_only_waited_for() -> None:
    told = reason_of(split(holds=True, heard=NOW - 100))
    assert told.startswith("Event time has not come so far: split a[0] holds the watermark.")


def test_when_all_are_idle_the_clock_is_the_cure() -> None:
    told = reason_of(split(idle=True), split("b[0]", idle=True))
    assert "All splits are idle or have ended" in told
    assert "Set close_after_idle=" in told


def test_other_reasons_are_told() -> None:
    assert "no window is open, and records were late" in reason_of(split(holds=True), end=None, late=3).lower()
    assert "everything that came has fired" in reason_of(split(holds=True), end=None)
    assert "being fired" in reason_of(split(holds=True), end=90_000)
    assert "end of a bounded run" in reason_of(split(holds=True), kind="Global()")
