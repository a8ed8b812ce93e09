"""The score: what it knows before it learns, what it learns, and that its state is the whole of it."""

import msgspec
import pytest

from services.fraud_detection.features import Observation
from services.fraud_detection.model import SCORECARD, WORDS, Scorer, available
from services.fraud_detection.reputation import FADE_AT, HIGHEST, LOWEST, Reputation
from tests.services.fraud_world import decide, world

pytestmark = pytest.mark.skipif(not available(), reason="river is an optional extra")


def seen(*tokens: str, **signals: float) -> Observation:
    return Observation(dict(signals), list(tokens), stranger=False, departs=bool(signals))


def restored(scorer: Scorer) -> Scorer:
    """Through bytes, as a table stores it."""
    return Scorer.from_state(msgspec.msgpack.decode(msgspec.msgpack.encode(scorer.to_state())))


def test_before_it_learns_the_score_says_what_the_scorecard_says() -> None:
    scorer = Scorer()
    assert scorer.score({}) < 0.001
    assert scorer.score({"rule=velocity": 1.0}) < scorer.score({"rule=velocity": 1.0, "device=2": 1.0})
    assert scorer.score({"device=2": 1.0, "device,merchant": 1.0, "merchant=2": 1.0, "like=2": 1.0}) > 0.9


def test_it_learns_what_the_scorecard_does_not_know() -> None:
    scorer = Scorer()
    start = scorer.score({"something new": 1.0})
    for _ in range(3000):
        scorer.learn({"something new": 1.0, "odd hour": 1.0}, fraud=True)
        scorer.learn({"something old": 1.0, "odd hour": 1.0}, fraud=False)
    assert scorer.score({"something new": 1.0}) > 10 * start > 10 * scorer.score({"something old": 1.0})


def test_a_state_gives_the_same_predictions_and_the_same_learning_bit_for_bit() -> None:
    first, second = world(31, 4000), world(32, 4000)
    kept = Scorer()
    decide(first.events, kept)
    again = restored(kept)
    signals = [{name: 1.0, "crowd risk": 0.1 * n} for n, name in enumerate([*SCORECARD, "never seen"])]
    assert [again.score(one) for one in signals] == [kept.score(one) for one in signals]
    assert again.to_state() == kept.to_state()

    assert decide(second.events, again) == decide(second.events, kept)
    assert [again.score(one) for one in signals] == [kept.score(one) for one in signals]
    assert again.to_state() == kept.to_state()


def test_restoring_after_every_payment_changes_nothing() -> None:
    events = world(33, 600).events
    once, often = Scorer(), Scorer()
    for n, event in enumerate(events):
        signals = {f"s{n % 7}": 1.0, f"t{n % 3}": 0.5}
        token = f"merchant#{n % 5}"
        for scorer in (once, often):
            scorer.weigh(seen(token, **signals))
            scorer.learn(signals, fraud=event.card.endswith("1"), weight=2.0)
        often = restored(often)
    assert often.to_state() == once.to_state()


def test_the_state_is_nothing_but_plain_data() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(inner) for key, inner in value.items())
        return all(map(plain, value)) if isinstance(value, list) else type(value) in (str, int, float)

    scorer = Scorer()
    decide(world(34, 1000).events, scorer)
    assert plain(scorer.to_state())


def test_every_signal_of_the_scorecard_has_words() -> None:
    scorer = Scorer()
    for name in SCORECARD:
        if not name.startswith("rule="):
            assert scorer.why({name: 9.0}), name
    assert scorer.why({"rule=velocity": 1.0}) == []


def test_reasons_come_weightiest_first_and_only_if_they_weigh() -> None:
    why = Scorer().why({"odd hour": 1.0, "device=2": 1.0, "device,merchant": 1.0, "category=2": 1.0, "like=1": 1.0})
    assert why == [WORDS["device"], WORDS["like"], WORDS["odd hour"]]


def test_a_token_without_evidence_has_no_reputation() -> None:
    assert Reputation().lift("merchant#1") == 0.0


def test_one_report_lifts_a_small_merchant_far_and_a_large_one_hardly() -> None:
    reputation = Reputation()
    for n in range(2000):
        reputation.count(f"merchant#{n % 40}")
    for _ in range(3):
        reputation.count("merchant#small")
    for token in ("merchant#small", *(f"merchant#{n}" for n in range(20))):
        reputation.report(token)
    assert reputation.lift("merchant#small") > 1.0 > reputation.lift("merchant#1")
    assert reputation.lift("merchant#39") < 0.0


def test_a_reputation_is_bounded_and_fades() -> None:
    reputation = Reputation()
    for _ in range(FADE_AT * 3):
        reputation.count("merchant#big")
        reputation.count("merchant#bad", marked=True)
    assert reputation.lift("merchant#big") == LOWEST
    assert 0.0 < reputation.lift("merchant#bad") <= HIGHEST
    (counts, _) = reputation.to_state()
    assert all(payments < FADE_AT for _, payments, _ in counts)


def test_a_report_about_a_token_that_was_never_counted_is_taken() -> None:
    reputation = Reputation()
    reputation.report("device#1")
    assert reputation.lift("device#1") > 0.0
