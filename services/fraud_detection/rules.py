"""Three rules that need no learning: velocity, amount against the card's own history, impossible travel.

Each is a pure function of what is known before the payment; together they are what a bank would run on the first day.
"""

import flowkit

from services.fraud_detection.history import Comparison
from services.fraud_detection.records import Burst, Profile, Transaction


class Limits(flowkit.Record, frozen=True):
    """Where the rules fire: the best F1 of all three together on the development seeds.

    `burst` counts payments at unfamiliar merchants that follow each other closely. `deviation` is in standard
    deviations of the logarithm of the card's amounts; it counts for payments of at least `amount` at an unfamiliar
    merchant, for cards with at least `history` payments. Travel counts above `speed_kmh` over at least `hop_km`, and
    not towards a place that the card knows. Unfamiliar is what the card knows for less than `familiar_ms`.
    """

    burst: int = 4
    deviation: float = 2.6
    amount: float = 200.0
    history: int = 3
    speed_kmh: float = 300.0
    hop_km: float = 250.0
    familiar_ms: int = 86_400_000


class Hit(flowkit.Record):
    """A rule that fired: its name, and its finding in words."""

    rule: str
    text: str


def apply_rules(limits: Limits, profile: Profile, burst: Burst, tx: Transaction, beside: Comparison) -> list[Hit]:
    """All rules that fire for a payment; `burst` counts it already, `profile` does not."""
    hits = []
    if burst.strange >= limits.burst:
        hits.append(Hit("velocity", f"{burst.strange} unfamiliar merchants' payments in quick succession"))
    if (
        beside.deviation >= limits.deviation
        and tx.amount >= limits.amount
        and profile.seen >= limits.history
        and (beside.merchant_ms or 0) < limits.familiar_ms
    ):
        hits.append(Hit("amount", f"{tx.amount:.2f} is {beside.deviation:.1f} deviations above this card's habit"))
    if beside.speed_kmh is not None and beside.hop_km is not None:
        known = beside.away_km is not None and beside.away_km < 60 and (beside.place_ms or 0) >= limits.familiar_ms
        if not known and beside.hop_km >= limits.hop_km and beside.speed_kmh >= limits.speed_kmh:
            hits.append(Hit("travel", f"{beside.hop_km:.0f} km from its last place, at {beside.speed_kmh:.0f} km/h"))
    return hits
