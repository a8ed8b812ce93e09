"""NAB's scoring against scores worked out by hand, and against its anchors: silence is 0, perfection 100."""

import json
import math
import random
from itertools import islice
from pathlib import Path

import pytest

from tests.benchmarks.nab import (
    PROFILES,
    STANDARD,
    Best,
    Profile,
    Scored,
    by_chance,
    detect,
    held_out,
    load,
    optimise,
    probation,
    raw_score,
    score_at,
    sigmoid,
    worths,
)
from tests.benchmarks.nab_lookalikes import Series, lookalikes

ROWS = 1000
WINDOWS = [(400, 449), (700, 749)]
LOW_FP, LOW_FN = PROFILES["reward_low_FP_rate"], PROFILES["reward_low_FN_rate"]


def speaking(*rows: int, windows: list[tuple[int, int]] = WINDOWS, score: float = 1.0, name: str = "a/b") -> Scored:
    return Scored(name, [score if row in rows else 0.0 for row in range(ROWS)], windows)


@pytest.mark.parametrize("profile", PROFILES.values())
def test_silence_is_0_and_the_left_edges_are_100(profile: Profile) -> None:
    assert score_at([speaking()], 0.5, profile) == 0.0
    assert score_at([speaking(400, 700)], 0.5, profile) == pytest.approx(100.0)
    assert optimise([speaking()], profile) == Best(1.1, 0.0)
    best = optimise([speaking(400, 700)], profile)
    assert best.threshold == 1.0
    assert best.score == pytest.approx(100.0)


def test_a_window_counts_once_by_its_earliest_row() -> None:
    late = 2 / (1 + math.exp(-5 * 25 / 50)) - 1  # 25 of 50 rows are left with the row itself
    worth = late / (2 / (1 + math.exp(-5)) - 1)
    assert raw_score(speaking(425, 426, 449), 0.5) == pytest.approx(worth - 1)
    assert raw_score(speaking(401, 425), 0.5) > raw_score(speaking(425), 0.5)


def test_the_last_row_of_a_window_is_worth_a_little() -> None:
    worth, window = worths(ROWS, WINDOWS, STANDARD)[449]
    assert window == 0
    assert worth == pytest.approx((2 / (1 + math.exp(-0.1)) - 1) / sigmoid(-1))
    assert worths(ROWS, WINDOWS, STANDARD)[450][1] is None


def test_false_alarms_cost_by_their_distance_behind_a_window() -> None:
    before, just_behind, a_width_behind = (raw_score(speaking(row), 0.5) + 2 for row in (300, 450, 449 + 49))
    assert before == pytest.approx(-0.11)
    assert just_behind == pytest.approx(0.11 * (2 / (1 + math.exp(5 / 49)) - 1))
    assert a_width_behind == pytest.approx(-0.11 * 0.98661, abs=1e-6)
    assert raw_score(speaking(449 + 3 * 49), 0.5) == pytest.approx(-2.11)
    assert raw_score(speaking(300), 0.5, LOW_FP) == pytest.approx(-2.22)


def test_a_window_missed_costs_by_the_profile() -> None:
    assert [raw_score(speaking(400), 0.5, profile) for profile in PROFILES.values()] == pytest.approx([0, 0, -1])
    assert score_at([speaking(400)], 0.5, LOW_FN) == pytest.approx(50)


def test_the_probation_does_not_count() -> None:
    assert [probation(rows) for rows in (1000, 4032, 5000, 22695)] == [150, 604, 750, 750]
    assert raw_score(speaking(*range(150)), 0.5) == -2.0
    assert raw_score(speaking(150), 0.5) == pytest.approx(-2.11)


def test_files_without_windows_only_cost() -> None:
    quiet, loud = (speaking(*rows, windows=[]) for rows in ((), range(200, 300)))
    found = speaking(400, 700)
    assert score_at([found, quiet], 0.5) == pytest.approx(100)
    assert score_at([found, loud], 0.5) == pytest.approx(100 - 100 * 11 / 4)
    with pytest.raises(ValueError, match="none of the files has a labelled window"):
        score_at([loud], 0.5)


@pytest.mark.parametrize("profile", PROFILES.values())
def test_the_best_threshold_is_the_best_of_all(profile: Profile) -> None:
    rng = random.Random(3)
    corpus = [Scored(f"a/{n}", [round(rng.random() ** 4, 3) for _ in range(300)], [(200, 229)]) for n in range(3)]
    tried = {score: score_at(corpus, score, profile) for file in corpus for score in file.scores}
    best = optimise(corpus, profile)
    assert best.score == pytest.approx(max(0.0, *tried.values()))
    assert best.score == pytest.approx(score_at(corpus, best.threshold, profile))


def test_held_out_files_have_no_say_in_their_threshold() -> None:
    corpus = [speaking(400, 700, score=0.9, name="a/x"), speaking(400, 700, score=0.6, name="b/x")]
    assert held_out(corpus, lambda _, file: file.category) == pytest.approx(50)
    assert optimise(corpus).score == pytest.approx(100)


def test_chance_is_a_little_better_than_silence() -> None:
    alike = [series for series in islice(lookalikes(1), 6) if series.windows]
    assert 0 < optimise([by_chance(series) for series in alike]).score < 30


def test_windows_are_read_by_their_times_and_the_first_of_equal_ones_counts(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    rows = [f"2014-01-01 00:{minute:02}:00,{minute}" for minute in (0, 1, 1, 2, 3)]
    (tmp_path / "real" / "a.csv").write_text("\n".join(["timestamp,value", *rows]), encoding="utf-8")
    windows = {"real/a.csv": [["2014-01-01 00:01:00.000000", "2014-01-01 00:02:00.000000"]], "real/away.csv": []}
    (tmp_path / "combined_windows.json").write_text(json.dumps(windows), encoding="utf-8")
    (found,) = load(tmp_path)
    assert (found.name, list(found.values), found.windows) == ("real/a.csv", [0, 1, 1, 2, 3], [(1, 3)])
    assert detect(found).category == "real"


def test_a_directory_without_labels_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no combined_windows.json.*FLOWKIT_NAB"):
        load(tmp_path)
    (tmp_path / "combined_windows.json").write_text('{"real/a.csv": []}', encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="none of the 1 files"):
        load(tmp_path)


def test_a_label_without_its_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("timestamp,value\n2014-01-01 00:00:00,1\n", encoding="utf-8")
    windows = {"a.csv": [["2014-01-01 00:01:00.000000", "2014-01-01 00:02:00.000000"]]}
    (tmp_path / "combined_windows.json").write_text(json.dumps(windows), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv has no rows at 2014-01-01 00:01:00"):
        load(tmp_path)


def test_the_detector_is_told_times_and_values_only() -> None:
    series = next(iter(lookalikes(1)))
    renamed = Series("other", series.times, series.values, [])
    assert detect(renamed).scores == detect(series).scores
