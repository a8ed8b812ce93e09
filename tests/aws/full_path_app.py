"""The app of the full path: a stream to windowed features, a journal of what came, and alerts to a function."""

import os
from collections.abc import AsyncIterator

import flowkit
from flowkit import Closed, Stream, Tumbling, seconds

NAME = os.environ["KINESIS_APP"]

app = flowkit.App(NAME)


class Event(flowkit.Record):
    card: str
    number: int
    amount: int
    at: int


class Spend(flowkit.Record):
    count: int = 0
    total: int = 0


class Feature(flowkit.Record):
    card: str
    until: int
    count: int
    total: int


class Entry(flowkit.Record):
    card: str
    number: int
    nth: int
    """Which event of its card it is."""


class Alert(flowkit.Record):
    card: str
    number: int
    nth: int


events = app.topic(f"{NAME}-in", Event, key="card", time="at", out_of_order=seconds(15))
windows = app.sink("windows", Feature)
latest = app.sink("latest", Feature)
history = app.sink("history", Feature)
journal = app.sink("journal", Entry)
alerts = app.sink("alerts", Alert, key="card")
spend = app.table("spend", str, Spend, window=Tumbling(seconds(10)))
seen = app.table("seen", str, int)


@app.agent(events, tables=[spend, seen], sinks=[journal, alerts])
async def watch(stream: Stream[Event]) -> AsyncIterator[Entry | Alert]:
    async for event in stream:
        recent = spend[event.card]
        recent.count += 1
        recent.total += event.amount
        seen[event.card] += 1
        nth = seen[event.card]
        yield Entry(event.card, event.number, nth)
        if nth % 5 == 0:
            yield Alert(event.card, event.number, nth)


@app.each(spend.closed, sinks=[windows, latest, history])
def close(w: Closed[str, Spend]) -> None:
    feature = Feature(w.key, w.end, w.value.count, w.value.total)
    for sink in (windows, latest, history):
        sink.emit(feature)
