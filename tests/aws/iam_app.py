"""An app that uses all that `flowkit iam` knows rights for: streams, re-keying, items and their deletion, delivery."""

import os
from typing import Any

import flowkit

NAME = os.environ.get("KINESIS_APP", "app")

GUARANTEE: Any = os.environ.get("IAM_APP_GUARANTEE", "exactly once")

app = flowkit.App(NAME, guarantee=GUARANTEE)


class Event(flowkit.Record):
    key: str
    number: int


class Total(flowkit.Record):
    key: str
    number: int
    total: int


events = app.topic(f"{NAME}-in", Event, key="key")
out = app.topic(f"{NAME}-out", Total, key="key")
feature: Any = Total | None
features: Any = app.sink("features", feature, key=lambda total: total.key)
archive = app.sink("archive", Total, key="key")
totals = app.table("totals", str, int)


def moved(event: Event) -> Event:
    """Nobody can know that its key is the same."""
    return event


@app.each(events.map(moved).group_by("key", name="moved"), tables=[totals], sinks=[out, features, archive])
def count(event: Event) -> None:
    totals[event.key] += 1
    total = Total(event.key, event.number, totals[event.key])
    out.emit(total)
    archive.emit(total)
    if event.key == "k1":
        features.emit(None, key=event.key)
    else:
        features.emit(total)
