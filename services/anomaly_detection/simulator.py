"""Seeded metrics of a small shop, with an anomaly of another kind in each: something to look at without own data."""

import math
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

START = datetime(2025, 3, 3, tzinfo=UTC)
STEP = timedelta(minutes=5)
ROWS_A_DAY = 288


class Simulated(NamedTuple):
    """A series; `anomaly` is the first and the last row of what was planted in it, None where nothing was."""

    values: list[float]
    anomaly: tuple[int, int] | None


def simulate(seed: int, days: int) -> Mapping[str, Simulated]:
    """All series, a value each five minutes. The anomalies lie in the last third."""
    return {name: make(random.Random(f"{seed} {name}"), days * ROWS_A_DAY) for name, make in SERIES.items()}


def time_of(row: int) -> datetime:
    """When a row's value was taken."""
    return START + row * STEP


def _place(rng: random.Random, rows: int) -> int:
    return rng.randrange(rows * 7 // 10, rows * 9 // 10)


def _day(row: int) -> float:
    """How busy a time of day is, 0 … 1."""
    return 0.5 - 0.5 * math.cos((row % ROWS_A_DAY) / ROWS_A_DAY * 2 * math.pi)


def _requests(rng: random.Random, rows: int) -> Simulated:
    """A day's rise does not come."""
    noon = _place(rng, rows) // ROWS_A_DAY * ROWS_A_DAY + ROWS_A_DAY // 2
    first, last = noon - 60, noon + 60
    values = [100 + 400 * _day(row) * (0.1 if first <= row <= last else 1) + rng.gauss(0, 15) for row in range(rows)]
    return Simulated(values, (first, last))


def _cpu(rng: random.Random, rows: int) -> Simulated:
    """A level shift."""
    first = _place(rng, rows)
    values = [30 + 10 * _day(row) + (25 if row >= first else 0) + rng.gauss(0, 2) for row in range(rows)]
    return Simulated(values, (first, first + 100))


def _latency(rng: random.Random, rows: int) -> Simulated:
    """A spike amid heavy tails."""
    first = _place(rng, rows)
    values = [rng.lognormvariate(3, 0.3) for _ in range(rows)]
    values[first : first + 3] = [value * 12 for value in values[first : first + 3]]
    return Simulated(values, (first, first + 3))


def _temperature(rng: random.Random, rows: int) -> Simulated:
    """A sensor that is stuck."""
    first, last = (place := _place(rng, rows)), place + 200
    values, here = [], 60.0
    for row in range(rows):
        if not first <= row <= last:
            here += 0.1 * (60 + 8 * _day(row) - here) + rng.gauss(0, 0.4)
        values.append(here)
    return Simulated(values, (first, last))


def _queue(rng: random.Random, rows: int) -> Simulated:
    """Unrest."""
    first = _place(rng, rows)
    values = [50 + rng.gauss(0, 15 if first <= row <= first + 60 else 3) for row in range(rows)]
    return Simulated(values, (first, first + 60))


def _memory(rng: random.Random, rows: int) -> Simulated:
    """Nothing at all."""
    return Simulated([40 + 5 * _day(row) + rng.gauss(0, 1) for row in range(rows)], None)


SERIES: Mapping[str, Callable[[random.Random, int], Simulated]] = {
    "shop/requests": _requests,
    "shop/cpu": _cpu,
    "shop/latency": _latency,
    "cellar/temperature": _temperature,
    "shop/queue": _queue,
    "shop/memory": _memory,
}
