"""Alerts against the truth."""

from pathlib import Path

import pytest

from services.fraud_detection.measure import Label, measure, read_labels

LABELS = [Label("a", scenario="x"), Label("b", scenario="x"), Label("c", scenario="y")]


def test_alerts_are_counted_once_a_payment() -> None:
    outcome = measure(["a", "a", "z"], LABELS)
    assert (outcome.alerts, outcome.frauds, outcome.caught) == (2, 3, 1)
    assert outcome.precision == 0.5
    assert outcome.recall == pytest.approx(1 / 3)
    assert outcome.f1 == pytest.approx(0.4)
    assert outcome.scenarios == {"x": (1, 2), "y": (0, 1)}


def test_without_alerts_nothing_is_wrong_and_without_frauds_nothing_is_missed() -> None:
    assert measure([], LABELS).precision == 1.0
    assert measure([], LABELS).recall == 0.0
    assert measure(["a"], []).recall == 1.0
    assert measure([], []).f1 == 1.0


def test_labels_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id":"a","at":"2025-03-03T12:00:00Z","scenario":"x"}\n{"id":"b"}\n', encoding="utf-8")
    assert read_labels(path) == [Label("a", "2025-03-03T12:00:00Z", "x"), Label("b", "", "fraud")]
