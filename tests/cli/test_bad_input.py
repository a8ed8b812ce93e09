"""What bad input gets: a clear message or a dead letter, never a traceback of ours, never a hang, nothing else lost."""

import gzip
import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.place import APP, Done, Place, sale, until

GOOD = [sale("ann", 150.0, 0), sale("bob", 2.0, 1_000)]
BIG = [{"user": "ann", "amount": 150.0}]


def run(place: Place, *words: str) -> Done:
    return place.call("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=big.jsonl", *words)


def is_told(done: Done, *parts: str, code: int = 2) -> None:
    """The command failed with this code, in few words that name the thing, without a traceback of ours."""
    assert done.code == code, done
    assert "Traceback" not in done.err
    assert "/flowkit/" not in done.err.replace("/flowkit/cli/test", "")
    for part in parts:
        assert part in done.err, done.err


def letters(place: Place) -> list[Any]:
    return place.read("shop-dead-letters.jsonl")


# --- one record -----------------------------------------------------------------------------------------------------

BAD_LINES: dict[str, tuple[bytes, str, str]] = {
    "malformed": (b'{"user": "ann", \n', "DecodeError", "truncated"),
    "no JSON": (b"hello\n", "DecodeError", "malformed"),
    "another type": (b"[1, 2]\n", "DecodeError", "Expected `object`"),
    "a field of another type": (b'{"user": 5, "amount": 1.0, "at": 0}\n', "DecodeError", "Expected `str`"),
    "a missing field": (b'{"user": "ann", "at": 0}\n', "DecodeError", "amount"),
    "a missing time": (b'{"user": "ann", "amount": 1.0}\n', "DecodeError", "at"),
    "no time": (b'{"user": "ann", "amount": 1.0, "at": null}\n', "DecodeError", "Expected `int`"),
    "a time in the year 70000": (
        b'{"user": "ann", "amount": 1.0, "at": 2147000000000000}\n',
        "TimeError",
        "years 1 to",
    ),
    "a time that is NaN": (b'{"user": "ann", "amount": 1.0, "at": NaN}\n', "DecodeError", "malformed"),
    "a time that is text": (b'{"user": "ann", "amount": 1.0, "at": "noon"}\n', "DecodeError", "Expected `int`"),
    "a number that is no number": (b'{"user": "ann", "amount": NaN, "at": 0}\n', "DecodeError", "malformed"),
    "a NUL byte": (b'{"user": "a\0b", "amount": 1.0, "at": 0}\n', "DecodeError", "invalid"),
    "invalid UTF-8": (b'{"user": "\xff\xfe", "amount": 1.0, "at": 0}\n', "DecodeError", "utf-8"),
    "nested too deeply": (b'{"x": ' + b"[" * 100_000 + b"\n", "DecodeError", "deep"),
}


@pytest.mark.parametrize("line, error, reason", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_becomes_a_dead_letter_and_the_rest_is_done(
    place: Place, line: bytes, error: str, reason: str
) -> None:
    place.app()
    place.lines("in.jsonl", GOOD[0], line, GOOD[1])
    done = run(place, "--output", "reports=reports.jsonl")
    assert done.code == 0, done
    assert "1 dead letter in shop-dead-letters.jsonl" in done.err
    assert place.read("big.jsonl") == BIG
    assert [report["user"] for report in place.read("reports.jsonl")] == ["ann", "bob"]
    (letter,) = letters(place)
    assert (letter["topic"], letter["error"], letter["position"]) == ("sales", error, "in.jsonl:2")
    assert reason.lower() in letter["reason"].lower()


@pytest.mark.parametrize("at", ["noon", "9999-99-99", "70000-01-01T00:00:00Z", "", "2024-01-01T00:00:00"])
def test_a_text_that_is_no_time_becomes_a_dead_letter(place: Place, at: str) -> None:
    place.app(APP.replace("    at: int", "    at: str"))
    place.lines("in.jsonl", sale(at=at), sale("bob", 200.0, "2024-01-01T00:00:00Z"))
    assert run(place).code == 0
    assert [letter["error"] for letter in letters(place)] == ["TimeError"]
    assert place.read("big.jsonl") == [{"user": "bob", "amount": 200.0}]


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1e300, 10**30, True, [], None])
def test_an_absurd_time_of_a_plain_dict_becomes_a_dead_letter(place: Place, at: Any) -> None:
    place.app(
        """
        import flowkit
        app = flowkit.App("shop")
        sales = app.topic("sales", dict, time="at", codec="json")
        big = app.topic("big", dict)
        @app.each(sales, sinks=[big])
        def same(sale: dict) -> dict:
            return sale
        """
    )
    place.lines("in.jsonl", {"at": at}, {"at": 5})
    assert run(place).code == 0
    assert len(letters(place)) == 1
    assert place.read("big.jsonl") == [{"at": 5}]


