"""`flowkit tables`: what is stored, decoded, whoever holds it."""

import json
import signal
import subprocess

import pytest

from tests.cli.place import APP, Place, sale, until

ALL_KINDS = """
import flowkit
from flowkit import *
app = flowkit.App("shop")
class Sale(flowkit.Record):
    user: str
    amount: float
    at: int
class Total(flowkit.Record):
    n: int = 0
sales = app.topic("sales", Sale, key="user", time="at")
plain = app.table("plain", str, int)
pairs = app.table("pairs", tuple[str, int], int)
timed = app.table("timed", str, Total, ttl=minutes(1))
tumbling = app.table("tumbling", str, Total, window=Tumbling(minutes(1)))
session = app.table("session", str, Total, window=Session(seconds(10)), merge=lambda a, b: Total(a.n + b.n))
count = app.table("count", str, Total, window=Count(100))
whole = app.table("whole", str, Total, window=Global())
two_minutes = Sliding(minutes(2), every=minutes(1))
sliding = app.table("sliding", of=sales, by="user", window=two_minutes, n=Count(), sum=Sum("amount"))
declared = app.table("declared", of=sales, by="user", n=Count(), top=TopK("amount", 2), mean=Mean("amount"))

@app.each(sales, tables=[plain, pairs, timed, tumbling, session, count, whole])
def add(sale: Sale) -> None:
    plain[sale.user] += 1
    pairs[(sale.user, 1)] += 1
    timed[sale.user].n += 1
    tumbling[sale.user].n += 1
    session[sale.user].n += 1
    count[sale.user].n += 1
    whole[sale.user].n += 1
"""
STATE = ("--state", "state")


@pytest.fixture
def stopped(place: Place) -> Place:
    """A place with the state of a run that was stopped in the middle: windows are open."""
    place.app(ALL_KINDS)
    lines = [
        json.dumps(sale(user, 1.5, at)).encode() for user, at in [("ann", 60_000), ("bob", 61_000), ("ann", 65_000)]
    ]
    run = place.spawn("run", "app.py", "--input", "sales=-", *STATE, stdin=subprocess.PIPE)
    assert run.stdin is not None
    run.stdin.write(b"\n".join(lines) + b"\n")
    run.stdin.flush()
    try:
        until(lambda: "bob" in place.call("tables", "scan", "app.py", "plain", *STATE).out)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait(20)  # standard input stays open until then: its end would close the windows
        run.communicate()
    assert run.returncode == 143
    return place


def scan(place: Place, table: str) -> list[dict[str, object]]:
    done = place.call("tables", "scan", "app.py", table, *STATE, "--json")
    assert done.code == 0, done.err
    return [{k: v for k, v in json.loads(line).items() if k != "task"} for line in done.out.splitlines()]


def test_every_kind_of_table_is_shown_decoded(stopped: Place) -> None:
    assert scan(stopped, "plain") == [{"key": "ann", "value": 2}, {"key": "bob", "value": 1}]
    assert scan(stopped, "pairs") == [{"key": ["ann", 1], "value": 2}, {"key": ["bob", 1], "value": 1}]
    assert scan(stopped, "timed")[0] == {"key": "ann", "value": {"n": 2}}
    minute = {"start": "1970-01-01T00:01:00Z", "end": "1970-01-01T00:02:00Z"}
    assert scan(stopped, "tumbling")[0] == {"key": "ann", "value": {"n": 2}, **minute}
    assert scan(stopped, "session")[0] == {
        "key": "ann",
        "value": {"n": 2},
        "start": "1970-01-01T00:01:00Z",
        "end": "1970-01-01T00:01:15Z",
    }
    assert scan(stopped, "count")[0]["value"] == {"n": 2}
    assert scan(stopped, "whole") == [{"key": "ann", "value": {"n": 2}}, {"key": "bob", "value": {"n": 1}}]
    assert [(row["key"], row["value"], row["start"]) for row in scan(stopped, "sliding")] == [
        ("ann", {"n": 2, "sum": 3.0}, "1970-01-01T00:00:00Z"),
        ("bob", {"n": 1, "sum": 1.5}, "1970-01-01T00:00:00Z"),
        ("ann", {"n": 2, "sum": 3.0}, "1970-01-01T00:01:00Z"),
        ("bob", {"n": 1, "sum": 1.5}, "1970-01-01T00:01:00Z"),
    ]
    assert scan(stopped, "declared")[0]["value"]["mean"] == 1.5  # type: ignore[index]


