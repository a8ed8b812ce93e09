"""`flowkit dlq`: dead letters listed, shown, and sent round again."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from flowkit.codec import Envelope
from flowkit.record import DeadLetter
from tests.cli.place import APP, Done, Place, sale

LETTERS = "shop-dead-letters.jsonl"
BROKER = ("--broker", "embedded://topics")


@pytest.fixture
def letters(place: Place) -> Place:
    """A place with three dead letters: a malformed line, and two that make the agent fail."""
    place.app()
    place.lines("in.jsonl", b'{"user": "ann"\n', sale("bob", -1.0, 5_000), sale(), sale("cid", -2.0, 6_000))
    assert place.call("run", "app.py", "--input", "sales=in.jsonl").code == 0
    return place


def test_dead_letters_are_listed_with_number_place_and_reason(letters: Place) -> None:
    done = letters.call("dlq", "list", LETTERS)
    assert done.code == 0
    rows = done.out.splitlines()
    assert rows[0].split() == ["N", "TOPIC", "POSITION", "ERROR", "REASON"]
    assert rows[1].split(maxsplit=4) == ["1", "sales", "in.jsonl:1", "DecodeError", "Input data was truncated"]
    assert rows[2].split(maxsplit=4) == ["2", "sales", "in.jsonl:2", "ValueError", "negative amount -1.0"]
    assert len(rows) == 4
    assert letters.call("dlq", "list", LETTERS, "--topic", "other").out == "no dead letters\n"


def test_one_is_shown_whole(letters: Place) -> None:
    done = letters.call("dlq", "show", "2", LETTERS)
    assert done.code == 0
    for part in (
        "topic      sales",
        "position   in.jsonl:2",
        "time       1970-01-01T00:00:05Z",
        "agent      add",
        "attempts   1 attempt",
        "error      ValueError: negative amount -1.0",
        'value      {"user": "bob", "amount": -1.0, "at": 5000}',
        "app.py",
        'raise ValueError(f"negative amount {sale.amount}")',
    ):
        assert part in done.out, part
    assert "/flowkit/worker/" not in done.out  # how the agent was called is of no use to its author
    assert "no agent saw it" in letters.call("dlq", "show", "1", LETTERS).out


def test_lines_are_replayed_as_they_were(letters: Place) -> None:
    done = letters.call("dlq", "replay", LETTERS, "--output", "sales=again.jsonl")
    assert (done.code, done.err) == (0, "3 records of sales written to again.jsonl\n")
    assert (letters.path / "again.jsonl").read_bytes().splitlines() == [
        b'{"user": "ann"',
        json.dumps(sale("bob", -1.0, 5_000)).encode(),
        json.dumps(sale("cid", -2.0, 6_000)).encode(),
    ]
    letters.app(APP.replace("if sale.amount < 0:", "if False:"))
    done = letters.call("run", "app.py", "--input", "sales=again.jsonl", "--output", "reports=reports.jsonl")
    assert [report["user"] for report in letters.read("reports.jsonl")] == ["bob", "cid"]


def test_some_of_them_are_replayed_to_standard_output(letters: Place) -> None:
    done = letters.call("dlq", "replay", LETTERS, "-N", "3", "-N", "2", "--output", "sales=-")
    assert [json.loads(line)["user"] for line in done.out.splitlines()] == ["cid", "bob"]


def test_a_line_of_csv_gets_its_header_back(place: Place) -> None:
    place.app()
    place.write("in.csv", "user,amount,at\nann,many,0\nbob,1,1\n")
    place.call("run", "app.py", "--input", "sales=in.csv")
    assert place.call("dlq", "replay", LETTERS, "--output", "sales=again.csv").code == 0
    assert (place.path / "again.csv").read_text() == "user,amount,at\nann,many,0\n"
    (place.path / "in.csv").unlink()
    done = place.call("dlq", "replay", LETTERS, "--output", "sales=more.csv")
    assert done.code == 2
    assert "give --header LINE" in done.err
    done = place.call("dlq", "replay", LETTERS, "--output", "sales=more.csv", "--header", "a,b,c")
    assert (place.path / "more.csv").read_text() == "a,b,c\nann,many,0\n"


def test_letters_go_back_to_their_topic_with_key_and_time(letters: Place) -> None:
    letters.call("topics", "create", "sales", *BROKER)
    done = letters.call("dlq", "replay", LETTERS, "--to", "embedded://topics")
    assert (done.code, done.err) == (0, "3 records put back into sales\n")
    rows = [line.split("\t") for line in letters.call("topics", "tail", "sales", *BROKER).out.splitlines()]
    assert ["-", "1970-01-01T00:00:05Z", json.dumps(sale("bob", -1.0, 5_000))] in rows


def test_nothing_is_put_if_a_topic_is_missing(letters: Place) -> None:
    letters.call("topics", "create", "other", *BROKER)
    done = letters.call("dlq", "replay", LETTERS, "--to", "embedded://topics")
    assert done.code == 2
    assert "no topic 'sales'" in done.err


def test_what_a_table_sent_is_left_out(place: Place) -> None:
    place.app(APP.replace("return Report(", "raise KeyError('no report')\n    return Report("))
    place.lines("in.jsonl", sale("ann"), b"{\n")
    place.call("run", "app.py", "--input", "sales=in.jsonl")
    listed = place.call("dlq", "list", LETTERS).out
    assert "totals.closed" in listed
    done = place.call("dlq", "replay", LETTERS, "--output", "sales=again.jsonl")
    assert "1 dead letter of totals.closed left out: what a table sends is no record of a topic" in done.err
    assert (place.path / "again.jsonl").read_bytes() == b"{\n"


def test_letters_of_topics_without_output_are_told(letters: Place) -> None:
    done = letters.call("dlq", "replay", LETTERS, "--output", "other=again.jsonl")
    assert done.code == 0
    assert "3 dead letters of sales left out: there is no --output sales=FILE" in done.err


@pytest.mark.parametrize("words", [["--state", "state"], ["state"], ["state/dead-letters.jsonl"]])
def test_letters_are_found_in_a_state_directory(place: Place, words: list[str]) -> None:
    place.app()
    place.lines("in.jsonl", b"{\n")
    place.call("run", "app.py", "--input", "sales=in.jsonl", "--state", "state")
    assert "in.jsonl:1" in place.call("dlq", "list", *words).out


def test_letters_are_found_on_a_broker(letters: Place) -> None:
    assert letters.call("dlq", "list", *BROKER).code == 2
    letters.call("topics", "create", "sales", *BROKER)
    assert letters.call("dlq", "list", *BROKER).out == "no dead letters\n"
    letters.call("topics", "create", "dead-letters", *BROKER)
    letters.call("topics", "put", "dead-letters", LETTERS, *BROKER)
    assert len(letters.call("dlq", "list", *BROKER).out.splitlines()) == 4
    done = letters.call("dlq", "replay", *BROKER, "--to", "embedded://topics", "-N", "2")
    assert done.err == "1 record put back into sales\n"


def test_letters_come_from_standard_input(letters: Place) -> None:
    done = letters.run("dlq", "list", "-", stdin=(letters.path / LETTERS).read_bytes())
    assert len(done.out.splitlines()) == 4


@pytest.mark.parametrize(
    "words, told",
    [
        (["list"], "which dead letters? name a file"),
        (["list", "none.jsonl"], "none.jsonl: no such file"),
        (["list", "in.jsonl"], "in.jsonl:1: is no dead letter"),
        (["list", "--state", "nowhere"], "nowhere: no such directory"),
        (["show", "9", LETTERS], "there is no dead letter 9: there are 3"),
        (["show", "0", LETTERS], "Invalid value for 'N'"),
        (["replay", LETTERS], "where should they go?"),
        (["replay", LETTERS, "--output", "sales"], "write --output TOPIC=FILE"),
        (["replay", LETTERS, "--output", "sales=x.zip"], "x.zip: a name must end in"),
        (["replay", LETTERS, "--to", "embedded://nowhere"], "no broker at embedded://nowhere"),
    ],
)
def test_what_cannot_be_is_told(letters: Place, words: list[str], told: str) -> None:
    done: Done = letters.call("dlq", *words)
    assert done.code == 2, done
    assert told in done.err
    assert not Path("nowhere").exists()


def test_a_letter_of_an_internal_topic_is_shown_and_goes_back_only_to_its_broker(place: Place) -> None:
    value = Envelope(dict[str, int]).encode({"n": 1})
    letter = DeadLetter(
        "shop.by-user", 0, 7, "shop.by-user[0] offset 7", b"ann", value, 5_000, "KeyError", "no", "", "a", 1
    )
    place.write("letters.jsonl", msgspec.json.encode(letter) + b"\n")
    assert re.search(r'value +{"n":1}', place.call("dlq", "show", "1", "letters.jsonl").out)
    left = place.call("dlq", "replay", "letters.jsonl", "--output", "shop.by-user=again.jsonl")
    assert "1 dead letter of shop.by-user left out: an internal topic; use --to URL" in left.err
    place.call("topics", "create", "shop.by-user", *BROKER)
    assert place.call("dlq", "replay", "letters.jsonl", "--to", "embedded://topics").code == 0
    assert '{"n":1}' in place.call("topics", "tail", "shop.by-user", *BROKER).out
