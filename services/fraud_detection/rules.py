"""Three rules that need no learning: velocity, amount against the card's own history, impossible travel.

Pure functions of what is known of a card before a payment; together they are what a bank would run on the first day.
"""

import flowkit
from services.fraud_detection.history import NEAR_KM, Comparison
from services.fraud_detection.records import Burst, Profile, Transaction


class Limits(flowkit.Record, frozen=True):
    """Where the rules fire: the values with the best F1 of the three together on the development seeds.

    `burst` counts payments at unfamiliar merchants that follow each other closely, `rush` those anywhere. `deviation`
    is in standard deviations of the logarithm of the card's amounts; it counts for payments of at least `amount` at
    an unfamiliar merchant, by cards with at least `history` payments. Travel counts above `speed_kmh` over at least
    `hop_km`, unless it leads to a familiar place. Familiar is what the card knows for `familiar_ms`.
    """

    burst: int = 4
    rush: int = 12
    deviation: float = 2.6
    amount: float = 200.0
    history: int = 5
    speed_kmh: float = 200.0
    hop_km: float = 250.0
    familiar_ms: int = 86_400_000


class Hit(flowkit.Record):
    """A rule that fired: its name, and its finding in words."""

    rule: str
    text: str


def unfamiliar(limits: Limits, beside: Comparison) -> bool:
    """Whether the card hardly knows the merchant. A payment that names none counts as unfamiliar."""
    return (beside.merchant_ms or 0) < limits.familiar_ms


def count_in(limits: Limits, burst: Burst, tx: Transaction, beside: Comparison) -> None:
    """Add a payment to the burst that it belongs to."""
    burst.count += 1
    burst.total += tx.amount
    burst.strange += unfamiliar(limits, beside)


def apply_rules(limits: Limits, profile: Profile, burst: Burst, tx: Transaction, beside: Comparison) -> list[Hit]:
    """All rules that fire for a payment; `burst` counts it already, `profile` does not."""
    found = (
        velocity(limits, burst),
        amount(limits, profile, tx, beside),
        travel(limits, beside),
    )
    return [hit for hit in found if hit is not None]


def velocity(limits: Limits, burst: Burst) -> Hit | None:
    """Many payments at merchants that the card does not know, one right after the other, or very many anywhere."""
    if burst.strange >= limits.burst:
        return Hit("velocity", f"payment {burst.strange} at unfamiliar merchants in quick succession")
    if burst.count >= limits.rush:
        return Hit("velocity", f"payment {burst.count} in quick succession")
    return None


def amount(limits: Limits, profile: Profile, tx: Transaction, beside: Comparison) -> Hit | None:
    """Far more than this card ever pays, at a merchant that it does not know."""
    if (
        beside.deviation < limits.deviation
        or tx.amount < limits.amount
        or profile.seen < limits.history
        or not unfamiliar(limits, beside)
    ):
        return None
    return Hit("amount", f"amount {tx.amount:.2f} is {beside.deviation:.1f} deviations above the card's own")


def travel(limits: Limits, beside: Comparison) -> Hit | None:
    """Two places that nobody gets to in the time between, unless the second is where the card lives."""
    if beside.hop_km is None or beside.speed_kmh is None or beside.away_km is None:
        return None
    if beside.hop_km < limits.hop_km or beside.speed_kmh < limits.speed_kmh:
        return None
    if beside.away_km < NEAR_KM and (beside.place_ms or 0) >= limits.familiar_ms:
        return None
    return Hit("travel", f"{beside.hop_km:.0f} km from the last place, which takes {beside.speed_kmh:.0f} km/h")
