"""How simulated machines fail: what is seen before, and when it is over."""

from random import Random
from typing import NamedTuple

from services.iot_maintenance.fleet import DAY, HOUR

QUIET_DAYS = 3.0
"""A fleet is put up and looked at for so long before anything begins to fail."""


class Failure(NamedTuple):
    """Trouble that begins at `onset` and ends at `at` (seconds) with silence; `size` is how much shows at the end."""

    kind: str
    onset: float
    at: float
    size: float
    stopped: float
    repaired: float


SHARES = {"bearing": 0.3, "overheating": 0.24, "electrical": 0.2, "sudden": 0.13, "sensor": 0.13}
LASTS = {"bearing": (40, 130), "overheating": (12, 48), "electrical": (12, 44)}
"""Hours from the first trace to the end. Of the other two nothing is seen before."""

FORESEEABLE = frozenset(LASTS)


def draw(rng: Random, days: int) -> Failure | None:
    """A failure of one device, or None if it does not fit into the days."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    lasts = rng.uniform(*LASTS.get(kind, (0, 0))) * HOUR
    free = (days - QUIET_DAYS) * DAY - lasts
    if free <= 0:
        return None
    onset = QUIET_DAYS * DAY + rng.random() * free
    at = onset + lasts
    size = {"bearing": (0.25, 1.8), "overheating": (7, 30), "electrical": (0.12, 0.7)}.get(kind, (0, 0))
    stopped = at + rng.uniform(2, 10) * HOUR
    return Failure(kind, onset, at, rng.uniform(*size), stopped, stopped + rng.uniform(4, 30) * HOUR)


def ail(
    rng: Random, failure: Failure, at: float, rated: float, values: tuple[float, float, float]
) -> tuple[float, float, float]:
    """What the machine's values become on its way to the failure."""
    temperature, vibration, current = values
    done = (at - failure.onset) / (failure.at - failure.onset) if failure.at > failure.onset else 0.0
    if failure.kind == "bearing":
        return temperature + 4 * done**3, vibration * (1 + failure.size * done**1.8), current
    if failure.kind == "overheating":
        return temperature + failure.size * done**1.3, vibration, current
    if failure.kind == "electrical" and rng.random() < 0.02 + failure.size * done:
        return temperature + 1.5 * done, vibration, rated * rng.uniform(1.15, 2.2)
    return values
