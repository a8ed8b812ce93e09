"""An app whose every output shows whether its state is what it should be: the running count of each key."""

import os
from typing import Any

import flowkit

NAME = os.environ.get("KINESIS_APP", "app")

app = flowkit.App(NAME)


class Event(flowkit.Record):
    key: str
    number: int


class Total(flowkit.Record):
    key: str
    number: int
    total: int


events = app.topic(f"{NAME}-in", Event, key="key")
out = app.topic(f"{NAME}-out", Total, key="key")
totals = app.table("totals", str, int)


def moved(event: Event) -> Event:
    """Nobody can know that its key is the same."""
    return event


source: Any = events.map(moved).group_by("key", name="moved") if "KINESIS_APP_HOP" in os.environ else events
more = [app.topic(f"{NAME}-more", Event, key="key")] if "KINESIS_APP_MORE" in os.environ else []


@app.each(source, *more, tables=[totals], sinks=[out])
def count(event: Event) -> Total:
    totals[event.key] += 1
    return Total(event.key, event.number, totals[event.key])
