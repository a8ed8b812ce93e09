"""What counts as foreseen, as noticed, and as a false alarm."""

from datetime import UTC, datetime, timedelta
from typing import Any

from services.iot_maintenance.measure import Label, low, measure, merged, middle
from services.iot_maintenance.records import Alert


def hour(n: float) -> datetime:
    return datetime(2025, 3, 3, tzinfo=UTC) + timedelta(hours=n)


def alert(device: str, at: float, kind: Any = "degradation", *others: str) -> Alert:
    return Alert(device, hour(at), kind, hour(at), others=list(others))


LABELS = [
    Label("a", "bearing", hour(10), hour(40), hour(60), foreseeable=True),
    Label("b", "bearing", hour(10), hour(40), hour(60), foreseeable=True),
    Label("c", "sudden", hour(30), hour(30), hour(50)),
    Label("", "outage", hour(5), hour(5), hour(6), site="s"),
]


def test_an_alert_before_the_end_foresees_and_the_first_gives_the_lead() -> None:
    outcome = measure([alert("a", 30), alert("a", 12), alert("b", 41)], LABELS, 10, 10)
    assert outcome.leads == [28]
    assert outcome.kinds == {"bearing": (1, 2)}
    assert outcome.recall == 0.5
    assert outcome.false_alarms == 0


def test_an_alert_about_nothing_is_false() -> None:
    outcome = measure([alert("a", 9), alert("a", 61), alert("x", 20, "limit"), alert("c", 20)], LABELS, 10, 10)
    assert (outcome.false_alarms, outcome.false_a_day, outcome.leads) == (4, 40.0, [])


def test_silence_counts_from_the_end_on() -> None:
    alerts = [
        alert("a", 20, "silence"),
        alert("a", 41, "silence"),
        alert("x", 5, "outage", "b", "c"),
        alert("c", 32, "outage"),
    ]
    outcome = measure(alerts, LABELS, 10, 10)
    assert outcome.delays == [1, 2]
    assert (outcome.silent, outcome.false_silences, outcome.outages) == (3, 1, 2)


def test_several_runs_are_one() -> None:
    one = measure([alert("a", 30)], LABELS, 10, 10)
    both = merged([one, measure([alert("x", 30)], LABELS, 10, 10)])
    assert (both.leads, both.kinds, both.foreseeable) == ([10], {"bearing": (1, 4)}, 4)
    assert both.false_a_day == 5.0


def test_middle_and_low() -> None:
    assert (middle([]), low([]), middle([3, 1, 2]), low(list(range(20, 0, -1)))) == (0.0, 0.0, 2, 3)
