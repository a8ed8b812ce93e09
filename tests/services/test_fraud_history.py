"""A card's history: what it remembers, what it forgets, and what must not set its standards."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.fraud_detection.history import (
    MOST_NAMES,
    MOST_PLACES,
    Comparison,
    compare,
    distance_km,
    remember,
    time_ms,
)
from services.fraud_detection.records import Profile, Transaction

START = datetime(2025, 3, 3, 12, tzinfo=UTC)
HOUR_MS = 3_600_000


def tx(hours: float = 0.0, **given: Any) -> Transaction:
    return Transaction(**{"id": "t", "card": "c", "at": START + timedelta(hours=hours), "amount": 20.0, **given})


def remembered(*payments: Transaction) -> Profile:
    profile = Profile()
    for payment in payments:
        remember(profile, payment, time_ms(payment))
    return profile


def beside(profile: Profile, payment: Transaction) -> Comparison:
    return compare(profile, payment)


def test_what_is_new_has_no_tenure_and_what_is_not_told_has_none_either() -> None:
    profile = remembered(tx(0, merchant="a", device="phone"))
    later = beside(profile, tx(5, merchant="a", category="books"))
    assert (later.merchant_ms, later.category_ms, later.device_ms) == (5 * HOUR_MS, 0, None)


def test_tenure_counts_from_the_first_time_even_if_a_late_payment_tells_of_it() -> None:
    profile = remembered(tx(10, merchant="a"), tx(2, merchant="a"))
    assert beside(profile, tx(12, merchant="a")).merchant_ms == 10 * HOUR_MS
    assert profile.since == time_ms(tx(2))


def test_the_least_recently_used_name_is_forgotten_first() -> None:
    profile = remembered(*(tx(n, merchant=f"m{n}") for n in range(MOST_NAMES)))
    remember(profile, tx(99, merchant="m0"), time_ms(tx(99)))
    remember(profile, tx(100, merchant="one too many"), time_ms(tx(100)))
    assert "m0" in profile.merchants
    assert "m1" not in profile.merchants
    assert len(profile.merchants) == MOST_NAMES


def test_neighbouring_payments_are_one_place() -> None:
    profile = remembered(tx(0, lat=48.86, lon=2.35), tx(3, lat=48.90, lon=2.25), tx(6, lat=45.76, lon=4.84))
    assert [(place.since, place.last_at) for place in profile.places] == [
        (time_ms(tx(0)), time_ms(tx(3))),
        (time_ms(tx(6)), time_ms(tx(6))),
    ]


def test_places_are_bounded() -> None:
    profile = remembered(*(tx(n, lat=-60.0 + 10 * n, lon=0.0) for n in range(MOST_PLACES + 3)))
    assert len(profile.places) == MOST_PLACES
    assert profile.places[0].lat == -30.0


def test_the_nearest_place_and_the_last_place_are_told_apart() -> None:
    profile = remembered(tx(0, lat=48.86, lon=2.35), tx(24, lat=52.52, lon=13.41))
    home = beside(profile, tx(26, lat=48.86, lon=2.35))
    assert home.away_km == pytest.approx(0, abs=1)
    assert home.place_ms == 26 * HOUR_MS
    assert home.hop_km == pytest.approx(877, abs=2)
    assert home.speed_kmh == pytest.approx(877 / 2, abs=2)


def test_one_enormous_payment_hardly_moves_the_standard() -> None:
    usual = [tx(n, amount=20.0 + n % 5) for n in range(30)]
    before = beside(remembered(*usual), tx(99, amount=900.0)).deviation
    after = beside(remembered(*usual, tx(40, amount=50_000.0)), tx(99, amount=900.0)).deviation
    assert after > 0.7 * before > 2.0


@pytest.mark.parametrize("amount", [0.0, -35.0, 1e-9, 1e12])
def test_any_amount_can_be_compared_and_remembered(amount: float) -> None:
    profile = remembered(tx(0), tx(1, amount=amount), tx(2))
    assert abs(beside(profile, tx(3, amount=amount)).deviation) < 100


def test_distances_are_right_across_the_date_line_and_at_antipodes() -> None:
    assert distance_km(0.0, 179.5, 0.0, -179.5) == pytest.approx(111.2, abs=0.1)
    assert distance_km(90.0, 0.0, -90.0, 77.0) == pytest.approx(20_015, abs=1)
    assert distance_km(12.0, 34.0, 12.0, 34.0) == 0.0


def test_times_before_1970_and_at_midnight_have_an_hour() -> None:
    old = Transaction("t", "c", datetime(1960, 1, 1, tzinfo=UTC), 5.0)
    assert compare(Profile(), old).hour == 0
    assert compare(Profile(), tx(11.999)).hour == 7
