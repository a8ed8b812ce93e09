"""An app of all that keeps something, for the soak: joins, a pattern, windows, timers, calls, a table with a ttl."""

import asyncio
from typing import Any

import flowkit
from flowkit import Closed, Count, Joined, Mean, Session, Sliding, Sum, Tick, Timer, Tumbling, minutes, seconds
from flowkit.pattern import Match, Pattern

app = flowkit.App("soak")


class Order(flowkit.Record):
    id: str
    user: str
    amount: float
    at: int


class Payment(flowkit.Record):
    order: str
    user: str
    paid: float
    at: int


class Note(flowkit.Record):
    what: str
    key: str


class Seen(flowkit.Record):
    count: int = 0
    last: int = 0


orders = app.topic("orders", Order, key="user", time="at", out_of_order=seconds(2))
payments = app.topic("payments", Payment, key="user", time="at", out_of_order=seconds(2))
notes = app.topic("notes", Note, key="key")

seen = app.table("seen", str, Seen, ttl=minutes(1))
visits = app.table("visits", of=orders, by="user", window=Session(seconds(5)), n=Count())
per_user = orders.filter(lambda order: order.amount > 10).window(Sliding(seconds(30), seconds(10)))
amounts = per_user.aggregate(n=Count(), mean=Mean("amount"))
paid = orders.join(payments, on=("id", "order"), within=(0, seconds(20)), how="left", name="paid")
latest = orders.join_as_of(payments, on="user", how="left", keep_for=minutes(1), name="latest")
together = orders.join(payments, on="user", window=Tumbling(seconds(10)), name="together")
rising = (
    Pattern[Order]
    .begin("low", lambda order: order.amount < 20)
    .followed_by("high", lambda order: order.amount > 80)
    .within(seconds(30))
)
found = orders.match(rising, by="user", name="rising")
silence = app.timers("silence", str)
totals = app.table("totals", of=payments, by="user", window=Tumbling(seconds(10)), total=Sum("paid"))


@app.each(orders, silence, tables=[seen], sinks=[notes])
def see(event: Order | Timer[str]) -> Note | None:
    if isinstance(event, Timer):
        return Note("silent", event.key)
    row = seen[event.user]
    row.count += 1
    row.last = event.at
    silence.set(event.user, event.at + seconds(20))
    return None


@app.timer(seconds(10), sinks=[notes])
def tick(_tick: Tick) -> Note:
    return Note("tick", "")


@app.each(paid, sinks=[notes])
def unpaid(pair: Joined[Order, Payment | None]) -> Note | None:
    return Note("unpaid", pair.left.user) if pair.right is None else None


@app.each(latest)
def known(pair: Joined[Order, Payment | None]) -> None: ...


@app.each(together)
def both(pair: Joined[Order, Payment]) -> None: ...


async def check(payment: Payment) -> Note:
    """Stands for a service that answers within some milliseconds, and for one payment in a thousand not at once."""
    await asyncio.sleep(0.5 if payment.order.endswith("777") else 0.005)
    return Note("checked", payment.user)


async def check_some(some: list[Order]) -> list[Note]:
    """Stands for a model that takes batches."""
    await asyncio.sleep(0.01)
    return [Note("scored", order.user) for order in some]


checked = payments.map_async(check, concurrency=32, timeout=seconds(2), name="checked")
scored = orders.map_async_batches(check_some, size=64, within=seconds(1), concurrency=4, name="scored")


@app.each(checked, scored)
def answered(note: Note) -> None: ...


@app.each(found, sinks=[notes])
def rise(match: Match[str, Order]) -> Note:
    return Note("rising", match.key)


@app.each(amounts.closed, visits.closed, totals.closed, sinks=[notes])
def closed(window: Closed[str, Any]) -> Note:
    return Note("window", window.key)
