"""The three rules, each beside what it must not mistake for fraud."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.fraud_detection.history import compare, remember, time_ms
from services.fraud_detection.records import Burst, Profile, Transaction
from services.fraud_detection.rules import Limits, apply_rules, count_in

NOON = datetime(2025, 3, 3, 12, tzinfo=UTC)
PARIS: dict[str, Any] = {"lat": 48.86, "lon": 2.35}
BERLIN: dict[str, Any] = {"lat": 52.52, "lon": 13.41}
LIMITS = Limits()


def tx(after: timedelta = timedelta(0), **given: Any) -> Transaction:
    return Transaction(**{"id": "t", "card": "c", "at": NOON + after, "amount": 20.0, "merchant": "shop", **given})


def card(*payments: Transaction) -> Profile:
    profile = Profile()
    for payment in payments:
        remember(profile, payment, time_ms(payment))
    return profile


def rules_that_fire(profile: Profile, payment: Transaction, burst: Burst | None = None) -> list[str]:
    burst = burst or Burst()
    beside = compare(profile, payment)
    count_in(LIMITS, burst, payment, beside)
    return [hit.rule for hit in apply_rules(LIMITS, profile, burst, payment, beside)]


def days(*amounts: float, **given: Any) -> list[Transaction]:
    """A payment a day, up to the day before NOON."""
    return [tx(timedelta(days=n - len(amounts)), amount=amount, **given) for n, amount in enumerate(amounts)]


def test_an_ordinary_payment_fires_nothing() -> None:
    assert rules_that_fire(card(*days(20, 22, 18, 25, 21, 19)), tx()) == []


def test_a_card_that_nobody_knows_fires_nothing() -> None:
    assert rules_that_fire(Profile(), tx(amount=5000.0, **PARIS)) == []


def test_velocity_counts_payments_at_unfamiliar_merchants_in_a_row() -> None:
    burst = Burst()
    profile = card(*days(20, 22, 18))
    fired = [rules_that_fire(profile, tx(merchant=f"bot {n}"), burst) for n in range(LIMITS.burst + 1)]
    assert fired == [[]] * (LIMITS.burst - 1) + [["velocity"]] * 2


def test_velocity_leaves_alone_who_taps_through_a_familiar_turnstile() -> None:
    burst = Burst()
    profile = card(*days(3, 3, 3, merchant="metro"))
    assert [rules_that_fire(profile, tx(merchant="metro"), burst) for _ in range(9)] == [[]] * 9
    assert burst.count == 9


def test_an_amount_is_judged_by_the_cards_own_habit() -> None:
    modest, rich = card(*days(*[20.0, 25.0, 15.0] * 5)), card(*days(*[400.0, 900.0, 700.0] * 5))
    payment = tx(amount=800.0, merchant="new")
    assert rules_that_fire(modest, payment) == ["amount"]
    assert rules_that_fire(rich, payment) == []


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"amount": 150.0, "merchant": "new"}, id="too small to matter"),
        pytest.param({"amount": 800.0, "merchant": "shop"}, id="at a merchant that the card knows"),
    ],
)
def test_the_amount_rule_leaves_alone(given: dict[str, Any]) -> None:
    assert rules_that_fire(card(*days(*[8.0, 9.0, 7.0] * 5)), tx(**given)) == []


def test_nobody_pays_in_berlin_half_an_hour_after_paris() -> None:
    profile = card(tx(timedelta(minutes=-30), **PARIS))
    assert rules_that_fire(profile, tx(**BERLIN)) == ["travel"]


def test_a_train_takes_one_to_berlin_by_night() -> None:
    profile = card(tx(timedelta(hours=-12), **PARIS))
    assert rules_that_fire(profile, tx(**BERLIN)) == []


def test_coming_home_is_never_suspicious() -> None:
    profile = card(tx(timedelta(days=-9), **PARIS), tx(timedelta(minutes=-30), **BERLIN))
    assert rules_that_fire(profile, tx(**PARIS)) == []


def test_payments_without_a_place_neither_travel_nor_stop_one() -> None:
    profile = card(tx(timedelta(minutes=-30), **PARIS), tx(timedelta(minutes=-5)))
    assert rules_that_fire(profile, tx()) == []
    assert rules_that_fire(profile, tx(**BERLIN)) == ["travel"]


def test_what_is_found_is_told_in_words() -> None:
    profile = card(tx(timedelta(minutes=-30), **PARIS))
    payment = tx(**BERLIN)
    (hit,) = apply_rules(LIMITS, profile, Burst(), payment, compare(profile, payment))
    assert hit.text == "878 km from the last place, which takes 1755 km/h"
