"""Simulated worlds for the fraud tests, and the service's decisions on them without the engine."""

from datetime import UTC, datetime
from typing import NamedTuple

from services.fraud_detection.detector import Policy, judge, report
from services.fraud_detection.history import time_ms
from services.fraud_detection.measure import Label, Outcome, measure
from services.fraud_detection.model import Scorer
from services.fraud_detection.records import Burst, Chargeback, Profile, Transaction
from services.fraud_detection.simulator import payment, simulate

GAP_MS = 240_000


class World(NamedTuple):
    """What happens, in the order of arrival, and which payments are fraudulent."""

    events: list[Transaction | Chargeback]
    labels: list[Label]


def world(seed: int, transactions: int) -> World:
    events: list[Transaction | Chargeback] = []
    labels = []
    for arrival in simulate(seed, transactions):
        at = datetime.fromtimestamp(round(arrival.at, 3), UTC)
        if arrival.purchase is None:
            events.append(Chargeback(arrival.id, arrival.card, at))
            continue
        row = payment(arrival.id, arrival.purchase)
        events.append(Transaction(**{**row, "at": at}))  # type: ignore[arg-type]
        if arrival.scenario is not None:
            labels.append(Label(arrival.id, at.isoformat(), arrival.scenario))
    return World(events, labels)


def decide(events: list[Transaction | Chargeback], scorer: Scorer | None, policy: Policy | None = None) -> list[str]:
    """The ids of the payments that are alerted."""
    policy = policy or Policy()
    profiles: dict[str, Profile] = {}
    bursts: dict[str, tuple[int, Burst]] = {}
    alerted = []
    for event in events:
        profile = profiles.setdefault(event.card, Profile())
        if isinstance(event, Chargeback):
            report(policy, scorer, profile, event)
            continue
        at = time_ms(event)
        last, burst = bursts.get(event.card, (at, Burst()))
        if at - last > GAP_MS:
            burst = Burst()
        bursts[event.card] = max(at, last), burst
        if judge(policy, scorer, profile, burst, event).alert:
            alerted.append(event.id)
    return alerted


def outcome(of: World, scorer: Scorer | None) -> Outcome:
    return measure(decide(of.events, scorer), of.labels)
