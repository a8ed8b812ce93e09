"""What is usual for a device, and how far something is from it."""

from random import Random

import pytest

from services.iot_maintenance import detector
from services.iot_maintenance.records import Deviation, Line, Norm, Spread, Usual, at_of


def test_a_norm_follows_the_load() -> None:
    rng, norm = Random(1), Norm()
    for _ in range(100):
        load = rng.uniform(5, 15)
        detector.deviation(norm, 30 + 2 * load, 1.0, load)
    assert detector.expected(norm.heat, 15) == pytest.approx(60, abs=1)
    assert detector.expected(norm.heat, 5) == pytest.approx(40, abs=1)
    assert detector.deviation(norm, 65.0, 1.0, 15)[0] == pytest.approx(5, abs=1)


def test_nothing_is_said_before_a_day_is_known_or_of_what_is_not_measured() -> None:
    norm = Norm()
    said = [detector.deviation(norm, 40.0, None, 1.0) for _ in range(detector.WARM_UP + 1)]
    assert said[:-1] == [(None, None)] * detector.WARM_UP
    assert said[-1][0] == pytest.approx(0.0)
    assert said[-1][1] is None


def test_a_load_that_never_changes_has_no_slope() -> None:
    line = Line()
    for _ in range(50):
        detector.learn(line, 7.0, 40.0, warm=False)
    assert detector.expected(line, 9.0) == pytest.approx(40.0)


def test_a_failure_that_comes_slowly_does_not_become_usual() -> None:
    rng, usual = Random(2), Usual()
    for _ in range(100):
        detector.in_spreads(usual, rng.gauss(0, 1), 0.1)
    known = usual.spread
    scores = [detector.in_spreads(usual, 6 + 0.1 * n + rng.gauss(0, 1), 0.1) for n in range(100)]
    assert min(scores[-50:]) > 7
    assert known < usual.spread < 1.5 * known


def test_a_shift_that_stays_within_the_usual_is_learned() -> None:
    rng, usual = Random(3), Usual()
    scores = [detector.in_spreads(usual, (n > 100) * 1.5 + rng.gauss(0, 1), 0.1) for n in range(600)]
    assert abs(sum(scores[-100:]) / 100) < 0.3


@pytest.mark.parametrize("devices,left", [(6, 1.0), (40, 1.0), (5, 4.0), (0, 4.0)])
def test_weather_is_what_enough_devices_share(devices: int, left: float) -> None:
    assert detector.without_weather(4.0, devices, 3.0) == left
    assert detector.without_weather(None, devices, 3.0) is None


def test_a_new_norm_forgets_the_old_spread() -> None:
    spread = Spread(heat=Usual(100, 5.0, 1.0))
    trend = detector.trend_of(spread, Deviation("d", "s", at_of(0), 50.0, None, 2, since=1))
    assert (trend.score, trend.surges) == (0.0, 2)
    assert spread.heat.count == 1


@pytest.mark.parametrize(
    "value,limit,over", [(2.0, 1.0, True), (1.0, 1.0, False), (None, 1.0, False), (2.0, None, False)]
)
def test_only_what_is_known_is_over_a_limit(value: float | None, limit: float | None, over: bool) -> None:
    assert detector.over_limit(value, limit) is over
