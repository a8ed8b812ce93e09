"""The Numenta Anomaly Benchmark: its files, its scoring, and `python -m tests.benchmarks.nab DIR` for the service.

After Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark" (2015), in
the reading of NAB 1.1's own scorer:

- The first 15% of a file (of at most 5,000 rows) are for learning: nothing counts there.
- A window counts once, by the earliest row in it that reaches the threshold: 1 at its left edge, falling along a
  sigmoid to nearly 0 at its right one. A window without such a row costs `fn`.
- Every row outside all windows that reaches the threshold costs `fp`: in full before the first window or three widths
  behind the last one that has passed, less the nearer it is to that window's end.
- One threshold for the whole corpus, the best for the profile. 0 is a detector that never speaks, 100 a perfect one.
"""

import csv
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from services.anomaly_detection.detector import Detector
from tests.benchmarks.nab_lookalikes import Series, lookalikes

PROBATION = 0.15
PROBATION_ROWS = 5000


class Profile(NamedTuple):
    """What a window found in time, a false alarm and a missed window weigh."""

    tp: float
    fp: float
    fn: float


PROFILES: Mapping[str, Profile] = {
    "standard": Profile(tp=1.0, fp=0.11, fn=1.0),
    "reward_low_FP_rate": Profile(tp=1.0, fp=0.22, fn=1.0),
    "reward_low_FN_rate": Profile(tp=1.0, fp=0.11, fn=2.0),
}
STANDARD = PROFILES["standard"]


class Scored(NamedTuple):
    """A file and a detector's score (0 … 1) of each of its rows. `windows` are first and last rows, both inside."""

    name: str
    scores: Sequence[float]
    windows: Sequence[tuple[int, int]]

    @property
    def category(self) -> str:
        """The directory that the file lies in."""
        return self.name.rpartition("/")[0].rpartition("/")[2]


class Best(NamedTuple):
    """A threshold, and the normalised score that it gives."""

    threshold: float
    score: float


def probation(rows: int) -> int:
    """How many first rows of a file do not count.

    >>> probation(4032), probation(22695)
    (604, 750)
    """
    return min(math.floor(PROBATION * rows), int(PROBATION * PROBATION_ROWS))


def sigmoid(position: float) -> float:
    """The worth of a detection: 1 far before a window's right edge (0), −1 far behind it; in widths of the window.

    >>> [round(sigmoid(position), 5) for position in (-1, -0.5, 0, 1, 3)]
    [0.98661, 0.84828, 0.0, -0.98661, -1.0]
    """
    return -1.0 if position >= 3.0 else 2.0 / (1.0 + math.exp(5.0 * position)) - 1.0


def worths(rows: int, windows: Sequence[tuple[int, int]], profile: Profile) -> list[tuple[float, int | None]]:
    """For each row what a detection there is worth, and the window (its number) that it lies in."""
    found: list[tuple[float, int | None]] = []
    passed: tuple[int, int] | None = None
    coming = 0
    for row in range(rows):
        if coming < len(windows) and row >= windows[coming][0]:
            first, last = windows[coming]
            position = -(last - row + 1) / (last - first + 1)
            found.append((profile.tp * sigmoid(position) / sigmoid(-1.0), coming))
            if row == last:
                passed, coming = windows[coming], coming + 1
            continue
        behind = 3.0
        if passed is not None and passed[1] > passed[0]:
            behind = (row - passed[1]) / (passed[1] - passed[0])
        found.append((profile.fp * sigmoid(behind), None))
    return found


def raw_score(file: Scored, threshold: float, profile: Profile = STANDARD) -> float:
    """What the rows that reach the threshold are worth in one file: at most `tp` a window."""
    start = probation(len(file.scores))
    windows = {n: -profile.fn for n, (_, last) in enumerate(file.windows) if last >= start}
    total = 0.0
    for row, (worth, window) in enumerate(worths(len(file.scores), file.windows, profile)):
        if row < start or file.scores[row] < threshold:
            continue
        if window is None:
            total += worth
        else:
            windows[window] = max(windows[window], worth)
    return total + sum(windows.values())


def normalised(raw: float, corpus: Iterable[Scored], profile: Profile = STANDARD) -> float:
    """A sum of raw scores on the scale from 0 (never speaks) to 100 (perfect).

    Files without a window only cost. Raises ValueError where no file has one: then there is no such scale.
    """
    windows = sum(1 for file in corpus for _, last in file.windows if last >= probation(len(file.scores)))
    if not windows:
        raise ValueError("none of the files has a labelled window: NAB's scale needs one; take more files together")
    return 100.0 * (raw + windows * profile.fn) / (windows * (profile.tp + profile.fn))


def score_at(corpus: Sequence[Scored], threshold: float, profile: Profile = STANDARD) -> float:
    """The corpus' normalised score at a threshold."""
    return normalised(sum(raw_score(file, threshold, profile) for file in corpus), corpus, profile)


