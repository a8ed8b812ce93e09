"""An app for workers that are killed: windows by partition, sent to a topic that a second group adds up."""

from collections.abc import AsyncIterator

import flowkit
from flowkit import Closed, Stream, Tumbling

app = flowkit.App("chain")


class Event(flowkit.Record):
    key: str
    at: int
    value: int


class Sum(flowkit.Record):
    n: int = 0
    total: int = 0


class Window(flowkit.Record):
    key: str
    end: int
    n: int
    total: int


class Running(flowkit.Record):
    key: str
    end: int
    total: int


events = app.topic("events", Event, key="key", time="at", out_of_order=20)
windows = app.topic("windows", Window, key="key", time="end")
totals = app.topic("totals", Running, key="key", time="end")
ledger = app.sink("ledger", Running)

sums = app.table("sums", str, Sum, window=Tumbling(100))
running = app.table("running", str, int)


@app.agent(events, tables=[sums])
async def count(stream: Stream[Event]) -> None:
    async for event in stream:
        entry = sums[event.key]
        entry.n += 1
        entry.total += event.value


@app.each(sums.closed, sinks=[windows])
def closed(w: Closed[str, Sum]) -> Window:
    return Window(w.key, w.end, w.value.n, w.value.total)


@app.agent(windows, tables=[running], sinks=[totals, ledger])
async def add_up(stream: Stream[Window]) -> AsyncIterator[Running]:
    async for window in stream:
        running[window.key] += window.total
        yield Running(window.key, window.end, running[window.key])
