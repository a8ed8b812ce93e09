"""The service: card payments and chargebacks come in, alerts go out.

    flowkit run services.fraud_detection.app --input transactions=FILE --input chargebacks=FILE --output alerts=FILE

All that it remembers is in tables, so it survives a crash and gives the same alerts however often it was restarted:
each card's history, the burst of payments that it is in, and the score, one for each task.
"""

from collections.abc import AsyncIterator

import structlog

import flowkit
from flowkit import Session, Stream, days, minutes, seconds
from services.fraud_detection.detector import Policy, alert_of, judge, report
from services.fraud_detection.model import Scorer, available
from services.fraud_detection.records import Alert, Burst, Chargeback, Profile, Transaction

log = structlog.get_logger("fraud")

app = flowkit.App("fraud-detection")


class FraudSettings(flowkit.Settings, prefix="FRAUD_"):
    """`FRAUD_THRESHOLD`: the risk (0 … 1) from which on a payment is an alert. `FRAUD_RULES_ONLY`: do without score."""

    threshold: float = Policy().threshold
    rules_only: bool = False


class Setup(flowkit.Record):
    """What one worker decides by."""

    policy: Policy
    scoring: bool


def join(a: Burst, b: Burst) -> Burst:
    """One burst of two that turn out to touch."""
    return Burst(a.count + b.count, a.strange + b.strange, a.total + b.total)


transactions = app.topic("transactions", Transaction, key="card", time="at", timezone="UTC", out_of_order=seconds(60))
chargebacks = app.topic("chargebacks", Chargeback, key="card", time="at", timezone="UTC", out_of_order=seconds(60))
alerts = app.topic("alerts", Alert, key="card", time="at")

profiles = app.table("profiles", str, Profile, ttl=days(180))
bursts = app.table("bursts", str, Burst, window=Session(minutes(4)), merge=join, late="deliver")
scores = app.table("scores", str, Scorer, default=Scorer, local=True)


@app.resource
async def setup() -> AsyncIterator[Setup]:
    """Settings from the environment, and whether there is a score at all."""
    settings = FraudSettings.load()
    scoring = available() and not settings.rules_only
    if not scoring:
        why = "FRAUD_RULES_ONLY is set" if settings.rules_only else "river is not installed (pip install 'flowkit[ml]')"
        log.warning("the rules decide alone: no score", because=why)
    yield Setup(Policy(threshold=settings.threshold), scoring)


@app.agent(transactions, chargebacks, tables=[profiles, bursts, scores], sinks=[alerts])
async def detect(stream: Stream[Transaction | Chargeback]) -> AsyncIterator[Alert]:
    """Judge each payment when it comes, by what is known then; learn from each report when it comes."""
    now = setup()
    async for event in stream:
        scorer = scores["all"] if now.scoring else None
        if isinstance(event, Chargeback):
            if event.card in profiles:
                report(now.policy, scorer, profiles[event.card], event)
            continue
        try:
            burst = bursts[event.card]
        except flowkit.WindowClosed:
            burst = Burst()  # too late to count, not too late to judge
        verdict = judge(now.policy, scorer, profiles[event.card], burst, event)
        if verdict.alert:
            yield alert_of(event, verdict)