def optimise(corpus: Sequence[Scored], profile: Profile = STANDARD) -> Best:
    """The best threshold for the whole corpus, and its score: each row's score is tried, from the highest down.

    Of equally good thresholds it is the highest. 1.1 stands for one that nothing reaches.
    """
    rows: list[tuple[float, int, float, int | None]] = []
    best_of: dict[tuple[int, int], float] = {}
    for number, file in enumerate(corpus):
        start = probation(len(file.scores))
        best_of |= {(number, n): -profile.fn for n, (_, last) in enumerate(file.windows) if last >= start}
        found = worths(len(file.scores), file.windows, profile)
        rows += [(file.scores[row], number, *found[row]) for row in range(start, len(found))]
    rows.sort(key=lambda row: -row[0])
    raw = sum(best_of.values())
    best, best_threshold, at = raw, 1.1, 1.1
    for score, number, worth, window in rows:
        if score != at:
            if raw > best:
                best, best_threshold = raw, at
            at = score
        if window is None:
            raw += worth
        elif worth > best_of[number, window]:
            raw += worth - best_of[number, window]
            best_of[number, window] = worth
    if raw > best:
        best, best_threshold = raw, at
    return Best(best_threshold, normalised(best, corpus, profile))


def load(directory: Path) -> list[Series]:
    """The labelled files below a directory that holds NAB's `combined_windows.json` (or `labels/` and `data/` of it).

    Files that the labels name and the directory lacks are left out: parts of the corpus can be scored alone. Raises
    FileNotFoundError with what to do.
    """
    nested = (directory / "labels" / "combined_windows.json").is_file()
    labels, data = (directory / "labels", directory / "data") if nested else (directory, directory)
    if not (labels / "combined_windows.json").is_file():
        raise FileNotFoundError(
            f"{directory} has no combined_windows.json, nor labels/combined_windows.json: give a directory of NAB's "
            "data (https://github.com/numenta/NAB), as an argument or in FLOWKIT_NAB"
        )
    windows = json.loads((labels / "combined_windows.json").read_text(encoding="utf-8"))
    found = [_file(data, name, windows[name]) for name in sorted(windows) if (data / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{data} has none of the {len(windows)} files that its combined_windows.json names")
    return found


def _file(data: Path, name: str, windows: Sequence[tuple[str, str]]) -> Series:
    with (data / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp() for row in rows]
    row_of = {at: row for row, at in reversed(list(enumerate(times)))}  # of equal times the first, as in NAB
    edges = []
    for pair in windows:
        first, last = (datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() for at in pair)
        if first not in row_of or last not in row_of:
            raise ValueError(
                f"{data / name} has no rows at {pair[0]} and {pair[1]}, as its label wants: another version?"
            )
        edges.append((row_of[first], row_of[last]))
    return Series(name, times, [float(row["value"]) for row in rows], edges)


def detect(series: Series) -> Scored:
    """The service's scores: the detector sees times and values, one after the other, and nothing else."""
    observe = Detector().observe
    scores = [observe(at, value).score for at, value in zip(series.times, series.values, strict=True)]
    return Scored(series.name, scores, series.windows)


def by_chance(series: Series) -> Scored:
    """NAB's random detector."""
    rng = random.Random(series.name)
    return Scored(series.name, [rng.random() for _ in series.values], series.windows)


def held_out(corpus: Sequence[Scored], fold_of: Callable[[int, Scored], object]) -> float:
    """The standard score where each file is scored at the threshold that is best for the other folds."""
    folds: dict[object, list[Scored]] = {}
    for number, file in enumerate(corpus):
        folds.setdefault(fold_of(number, file), []).append(file)
    raw = 0.0
    for fold in folds.values():
        threshold = optimise([file for file in corpus if file not in fold]).threshold
        raw += sum(raw_score(file, threshold) for file in fold)
    return normalised(raw, corpus)


OWN = 0.5
"""The score at the service's own threshold."""


def report(directory: Path) -> None:
    """Print what the README of the service tells."""
    files = load(directory)
    started = time.process_time()
    corpus = [detect(file) for file in files]
    seconds = time.process_time() - started
    rows = sum(len(file.scores) for file in corpus)
    print(f"{len(corpus)} files, {rows:,} values, {rows / seconds:,.0f} values/s of CPU time\n")
    print(f"{'at the threshold of the service':40}" + "".join(f"{name:>20}" for name in PROFILES))
    for category in sorted({file.category for file in corpus}):
        _print(category, [file for file in corpus if file.category == category])
    _print("together", corpus)
    chance = [by_chance(file) for file in files]
    for name, of in (("best threshold (NAB's way)", corpus), ("best threshold of a random detector", chance)):
        print(f"{name:40}" + "".join(f"{optimise(of, profile).score:20.1f}" for profile in PROFILES.values()))
    print("\nstandard, the threshold taken from other files:")
    print(f"{'  from the other categories':40}{held_out(corpus, lambda _, file: file.category):20.1f}")
    print(f"{'  from the other five sixths':40}{held_out(corpus, lambda number, _: number % 6):20.1f}")
    print("\nlook-alikes of other kinds, seeds 11 to 15:")
    alike = [detect(series) for seed in range(11, 16) for series in lookalikes(seed)]
    for category in sorted({file.category for file in alike}):
        _print(category, [file for file in alike if file.category == category])
    _print("together", alike)


def _print(name: str, files: Sequence[Scored]) -> None:
    if not any(file.windows for file in files):
        false = sum(score >= OWN for file in files for score in file.scores[probation(len(file.scores)) :])
        print(f"{'  ' + name:40}{false} false alarms in {len(files)} files")
        return
    print(f"{'  ' + name:40}" + "".join(f"{score_at(files, OWN, profile):20.1f}" for profile in PROFILES.values()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}\nDIR is a directory of NAB's data, with its combined_windows.json.")
    try:
        report(Path(sys.argv[1]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
