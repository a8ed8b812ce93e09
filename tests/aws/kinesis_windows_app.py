"""An app with state of many kinds by key: what becomes of each is told, so that nothing may go where its key is not."""

import os
from collections.abc import AsyncIterator
from typing import Any

import flowkit
from flowkit import Closed, Count, Session, Sliding, Stream, Timer, Tumbling, hours, seconds

NAME = os.environ["KINESIS_APP"]

app = flowkit.App(NAME)


class Event(flowkit.Record):
    key: str
    at: int


class Told(flowkit.Record):
    kind: str
    key: str
    end: int
    n: int


events = app.topic(f"{NAME}-in", Event, key="key", time="at")
out = app.topic(f"{NAME}-out", Told, key="key")
tumbling = app.table("tumbling", str, int, window=Tumbling(seconds(10)))
totals = app.table("totals", str, int, ttl=hours(24))
sliding = app.table("sliding", of=events, by="key", window=Sliding(seconds(20), seconds(10)), n=Count())
sessions = app.table("sessions", of=events, by="key", window=Session(seconds(8)), n=Count())
tens = app.table("tens", of=events, by="key", window=Count(10), n=Count())
minute = app.timers("minute", str)


@app.agent(events, minute, tables=[tumbling, totals, minute], sinks=[out])
async def keep(stream: Stream[Event | Timer[str]]) -> AsyncIterator[Told]:
    async for event in stream:
        if isinstance(event, Timer):
            yield Told("minute", event.key, event.at, 0)
            continue
        tumbling[event.key] += 1
        totals[event.key] += 1
        if totals[event.key] == 1:
            minute.set(event.key, event.at + 60_000)
        yield Told("total", event.key, 0, totals[event.key])


@app.each(tumbling.closed, sinks=[out])
def tumbled(w: Closed[str, int]) -> Told:
    return Told("tumbling", w.key, w.end, w.value)


@app.each(sliding.closed, sinks=[out])
def slid(w: Closed[str, Any]) -> Told:
    return Told("sliding", w.key, w.end, w.value.n)


@app.each(sessions.closed, sinks=[out])
def over(w: Closed[str, Any]) -> Told:
    return Told("session", w.key, w.end, w.value.n)


@app.each(tens.closed, sinks=[out])
def ten(w: Closed[str, Any]) -> Told:
    return Told("ten", w.key, 0, w.value.n)