def test_tables_are_listed(stopped: Place) -> None:
    rows = [line.split("  ") for line in stopped.call("tables", "list", "app.py", *STATE).out.splitlines()]
    shown = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert shown["tumbling"] == ["str", "tumbling 1 min", "2", "1"]
    assert shown["sliding"] == ["str", "sliding 2 min every 1 min", "4", "1"]
    assert shown["session"] == ["str", "session, gap 10 s", "2", "1"]
    assert shown["plain"] == ["str", "-", "2", "1"]


def test_one_key_is_shown(stopped: Place) -> None:
    done = stopped.call("tables", "get", "app.py", "plain", "ann", *STATE)
    assert (done.code, done.out.split()) == (0, ["KEY", "VALUE", "ann", "2"])
    done = stopped.call("tables", "get", "app.py", "pairs", '["bob", 1]', *STATE)
    assert done.out.splitlines()[1].split() == ['["bob",1]', "1"]
    done = stopped.call("tables", "get", "app.py", "tumbling", "ann", *STATE)
    assert done.out.splitlines()[1].split() == ["ann", "1970-01-01T00:01:00Z", "1970-01-01T00:02:00Z", '{"n":2}']
    done = stopped.call("tables", "get", "app.py", "plain", "nobody", *STATE)
    assert (done.code, done.err) == (1, "table 'plain' has nothing for 'nobody'\n")
    assert "is no key of table 'pairs'" in stopped.call("tables", "get", "app.py", "pairs", "x", *STATE).err


def test_a_table_is_shown_after_a_whole_run(place: Place) -> None:
    place.app(ALL_KINDS)
    place.lines("in.jsonl", sale("ann", 1.0, 60_000), sale("bob", 1.0, 200_000))
    assert place.call("run", "app.py", "--input", "sales=in.jsonl", *STATE).code == 0
    assert scan(place, "plain") == [{"key": "ann", "value": 1}, {"key": "bob", "value": 1}]
    assert scan(place, "timed") == [{"key": "bob", "value": {"n": 1}}]  # ann's was forgotten by the time of bob's
    assert scan(place, "tumbling") == []


def test_values_of_an_older_version_are_shown_migrated(stopped: Place) -> None:
    text = ALL_KINDS.replace(
        'timed = app.table("timed", str, Total, ttl=minutes(1))',
        "class Wide(flowkit.Record):\n    total: int = 0\n    n: int = 0\n"
        'timed = app.table("timed", str, Wide, ttl=minutes(1), version=2)\n'
        "@timed.migrate(1)\ndef wider(old: dict) -> dict:\n    return {'total': old['n'] * 10}\n",
    )
    stopped.app(text)
    assert scan(stopped, "timed")[0] == {"key": "ann", "value": {"total": 20, "n": 0}}
    stopped.app(text.replace("@timed.migrate(1)", ""))
    done = stopped.call("tables", "scan", "app.py", "timed", *STATE)
    assert done.code == 2
    assert "add @timed.migrate(1)" in done.err


def test_what_cannot_be_is_told(place: Place) -> None:
    place.app(APP)
    for words, told in [
        (["list", "app.py", "--state", "nowhere"], "nowhere: is no state directory of flowkit"),
        (["list", "app.py", "--state", "app.py"], "app.py: is no state directory of flowkit"),
        (["list", "app.py"], "Missing option '--state'"),
        (["scan", "app.py", "nope", "--state", "nowhere"], "has no table 'nope' (it has seen, totals)"),
    ]:
        done = place.call("tables", *words)
        assert done.code == 2, words
        assert told in done.err, words
    assert not (place.path / "nowhere").exists()
