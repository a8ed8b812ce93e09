"""One payment at a time: history, rules and score put together. No engine, no clock: the app hands in the state."""

import flowkit

from services.fraud_detection.features import signals
from services.fraud_detection.history import compare, remember
from services.fraud_detection.model import Scorer
from services.fraud_detection.records import Burst, Case, Chargeback, Profile, Transaction
from services.fraud_detection.rules import Hit, Limits, apply_rules


class Policy(flowkit.Record, frozen=True):
    """How the detector decides and learns. Durations in ms."""

    limits: Limits = Limits()
    threshold: float = 0.25
    doubt: float = 0.1
    mature: int = 2 * 86_400_000
    keep: int = 14 * 86_400_000
    most_cases: int = 64
    fraud_weight: float = 8.0
    revise_weight: float = 8.0


class Verdict(flowkit.Record):
    alert: bool
    score: float
    hits: list[Hit]
    signals: list[str]


def judge(policy: Policy, scorer: Scorer | None, profile: Profile, burst: Burst, tx: Transaction) -> Verdict:
    beside = compare(profile, tx)
    at = beside.at
    burst.count += 1
    burst.total += tx.amount
    burst.strange += (beside.merchant_ms or 0) < policy.limits.familiar_ms
    hits = apply_rules(policy.limits, profile, burst, tx, beside)
    if scorer is None:
        alert = bool(hits)
        if not alert:
            remember(profile, tx, at)
        return Verdict(alert, 0.9 if hits else 0.0, hits, [])
    mature(policy, scorer, profile, at)
    seen, tokens, stranger = signals(tx, profile, burst, beside, hits)
    scorer.enrich(seen, tokens, stranger)
    score = scorer.score(seen)
    alert = score >= policy.threshold
    now = score < policy.doubt
    if now:
        scorer.learn(seen, fraud=False)
    profile.cases.append(Case(tx.id, at, seen, tokens, alert, tx, now))
    if not alert:
        remember(profile, tx, at)
    return Verdict(alert, score, hits, seen)


def mature(policy: Policy, scorer: Scorer, profile: Profile, now: int) -> None:
    for case in profile.cases:
        if not case.learned and now - case.at >= policy.mature:
            scorer.learn(case.signals, fraud=False)
            case.learned = True
            if case.held:
                remember(profile, case.tx, case.at)
                case.held = False
    cut = 0
    while cut < len(profile.cases) and (now - profile.cases[cut].at > policy.keep or len(profile.cases) - cut > policy.most_cases):
        cut += 1
    if cut:
        del profile.cases[:cut]


def report(policy: Policy, scorer: Scorer | None, profile: Profile, chargeback: Chargeback) -> None:
    at = round(chargeback.at.timestamp() * 1000)
    profile.disputed_at = at
    if scorer is None:
        return
    for n, case in enumerate(profile.cases):
        if case.id == chargeback.id:
            scorer.bad(case.tokens)
            scorer.learn(case.signals, fraud=True, weight=policy.revise_weight if case.learned else policy.fraud_weight)
            del profile.cases[n]
            break
