"""The service on the engine: the detector's own scores, whatever crashes and however batches are cut."""

import random
from datetime import timedelta

import pytest

import flowkit
from flowkit.testing import harness
from services.anomaly_detection.app import alerts, app, detectors, metrics, scores, settings
from services.anomaly_detection.detector import TESTS, THRESHOLD, Detector
from services.anomaly_detection.records import Metric, Score
from services.anomaly_detection.simulator import START

MINUTES = timedelta(minutes=5)


def series(rows: int = 700) -> list[Metric]:
    """Two series in turn; one of them jumps near the end."""
    rng = random.Random(1)
    found = []
    for row in range(rows):
        at = START + row * MINUTES
        found.append(Metric(at, rng.gauss(50, 3) + (60 if row >= rows - 60 else 0), "a"))
        found.append(Metric(at, rng.gauss(0, 1), "b"))
    return found


EVENTS = series()


def alone(events: list[Metric]) -> list[Score]:
    """The scores without the engine."""
    known: dict[str, Detector] = {}
    found = []
    for event in events:
        judged = known.setdefault(event.name, Detector()).observe(event.timestamp.timestamp(), event.value)
        found.append(Score(event.timestamp, event.name, event.value, judged.score, judged.surprise))
    return found


@pytest.mark.parametrize("seed", [None, 7, 8])
async def test_crashes_and_cuts_change_no_score(seed: int | None) -> None:
    async with harness(app, seed=seed, crashes=0.02) as h:
        await h.send(metrics, *EVENTS)
        assert bool(h.crashed) == (seed is not None)
        assert h.sent(scores) == alone(EVENTS)
        (alert,) = (alert for alert in h.sent(alerts) if alert.name == "a" and alert.value > 80)
    assert alert.timestamp == START + 640 * MINUTES
    assert alert.low < 50 < alert.high < alert.value
    assert alert.reason.startswith(f"{TESTS[alert.test]}: {alert.value:.6g}, where ")


async def test_what_is_no_value_goes_to_the_dead_letters_and_is_not_learned() -> None:
    good = b'{"timestamp":"2025-03-03T00:00:00Z","value":1.5,"name":"a"}'
    bad = [
        good.replace(b"1.5", b"1e200"),
        good.replace(b"1.5", b"null"),
        good.replace(b"1.5", b'"NaN"'),
        good.replace(b',"value":1.5', b""),
        good.replace(b"2025-03-03T00:00:00Z", b"never"),
        b"{",
    ]
    async with harness(app) as h:
        await h.send(metrics, good, *bad, good)
        assert len(h.sent(scores)) == 2
        assert [letter.value for letter in h.sent(app.dead_letters)] == bad
        assert h.table(detectors)["a"].seen == 2


async def test_a_series_without_a_name_and_times_without_a_zone() -> None:
    async with harness(app) as h:
        await h.send(metrics, b'{"timestamp":"2025-03-03 09:00:00","value":1}')
        (score,) = h.sent(scores)
        assert (score.name, score.timestamp) == ("metric", START + timedelta(hours=9))
        assert list(h.table(detectors)["metric"].slots) == [36]


async def test_the_threshold_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with harness(app):
        assert settings().threshold == THRESHOLD
    monkeypatch.setenv("ANOMALY_THRESHOLD", "99")
    async with harness(app) as h:
        await h.send(metrics, *EVENTS)
        assert h.sent(alerts) == []
        assert max(score.surprise for score in h.sent(scores)) > THRESHOLD


async def test_a_threshold_that_everything_reaches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_THRESHOLD", "0")
    with pytest.raises((ValueError, flowkit.FlowkitError), match="a surprise is above 0"):
        async with harness(app) as h:
            await h.send(metrics, *EVENTS[:2])
