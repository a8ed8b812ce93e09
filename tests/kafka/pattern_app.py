"""An app over all topics that match: the running count of each key, and where records lay that are no use."""

import os

import flowkit

NAME = os.environ["PATTERN_APP"]

app = flowkit.App(f"{NAME}-app")


class Event(flowkit.Record):
    key: str
    at: int


class Total(flowkit.Record):
    key: str
    total: int


events = app.topic("events", Event, key="key", time="at", pattern=rf"{NAME}\.in\..*", out_of_range="earliest")
out = app.topic(f"{NAME}-out", Total, key="key")
letters = app.topic(f"{NAME}-letters", str)
totals = app.table("totals", str, int)


@app.each(events, tables=[totals], sinks=[out])
def count(event: Event) -> Total:
    totals[event.key] += 1
    return Total(event.key, totals[event.key])


@app.each(app.dead_letters, sinks=[letters])
def tell(letter: flowkit.DeadLetter) -> str | None:
    return f"{letter.topic} {letter.position}" if letter.topic.startswith(f"{NAME}.") else None
