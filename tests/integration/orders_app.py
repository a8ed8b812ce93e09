"""An app for bounded runs that are killed: windows, a chain over a topic, late records, failures, batches by the clock.

It also reads a topic that falls idle. Every output depends on state that a kill must not harm.
"""

from collections.abc import AsyncIterator

import flowkit
from flowkit import Closed, Retry, Stream, Tumbling, seconds

app = flowkit.App("orders")


class Order(flowkit.Record):
    shop: str
    at: int
    amount: int


class Notice(flowkit.Record):
    at: int
    shop: str = ""


class Sum(flowkit.Record):
    n: int = 0
    total: int = 0


class Window(flowkit.Record):
    shop: str
    end: int
    n: int
    total: int


class Running(flowkit.Record):
    shop: str
    end: int
    total: int
    windows: int


class Batch(flowkit.Record):
    first: int
    last: int
    n: int


orders = app.topic("orders", Order, key="shop", time="at", out_of_order=50)
notices = app.topic("notices", Notice, time="at", idle_after=seconds(2))
windows = app.topic("windows", Window, key="shop", time="end")
running = app.sink("running", Running)
batches = app.sink("batches", Batch)
late = app.sink("late", Order)

sums = app.table("sums", str, Sum, window=Tumbling(200))
totals = app.table("totals", str, Running)


class Refused(Exception):
    """What an agent thinks of some orders."""


@app.agent(orders, notices, tables=[sums], retry=Retry(attempts=2, backoff=0))
async def count(stream: Stream[Order | Notice]) -> None:
    async for event in stream:
        if isinstance(event, Order):
            entry = sums[event.shop]
            entry.n += 1
            entry.total += event.amount
            if event.amount % 997 == 0:
                raise Refused(f"amount {event.amount}")


@app.each(sums.closed, sinks=[windows])
def closed(w: Closed[str, Sum]) -> Window:
    return Window(w.key, w.end, w.value.n, w.value.total)


@app.each(sums.late, sinks=[late])
def too_late(order: Order) -> Order:
    return order


@app.agent(windows, tables=[totals], sinks=[running])
async def run(stream: Stream[Window]) -> AsyncIterator[Running]:
    async for window in stream:
        before = totals.get(window.shop) or Running(window.shop, 0, 0, 0)
        now = Running(window.shop, window.end, before.total + window.total, before.windows + 1)
        totals[window.shop] = now
        yield now


@app.agent(orders, sinks=[batches])
async def gather(stream: Stream[Order]) -> AsyncIterator[Batch]:
    async for batch in stream.batches(40, within=37):
        yield Batch(batch[0].at, batch[-1].at, len(batch))
