"""Seeded series with labelled windows that resemble what NAB holds beside the files here: made from its descriptions.

Nothing in them was fitted to the real files of these kinds, which were never looked at. A window is centred on its
anomaly and all windows of a series take a tenth of it, as NAB's do.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

START = datetime(2014, 4, 1, tzinfo=UTC)
FIVE_MINUTES = 300
DAY_ROWS = 288


class Series(NamedTuple):
    """Rows (seconds since the epoch, value), and the windows as first and last row."""

    name: str
    times: Sequence[float]
    values: Sequence[float]
    windows: Sequence[tuple[int, int]]


def lookalikes(seed: int) -> Iterator[Series]:
    """One series of each kind; the seed changes noise, places and sizes."""
    for kind, make in KINDS.items():
        yield make(f"like-{kind}", random.Random(f"{seed} {kind}"))


def _series(
    name: str, values: Sequence[float], anomalies: Sequence[int], step: float, gaps: random.Random | None = None
) -> Series:
    rows = len(values)
    at = START.timestamp()
    times = []
    for _ in range(rows):
        times.append(at)
        at += step
        if gaps is not None and gaps.random() < 0.15:
            at += step * gaps.choice([1, 1, 2, 3, 20])
    half = rows // (20 * max(1, len(anomalies)))
    return Series(name, times, values, [(max(0, a - half), min(rows - 1, a + half)) for a in anomalies])


def _times(rows: int, step: float) -> list[datetime]:
    return [START + timedelta(seconds=step * n) for n in range(rows)]


def _day(change: str) -> Callable[[str, random.Random], Series]:
    """Two weeks of a daily plateau; in one day it stays away, jumps up, falls, or goes flat."""

    def make(name: str, rng: random.Random) -> Series:
        day = rng.randint(8, 12)
        low, high, noise = rng.uniform(10, 30), rng.uniform(60, 100), rng.uniform(2, 5)
        values = []
        for row in range(14 * DAY_ROWS):
            today, slot = divmod(row, DAY_ROWS)
            value = high if 108 <= slot < 216 else low
            if today == day:
                if change == "nojump":
                    value = low
                elif change == "jumpsup" and 120 <= slot < 160:
                    value = high * 2
                elif change == "jumpsdown" and 120 <= slot < 160:
                    value = low - 20
                elif change == "flatmiddle" and 108 <= slot < 216:
                    values.append(low)
                    continue
            values.append(value + rng.uniform(-noise, noise))
        return _series(name, values, [day * DAY_ROWS + 60], FIVE_MINUTES)

    return make


def _spike_density(name: str, rng: random.Random) -> Series:
    start = rng.randint(2200, 3400)
    values = []
    for row in range(14 * DAY_ROWS):
        often = row % 36 == 0 if start <= row < start + 200 else row % 144 == 0
        values.append(20.0 if often else 0.0)
    return _series(name, values, [start], FIVE_MINUTES)


def _load_balancer(name: str, rng: random.Random) -> Series:
    start = rng.randint(2200, 3400)
    values = [abs(rng.gauss(0, 0.05)) if rng.random() < 0.93 else rng.uniform(0.2, 1.5) for _ in range(14 * DAY_ROWS)]
    for row in range(start, start + 150):
        if rng.random() < 0.3:
            values[row] = rng.uniform(0.2, 3.0)
    return _series(name, values, [start], FIVE_MINUTES)


def _tweets(name: str, rng: random.Random) -> Series:
    rows = 55 * DAY_ROWS
    anomalies = sorted(rng.sample(range(4000, rows - 800, 900), 4))
    base = rng.choice([3, 20, 60])
    burst = {}
    for _ in range(60):  # what is always going on and nobody labelled
        burst[rng.randrange(rows)] = rng.uniform(1, 3)
    for a in anomalies:
        burst[a] = rng.uniform(8, 40)
    values, going = [], 0.0
    for row, at in enumerate(_times(rows, FIVE_MINUTES)):
        going = going * 0.9 + burst.get(row, 0.0)
        week = 0.7 if at.weekday() >= 5 else 1.0
        rate = base * week * (1 + 0.6 * math.sin((at.hour + at.minute / 60 - 8) / 24 * 2 * math.pi)) * (1 + going)
        rate *= rng.lognormvariate(0, 0.35)
        values.append(float(max(0, round(rng.gauss(rate, math.sqrt(rate + 0.1))))))
    return _series(name, values, anomalies, FIVE_MINUTES)


def _traffic(kind: str) -> Callable[[str, random.Random], Series]:
    def make(name: str, rng: random.Random) -> Series:
        rows = 2400
        anomalies = sorted(rng.sample(range(600, rows - 120, 300), 2))
        jam_rows = {row for a in anomalies for row in range(a, a + rng.randint(5, 20))}
        values = []
        for row, at in enumerate(_times(rows, 600)):
            hour = at.hour + at.minute / 60
            rush = math.exp(-((hour - 8) ** 2) / 2) + math.exp(-((hour - 17) ** 2) / 4)
            rush *= (0.3 if at.weekday() >= 5 else 1.0) * rng.uniform(0.5, 1.2)
            if row in jam_rows:
                rush += rng.uniform(1.5, 3)
            elif rng.random() < 0.004:
                rush += rng.uniform(0.5, 2)
            if kind == "speed":
                values.append(float(round(max(3.0, 72 - 22 * rush + rng.gauss(0, 4)))))
            elif kind == "occupancy":
                values.append(round(max(0.0, 4 + 9 * rush + rng.gauss(0, 2)), 2))
            else:
                values.append(float(round(max(30.0, 180 * (1 + rush) * rng.lognormvariate(0, 0.3)))))
        return _series(name, values, anomalies, 600, gaps=rng)

    return make


def _prices(name: str, rng: random.Random) -> Series:
    rows = 1600
    anomalies = sorted(rng.sample(range(350, rows - 100, 150), 2))
    values = []
    for at in _times(rows, 3600):
        value = 0.1 * (1 + 0.15 * math.sin(at.hour / 24 * 2 * math.pi)) * rng.lognormvariate(0, 0.2)
        values.append(value * (rng.uniform(1.5, 2.2) if rng.random() < 0.005 else 1.0))
    for a in anomalies:
        for row in range(a, a + rng.randint(1, 6)):
            values[row] *= rng.uniform(3, 8)
    return _series(name, values, anomalies, 3600)


def _clean(kind: str) -> Callable[[str, random.Random], Series]:
    """What must stay silent: no window, so every detection only costs."""

    def make(name: str, rng: random.Random) -> Series:
        noise = {"small-noise": 2.0, "no-noise": 0.0, "square-wave": 0.0}.get(kind, 0.0)
        values = []
        for row in range(14 * DAY_ROWS):
            slot = row % DAY_ROWS
            if kind == "flatline":
                values.append(45.0)
            elif kind == "noisy":
                values.append(rng.uniform(17, 23))
            elif kind == "square-wave":
                values.append(80.0 if 108 <= slot < 216 else 20.0)
            else:
                ramp = min(1.0, max(0.0, (slot - 100) / 8), max(0.0, (224 - slot) / 8))
                values.append(20.0 + 60.0 * ramp + rng.uniform(-noise, noise))
        return _series(name, values, [], FIVE_MINUTES)

    return make


KINDS: dict[str, Callable[[str, random.Random], Series]] = {
    **{f"artificial/{change}": _day(change) for change in ("flatmiddle", "jumpsdown", "jumpsup", "nojump")},
    "artificial/spike-density": _spike_density,
    "artificial/load-balancer": _load_balancer,
    **{f"clean/{kind}": _clean(kind) for kind in ("no-noise", "square-wave", "small-noise", "flatline", "noisy")},
    **{f"tweets/{n}": _tweets for n in range(5)},
    **{f"traffic/{kind}": _traffic(kind) for kind in ("speed", "occupancy", "travel-time")},
    **{f"prices/{n}": _prices for n in range(3)},
}
