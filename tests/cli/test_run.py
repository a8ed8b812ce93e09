"""`flowkit run` as it is typed: summaries, stops, going on, standard input and output, the bar."""

import gzip
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.place import APP, Place, sale, until

SELF_SIGNAL = """
import os, signal, pathlib
@app.each(sales)
def trip(sale: Sale) -> None:
    if sale.at == 7_000 and not pathlib.Path("tripped").exists():
        pathlib.Path("tripped").touch()
        os.kill(os.getpid(), signal.{signal})
"""
"""An agent that signals its own process, once."""

SALES = [sale(f"user{n % 7}", float(n % 150), n) for n in range(20_000)]
WORDS = ("run", "app.py", "--input", "sales=in.jsonl", "--commit-every", "500")


def test_a_run_says_in_one_line_what_it_did(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", sale("ann", 150.0, 0), sale("bob", 1.0, 200_000), sale("cid", 1.0, 100_000), b"{\n")
    done = place.call("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=big.jsonl")
    assert done.code == 0
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("shop: done: 4 records in 0.")
    assert line.endswith(
        "1 to big, 2 to reports dropped (no --output), 1 late, 1 dead letter in shop-dead-letters.jsonl"
    )


def test_topics_without_input_are_told(place: Place) -> None:
    place.app(APP + "\n@app.each(unread)\ndef look(sale: Sale) -> None: ...\n")
    place.lines("in.jsonl", sale())
    assert "unread taken as empty (no --input)" in place.call("run", "app.py", "--input", "sales=in.jsonl").err


def test_standard_output_holds_records_and_nothing_else(place: Place) -> None:
    place.app()
    done = place.run(
        "run", "app.py", "--input", "sales=-", "--output", "big=-", stdin=json.dumps(sale("ann", 150.0)).encode()
    )
    assert done.code == 0, done.err
    assert done.out == '{"user":"ann","amount":150.0}\n'
    assert len(done.err.splitlines()) == 1


def test_dead_letters_go_where_they_are_bound(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", b"{\n")
    done = place.call("run", "app.py", "--input", "sales=in.jsonl", "--output", "dead-letters=dead.jsonl.gz")
    assert done.code == 0
    assert "1 dead letter in dead.jsonl.gz" in done.err
    assert json.loads(gzip.decompress((place.path / "dead.jsonl.gz").read_bytes()))["position"] == "in.jsonl:1"


def test_dead_letters_of_an_earlier_run_are_not_overwritten(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", b"{\n")
    for name in ("shop-dead-letters.jsonl", "shop-dead-letters-2.jsonl"):
        assert f" in {name}" in place.call("run", "app.py", "--input", "sales=in.jsonl").err


@pytest.mark.parametrize("name", ["pkg/shop.py", "pkg.shop", "pkg.shop:app"])
def test_an_app_is_found_by_path_and_by_name(place: Place, name: str) -> None:
    place.app(name="pkg/shop.py")
    place.lines("in.jsonl", sale())
    assert place.run("run", name, "--input", "sales=in.jsonl").code == 0


def test_a_file_in_a_package_is_imported_as_part_of_it(place: Place) -> None:
    place.write("pkg/__init__.py", "")
    place.write("pkg/names.py", "NAME = 'shop'\n")
    place.app("from .names import NAME\nfrom pkg.names import NAME\n" + APP, name="pkg/shop.py")
    place.lines("in.jsonl", sale())
    assert place.run("run", "pkg/shop.py", "--input", "sales=in.jsonl").code == 0


def test_a_file_may_be_called_like_a_module_of_python(place: Place) -> None:
    place.app(name="apps/json.py")
    place.lines("in.jsonl", sale())
    done = place.run("run", "apps/json.py", "--input", "sales=in.jsonl")
    assert done.code == 0, done.err


# --- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, code, ending",
    [
        ("SIGTERM", 143, "jsonl.gz"),
        ("SIGINT", 130, "jsonl"),
        ("SIGKILL", -9, "jsonl"),
        ("SIGKILL", -9, "jsonl.gz"),
        ("SIGKILL", -9, "csv"),
    ],
)
def test_a_run_that_was_stopped_goes_on_and_its_outputs_are_those_of_an_unbroken_one(
    place: Place, name: str, code: int, ending: str
) -> None:
    place.lines("in.jsonl", *SALES)
    place.app(APP + SELF_SIGNAL.format(signal=name))
    outputs = ("--output", f"big=big.{ending}", "--output", f"reports=reports.{ending}")
    stopped = place.run(*WORDS, *outputs, "--state", "state")
    assert stopped.code == code, stopped.err
    if code > 0:
        assert f"shop: stopped by {name}, committed: " in stopped.err
    went_on = place.call(*WORDS, *outputs, "--state", "state")
    assert went_on.code == 0, went_on.err
    assert "shop: went on and is done: " in went_on.err
    found = {path.name: path.read_bytes() for path in place.path.glob(f"*s.{ending}")}
    assert place.call(*WORDS, *outputs).code == 0
    assert found == {path.name: path.read_bytes() for path in place.path.glob(f"*s.{ending}")}
    assert place.call(*WORDS, *outputs, "--state", "state").err.startswith("shop: nothing left to do")


def test_a_stopped_run_without_state_leaves_whole_files(place: Place) -> None:
    place.lines("in.jsonl", *SALES)
    place.app(APP + SELF_SIGNAL.format(signal="SIGTERM"))
    assert place.run(*WORDS, "--output", "big=big.jsonl.gz").code == 143
    assert len(gzip.decompress((place.path / "big.jsonl.gz").read_bytes()).splitlines()) > 1_000


def test_a_run_that_waits_for_standard_input_commits_and_can_be_stopped(place: Place) -> None:
    place.app()
    run = place.spawn("run", "app.py", "--input", "sales=-", "--output", "big=big.jsonl", stdin=subprocess.PIPE)
    assert run.stdin is not None
    run.stdin.write(json.dumps(sale("ann", 150.0)).encode() + b"\n")
    run.stdin.flush()
    until(lambda: (place.path / "big.jsonl").exists() and (place.path / "big.jsonl").read_bytes())
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=20)
    assert run.returncode == 143
    assert b"stopped by SIGTERM, committed: 1 record" in err


def test_a_second_signal_ends_a_run_that_does_not_listen(place: Place) -> None:
    place.app(
        APP
        + """
import pathlib, asyncio
@app.each(sales)
async def wait(sale: Sale) -> None:
    pathlib.Path("waiting").touch()
    await asyncio.Event().wait()
"""
    )
    place.lines("in.jsonl", sale())
    run = place.spawn("run", "app.py", "--input", "sales=in.jsonl")
    until((place.path / "waiting").exists)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=20)
    assert run.returncode in (-signal.SIGTERM, -signal.SIGINT)


# --- what is shown --------------------------------------------------------------------------------------------------


def on_terminal(place: Place, *words: str) -> tuple[int, str]:
    """Exit code and what a command writes to a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    environment = {**place.environment(), "TERM": "xterm", "COLUMNS": "120"}
    run = subprocess.Popen(
        place.command(*words), cwd=place.path, env=environment, stderr=theirs, stdout=subprocess.PIPE
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    run.communicate(timeout=20)
    return run.returncode, shown.decode()


def test_a_terminal_sees_a_bar_with_rate_and_watermark(place: Place) -> None:
    place.app(APP + "\nimport time\n@app.each(sales)\ndef slow(sale: Sale) -> None:\n    time.sleep(0.0004)\n")
    place.lines("in.jsonl", *SALES[:3_000])
    code, shown = on_terminal(place, *WORDS, "--output", "big=big.jsonl")
    assert code == 0
    assert "━" in shown
    assert "/s" in shown
    assert "watermark 1970-01-01T00:00:" in shown or "watermark 1969-12-31T23:59:5" in shown
    assert "shop: done: 3,000 records" in shown


def test_a_terminal_sees_dead_letters_but_not_a_million_of_them(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", *[b"{\n"] * 500)
    code, shown = on_terminal(place, *WORDS)
    assert code == 0
    assert "in.jsonl:3" in shown
    assert shown.count("dead letter ") < 15
    assert "more of these are counted, but not shown" in shown


def test_a_short_run_shows_no_bar(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", sale())
    _, shown = on_terminal(place, *WORDS, "--output", "big=big.jsonl", "--output", "reports=r.jsonl")
    assert len(shown.splitlines()) == 1, shown


def test_logs_are_json_lines_where_there_is_no_terminal(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", b"{\n")
    done = place.run(*WORDS, "--log-level", "debug")
    *logs, _summary = done.err.splitlines()
    words = [json.loads(line) for line in logs]
    assert {"event": "dead letter", "level": "warning", "position": "in.jsonl:1"}.items() <= words[-1].items() or any(
        word["event"] == "dead letter" for word in words
    )


def test_a_run_of_a_small_file_loads_only_what_it_needs(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", sale())
    code = (
        "import sys; from flowkit.cli import main\n"
        f"assert main({list(WORDS)!r}) == 0\n"
        "heavy = {'rich', 'aiokafka', 'aiobotocore', 'sqlite3', 'sqlglot', 'aiohttp', 'hypothesis', 'river'}\n"
        "print(sorted(heavy & {name for name, module in sys.modules.items() if module is not None}))"
    )
    shown = subprocess.run(
        [*place.command()[:1], "-c", code], cwd=place.path, env=place.environment(), capture_output=True, check=True
    )
    assert shown.stdout.decode().strip() == "[]"


def test_the_version_is_told(place: Place) -> None:
    assert place.call("--version").out.startswith("flowkit ")


def test_help_tells_the_exit_codes(place: Place) -> None:
    for words in (["--help"], ["run", "--help"], ["check", "-h"], ["topics", "put", "--help"]):
        done = place.call(*words)
        assert done.code == 0
        assert "Exit codes" in done.out, words
        assert "wrong usage, configuration or input" in done.out


def test_the_log_level_changes_while_a_run_goes_on(place: Place, tmp_path: Path) -> None:
    place.app()
    log = tmp_path / "log"
    with log.open("wb") as file:
        run = place.spawn("run", "app.py", "--input", "sales=-", stdin=subprocess.PIPE, stderr=file)
        assert run.stdin is not None

        def send(line: bytes) -> None:
            assert run.stdin is not None
            run.stdin.write(line)
            run.stdin.flush()

        send(b"nonsense\n")
        until(lambda: list(place.path.glob("shop-dead-letters.jsonl")))
        assert log.read_bytes() == b""
        run.send_signal(signal.SIGUSR1)  # error -> warning
        send(b"[\n" * 3)
        until(lambda: log.read_bytes().count(b'"dead letter"') == 3)
        run.send_signal(signal.SIGUSR2)
        send(b"]\n" * 3)
        run.communicate(timeout=20)
    assert run.returncode == 0
    assert log.read_bytes().count(b'"dead letter"') == 3


def test_metrics_of_a_run_are_written_at_its_end(place: Place) -> None:
    place.app()
    place.lines("in.jsonl", sale("ann", 150.0, 1_000), sale("bob", 1.0, 200_000), sale("ann", -1.0, 201_000))
    done = place.call("run", "app.py", "--input", "sales=in.jsonl", "--output", "big=big.jsonl", "--metrics", "m.prom")
    assert done.code == 0, done.err
    text = (place.path / "m.prom").read_text()
    assert 'flowkit_records_total{app="shop",task="run",topic="sales"} 3.0\n' in text
    assert 'flowkit_emitted_records_total{app="shop",task="run",topic="big"} 1.0\n' in text
    assert 'flowkit_dead_letters_total{agent="add",app="shop",task="run",topic="sales"} 1.0\n' in text
    assert 'flowkit_window_results_total{app="shop",table="totals",task="run"} 2.0\n' in text
    assert [path.name for path in place.path.glob("m.prom*")] == ["m.prom"]
    done = place.call("run", "app.py", "--input", "sales=in.jsonl", "--metrics", "nowhere/m.prom")
    assert (done.code, "the directory nowhere does not exist" in done.err) == (2, True)
    done = place.call("run", "app.py", "--input", "sales=in.jsonl", "--http", "0.0.0.0:1")
    assert (done.code, "set FLOWKIT_HTTP_TOKEN" in done.err) == (2, True)
