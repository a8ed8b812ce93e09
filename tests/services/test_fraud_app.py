"""The service on the engine: the same alerts as the detector alone, whatever crashes and however batches are cut."""

import sys
from itertools import groupby, islice

import pytest

from flowkit.testing import harness
from services.fraud_detection.app import alerts, app, chargebacks, profiles, scores, setup, transactions
from services.fraud_detection.model import Scorer, available
from services.fraud_detection.records import Burst, Transaction
from tests.matrix import matrix
from tests.services.fraud_world import decide, world

EVENTS = list(islice(world(42, 2000).events, 1200))


async def alerts_of(seed: int | None, crashes: float = 0.05, count: int = len(EVENTS)) -> list[str]:
    async with harness(app, seed=seed, crashes=crashes) as h:
        for kind, events in groupby(EVENTS[:count], type):
            await h.send(transactions if kind is Transaction else chargebacks, *events)
        if seed is not None:
            assert h.crashed or not crashes
        return [alert.id for alert in h.sent(alerts)]


@pytest.mark.skipif(not available(), reason="river is an optional extra")
@pytest.mark.parametrize("count", matrix([600, len(EVENTS)], quick=lambda count: count == 600))
async def test_crashes_and_cuts_change_no_alert(count: int) -> None:
    expected = decide(EVENTS[:count], Scorer())
    assert len(expected) > 5
    assert await alerts_of(None, count=count) == expected
    assert await alerts_of(7, crashes=0.02, count=count) == expected


async def test_rules_alone_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_RULES_ONLY", "true")
    assert await alerts_of(None) == decide(EVENTS, None)


async def test_rules_alone_where_river_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    assert not available()
    async with harness(app) as h:
        await h.send(transactions, *(event for event in EVENTS[:50] if isinstance(event, Transaction)))
        assert h.table(scores) == {}
        assert h.table(profiles)


async def test_the_threshold_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAUD_THRESHOLD", "0.75")
    async with harness(app):
        assert setup().policy.threshold == 0.75


async def test_a_payment_that_comes_much_too_late_is_judged_all_the_same() -> None:
    payments = [event for event in EVENTS if isinstance(event, Transaction)]
    last = payments[200]
    late = Transaction("late", "nobody", payments[0].at, 12.0)
    async with harness(app) as h:
        await h.send(transactions, *payments[:201])
        await h.send(transactions, late, last)
        assert h.table(profiles)["nobody"].seen == 1
        assert h.sent(app.dead_letters) == []


def test_bursts_that_touch_become_one() -> None:
    from services.fraud_detection.app import join

    assert join(Burst(2, 1, 10.0), Burst(3, 2, 5.0)) == Burst(5, 3, 15.0)
