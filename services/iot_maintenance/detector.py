"""What is usual for a device, and how far it is from it: plain functions of one device's values, without time or I/O.

Two steps, because devices of one site share their weather:

    hourly means ── norm by load ── deviation (°C, log) ── minus the site's ── by own spread ── trend (score)

The norm of a device is a regression on its own past with forgetting; what lies far off is hardly learned, so that a
failure that comes slowly does not become usual.
"""

import math

from services.iot_maintenance.records import Deviation, Line, Norm, Spread, Trend, Usual

WARM_UP = 24
"""Windows until a norm counts: a day, so that it has seen all hours."""

SPREAD_WARM_UP = 24
"""Deviations until their spread counts."""

HALF_LIFE = 240
"""Windows after which a norm has forgotten half: ten days."""

STRANGE = 3.0
"""From so many spreads off on, a value teaches little."""

LITTLE = 0.05
"""How much that is, of an ordinary value's weight."""

PEERS = 6
"""Devices of a site that must report before its weather is taken out."""

COVERED = 0.6
"""The share of a window's reports without which it says nothing."""

LEAST_HEAT, LEAST_SHAKE = 0.35, 0.012
"""The least spread that is believed, of heat (°C) and of shake (log)."""

RAISED, HIGH, CALM = 4.0, 6.0, 2.0
"""A score that begins a degradation, one that completes it, and one that ends it."""

LASTING = 8 * 3_600_000
"""How long (ms) from the first to the last: what passes by itself within hours is no degradation."""

SAME_CASE = 48 * 3_600_000
"""How long (ms) after its last sign a case is over."""

FEW, MORE = 2, 3
"""Surges in a window that begin a case, and by how many they have to grow."""

MISSED_REPORTS = 4.5
"""Reports that may be missing before a device is silent: single ones get lost."""

START = 6 * 3_600_000
"""How long (ms) a device may need to come back from a repair."""

TOGETHER, OUTAGE = 15 * 60_000, 4
"""Within how long (ms) devices fall silent together, and how many it takes to be the network."""

_KEEP = 0.5 ** (1 / HALF_LIFE)


def over_limit(value: float | None, limit: float | None) -> bool:
    """Whether a value that is known is over a limit that is set."""
    return value is not None and limit is not None and value > limit


def expected(line: Line, x: float) -> float:
    """What y the line gives for x."""
    mean_x, mean_y = line.x / line.weight, line.y / line.weight
    variance = line.xx / line.weight - mean_x * mean_x
    if variance <= 0:
        return mean_y
    # A slope from values that hardly differ means nothing: it is drawn towards 0.
    slope = (line.xy / line.weight - mean_x * mean_y) / (variance + (0.02 * mean_x) ** 2)
    return mean_y + slope * (x - mean_x)


def learn(line: Line, x: float, y: float, warm: bool) -> float:
    """Take in one more value; how far it lay from what was expected (0 for the first)."""
    off = y - expected(line, x) if line.weight else 0.0
    weight = LITTLE if warm and abs(off) > STRANGE * line.spread else 1.0
    line.weight = line.weight * _KEEP + weight
    line.x = line.x * _KEEP + weight * x
    line.y = line.y * _KEEP + weight * y
    line.xx = line.xx * _KEEP + weight * x * x
    line.xy = line.xy * _KEEP + weight * x * y
    line.spread += weight * (1.25 * abs(off) - line.spread) / min(line.weight, HALF_LIFE)
    return off


def deviation(
    norm: Norm, temperature: float | None, vibration: float | None, load: float
) -> tuple[float | None, float | None]:
    """How far a window's means lie from the norm, which learns from them: (heat, shake), None while it is not warm."""
    warm = norm.windows >= WARM_UP
    norm.windows += 1
    heat = None if temperature is None else learn(norm.heat, load, temperature, warm)
    shake = None
    if vibration is not None and vibration > 0:
        shake = learn(norm.shake, load, math.log(vibration), warm)
    return (heat, shake) if warm else (None, None)


def without_weather(heat: float | None, devices: int, median: float | None) -> float | None:
    """The heat of a device less the median of its site, if so many devices of it report that this is the weather."""
    if heat is None or median is None or devices < PEERS:
        return heat
    return heat - median


def trend_of(spread: Spread, deviation: Deviation) -> Trend:
    """A deviation without weather in units of the device's own spread, which learns from it."""
    if spread.since != deviation.since:
        spread.since, spread.heat, spread.shake = deviation.since, Usual(), Usual()
    return Trend(
        deviation.device,
        deviation.site,
        deviation.at,
        0.0 if deviation.heat is None else in_spreads(spread.heat, deviation.heat, LEAST_HEAT),
        0.0 if deviation.shake is None else in_spreads(spread.shake, deviation.shake, LEAST_SHAKE),
        deviation.surges,
    )


def in_spreads(usual: Usual, value: float, least: float) -> float:
    """How many spreads a value lies from where it usually is; 0 while that is not known. It is learned from then."""
    off, spread = value - usual.level, max(usual.spread, least)
    warm = usual.count >= SPREAD_WARM_UP
    limit = STRANGE * spread
    near = max(-limit, min(limit, off))
    usual.count += 1
    share = (LITTLE if warm and abs(off) > limit else 1.0) / min(usual.count, HALF_LIFE)
    usual.level += near * share
    usual.spread += (1.25 * abs(near) - usual.spread) * share
    return off / spread if warm else 0.0
