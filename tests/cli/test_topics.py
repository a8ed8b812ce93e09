"""`flowkit topics`: a broker looked at and fed by hand."""

import json
import signal
import subprocess
import time

import pytest

from flowkit.codec import Envelope, encode_mark
from tests.cli.place import Place, sale, until

BROKER = ("--broker", "embedded://topics")


def test_topics_are_made_fed_listed_and_read(place: Place) -> None:
    place.lines("in.jsonl", *[sale(f"user{n}", 1.0, n * 1000) for n in range(10)])
    assert place.call("topics", "create", "sales", "other", "--partitions", "3", *BROKER).code == 0
    put = place.call("topics", "put", "sales", "in.jsonl", "--key", "user", "--time", "at", *BROKER)
    assert (put.code, put.err) == (0, "10 records put into sales\n")
    listed = place.call("topics", "list", *BROKER)
    assert [line.split() for line in listed.out.splitlines()] == [
        ["TOPIC", "PARTITIONS", "RECORDS"],
        ["other", "3", "0"],
        ["sales", "3", "10"],
    ]
    tail = place.call("topics", "tail", "sales", "-n", "2", *BROKER)
    assert [line.split("\t") for line in tail.out.splitlines()] == [
        ["user8", "1970-01-01T00:00:08Z", json.dumps(sale("user8", 1.0, 8000))],
        ["user9", "1970-01-01T00:00:09Z", json.dumps(sale("user9", 1.0, 9000))],
    ]
    assert len(place.call("topics", "tail", "sales", "-n", "99", *BROKER).out.splitlines()) == 10
    assert place.call("topics", "tail", "sales", "-n", "0", *BROKER).out == ""


def test_records_of_one_key_lie_in_one_partition(place: Place) -> None:
    place.lines("in.jsonl", *[sale(f"user{n % 3}") for n in range(30)])
    place.call("topics", "create", "sales", "-p", "4", *BROKER)
    place.call("topics", "put", "sales", "in.jsonl", "--key", "user", *BROKER)
    rows = [
        json.loads(line)
        for line in place.call("topics", "tail", "sales", "-n", "99", "--json", *BROKER).out.splitlines()
    ]
    assert len({(row["key"], row["partition"]) for row in rows}) == 3
    assert rows[0]["value"] == sale(rows[0]["key"])


def test_records_come_from_standard_input(place: Place) -> None:
    place.call("topics", "create", "sales", *BROKER)
    done = place.run("topics", "put", "sales", *BROKER, stdin=b'{"a": 1}\n{"a": 2}\n')
    assert (done.code, done.err) == (0, "2 records put into sales\n")
    rows = [line.split("\t") for line in place.call("topics", "tail", "sales", *BROKER).out.splitlines()]
    assert [(key, value) for key, _, value in rows] == [("-", '{"a": 1}'), ("-", '{"a": 2}')]


@pytest.mark.parametrize(
    "line, words, told",
    [
        (b"{", ["--key", "user"], "in.jsonl:2: not JSON"),
        (b"{", [], "in.jsonl:2: not JSON"),
        (b'{"a": 1}', ["--key", "user"], "in.jsonl:2: there is no 'user' in {\"a\": 1}"),
        (b"5", ["--key", "user"], "in.jsonl:2: there is no 'user' in 5"),
        (b'{"user": "a", "at": "x"}', ["--time", "at"], "in.jsonl:2: at: 'x' is not ISO 8601"),
    ],
)
def test_a_wrong_line_is_told_and_those_before_it_are_there(
    place: Place, line: bytes, words: list[str], told: str
) -> None:
    place.lines("in.jsonl", sale(), line + b"\n", sale())
    place.call("topics", "create", "sales", *BROKER)
    done = place.call("topics", "put", "sales", "in.jsonl", *words, *BROKER)
    assert done.code == 2
    assert told in done.err
    assert "1 record put into sales" in done.err
    assert "sales  1           1" in place.call("topics", "list", *BROKER).out


def test_any_line_can_be_put_raw(place: Place) -> None:
    place.write("in.jsonl", b"{\n\xff\tx\n")
    place.call("topics", "create", "sales", *BROKER)
    assert place.call("topics", "put", "sales", "in.jsonl", "--raw", *BROKER).code == 0
    rows = place.call("topics", "tail", "sales", *BROKER).out.splitlines()
    assert [row.split("\t")[2] for row in rows] == ["{", r"\xff\tx"]


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["topics", "list", "--broker", "embedded://nowhere"],
            "no broker at embedded://nowhere yet: flowkit topics create",
        ),
        (["topics", "list", "--broker", "kinesis://x/y"], "write kinesis://REGION"),
        (["topics", "list", "--broker", "memory://x"], "lives in one process only"),
        (["topics", "list", "--broker", "topics"], "this is no URL"),
        (["topics", "list"], "Missing option '--broker'"),
        (["topics", "tail", "nope", *BROKER], "no topic 'nope' at embedded://topics (topics: sales)"),
        (["topics", "put", "nope", "in.jsonl", *BROKER], "no topic 'nope'"),
        (["topics", "put", "sales", "none.jsonl", *BROKER], "none.jsonl: no such file"),
        (["topics", "put", "sales", "in.csv", *BROKER], "in.csv: is CSV; put takes JSON lines"),
        (["topics", "create", "a/b", *BROKER], "topic name 'a/b'"),
        (["topics", "create", "sales", "-p", "9", *BROKER], "exists with 1 partitions, not 9"),
        (["topics", "create", "more", "-p", "0", *BROKER], "it takes at least one"),
        (["topics", "list", "--broker", "embedded://in.jsonl"], "no broker at embedded://in.jsonl yet"),
    ],
)
def test_what_cannot_be_is_told(place: Place, words: list[str], told: str) -> None:
    place.lines("in.jsonl", sale())
    place.write("in.csv", "a\n1\n")
    place.call("topics", "create", "sales", *BROKER)
    done = place.call(*words)
    assert done.code == 2, done
    assert told in done.err
    assert "Traceback" not in done.err


