"""The detector on seeded series: what each test is for is found, clean noise is not, and its memory stays small."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from services.anomaly_detection.detector import (
    ESCALATION,
    HOLD,
    LONGEST_HOLD,
    MEMORY,
    TESTS,
    Detector,
    Judgement,
)
from services.anomaly_detection.simulator import time_of

DAY = 288
ROWS = 8 * DAY
AT = 6 * DAY + 150


def busy(row: int) -> float:
    return 100 + 40 * math.sin(row / DAY * 2 * math.pi)


def noise(seed: int, rows: int = ROWS, spread: float = 4.0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, spread) for _ in range(rows)]


def seasonal(seed: int) -> list[float]:
    return [busy(row) + off for row, off in enumerate(noise(seed))]


def level(seed: int) -> list[float]:
    return [50 + off for off in noise(seed)]


def judge(values: Sequence[float]) -> list[Judgement]:
    detector = Detector()
    return [detector.observe(time_of(row).timestamp(), value) for row, value in enumerate(values)]


def alerts(values: Sequence[float]) -> list[int]:
    return [row for row, judgement in enumerate(judge(values)) if judgement.alert]


def shifted(values: list[float]) -> list[float]:
    return [value + (40 if row >= AT else 0) for row, value in enumerate(values)]


def spiked(values: list[float]) -> list[float]:
    return [value * (4 if row == AT else 1) for row, value in enumerate(values)]


def unsettled(values: list[float]) -> list[float]:
    return [50 + (value - 50) * (5 if AT <= row < AT + 60 else 1) for row, value in enumerate(values)]


def stuck(values: list[float]) -> list[float]:
    return [values[AT] if AT <= row < AT + 100 else value for row, value in enumerate(values)]


def dead(values: list[float]) -> list[float]:
    return [0.0 if AT <= row < AT + 100 else value for row, value in enumerate(values)]


def day_off(values: list[float]) -> list[float]:
    """The busy half of the day does not come."""
    return [value - (busy(row) - 100) if 6 * DAY <= row < 7 * DAY else value for row, value in enumerate(values)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "clean,change,within",
    [
        (level, shifted, 5),
        (seasonal, shifted, 5),
        (level, spiked, 1),
        (seasonal, spiked, 1),
        (level, unsettled, 20),
        (seasonal, stuck, 40),
        (seasonal, dead, 5),
    ],
)
def test_an_anomaly_is_found_soon(seed: int, clean: object, change: object, within: int) -> None:
    assert callable(clean)
    assert callable(change)
    found = alerts(change(clean(seed)))
    assert any(AT <= row < AT + within for row in found), found


def test_a_day_without_its_rise_is_found_by_the_time_of_day_alone() -> None:
    """All its values are ordinary ones; they come at the wrong time."""
    values = day_off(seasonal(1))
    assert min(seasonal(1)[: 6 * DAY]) < min(values[6 * DAY : 7 * DAY])
    found = [(row, judgement.test) for row, judgement in enumerate(judge(values)) if judgement.alert]
    assert any(6 * DAY <= row < 7 * DAY and test.startswith("time of day") for row, test in found), found


def test_clean_seasonal_noise_is_silent() -> None:
    assert alerts(seasonal(12)) == []


@pytest.mark.parametrize("clean,most", [(level, 2.0), (seasonal, 0.7)])
def test_clean_noise_raises_few_false_alarms_and_none_at_a_higher_threshold(clean: object, most: float) -> None:
    """By chance something is rare now and then. `most` is in a thousand values; 3.5 is below what a shift reaches."""
    assert callable(clean)
    judged = [judgement for seed in range(11, 16) for judgement in judge(clean(seed))]
    assert sum(judgement.alert for judgement in judged) < most * len(judged) / 1000
    assert max(judgement.surprise for judgement in judged) < 3.5
    assert max(judgement.surprise for judgement in judge(shifted(clean(11)))) > 3.5


@pytest.mark.parametrize(
    "values",
    [
        [45.0] * ROWS,
        [busy(row) for row in range(ROWS)],
        [80.0 if 100 <= row % DAY < 200 else 20.0 for row in range(ROWS)],
    ],
    ids=["flat", "sine", "square"],
)
def test_what_never_changes_its_ways_is_silent(values: list[float]) -> None:
    assert alerts(values) == []


def test_an_anomaly_that_lasts_is_one_alert() -> None:
    found = alerts(shifted(level(1)))
    around = [row for row in found if row >= AT]
    assert around[0] < AT + 5
    assert all(later - earlier >= HOLD for earlier, later in pairwise(around))


def test_what_is_much_rarer_still_is_another_alert() -> None:
    values = shifted(level(1))
    values[AT + 60] = 1e6
    judged = judge(values)
    first, second = (row for row in range(AT, AT + HOLD) if judged[row].alert)
    assert (first, second) == (AT, AT + 60)
    assert judged[second].surprise >= judged[first].surprise + ESCALATION


def test_within_an_alert_scores_are_halved_and_below_the_threshold() -> None:
    judged = judge(shifted(level(1)))
    assert judged[AT].score > 0.5
    assert all(judgement.score < 0.5 for judgement in judged[AT + 1 : AT + HOLD])
    assert all((judgement.score >= 0.5) == judgement.alert for judgement in judged)
    assert all(0 <= judgement.score <= 1 for judgement in judged)


def test_the_hold_grows_with_the_series_to_a_bound() -> None:
    young, old = Detector(), Detector()
    for row, value in enumerate(noise(1, 12_000)):
        old.observe(300.0 * row, value)
        if row < 2000:
            young.observe(300.0 * row, value)
    for detector, hold in ((young, HOLD), (old, LONGEST_HOLD)):
        detector.held_until = 0
        assert detector.observe(0.0, 1e9).alert
        assert detector.held_until - detector.seen + 1 == hold


def test_an_alert_tells_what_was_expected() -> None:
    found = judge(spiked(seasonal(1)))[AT]
    assert found.expected == pytest.approx(busy(AT), abs=8)
    assert found.low < found.expected < found.high < 4 * busy(AT)
    assert found.test in TESTS


def test_a_higher_threshold_is_fewer_alerts_and_the_same_surprises() -> None:
    low, high = Detector(), Detector()
    pairs = [(low.observe(0.0, value, 2.0), high.observe(0.0, value, 3.5)) for value in shifted(level(2))]
    assert [a.surprise for a, _ in pairs] == [b.surprise for _, b in pairs]
    assert sum(a.alert for a, _ in pairs) > sum(b.alert for _, b in pairs) >= 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e101])
def test_what_is_no_number_is_refused_and_not_learned(value: float) -> None:
    detector = Detector()
    detector.observe(0.0, 1.0)
    before = msgspec.msgpack.encode(detector)
    with pytest.raises(ValueError, match="no finite number"):
        detector.observe(300.0, value)
    assert msgspec.msgpack.encode(detector) == before


def test_extreme_numbers_are_judged() -> None:
    rng = random.Random(5)
    judged = judge([rng.choice([-1, 1]) * 10.0 ** rng.randint(-99, 99) for _ in range(1000)] + [0.0, 5e-324] * 100)
    assert all(math.isfinite(part) for judgement in judged for part in (judgement.surprise, judgement.score))


def test_a_hundred_thousand_values_leave_memory_and_alerts_as_they_were() -> None:
    rng = random.Random(7)
    detector = Detector()
    sizes, found = [], []
    for row in range(100_000):
        if detector.observe(300.0 * row, 5 * busy(row) + rng.paretovariate(2)).alert:
            found.append(row)
        if row in (20_000, 99_999):
            sizes.append(len(msgspec.msgpack.encode(detector)))
    assert sizes[1] < 8_000
    assert sizes[1] < 1.2 * sizes[0]
    assert detector.counted < MEMORY
    early, late = (sum(first <= row < first + 30_000 for row in found) for first in (10_000, 70_000))
    assert late <= 1.5 * early


def test_a_restored_detector_goes_on_as_the_first_one() -> None:
    values = shifted(seasonal(4))
    detector = Detector()
    for row, value in enumerate(values[:1000]):
        detector.observe(300.0 * row, value)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(detector), type=Detector)
    for row, value in enumerate(values[1000:], 1000):
        assert detector.observe(300.0 * row, value) == again.observe(300.0 * row, value)
