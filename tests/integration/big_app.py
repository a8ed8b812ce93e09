"""A table with a ttl, sessions, and a window, each with as many keys as there are cards."""

from collections.abc import AsyncIterator

import flowkit
from flowkit import Session, Stream, Tumbling, hours

app = flowkit.App("big")


class Payment(flowkit.Record):
    card: str
    amount: float
    at: int


class Spent(flowkit.Record):
    count: int = 0
    total: float = 0.0


class Often(flowkit.Record):
    card: str
    count: int


payments = app.topic("payments", Payment, key="card", time="at")
often = app.sink("often", Often)


def together(a: Spent, b: Spent) -> Spent:
    return Spent(a.count + b.count, a.total + b.total)


ever = app.table("ever", str, Spent, ttl=hours(10_000))
visits = app.table("visits", str, Spent, window=Session(hours(300)), merge=together)
weekly = app.table("weekly", str, Spent, window=Tumbling(hours(168)))


@app.agent(payments, tables=[ever, visits, weekly], sinks=[often])
async def count(stream: Stream[Payment]) -> AsyncIterator[Often]:
    async for payment in stream:
        for spent in (ever[payment.card], visits[payment.card], weekly[payment.card]):
            spent.count += 1
            spent.total += payment.amount
        if ever[payment.card].count == 3:
            yield Often(card=payment.card, count=3)