def test_a_broker_that_is_damaged_is_told(place: Place) -> None:
    place.write("topics/broker.sqlite3", b"x" * 5000)
    done = place.call("topics", "list", *BROKER)
    assert done.code == 3
    assert "topics/broker.sqlite3: damaged" in done.err


def test_tail_follows_what_is_put(place: Place) -> None:
    place.lines("in.jsonl", sale("ann"))
    place.call("topics", "create", "sales", "-p", "2", *BROKER)
    place.call("topics", "put", "sales", "in.jsonl", "--key", "user", *BROKER)
    tail = place.spawn("topics", "tail", "sales", "--follow", *BROKER)
    assert tail.stdout is not None
    assert tail.stdout.readline().startswith(b"ann\t")
    started = time.monotonic()
    place.lines("in.jsonl", sale("bob"))
    place.call("topics", "put", "sales", "in.jsonl", "--key", "user", *BROKER)
    assert tail.stdout.readline().startswith(b"bob\t")
    assert time.monotonic() - started < 10
    tail.send_signal(signal.SIGINT)
    _, err = tail.communicate(timeout=20)
    assert (tail.returncode, err) == (130, b"")


def test_a_reader_that_has_gone_ends_tail_without_a_word(place: Place) -> None:
    place.lines("in.jsonl", *[sale(f"user{n}") for n in range(20_000)])
    place.call("topics", "create", "sales", *BROKER)
    place.call("topics", "put", "sales", "in.jsonl", *BROKER)
    tail = place.spawn("topics", "tail", "sales", "-n", "20000", *BROKER)
    assert tail.stdout is not None
    tail.stdout.read(10)
    tail.stdout.close()
    _, err = tail.communicate(timeout=20)
    assert (tail.returncode, err) == (141, b"")


def test_the_broker_may_stand_in_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_BROKER", "embedded://topics")
    assert place.call("topics", "create", "sales").code == 0
    assert "sales" in place.call("topics", "list", "--json").out
    monkeypatch.setenv("FLOWKIT_BROKER", "")
    assert place.call("topics", "list").code == 2


def test_put_waits_for_what_comes_slowly(place: Place) -> None:
    place.call("topics", "create", "sales", *BROKER)
    put = place.spawn("topics", "put", "sales", *BROKER, stdin=subprocess.PIPE)
    assert put.stdin is not None
    put.stdin.write(b'{"a": 1}\n')
    put.stdin.flush()
    until(lambda: '{"a": 1}' in place.call("topics", "tail", "sales", *BROKER).out)
    put.communicate(timeout=20)
    assert put.returncode == 0


INTERNAL = b"\n".join(
    [Envelope(dict[str, int]).encode({"n": 1}), encode_mark("from-sales/0", 5_000, 0), encode_mark("x/1", 6_000, 1)]
)


def test_what_a_group_by_sends_on_is_shown_as_what_it_is_and_nothing_is_put_there(place: Place) -> None:
    place.write("in.txt", INTERNAL + b"\n")
    place.lines("in.jsonl", sale())
    place.call("topics", "create", "shop.by-user", "sales", *BROKER)
    assert place.call("topics", "put", "shop.by-user", "in.txt", "--raw", *BROKER).code == 0
    listed = place.call("topics", "list", *BROKER).out.splitlines()
    assert [line.split()[0:4] for line in listed[1:]] == [["sales", "1", "0"], ["shop.by-user", "1", "3", "(internal)"]]
    rows = json.loads(f"[{','.join(place.call('topics', 'list', '--json', *BROKER).out.splitlines())}]")
    assert [row["internal"] for row in rows] == [False, True]
    shown = place.call("topics", "tail", "shop.by-user", *BROKER).out.splitlines()
    assert sorted(line.split("\t")[2] for line in shown) == [
        "(mark: from-sales/0 has come to 1970-01-01T00:00:05Z)",
        "(mark: x/1 has come to 1970-01-01T00:00:06Z, idle)",
        '{"n":1}',
    ]
    tail = place.call("topics", "tail", "shop.by-user", "--json", *BROKER).out.splitlines()
    assert {"n": 1} in [json.loads(line)["value"] for line in tail]
    refused = place.call("topics", "put", "shop.by-user", "in.jsonl", *BROKER)
    assert refused.code == 2
    assert "topic 'shop.by-user' is internal" in refused.err
