"""The service: values of metrics come in, a score for each and alerts go out.

    flowkit run services.anomaly_detection.app --input metrics=FILE --output scores=FILE --output alerts=FILE

Every series has a detector of its own, which starts from nothing and knows neither its name nor its kind. Detectors
live in a table: they survive a crash, and give the same scores however often the service was restarted. What is no
number, or has no time, goes to the dead letters and is not learned from.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import flowkit
from flowkit import Stream, minutes
from services.anomaly_detection.detector import TESTS, THRESHOLD, Detector, Judgement
from services.anomaly_detection.records import Alert, Metric, Score

app = flowkit.App("anomaly-detection")


class AnomalySettings(flowkit.Settings, prefix="ANOMALY_"):
    """`ANOMALY_THRESHOLD`: the surprise from which on to alert; 1 more is ten times rarer, and fewer alerts."""

    threshold: float = THRESHOLD


metrics = app.topic("metrics", Metric, key="name", time="timestamp", timezone="UTC", out_of_order=minutes(1))
scores = app.topic("scores", Score, key="name", time="timestamp")
alerts = app.topic("alerts", Alert, key="name", time="timestamp")

# No ttl: in a file that holds one series after the other the second begins long before the watermark, and would forget
# as fast as it learns. A detector's size does not grow.
detectors = app.table("detectors", str, Detector)


@app.resource
async def settings() -> AsyncIterator[AnomalySettings]:
    """The settings from the environment. Raises ValueError for a threshold that everything would reach."""
    found = AnomalySettings.load()
    if not found.threshold > 0:
        raise ValueError(f"ANOMALY_THRESHOLD={found.threshold}: a surprise is above 0; the default is {THRESHOLD}")
    yield found


@app.agent(metrics, tables=[detectors], sinks=[scores, alerts])
async def detect(stream: Stream[Metric]) -> AsyncIterator[Score | Alert]:
    """Judge each value by what its series did before, then learn it."""
    threshold = settings().threshold
    async for metric in stream:
        at = aware(metric.timestamp)
        found = detectors[metric.name].observe(at.timestamp(), metric.value, threshold)
        yield Score(at, metric.name, metric.value, found.score, found.surprise)
        if found.alert:
            yield alert_of(metric, found)


def aware(at: datetime) -> datetime:
    """The time with its zone: UTC where it does not say, as the topic has it."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def alert_of(metric: Metric, found: Judgement) -> Alert:
    """What is told of an alert, the reason in words."""
    reason = (
        f"{TESTS[found.test]}: {metric.value:.6g}, where {found.expected:.6g} is expected "
        f"({found.low:.6g} … {found.high:.6g})"
    )
    return Alert(
        aware(metric.timestamp),
        metric.name,
        metric.value,
        found.score,
        found.surprise,
        found.expected,
        found.low,
        found.high,
        found.test,
        reason,
    )
