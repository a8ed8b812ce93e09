"""Signals: an ordinary payment gives none, and each way of departing from habit gives its own."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.fraud_detection.features import Observation, observe
from services.fraud_detection.history import compare, note_hidden, remember, time_ms
from services.fraud_detection.records import Burst, Case, Profile, Transaction

START = datetime(2025, 3, 3, 12, tzinfo=UTC)
USUAL: dict[str, Any] = {
    "merchant": "shop",
    "category": "books",
    "country": "FR",
    "entry": "web",
    "device": "mine",
    "lat": 48.86,
    "lon": 2.35,
}


def tx(day: float, **given: Any) -> Transaction:
    at = START + timedelta(days=day)
    return Transaction(**{"id": "t", "card": "c", "at": at, "amount": 20.0, **USUAL, **given})


def profile_of(days: int = 30) -> Profile:
    profile = Profile()
    for day in range(days):
        remember(profile, tx(day), time_ms(tx(day)))
    return profile


def seen(profile: Profile, payment: Transaction, burst: Burst | None = None) -> Observation:
    return observe(payment, profile, burst or Burst(1, 0, payment.amount), compare(profile, payment), [])


def signals(profile: Profile, payment: Transaction, burst: Burst | None = None) -> set[str]:
    return set(seen(profile, payment, burst).signals)


def test_an_ordinary_payment_gives_no_signal() -> None:
    found = seen(profile_of(), tx(30))
    assert found.signals == {}
    assert not found.departs
    assert [token.split("#")[0] for token in found.tokens] == ["crowd"]


@pytest.mark.parametrize(
    "given,expected",
    [
        ({"device": "other"}, {"device=2"}),
        ({"merchant": "other"}, {"merchant=2"}),
        ({"device": "other", "merchant": "other"}, {"device=2", "merchant=2", "device,merchant"}),
        ({"lat": 52.52, "lon": 13.41}, {"place=2,2", "speed=0"}),
        ({"entry": "stripe", "lat": 35.68, "lon": 139.69}, {"place=2,4", "speed=1", "entry=2", "place,entry"}),
        ({"amount": 400.0}, {"deviation=6"}),
        ({"amount": 400.0, "device": "other"}, {"deviation=6", "deviation=6,stranger", "device=2"}),
    ],
)
def test_what_is_new_gives_a_signal(given: dict[str, Any], expected: set[str]) -> None:
    assert signals(profile_of(), tx(30, **given)) == expected


def test_what_is_new_stays_recent_for_a_week() -> None:
    profile = profile_of()
    remember(profile, tx(30, device="other"), time_ms(tx(30)))
    assert signals(profile, tx(31, device="other")) == {"device=1"}
    assert signals(profile, tx(38, device="other")) == set()


def test_newness_means_less_where_there_is_little_history() -> None:
    profile = profile_of(days=2)
    assert signals(profile, tx(1.5, device="other", lat=35.68, lon=139.69)) >= {"device=4", "place=4,4"}


def test_what_a_payment_does_not_tell_is_not_new() -> None:
    bare = Transaction("t", "c", START + timedelta(days=30), 20.0)
    found = seen(profile_of(), bare)
    assert found.signals.keys() <= {"odd hour"}
    assert found.tokens == []


def test_small_payments_in_a_row_give_signals_that_grow() -> None:
    profile = profile_of()
    row = [signals(profile, tx(30, amount=2.0), Burst(count, count, 2.0 * count)) for count in (1, 2, 3, 4, 6, 9)]
    assert row[0] == set()
    assert row[1:] == [{f"burst={n}", f"small burst={n}"} for n in range(1, 6)]


def test_a_payment_like_an_alerted_one_is_linked_to_it() -> None:
    profile = profile_of()
    alerted = tx(30, device="other")
    case = Case("t", time_ms(alerted), {}, [], tx=alerted, alerted=True)
    profile.cases.append(case)
    assert signals(profile, tx(31, device="other")) == {"device=2", "held=1", "like=2"}
    assert signals(profile, tx(31, device="third", merchant="far", country="US")) >= {"held=1", "like=0"}
    case.tx = None  # nobody has complained: it is history now
    assert signals(profile, tx(31, device="other")) == {"device=2"}


def test_what_was_in_doubt_only_links_nothing() -> None:
    profile = profile_of()
    profile.cases.append(Case("t", time_ms(tx(30)), {}, [], tx=tx(30)))
    assert signals(profile, tx(31)) == set()


def test_a_device_that_is_not_told_is_a_signal_where_it_usually_is() -> None:
    profile = profile_of()
    hidden = tx(30, device="")
    assert signals(profile, hidden) == {"device=5"}
    note_hidden(profile, compare(profile, hidden))
    assert signals(profile, tx(31, device="")) == {"device=5", "hidden=1"}
    assert signals(profile, tx(40, device="")) == {"device=5"}
    assert signals(profile, tx(31)) == set()
    assert "device=5" not in signals(profile, tx(30, device="", entry="chip"))  # which never tells one


def test_an_alert_of_long_ago_links_nothing() -> None:
    profile = profile_of()
    alerted = tx(10, device="other")
    profile.cases.append(Case("t", time_ms(alerted), {}, [], tx=alerted, alerted=True))
    assert signals(profile, tx(31, device="other")) == {"device=2"}