def test_a_record_of_50_mb_is_a_record_like_any_other(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", GOOD[0], sale("x" * 50_000_000, 1.0, 0), GOOD[1])
    done = run(place, "--output", "reports=reports.jsonl")
    assert done.code == 0, done.err
    assert [len(report["user"]) for report in place.read("reports.jsonl")] == [3, 3, 50_000_000]


def test_a_malformed_line_of_60_mb_becomes_a_dead_letter(place: Place) -> None:
    """In the letter it is longer than a record may be, and `flowkit dlq` once took the letter for a broken one."""
    place.app()
    place.lines("in.jsonl", GOOD[0], b"x" * 60_000_000 + b"\n", GOOD[1])
    assert run(place).code == 0
    assert [letter["position"] for letter in letters(place)] == ["in.jsonl:2"]
    assert place.read("big.jsonl") == BIG
    listed = place.call("dlq", "list", "shop-dead-letters.jsonl")
    assert listed.code == 0
    assert len(listed.out) < 1_000


def test_a_record_beyond_every_measure_becomes_a_dead_letter_that_says_so(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", GOOD[0], b'{"user": "' + b"x" * 70_000_000 + b'"}\n', GOOD[1])
    assert run(place).code == 0
    (letter,) = letters(place)
    assert "too large" in letter["reason"] or "longer than" in letter["reason"], letter["reason"]
    assert place.read("big.jsonl") == BIG


def test_an_event_that_makes_an_agent_fail_becomes_a_dead_letter_with_the_users_lines(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", GOOD[0], sale("bad", -1.0, 500), GOOD[1])
    done = run(place, "--output", "reports=reports.jsonl")
    assert done.code == 0
    (letter,) = letters(place)
    assert (letter["error"], letter["agent"], letter["reason"]) == ("ValueError", "add", "negative amount -1.0")
    assert 'raise ValueError(f"negative amount {sale.amount}")' in letter["traceback"]
    assert [report["user"] for report in place.read("reports.jsonl")] == ["ann", "bob"]


def test_a_bad_csv_line_becomes_a_dead_letter(place: Place) -> None:
    place.app()
    place.write("in.csv", "user,amount,at\nann,150,0\nbob,many,5\nbob,2\n\ncid,3,10\n")
    done = place.call("run", "app.py", "--input", "sales=in.csv", "--output", "reports=reports.csv")
    assert done.code == 0, done.err
    assert [letter["position"] for letter in letters(place)] == ["in.csv:3", "in.csv:4"]
    assert (place.path / "reports.csv").read_text().splitlines()[0] == "user,end,sum"
    assert len((place.path / "reports.csv").read_text().splitlines()) == 3


# --- a file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.txt.gz"])
def test_an_empty_file_is_an_input_without_records(place: Place, name: str) -> None:
    place.app()
    place.write(name, gzip.compress(b"") if name.endswith(".gz") else b"")
    if name == "in.txt.gz":
        place.app(APP.replace('"sales", Sale, key="user", time="at",', '"sales", str, codec="text",'))
        place.app(
            "import flowkit\napp = flowkit.App('shop')\nt = app.topic('sales', str, codec='text')\n"
            "big = app.topic('big', str)\n@app.each(t, sinks=[big])\ndef f(x: str) -> str:\n    return x\n"
        )
    done = place.call("run", "app.py", "--input", f"sales={name}", "--output", "big=big.jsonl")
    assert done.code == 0, done.err
    assert "done: 0 records" in done.err
    assert (place.path / "big.jsonl").read_bytes() == b""


def test_no_such_file_is_told_and_outputs_stay_as_they_were(place: Place) -> None:
    place.app()
    place.write("big.jsonl", "precious\n")
    is_told(run(place), "in.jsonl: no such file")
    assert (place.path / "big.jsonl").read_text() == "precious\n"


def test_a_directory_for_a_file_is_told(place: Place) -> None:
    place.app()
    (place.path / "in.jsonl").mkdir()
    is_told(run(place), "in.jsonl: is a directory")
    place.lines("there.jsonl", *GOOD)
    (place.path / "out.jsonl").mkdir()
    done = place.call("run", "app.py", "--input", "sales=there.jsonl", "--output", "big=out.jsonl")
    is_told(done, "out.jsonl: is a directory")
    (place.path / "dir").mkdir()  # whose name tells no format besides
    is_told(place.call("run", "app.py", "--input", "sales=dir"), "dir: is a directory")
    is_told(place.call("run", "app.py", "--input", "sales=there.jsonl", "--output", "big=dir"), "dir: is a directory")


def test_names_that_tell_no_format_are_told_all_at_once(place: Place) -> None:
    place.app()
    done = place.call(
        "run", "app.py", "--input", "sales=in.parquet", "--output", "big=out.xml", "-o", "reports=no/r.csv"
    )
    is_told(
        done,
        "3 problems",
        "in.parquet: a name must end in one of .jsonl",
        "out.xml: ",
        "no/r.csv: the directory no does not exist",
    )


def test_an_input_that_is_no_place_of_a_bounded_run_is_told_with_those_that_are(place: Place) -> None:
    place.app()
    done = place.call("run", "app.py", "--input", "sales=kinesis://sales")
    is_told(done, "--input sales=kinesis://sales: what a run can read are files, kafka://… and s3://…")
    place.lines("in.jsonl", *GOOD)
    assert place.call("run", "app.py", "--input", f"sales=file://{place.path / 'in.jsonl'}").code == 0


def test_a_format_that_cannot_hold_a_type_is_told_with_what_it_is_for(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    place.write("in.txt", "ann\n")
    is_told(place.call("run", "app.py", "--input", "sales=in.txt"), "input 'sales': codec 'text' needs the type str")
    done = place.call("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=big.txt")
    is_told(done, "output 'big': codec 'text' needs the type str")


def test_a_file_that_no_one_may_read_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD).chmod(0)
    done = as_nobody(place, "run", "app.py", "--input", "sales=in.jsonl")
    is_told(done, "in.jsonl: not readable by this user")


def test_a_broken_archive_is_told_and_what_came_before_is_written(place: Place) -> None:
    place.app()
    lines = b"".join(json.dumps(sale("ann", 150.0, n)).encode() + b"\n" for n in range(20_000))
    place.write("in.jsonl.gz", gzip.compress(lines)[:-2_000])
    done = place.call("run", "app.py", "--input", "sales=in.jsonl.gz", "--output", "big=big.jsonl")
    is_told(done, "in.jsonl.gz")
    assert len(place.read("big.jsonl")) > 1_000


def test_two_csv_columns_of_one_name_are_told(place: Place) -> None:
    place.app()
    place.write("in.csv", "user,amount,user,at\n")
    done = place.call("run", "app.py", "--input", "sales=in.csv")
    is_told(done, "in.csv:1: the header names a column twice: user")


# --- the command line -----------------------------------------------------------------------------------------------


def test_a_topic_that_no_agent_reads_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    done = place.call(
        "run", "app.py", "--input", "unread=in.jsonl", "--input", "nope=in.jsonl", "--output", "sales=x.jsonl"
    )
    is_told(
        done,
        "3 problems",
        "no agent reads topic 'unread' (agents read sales)",
        "has no topic 'nope' (it has big, sales, unread)",
        "no agent writes 'sales'",
    )


def test_words_that_are_no_pairs_are_told(place: Place) -> None:
    place.app()
    done = place.call("run", "app.py", "--input", "in.jsonl", "--input", "=x", "--input", "sales=")
    is_told(done, "3 problems", "--input in.jsonl: write --input TOPIC=FILE")


@pytest.mark.parametrize(
    "words, part",
    [
        (["--batch-size", "0"], "must be at least 1"),
        (["--batch-size", "many"], "Invalid value for '--batch-size'"),
        (["--log-level", "loud"], "log level 'loud': use one of debug, info, warning, error"),
        (["--inptu", "x"], "No such option: --inptu"),
    ],
)
def test_options_that_make_no_sense_are_told(place: Place, words: list[str], part: str) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    is_told(run(place, *words), part)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("import flowkit\nx = = 1\n", ["app.py:2: SyntaxError", "x = = 1"]),
        (
            "import flowkit\nimport not_there\n",
            ["app.py:2: cannot import app.py: ModuleNotFoundError", "import not_there"],
        ),
        ("def f():\n    return y\nf()\n", ["app.py:2: cannot import", "NameError: name 'y'", "app.py:3 in <module>"]),
        ("import sys\nsys.exit('bye')\n", ["app.py:2: leaves Python when it is imported"]),
        ("import flowkit\n", ["app.py: there is no flowkit.App in it"]),
        (
            "import flowkit\na = flowkit.App('a')\nb = flowkit.App('b')\n",
            ["app.py: there are 2 apps in it (a, b)", "say which: app.py:a"],
        ),
        (
            "import flowkit\napp = flowkit.App('a')\n\napp.topic('t', int, key='nope')\n",
            ["app.py:4: 't': key='nope' is no field of int"],
        ),
        ("import flowkit\nflowkit.App('no name')\n", ["app.py:2: 'no name' is no name for an app"]),
        ("raise BaseException('odd')\n", ["app.py:1: cannot import app.py: BaseException: odd"]),
        ("\0", ["app.py", "null bytes"]),
        (b"x = '\xff'\n", ["app.py", "utf-8"]),
    ],
)
def test_an_app_that_does_not_import_is_told_in_the_users_own_lines(
    place: Place, text: str | bytes, parts: list[str]
) -> None:
    place.write("app.py", text)
    done = place.call("run", "app.py", "--input", "sales=in.jsonl")
    is_told(done, *parts)
    assert "importlib" not in done.err


@pytest.mark.parametrize(
    "module, part",
    [
        ("nope.py", "nope.py: no such file"),
        ("nope", "no module named 'nope'"),
        ("shop.nope", "no module named 'shop.nope'"),
        ("shop/app", "shop/app: no such file"),
        ("shop", "there is no flowkit.App in it"),
        ("app", "did you mean"),
        ("app.py:nope", "there is no nope in it (its apps: app)"),
        ("app.py:sales", "sales is a Topic, not a flowkit.App"),
        ("a b", "is no MODULE"),
    ],
)
def test_a_module_that_is_not_there_is_told(place: Place, module: str, part: str) -> None:
    place.app()
    place.write("shop/__init__.py", "")
    if module == "app":
        (place.path / "app.py").rename(place.path / "shop" / "other.py")
        module, part = "shop.app", "no module named 'shop.app'"
    is_told(place.call("run", module, "--input", "sales=in.jsonl"), part)


def test_an_app_that_is_wrong_is_told_all_at_once(place: Place) -> None:
    place.app(APP.replace("tables=[totals, seen], ", ""))
    place.lines("in.jsonl", *GOOD)
    is_told(run(place), "3 problems", "app.py:32: agent 'add': uses table 'totals' without", "uses table 'seen'")


def test_a_resource_that_fails_is_told_with_the_users_line(place: Place) -> None:
    place.app(APP + "\n@app.resource\nasync def client():\n    yield 1 / 0\n")
    place.lines("in.jsonl", *GOOD)
    is_told(run(place), "the app failed: ZeroDivisionError", "in client", "yield 1 / 0", code=1)


def test_settings_that_are_missing_are_told(place: Place) -> None:
    settings = "\nclass S(flowkit.Settings, prefix='SHOP_'):\n    limit: int\n    region: str\nS.load()\n"
    place.app(APP + settings)
    is_told(run(place), "2 problems", "SHOP_LIMIT is not set", "SHOP_REGION is not set")


# --- the state directory --------------------------------------------------------------------------------------------


def test_the_state_directory_of_another_app_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    assert run(place, "--state", "state").code == 0
    place.app(APP.replace('App("shop")', 'App("other")'))
    is_told(run(place, "--state", "state"), "state: belongs to the app 'shop', not to 'other'")


def test_a_state_directory_of_a_newer_format_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    place.write("state/flowkit.json", '{"format": 99, "app": "shop"}')
    is_told(run(place, "--state", "state"), "state: written by a newer flowkit (format 99", "upgrade flowkit")
    is_told(place.call("tables", "list", "app.py", "--state", "state"), "written by a newer flowkit")


def test_a_log_of_a_newer_format_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    assert run(place, "--state", "state").code == 0
    (log,) = (place.path / "state/run").glob("log-*")
    data = bytearray(log.read_bytes())
    data[8:10] = b"\x63\0"
    data[14:18] = zlib.crc32(data[:14]).to_bytes(4, "little")
    log.write_bytes(bytes(data))
    is_told(run(place, "--state", "state"), "format 99", code=3)


def test_a_state_directory_whose_bytes_have_changed_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *[sale("ann", 1.0, n) for n in range(100)])
    assert run(place, "--state", "state", "--commit-every", "10").code == 0
    (log,) = (place.path / "state/run").glob("log-*")
    data = bytearray(log.read_bytes())
    data[100] ^= 0xFF
    log.write_bytes(bytes(data))
    is_told(run(place, "--state", "state"), str(log.relative_to(place.path)), "offset", code=3)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"app": "shop"}'])
