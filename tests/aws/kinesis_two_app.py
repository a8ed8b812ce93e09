"""An app whose one table is of two streams."""

import os

import flowkit

NAME = os.environ["KINESIS_APP"]

app = flowkit.App(NAME)


class Event(flowkit.Record):
    key: str
    number: int


class Total(flowkit.Record):
    key: str
    number: int
    total: int


events = app.topic(f"{NAME}-in", Event, key="key")
more = app.topic(f"{NAME}-more", Event, key="key")
out = app.topic(f"{NAME}-out", Total, key="key")
totals = app.table("totals", str, int)


@app.each(events, more, tables=[totals], sinks=[out])
def count(event: Event) -> Total:
    totals[event.key] += 1
    return Total(event.key, event.number, totals[event.key])
