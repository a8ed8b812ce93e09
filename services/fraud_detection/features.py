"""What the score looks at: the ways in which a payment departs from its card's habits.

*Signals* are yes-or-no facts such as `device=2` (a device new to the card). An ordinary payment gives none, so that
ordinary payments cannot drown what the model learns. *Tokens* name what the payment has in common with others (its
merchant, its device, …), for the reputation that these gain from reports.

Freshness is 0 for what the card knows, 1 for what it knows since recently, 2 for what is new to it; 3 and 4 are the
latter two where the card has too little history for that to mean much. A device that is not told, where the card's
payments usually tell theirs, is 5.
"""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from services.fraud_detection.history import HOUR_MS, Comparison
from services.fraud_detection.records import Burst, Profile, Transaction
from services.fraud_detection.rules import Hit

DAY_MS = 24 * HOUR_MS
FRESH_MS = 7 * DAY_MS
LINKED_MS = 5 * DAY_MS
"""How long an alerted payment makes similar ones of the same card suspicious."""

MERCHANT_BUCKETS = 4096
WORD_BUCKETS = 256
AMOUNTS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1500.0)
DEVIATIONS = (0.7, 1.3, 1.9, 2.5, 3.1, 4.0)
KILOMETRES = (60.0, 300.0, 1000.0, 4000.0)
SPEEDS = (200.0, 500.0, 900.0, 2000.0)
BURSTS = (2, 3, 4, 6, 9)
HIDDEN = 5


class Observation(NamedTuple):
    """What the score sees of a payment.

    `stranger`: the card is somewhere new, or used from something new. `departs`: there is any signal at all.
    """

    signals: dict[str, float]
    tokens: list[str]
    stranger: bool
    departs: bool


class Freshness(NamedTuple):
    """How new to the card each side of a payment is, see the head of this file."""

    merchant: int
    category: int
    country: int
    device: int
    place: int
    entry: int


def observe(tx: Transaction, profile: Profile, burst: Burst, beside: Comparison, hits: list[Hit]) -> Observation:
    """The signals and tokens of a payment, in a fixed order; `burst` counts it already."""
    far = 0 if beside.away_km is None else bisect_right(KILOMETRES, beside.away_km)
    high = bisect_right(DEVIATIONS, beside.deviation)
    new = _freshness(profile, beside, far)
    stranger = new.device in (1, 2) or new.place in (1, 2)
    out = [f"rule={hit.rule}" for hit in hits]
    out += _rush(burst, new)
    out += _links(profile, tx, beside.at)
    if beside.speed_kmh is not None and (beside.hop_km or 0.0) >= KILOMETRES[0]:
        out.append(f"speed={bisect_right(SPEEDS, beside.speed_kmh)}")
    if high > 2:
        out.append(f"deviation={high}")
        if stranger:
            out.append(f"deviation={high},stranger")
    merchant = _bucket(tx.merchant, MERCHANT_BUCKETS)
    tokens = [f"crowd#{merchant}"] if tx.merchant else []
    if new.merchant or new.device or new.place or new.entry:
        out += _novelties(new, far, beside)
        tokens += _tokens(tx, new, far, beside.hour, merchant)
    return Observation(dict.fromkeys(out, 1.0), tokens, stranger, bool(out))


@lru_cache(maxsize=65_536)
def _bucket(word: str, buckets: int) -> int:
    """A word as a small number, the same in every process (`hash()` is not)."""
    return crc32(word.encode()) % buckets


def _fresh(known_ms: int | None, age_ms: int) -> int:
    """Whether something is new to a card of this age: within a week, or half of its life if that is shorter."""
    if known_ms is None or (known_ms and known_ms >= min(FRESH_MS, age_ms / 2)):
        return 0
    return 1 if known_ms else 2


def _freshness(profile: Profile, beside: Comparison, far: int) -> Freshness:
    age = beside.age_ms
    device = _fresh(beside.device_ms, beside.devices_age_ms)
    if device and (profile.told < 3 or beside.devices_age_ms < 2 * DAY_MS):
        device += 2
    place = 2 if far else _fresh(beside.place_ms, age)
    if beside.hides:
        device = HIDDEN
    if place and (profile.seen < 6 or age < 2 * DAY_MS):
        place += 2
    share = beside.entry_share
    return Freshness(
        merchant=_fresh(beside.merchant_ms, age),
        category=_fresh(beside.category_ms, age),
        country=_fresh(beside.country_ms, age),
        device=device,
        place=place,
        entry=0 if profile.seen < 12 or share >= 0.12 else 1 if share >= 0.04 else 2,
    )


def _rush(burst: Burst, new: Freshness) -> list[str]:
    strange, count = bisect_right(BURSTS, burst.strange), bisect_right(BURSTS, burst.count)
    mean = burst.total / max(burst.count, 1)
    out = []
    if strange:
        out.append(f"burst={strange}")
        if mean < AMOUNTS[2]:
            out.append(f"small burst={strange}")
    if count > strange:
        out.append(f"rush={count}")
        if mean < AMOUNTS[1]:
            out.append(f"small rush={count}")
    if new.device in (1, 2, HIDDEN) and burst.count > 2:
        out.append("device,rush")
    return out


def _links(profile: Profile, tx: Transaction, at: int) -> list[str]:
    """Alerted payments of the card in the last days, and how much this one is like them."""
    held = like = 0
    for case in reversed(profile.cases):
        if at - case.at > LINKED_MS:
            break
        other = case.tx
        if other is None or not case.alerted:
            continue  # in doubt only, or cleared
        held += 1
        if other.device == tx.device != "" or other.merchant == tx.merchant != "":
            like = 2
        elif other.entry == tx.entry and other.country == tx.country:
            like = max(like, 1)
    return [f"held={min(held, 3)}", f"like={like}"] if held else []


def _novelties(new: Freshness, far: int, beside: Comparison) -> list[str]:
    young = "young," if beside.age_ms < FRESH_MS else ""
    out = []
    if new.device == HIDDEN and beside.hidden:
        out.append(f"hidden={min(beside.hidden, 3)}")
    if new.device:
        out.append(f"device={new.device}")
        if new.merchant:
            out.append("device,merchant" if new.device < 3 else "weak device,merchant")
    if new.merchant:
        out.append(f"{young}merchant={new.merchant}")
    if new.entry:
        out.append(f"entry={new.entry}")
        if new.place:
            out.append("place,entry" if new.place < 3 else "weak place,entry")
    if new.place:
        out.append(f"place={new.place},{far}")
    if new.category:
        out.append(f"{young}category={new.category}")
    if new.country:
        out.append(f"{young}country={new.country}")
    if beside.hour_share < 0.05:
        out.append("odd hour")
    return out


def _tokens(tx: Transaction, new: Freshness, far: int, hour: int, merchant: int) -> list[str]:
    entry = _bucket(tx.entry, WORD_BUCKETS)
    out = []
    if new.device:
        out.append(f"device#{_bucket(tx.device, MERCHANT_BUCKETS)}")
    if new.merchant and tx.merchant:
        out.append(f"merchant#{merchant}")
    if new.place:
        out.append(f"place#{entry},{far}")
    if new.device or new.place or new.entry:
        amount = bisect_right(AMOUNTS, tx.amount)
        out.append(f"entry#{entry},{new.device},{new.place},{new.entry > 0:d}")
        out.append(f"category#{_bucket(tx.category, WORD_BUCKETS)},{new.device > 0:d},{new.place > 0:d}")
        out.append(f"hour#{entry},{hour}")
        out.append(f"amount#{amount},{new.device},{entry}")
    else:
        out.append(f"entry#{entry}")
    return out
