"""The job in the terminal: simulated traffic or a file of one's own, to a summary and an exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.fraud_detection.job import Follower
from services.fraud_detection.records import Alert

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS="120")
    return subprocess.run(
        [sys.executable, "-m", "services.fraud_detection", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_simulated_traffic_ends_with_a_summary_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run("--transactions", "3000", "--seed", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("3,000 simulated payments", "alerts", "rate", "precision", "recall", "F1", "caught by scenario"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rows = [f"{n % 3},2025-03-{1 + n // 20:02} {n % 20:02}:00,{10 + n % 7},{int(n == 77)}" for n in range(200)]
    (tmp_path / "tx.csv").write_text("who,when,sum,bad\n" + "\n".join(rows) + "\nnobody,never,1,0\n", encoding="utf-8")
    mapping = ["card=who", "at=when", "amount=sum", "fraud=bad"]
    arguments = [argument for item in mapping for argument in ("--map", item)]
    done = run("--input", "tx.csv", *arguments, "--keep", "kept", "--rules-only", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "200 payments of tx.csv, 2025-03-01 00:00 … 2025-03-10 19:00" in done.stdout
    assert "left out: line 202: at 'never' is no time" in done.stdout
    assert "recall" in done.stdout
    assert (tmp_path / "kept" / "transactions.jsonl").exists()


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--input", "missing.csv"], "missing.csv cannot be read"),
        (["--input", "empty.csv"], "empty.csv is empty"),
        (["--input", "empty.csv", "--timezone", "Mars/Phobos"], "no such zone"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "empty.csv").touch()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_only_whole_lines_of_a_growing_file_are_alerts(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    follower = Follower(path)
    assert follower.new() == []
    line = b'{"id":"a","card":"c","at":"2025-03-03T12:00:00Z","amount":1.0,"score":null,"reasons":["r"]}\n'
    path.write_bytes(line + line[:20])
    assert [alert.id for alert in follower.new()] == ["a"]
    assert follower.new() == []
    path.write_bytes(line + line)
    assert len(follower.new()) == 1
    assert [type(alert) for alert in follower.seen] == [Alert, Alert]
