"""One payment at a time: history, rules and score put together. No engine, no clock: the app hands in the state."""

import flowkit
from services.fraud_detection.features import DAY_MS, observe
from services.fraud_detection.history import compare, note_hidden, remember
from services.fraud_detection.model import Scorer
from services.fraud_detection.records import Alert, Burst, Case, Chargeback, Profile, Transaction
from services.fraud_detection.rules import Hit, Limits, apply_rules, count_in


class Policy(flowkit.Record, frozen=True):
    """How the detector decides and learns; durations in ms.

    Risks from `threshold` on are alerts. Payments below `doubt` are learned as honest at once, others when nobody has
    complained for `mature_ms`. A report counts `fraud_weight` times as much as an honest payment, and is understood for
    `keep_ms`, for the last `most_cases` payments of a card that gave signals.
    """

    limits: Limits = Limits()
    threshold: float = 0.4
    doubt: float = 0.03
    fraud_weight: float = 8.0
    mature_ms: int = 2 * DAY_MS
    keep_ms: int = 14 * DAY_MS
    most_cases: int = 64


class Verdict(flowkit.Record):
    """What was decided of a payment: the risk (None without a score), the rules that fired, the score's own reasons."""

    alert: bool
    risk: float | None
    hits: list[Hit]
    reasons: list[str]


def judge(policy: Policy, scorer: Scorer | None, profile: Profile, burst: Burst, tx: Transaction) -> Verdict:
    """Decide of a payment and take it into the card's history; without a scorer the rules decide alone."""
    beside = compare(profile, tx)
    close_cases(policy, scorer, profile, beside.at)
    count_in(policy.limits, burst, tx, beside)
    hits = apply_rules(policy.limits, profile, burst, tx, beside)
    if scorer is None:
        verdict = Verdict(bool(hits), None, hits, [])
        case = Case(tx.id, beside.at, {}, [], alerted=verdict.alert)
        held, departs = verdict.alert, False
    else:
        seen = observe(tx, profile, burst, beside, hits)
        note_hidden(profile, beside)
        scorer.weigh(seen)
        risk = scorer.score(seen.signals)
        alert = risk >= policy.threshold
        held, departs = risk >= policy.doubt, seen.departs
        verdict = Verdict(alert, risk, hits, scorer.why(seen.signals) if alert else [])
        case = Case(tx.id, beside.at, seen.signals, seen.tokens, learned=not held, alerted=alert)
        if departs and not held:
            scorer.learn(seen.signals, fraud=False)
    if held:
        case.tx = tx
    else:
        remember(profile, tx, beside.at)
    if held or departs:
        profile.cases.append(case)
    return verdict


def alert_of(tx: Transaction, verdict: Verdict) -> Alert:
    """The alert that people see: the rules first, then what the score adds."""
    reasons = [hit.text for hit in verdict.hits] + verdict.reasons
    score = None if verdict.risk is None else round(verdict.risk, 4)
    return Alert(tx.id, tx.card, tx.at, tx.amount, score, reasons or ["several weak signs together"])


def report(policy: Policy, scorer: Scorer | None, profile: Profile, chargeback: Chargeback) -> bool:
    """Learn from a chargeback; False if the payment is not known (any more)."""
    case = next((case for case in profile.cases if case.id == chargeback.id), None)
    if case is None:
        return False
    if scorer is not None:
        for token in case.tokens:
            if not token.startswith("crowd#"):
                scorer.reputation.report(token)
        scorer.learn(case.signals, fraud=True, weight=policy.fraud_weight)
    profile.cases.remove(case)
    return True


def close_cases(policy: Policy, scorer: Scorer | None, profile: Profile, now: int) -> None:
    """Take for honest what nobody has complained about for long enough, and forget what is too old to matter."""
    for case in profile.cases:
        if now - case.at < policy.mature_ms:
            continue
        if not case.learned:
            case.learned = True
            if scorer is not None:
                scorer.learn(case.signals, fraud=False)
        if case.tx is not None:
            remember(profile, case.tx, case.at)
            case.tx = None
    old = 0
    for case in profile.cases:
        if now - case.at <= policy.keep_ms and len(profile.cases) - old <= policy.most_cases:
            break
        old += 1
    del profile.cases[:old]