def test_a_damaged_label_is_told(place: Place, content: str) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    place.write("state/flowkit.json", content)
    is_told(run(place, "--state", "state"), "flowkit.json: damaged")


def test_a_directory_of_something_else_is_not_taken_for_state(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    place.write("state/holiday.jpg", "")
    is_told(run(place, "--state", "state"), "state: not empty and not a flowkit state directory", "holiday.jpg")
    is_told(run(place, "--state", "in.jsonl"), "in.jsonl: is a file; the state needs a directory")


def test_changed_types_are_told_before_anything_starts(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    assert run(place, "--state", "state").code == 0
    before = (place.path / "big.jsonl").read_bytes()
    place.app(APP.replace("sum: float = 0.0", "sum: list[float] = []").replace("total.sum += sale.amount", "pass"))
    is_told(run(place, "--state", "state"), "table 'totals': stored values have another type", "@totals.migrate(1)")
    assert (place.path / "big.jsonl").read_bytes() == before


def test_a_second_run_on_one_state_directory_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    first = place.spawn("run", "app.py", "--input", "sales=-", "--state", "state", stdin=subprocess.PIPE)
    try:
        until(lambda: (place.path / "state/LOCK").exists() and (place.path / "state/LOCK").read_text())
        is_told(run(place, "--state", "state"), f"state: in use by process {first.pid}", code=3)
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=30)


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(place: Place) -> Any:
    """A file system of 1 MB."""
    disk = place.path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"NOT TESTED: a full disk needs the right to mount one ({made.stderr.decode().strip()})")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_told_and_what_was_committed_is_there(place: Place, small_disk: Path) -> None:
    place.app()
    place.lines("in.jsonl", *[sale(f"user{n}", 150.0, n) for n in range(40_000)])
    words = ("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=disk/big.jsonl")
    is_told(place.call(*words), "disk/big.jsonl: cannot be written", "disk is full: make room", code=3)
    assert len((small_disk / "big.jsonl").read_bytes()) > 100_000


