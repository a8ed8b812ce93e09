"""A card's own history: how a payment compares with it, and how a payment becomes part of it.

Pure functions of a profile and a payment: no clock, no table, no randomness.
"""

import math
from typing import NamedTuple

from services.fraud_detection.records import Place, Profile, Transaction

EARTH_KM = 6371.0
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
NEAR_KM = 60.0
"""Payments so near each other are at one place: a town and its surroundings."""

MOST_PLACES = 8
MOST_NAMES = 48
MOST_HIDDEN = 12
HIDDEN_MS = 5 * 24 * HOUR_MS
TELLS_SHARE = 0.7
"""The share of a way of paying that names a device, from which on naming none is a departure."""

HOUR_SLOTS = 8
TYPICAL_MEAN, TYPICAL_SPREAD, TYPICAL_WEIGHT = 3.0, 1.1, 4.0
"""What is assumed of the logarithm of an unknown card's amounts, and how many payments that assumption outweighs."""

REACH = 2.0
"""How many standard deviations one payment may stand off the mean when it is added to it."""


class Comparison(NamedTuple):
    """A payment beside its card's history.

    `at` is its time, `age_ms` how long the card is known. `deviation` is of the logarithm of the amount, in standard
    deviations. `away_km` is the distance to the nearest place of the card and `place_ms` how long that one is known;
    `hop_km` the distance to the last one and `speed_kmh` what it takes to come from there: None without a position.
    `merchant_ms` and the like say how long the card is known there: 0 if it is not, None if the payment does not tell.
    `hides` tells that the device is not named though such payments of the card usually name theirs, `hidden` how many
    did so in the days before.
    `entry_share` and `hour_share` are the shares of the card's payments that were read so, or made at this time of day.
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
    entry_share: float
    merchant_ms: int | None
    category_ms: int | None
    country_ms: int | None
    device_ms: int | None
    devices_age_ms: int
    hides: bool
    hidden: int


def time_ms(tx: Transaction) -> int:
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
    at = time_ms(tx)
    hidden = sum(at - before <= HIDDEN_MS for before in profile.hidden)
    # Those of the last days do not count against what is usual: a row of them would soon look like a habit.
    usual = profile.entries.get(tx.entry, 0) - hidden + 1
    away, place_ms, hop, speed = _whereabouts(profile, tx, at)
    hour = _hour_slot(at)
    return Comparison(
        at=at,
        age_ms=at - profile.since if profile.seen else 0,
        deviation=_deviation(profile, tx.amount),
        away_km=away,
        place_ms=place_ms,
        hop_km=hop,
        speed_kmh=speed,
        hour=hour,
        hour_share=(profile.hours[hour] + 0.5) / (profile.seen + 4) if profile.hours else 1 / HOUR_SLOTS,
        entry_share=profile.entries.get(tx.entry, 0) / max(profile.seen, 1) if tx.entry else 1.0,
        merchant_ms=_tenure(profile.merchants, tx.merchant, at),
        category_ms=_tenure(profile.categories, tx.category, at),
        country_ms=_tenure(profile.countries, tx.country, at),
        device_ms=_tenure(profile.devices, tx.device, at),
        devices_age_ms=at - min(profile.devices.values()) if profile.devices else 0,
        hides=not tx.device and profile.tells.get(tx.entry, 0) > TELLS_SHARE * usual,
        hidden=hidden,
    )


def remember(profile: Profile, tx: Transaction, at: int) -> None:
    """Add a payment that is honest as far as anyone knows; `at` in ms."""
    profile.since = min(profile.since, at) if profile.seen else at
    profile.seen += 1
    _remember_amount(profile, tx.amount)
    if not profile.hours:
        profile.hours = [0] * HOUR_SLOTS
    profile.hours[_hour_slot(at)] += 1
    if tx.entry and (tx.entry in profile.entries or len(profile.entries) < MOST_NAMES):
        profile.entries[tx.entry] = profile.entries.get(tx.entry, 0) + 1
    if tx.device:
        profile.told += 1
        if tx.entry in profile.entries:
            profile.tells[tx.entry] = profile.tells.get(tx.entry, 0) + 1
    _note(profile.merchants, tx.merchant, at)
    _note(profile.categories, tx.category, at)
    _note(profile.countries, tx.country, at)
    _note(profile.devices, tx.device, at)
    if tx.lat is not None and tx.lon is not None:
        _visit(profile.places, tx.lat, tx.lon, at)


def note_hidden(profile: Profile, beside: Comparison) -> None:
    """Take down that the payment did not tell its device, whatever is thought of it."""
    if beside.hides:
        profile.hidden = [*profile.hidden[1 - MOST_HIDDEN :], beside.at]


def _hour_slot(at: int) -> int:
    return at // (24 // HOUR_SLOTS * HOUR_MS) % HOUR_SLOTS


def _tenure(names: dict[str, int], name: str, at: int) -> int | None:
    if not name:
        return None
    since = names.get(name)
    return 0 if since is None else max(at - since, 1)


def _deviation(profile: Profile, amount: float) -> float:
    """The typical card and this one, weighed by how many payments of this one are known."""
    n = profile.seen + TYPICAL_WEIGHT
    mean = (profile.mean * profile.seen + TYPICAL_MEAN * TYPICAL_WEIGHT) / n
    variance = (profile.spread + TYPICAL_WEIGHT * TYPICAL_SPREAD**2) / n
    variance += profile.seen * TYPICAL_WEIGHT * (profile.mean - TYPICAL_MEAN) ** 2 / n**2
    return (math.log(max(amount, 0.01)) - mean) / math.sqrt(variance)


def _remember_amount(profile: Profile, amount: float) -> None:
    value = math.log(max(amount, 0.01))
    if profile.seen > 4:  # one splurge, or one fraud that nobody noticed, must not set the standard
        reach = REACH * math.sqrt(profile.spread / (profile.seen - 1) + 0.1)
        value = min(max(value, profile.mean - reach), profile.mean + reach)
    delta = value - profile.mean
    profile.mean += delta / profile.seen
    profile.spread += delta * (value - profile.mean)


def _whereabouts(
    profile: Profile, tx: Transaction, at: int
) -> tuple[float | None, int | None, float | None, float | None]:
    if tx.lat is None or tx.lon is None or not profile.places:
        return None, None, None, None
    away, place_ms, hop, latest = math.inf, 0, 0.0, profile.places[0]
    for place in profile.places:
        km = distance_km(place.lat, place.lon, tx.lat, tx.lon)
        if km < away:
            away, place_ms = km, max(at - place.since, 0)
        if place.last_at >= latest.last_at:
            latest, hop = place, km
    return away, place_ms, hop, hop * HOUR_MS / max(abs(at - latest.last_at), MINUTE_MS)


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
