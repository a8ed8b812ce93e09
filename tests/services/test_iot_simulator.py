"""The simulated fleet: repeatable, with failures that can be seen and repairs that are announced."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.iot_maintenance import simulator
from services.iot_maintenance.failures import QUIET_DAYS
from services.iot_maintenance.measure import read_labels

DEVICES, DAYS = 100, 6


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[simulator.Files, list[dict[str, Any]]]:
    files = simulator.write(tmp_path_factory.mktemp("fleet"), 5, DEVICES, DAYS)
    return files, [json.loads(line) for line in files.readings.read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_gives_the_same_world_and_another_one_another(tmp_path: Path) -> None:
    worlds = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        files = simulator.write(tmp_path / name, seed, 20, 4)
        worlds.append([path.read_bytes() for path in files[:3]])
    assert worlds[0] == worlds[1] != worlds[2]


def test_readings_come_in_order_and_mostly_all_of_them(fleet: Any) -> None:
    files, rows = fleet
    times = [row["at"] for row in rows]
    assert times == sorted(times)
    assert 0.9 < files.rows / (DEVICES * DAYS * 144) < 1
    assert files.rows == len(rows)


def test_a_device_that_has_failed_says_nothing_until_its_repair_is_told(fleet: Any) -> None:
    files, rows = fleet
    entries = [json.loads(line) for line in files.registry.read_text(encoding="utf-8").splitlines()]
    labels = [label for label in read_labels(files.labels) if label.device]
    assert len(labels) == files.failures >= 3
    for label in labels:
        assert label.onset.timestamp() >= simulator.EPOCH + QUIET_DAYS * 86_400
        between = [r for r in rows if r["device"] == label.device and label.at.isoformat() < r["at"]]
        assert not [r for r in between if datetime.fromisoformat(r["at"]) < label.until]
        states = [(e["state"], e["at"]) for e in entries if e["id"] == label.device]
        assert [state for state, _ in states] == ["running", "maintenance", "running"]
        assert label.at < datetime.fromisoformat(states[1][1]) < datetime.fromisoformat(states[2][1]) == label.until


def test_a_failing_device_differs_from_itself(fleet: Any) -> None:
    files, rows = fleet
    for label in read_labels(files.labels):
        channel = {"bearing": "vibration", "overheating": "temperature"}.get(label.kind)
        if channel is not None:
            own = [(datetime.fromisoformat(r["at"]), r[channel]) for r in rows if r["device"] == label.device]
            before = [value for at, value in own if at < label.onset]
            end = [value for at, value in own if at < label.at][-6:]
            assert sum(end) / 6 > sum(before) / len(before)


@pytest.mark.parametrize("devices,days", [(0, 10), (10, 3)])
def test_what_makes_no_fleet_is_refused(tmp_path: Path, devices: int, days: int) -> None:
    with pytest.raises(ValueError, match="at least 1 device and 4 days"):
        simulator.write(tmp_path, 1, devices, days)
