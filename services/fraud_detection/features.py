"""What the score looks at: the ways in which a payment departs from its card's habits, as yes-or-no signals.

An ordinary payment gives no signal at all, so an ordinary payment cannot teach the model anything wrong.
"""

from bisect import bisect_right
from functools import lru_cache
from zlib import crc32

from services.fraud_detection.history import Comparison
from services.fraud_detection.records import Burst, Profile, Transaction
from services.fraud_detection.rules import Hit


HOUR_MS = 3_600_000
DAY_MS = 86_400_000
MERCHANT_BUCKETS = 4096
WORD_BUCKETS = 256
FRESH = 7 * DAY_MS
LINKED = 5 * DAY_MS

AMOUNTS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1500.0)
DEVIATIONS = (0.7, 1.3, 1.9, 2.5, 3.1, 4.0)
KILOMETRES = (60.0, 300.0, 1000.0, 4000.0)
SPEEDS = (200.0, 500.0, 900.0, 2000.0)
BURSTS = (2, 3, 4, 6, 9)


@lru_cache(maxsize=65536)
def bucket(word: str, buckets: int) -> int:
    """A word as a small number, the same in every process (`hash()` is not)."""
    return crc32(word.encode()) % buckets


def fresh(ms: int | None, age_ms: int) -> int:
    """0: not fresh or not told; 1: known for a short time; 2: new."""
    return 0 if ms is None or ms >= min(FRESH, age_ms / 2) and ms else 1 if ms else 2


def signals(tx: Transaction, profile: Profile, burst: Burst, beside: Comparison, hits: list[Hit]):
    """The signals that a payment gives, in a fixed order, and tokens for reputation."""
    out = [f"rule={hit.rule}" for hit in hits]
    tokens = {}
    high = bisect_right(DEVIATIONS, beside.deviation)
    rush = bisect_right(BURSTS, burst.strange)
    if rush:
        out.append(f"burst={rush}")
        small = bisect_right(AMOUNTS, burst.total / burst.count)
        if small <= 2: out.append(f"small burst={rush}")
    total = bisect_right(BURSTS, burst.count)
    if total > rush:
        out.append(f"rush={total}")
        if burst.total / burst.count <= 5: out.append(f"small rush={total}")
    entry = bucket(tx.entry, WORD_BUCKETS)
    category = bucket(tx.category, WORD_BUCKETS)
    merchant = bucket(tx.merchant, MERCHANT_BUCKETS)
    far = 0 if beside.away_km is None else bisect_right(KILOMETRES, beside.away_km)
    speed = 0 if beside.speed_kmh is None or (beside.hop_km or 0) < 60 else bisect_right(SPEEDS, beside.speed_kmh)
    if speed:
        out.append(f"speed={speed}")
    young = beside.age_ms < FRESH
    mark = "young," if young else ""
    if high > 2:
        out.append(f"deviation={high}")
    held = like = 0
    for case in reversed(profile.cases):
        if beside.at - case.at > LINKED:
            break
        if case.held:
            held = min(held + 1, 3)
            other = case.tx
            if other.device == tx.device != "" or (other.merchant == tx.merchant and tx.merchant):
                like = 2
            elif other.entry == tx.entry and other.country == tx.country:
                like = max(like, 1)
    if held:
        out.append(f"held={held}")
        out.append(f"like={like}")
    age = beside.age_ms
    told = beside.at - min(profile.devices.values()) if profile.devices else 0
    shop, kind, land, device = (
        fresh(beside.merchant_ms, age), fresh(beside.category_ms, age), fresh(beside.country_ms, age),
        fresh(beside.device_ms, told),
    )
    share = beside.entry_share if tx.entry else 1.0
    mode = 2 if share < 0.04 else 1 if share < 0.12 else 0
    place = 2 if far else fresh(beside.place_ms, age)
    if device and (profile.told < 3 or told < 2 * DAY_MS):
        device += 2
    if place and (age < 2 * DAY_MS or profile.seen < 6):
        place += 2
    if mode and profile.seen < 12:
        mode = 0
    stranger = device in (1, 2) or place in (1, 2)
    tokens["crowd"] = f"s{merchant}"
    if shop or device or place or mode:
        if device:
            out.append(f"device={device}")
            if shop: out.append(f"{'weak ' if device > 2 else ''}device,merchant")
            tokens["device"] = f"d{bucket(tx.device, MERCHANT_BUCKETS)}"
        if shop:
            out.append(f"{mark}merchant={shop}")
            tokens["merchant"] = f"m{merchant}"
        if mode:
            out.append(f"entry={mode}")
            if place: out.append(f"{'weak ' if place > 2 else ''}place,entry")
        if place:
            out.append(f"place={place},{far}")
        if kind:
            out.append(f"{mark}category={kind}")
        if land:
            out.append(f"{mark}country={land}")
        if device or place or mode:
            tokens["entry"] = f"e{entry},{device},{place},{bool(mode)}"
            tokens["category"] = f"c{category},{bool(device)},{bool(place)}"
            tokens["hour"] = f"h{entry},{beside.hour}"
            tokens["amount"] = f"a{bisect_right(AMOUNTS, tx.amount)},{device},{entry}"
        if beside.hour_share < 0.05:
            out.append(f"odd hour")
        if high > 2 and (device or place in (1, 2)):
            out.append(f"deviation={high},stranger")
        if not tx.device and tx.entry and shop and not place:
            out.append(f"untold,merchant")
            tokens["entry"] = f"u{entry},{shop}"
    return dict.fromkeys(out, 1.0), tokens, stranger