def test_a_full_disk_under_the_state_is_told_and_the_run_goes_on_when_there_is_room(
    place: Place, small_disk: Path
) -> None:
    place.app()
    place.lines("in.jsonl", *[sale(f"user{n % 3_000:0200}", 150.0, n) for n in range(20_000)])
    words = ("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=big.jsonl", "--commit-every", "1000")
    (small_disk / "ballast").write_bytes(b"x" * 500_000)
    is_told(place.call(*words, "--state", "disk/state"), "disk/state/run/log-000001: write failed", "make room", code=3)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    done = place.call(*words, "--state", "disk/state")
    assert done.code == 0, done.err
    again = (place.path / "big.jsonl").read_bytes()
    assert place.call(*words).code == 0
    assert again == (place.path / "big.jsonl").read_bytes()


def test_a_full_standard_output_is_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    with Path("/dev/full").open("wb") as full:
        words = ("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=-")
        done = place.run(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    is_told(done, "standard output cannot be written: No space left", code=3)
    with Path("/dev/full").open("wb") as full:
        done = place.run("explain", "app.py", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    is_told(done, "standard output cannot be written: No space left", code=3)


def test_a_reader_that_has_gone_ends_a_run_without_a_word(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *[sale("ann", 150.0, n) for n in range(20_000)])
    run = place.spawn("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=-")
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.read(10)
    run.stdout.close()
    assert run.wait(30) == 141
    assert run.stderr.read() == b""
    run.stderr.close()


def test_directories_that_may_not_be_written_are_told(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *GOOD)
    words = ("run", "app.py", "--input", "sales=in.jsonl")
    is_told(as_nobody(place, *words, "--output", "big=big.jsonl"), "big.jsonl: cannot be written by this user")
    is_told(as_nobody(place, *words, "--state", "state"), "state: cannot be used as state directory: Permission denied")
    is_told(as_nobody(place, "new", "hello"), "hello: cannot be made: Permission denied")
    is_told(
        as_nobody(place, "topics", "create", "t", "--broker", "embedded://topics"),
        "topics: cannot be used by a broker: Permission denied",
    )


def test_dead_letters_find_a_place_where_nothing_may_be_written(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", GOOD[0], b"nonsense\n")
    done = as_nobody(place, "run", "app.py", "--input", "sales=in.jsonl", "--output", "big=-")
    assert done.code == 0, done.err
    assert json.loads(done.out) == BIG[0]
    where = Path(done.err.rpartition(" in ")[2].strip())
    assert where.stat().st_size > 100
    where.unlink()


WITHOUT_PRIVILEGE = """
import ctypes, os, sys
for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: root's leave to do anything to files
    if ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
        raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.argv[1], sys.argv[1:])
"""


def as_nobody(place: Place, *words: str) -> Done:
    """A command that may not write here; for root's processes, that takes more than the rights of the directory."""
    prefix = [sys.executable, "-c", WITHOUT_PRIVILEGE] if os.getuid() == 0 else []
    place.path.chmod(0o555)
    try:
        return place.run(*words, prefix=prefix)
    finally:
        place.path.chmod(0o755)
