"""The job in the terminal: simulated metrics or files of one's own, to a summary and an exit code."""

import os
import random
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from services.anomaly_detection.records import Alert, Score

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path, module: str = "services.anomaly_detection") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS="120"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def write(path: Path, rows: int = 700, jump: int = 640) -> None:
    rng = random.Random(4)
    start = datetime(2014, 2, 14)  # noqa: DTZ001  # times without a zone, as files have them
    values = [rng.gauss(50, 3) + 90 * (row == jump) for row in range(rows)]
    lines = [f"{start + row * timedelta(minutes=5)},{value}" for row, value in enumerate(values)]
    path.write_text("\n".join(["timestamp,value", *lines]) + "\n", encoding="utf-8")


def test_simulated_metrics_end_with_a_summary_and_leave_nothing_behind(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 simulated series over 14 days (seed 1)" in done.stdout
    assert done.stdout.count("found after") == 5
    assert "alerts on 24,192 values of 6 series" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "cpu.csv")
    with (tmp_path / "in" / "cpu.csv").open("a") as file:
        file.write("2014-02-17 00:00:00,nan\n2014-02-17 00:05:00,1e150\n")
    done = run("--input", "in", "--keep", "kept", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "701 values of 1 series, 2014-02-14 00:00 … 2014-02-17 00:05" in done.stdout
    assert "left out: in/cpu.csv, line 702: value 'nan' is no finite number" in done.stdout
    assert "1 records could not be used" in done.stdout
    found = msgspec.json.Decoder(Alert).decode_lines((tmp_path / "kept" / "alerts.jsonl").read_bytes())
    assert "2014-02-16 05:20" in [f"{alert.timestamp:%Y-%m-%d %H:%M}" for alert in found]
    assert all(alert.name == "cpu" for alert in found)
    assert (tmp_path / "kept" / "scores.jsonl").read_bytes().count(b"\n") == 700
    none = run("--input", "in", "--threshold", "9", cwd=tmp_path)
    assert "0 alerts on 701 values" in none.stdout


def test_flowkit_run_reads_a_bare_csv_file(tmp_path: Path) -> None:
    write(tmp_path / "cpu.csv")
    outputs = ["--output", "scores=scores.jsonl", "--output", "alerts=alerts.jsonl"]
    done = run(
        "run", "services.anomaly_detection.app", "--input", "metrics=cpu.csv", *outputs, cwd=tmp_path, module="flowkit"
    )
    assert done.returncode == 0, done.stderr
    scores = msgspec.json.Decoder(Score).decode_lines((tmp_path / "scores.jsonl").read_bytes())
    assert len(scores) == 700
    assert max(range(700), key=lambda row: scores[row].score) == 640


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--input", "missing.csv"], "missing.csv cannot be read"),
        (["--input", "empty.csv"], "empty.csv is empty"),
        (["--input", "."], "which columns are timestamp"),
        (["--input", "cpu.tsv", "--timezone", "Mars/Phobos"], "no such zone"),
        (["--input", "cpu.tsv", "--threshold", "0"], "--threshold"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
    if "empty.csv" in arguments:
        (tmp_path / "empty.csv").touch()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode > 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches(tmp_path: Path) -> None:
    said = " ".join(run("--help", cwd=tmp_path).stdout.split())
    for word in ("--map timestamp=time", "Without a column `name` each file is a series", "scores.jsonl", "threshold"):
        assert word in said
