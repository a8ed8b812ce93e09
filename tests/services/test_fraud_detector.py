"""The detector as a whole, without the engine: quality on an unseen world, and how payments become history."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.fraud_detection.detector import Policy, alert_of, judge, report
from services.fraud_detection.model import Scorer, available
from services.fraud_detection.records import Burst, Chargeback, Profile, Transaction
from tests.services.fraud_world import World, decide, outcome, world

NOON = datetime(2025, 3, 3, 12, tzinfo=UTC)
needs_river = pytest.mark.skipif(not available(), reason="river is an optional extra")


UNSEEN = 501
"""A seed that nothing was tuned on."""


@pytest.fixture(scope="module")
def unseen() -> World:
    """A small world: the score has little time to learn in it."""
    return world(UNSEEN, 5_000)


def tx(hours: float, n: int, **given: Any) -> Transaction:
    at = NOON + timedelta(hours=hours)
    return Transaction(**{"id": f"t{n}", "card": "c", "at": at, "amount": 20.0, "merchant": "shop", **given})


@needs_river
def test_a_score_that_has_learnt_little_adds_much_to_the_rules(unseen: World) -> None:
    full, rules = outcome(unseen, Scorer()), outcome(unseen, None)
    assert full.recall >= 0.85
    assert full.precision >= 0.75
    assert full.f1 >= rules.f1 + 0.05


@needs_river
@pytest.mark.integration  # for its time
def test_the_service_catches_nine_in_ten_and_its_score_adds_much_to_the_rules() -> None:
    unseen = world(UNSEEN, 20_000)
    full, rules = outcome(unseen, Scorer()), outcome(unseen, None)
    assert full.recall >= 0.90
    assert full.precision >= 0.80
    assert full.f1 >= rules.f1 + 0.05
    assert rules.f1 > 0.55  # no straw man


@needs_river
def test_the_same_events_give_the_same_alerts() -> None:
    events = world(502, 3000).events
    assert decide(events, Scorer()) == decide(events, Scorer())


@needs_river
def test_reports_are_what_the_score_learns_from(unseen: World) -> None:
    told, untold = Scorer(), Scorer()
    decide(unseen.events, told)
    decide([event for event in unseen.events if isinstance(event, Transaction)], untold)
    fraud = {"device=2": 1.0, "merchant=2": 1.0, "device,merchant": 1.0}
    assert told.score(fraud) > untold.score(fraud)


def test_without_a_score_the_rules_decide_and_say_so() -> None:
    profile, burst, policy = Profile(), Burst(), Policy()
    verdicts = [judge(policy, None, profile, burst, tx(n / 100, n, merchant=f"m{n}")) for n in range(6)]
    assert [verdict.alert for verdict in verdicts] == [False] * 3 + [True] * 3
    alert = alert_of(tx(1, 9), verdicts[-1])
    assert alert.score is None
    assert alert.reasons == ["payment 6 at unfamiliar merchants in quick succession"]


def test_an_alerted_payment_is_no_history_until_nobody_has_complained() -> None:
    profile, policy = Profile(), Policy()
    for n in range(10):
        judge(policy, None, profile, Burst(), tx(n, n))
    held = tx(11, 11, merchant="new", amount=3000.0)
    assert judge(policy, None, profile, Burst(), held).alert
    assert "new" not in profile.merchants
    judge(policy, None, profile, Burst(), tx(11 + policy.mature_ms / 3.6e6 + 1, 12))
    assert "new" in profile.merchants


def test_a_payment_that_is_charged_back_never_becomes_history() -> None:
    profile, policy = Profile(), Policy()
    for n in range(10):
        judge(policy, None, profile, Burst(), tx(n, n))
    judge(policy, None, profile, Burst(), tx(11, 11, merchant="new", amount=3000.0))
    assert report(policy, None, profile, Chargeback("t11", "c", NOON + timedelta(hours=20)))
    judge(policy, None, profile, Burst(), tx(200, 12))
    assert "new" not in profile.merchants


def test_a_report_about_an_unknown_payment_is_ignored() -> None:
    assert not report(Policy(), None, Profile(), Chargeback("never", "c", NOON))


@needs_river
def test_what_is_kept_of_a_card_is_bounded() -> None:
    profile, policy, scorer = Profile(), Policy(), Scorer()
    for n in range(400):
        judge(policy, scorer, profile, Burst(), tx(n / 10, n, merchant=f"m{n}", device=f"d{n}", category=f"k{n}"))
    assert len(profile.cases) <= policy.most_cases + 1
    judge(policy, scorer, profile, Burst(), tx(24 * 60, 999))
    assert len(profile.cases) <= 1


@needs_river
def test_a_bare_payment_is_judged_too() -> None:
    verdict = judge(Policy(), Scorer(), Profile(), Burst(), Transaction("t", "c", NOON, 5.0))
    assert not verdict.alert
    assert verdict.risk is not None


@needs_river
def test_every_alert_has_a_reason(unseen: World) -> None:
    profile, scorer, policy = Profile(), Scorer(), Policy(threshold=0.0)
    for event in unseen.events[:300]:
        if isinstance(event, Transaction):
            verdict = judge(policy, scorer, profile, Burst(), event)
            assert alert_of(event, verdict).reasons
