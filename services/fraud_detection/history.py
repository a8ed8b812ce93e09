"""A card's own history: what is added to a profile, and how a payment compares with it.

Pure functions of a profile and a payment: no clock, no table, no randomness.
"""

import math
from typing import NamedTuple

from services.fraud_detection.records import Place, Profile, Transaction


EARTH_KM = 6371.0
HOUR_MS = 3_600_000
NEAR_KM = 60.0
MOST_PLACES = 8
MOST_NAMES = 48
HOUR_SLOTS = 8
HOUR_FADES = 0.99
TYPICAL_MEAN, TYPICAL_SPREAD, TYPICAL_WEIGHT = 3.0, 1.1, 4.0
"""What is assumed of the logarithm of an unknown card's amounts, and how many payments this assumption is worth."""


class Comparison(NamedTuple):
    """A payment beside its card's history.

    `deviation` is of the logarithm of the amount, in standard deviations. `away_km` is the distance to the nearest
    place where the card was before, `place_ms` how long that one is known, `speed_kmh` the speed that it would take
    from the last one, `hop_km` the distance to it; all are None where the payment or the history has no position.
    `merchant_ms`, … say how long the card is known there: 0 for new, None where the payment does not tell.
    """

    at: int
    age_ms: int
    deviation: float
    away_km: float | None
    place_ms: int | None
    hop_km: float | None
    speed_kmh: float | None
    hour: int
    hour_share: float
    merchant_ms: int | None
    category_ms: int | None
    country_ms: int | None
    entry_share: float
    device_ms: int | None


def milliseconds_of(tx: Transaction) -> int:
    """The payment's time, ms since the epoch."""
    return round(tx.at.timestamp() * 1000)


def distance_km(lat: float, lon: float, lat2: float, lon2: float) -> float:
    """Great-circle distance of two positions (degrees) in kilometres (haversine).

    >>> round(distance_km(48.86, 2.35, 52.52, 13.41))
    878
    """
    a, b = math.radians(lat), math.radians(lat2)
    h = math.sin((b - a) / 2) ** 2
    h += math.cos(a) * math.cos(b) * math.sin(math.radians(lon2 - lon) / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


def compare(profile: Profile, tx: Transaction) -> Comparison:
    """How the payment looks beside the history before it."""
    at = milliseconds_of(tx)
    n = profile.seen + TYPICAL_WEIGHT
    mean = (profile.mean * profile.seen + TYPICAL_MEAN * TYPICAL_WEIGHT) / n
    spread = (profile.spread + TYPICAL_WEIGHT * TYPICAL_SPREAD**2) / n
    spread += profile.seen * TYPICAL_WEIGHT * (profile.mean - TYPICAL_MEAN) ** 2 / n**2
    deviation = (math.log(max(tx.amount, 0.01)) - mean) / math.sqrt(spread)
    away = hop = speed = tenure = None
    if tx.lat is not None and tx.lon is not None and profile.places:
        away = math.inf
        latest = profile.places[0]
        for place in profile.places:
            km = distance_km(place.lat, place.lon, tx.lat, tx.lon)
            if km < away:
                away, tenure = km, at - place.since
            if place.last_at >= latest.last_at:
                latest, hop = place, km
        assert hop is not None
        speed = hop / max(abs(at - latest.last_at) / HOUR_MS, 1 / 60)
    hour = at // (24 // HOUR_SLOTS * HOUR_MS) % HOUR_SLOTS
    share = (profile.hours[hour] + 0.5) / (profile.seen + 4) if profile.hours else 1 / HOUR_SLOTS
    return Comparison(
        at, at - profile.since if profile.seen else 0, deviation, away, tenure, hop, speed, hour, share,
        _tenure(profile.merchants, tx.merchant, at), _tenure(profile.categories, tx.category, at),
        _tenure(profile.countries, tx.country, at), profile.entries.get(tx.entry, 0) / max(profile.seen, 1),
        _tenure(profile.devices, tx.device, at),
    )


def _tenure(names: dict[str, int], name: str, at: int) -> int | None:
    if not name:
        return None
    since = names.get(name)
    return 0 if since is None else max(at - since, 1)


def remember(profile: Profile, tx: Transaction, at: int) -> None:
    """Adds an honest payment (as far as anyone knows) to the history."""
    if not profile.seen:
        profile.since = at
    profile.seen += 1
    value = math.log(max(tx.amount, 0.01))
    if profile.seen > 3:  # one splurge, or one fraud that nobody noticed, must not set the standard
        reach = 2.0 * math.sqrt(profile.spread / profile.seen + 0.1)
        value = min(max(value, profile.mean - reach), profile.mean + reach)
    delta = value - profile.mean
    profile.mean += delta / profile.seen
    profile.spread += delta * (value - profile.mean)
    if not profile.hours:
        profile.hours = [0.0] * HOUR_SLOTS
    hour = at // (24 // HOUR_SLOTS * HOUR_MS) % HOUR_SLOTS
    profile.hours[hour] += 1
    _note(profile.merchants, tx.merchant, at)
    _note(profile.categories, tx.category, at)
    _note(profile.countries, tx.country, at)
    if tx.entry:
        profile.entries[tx.entry] = profile.entries.get(tx.entry, 0) + 1
    _note(profile.devices, tx.device, at)
    profile.told += tx.device != ""
    if tx.lat is not None and tx.lon is not None:
        _visit(profile.places, tx.lat, tx.lon, at)


def _note(names: dict[str, int], name: str, at: int) -> None:
    if not name:
        return
    since = names.pop(name, at)
    names[name] = min(since, at)
    if len(names) > MOST_NAMES:
        del names[next(iter(names))]


def _visit(places: list[Place], lat: float, lon: float, at: int) -> None:
    nearest, near = None, NEAR_KM
    for place in places:
        km = distance_km(place.lat, place.lon, lat, lon)
        if km < near:
            nearest, near = place, km
    if nearest is not None:
        nearest.last_at = max(nearest.last_at, at)
        return
    if len(places) >= MOST_PLACES:
        places.remove(min(places, key=lambda place: place.last_at))
    places.append(Place(lat, lon, at, at))
