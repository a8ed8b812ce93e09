"""The job in the terminal: a simulated fleet or a file of one's own, to a summary and an exit code; simpler rules."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.iot_maintenance import baselines
from services.iot_maintenance.__main__ import days_for
from services.iot_maintenance.series import BadInput, convert, windows_of

ROOT = Path(__file__).parents[2]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.iot_maintenance", *arguments],
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS="120"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_simulated_fleet_ends_with_a_summary_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = call("--devices", "6", "--days", "4", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("6 devices over 4 days", "alerts", "rate", "foreseen", "false alarms"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_large_fleet_is_simulated_for_fewer_days_so_that_it_ends_within_minutes() -> None:
    assert (days_for(300), days_for(1_000), days_for(5_000)) == (10, 10, 6)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rows = [f"2025-03-{3 + n // 96:02} {n // 4 % 24:02}:{n % 4 * 15:02}:00,{40 + n % 5 * 0.3}" for n in range(4 * 96)]
    (tmp_path / "m.csv").write_text(
        "when,degrees\n" + "\n".join(rows) + "\nnever,1\n2025-03-07,nan\n", encoding="utf-8"
    )
    (tmp_path / "w.json").write_text('{"x/m.csv": [["2025-03-05", "2025-03-06"]]}', encoding="utf-8")
    maps = ["--map", "at=when", "--map", "temperature=degrees"]
    done = call("--input", "m.csv", *maps, "--windows", "w.json", "--keep", "kept", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "384 readings of 1 devices in m.csv" in done.stdout
    assert "2 lines left out: line 386" in done.stdout
    assert "0 of 1" in done.stdout
    assert json.loads((tmp_path / "kept" / "registry.jsonl").read_text())["every"] == 900


def test_what_cannot_be_run_is_said_in_a_line(tmp_path: Path) -> None:
    done = call("--input", "missing.csv", cwd=tmp_path)
    assert done.returncode == 1
    assert "missing.csv cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text,given,said",
    [
        ("", [], "which column is the time"),
        ("a,b\n1,2\n", [], "it has a, b"),
        ("at,x\n2025-03-03,1\n", [], "which column is measured"),
        ("at,value\n", [], "it has none"),
        ("at,value\nnever,1\n", [], "no line could be used: line 2"),
        ("at,value\n2025-03-03,1\n", ["temperature=heat"], "no column 'heat'; it has at, value"),
        ("at,value\n2025-03-03,1\n", ["heat=value"], "the fields are at, device"),
    ],
)
def test_a_file_that_does_not_fit_is_told_how(tmp_path: Path, text: str, given: list[str], said: str) -> None:
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        convert(tmp_path / "m.csv", tmp_path, given)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"m.csv": [["never", "2025-03-03"]]}', '{"m.csv": 3}'])
def test_windows_that_do_not_fit_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"no windows of m\.csv"):
        windows_of(tmp_path / "w.json", Path("m.csv"), "m")


def test_simpler_rules_see_limits_and_outliers(tmp_path: Path) -> None:
    entry = {"id": "d", "at": "2025-03-01T00:00:00Z", "state": "running", "max_temperature": 50}
    (tmp_path / "registry.jsonl").write_text(json.dumps(entry) + "\n", encoding="utf-8")
    values = [40 + n % 3 for n in range(300)] + [48, 55]
    rows = [
        {"device": "d", "at": f"2025-03-{3 + n // 144:02}T{n // 6 % 24:02}:{n % 6 * 10:02}:00Z", "temperature": value}
        for n, value in enumerate(values)
    ]
    (tmp_path / "readings.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = baselines.alerts_of(tmp_path)
    assert {name: len(alerts) for name, alerts in found.items()} == {"fixed limits": 1, "own 4 sigmas": 1}
    assert found["own 4 sigmas"][0].at < found["fixed limits"][0].at
