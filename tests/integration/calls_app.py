"""An app for bounded runs that are killed while calls are under way: chained, in batches, with windows between."""

import asyncio
import random

import flowkit
from flowkit import Closed, Retry, Sum, Tumbling

app = flowkit.App("calls")


class Order(flowkit.Record):
    shop: str
    at: int
    amount: int


class Priced(flowkit.Record):
    shop: str
    at: int
    price: int


class Window(flowkit.Record):
    shop: str
    end: int
    total: int
    rank: int


class Refused(Exception):
    """The service does not want this one."""


orders = app.topic("orders", Order, key="shop", time="at", out_of_order=50)
priced_out = app.sink("priced", Priced)
windows_out = app.sink("windows", Window)


async def price(order: Order) -> Priced:
    # How long it takes is different in each run: what comes of it must not be.
    for _ in range(random.randrange(4)):
        await asyncio.sleep(0)
    if order.amount % 997 == 0:
        raise Refused(f"amount {order.amount}")
    return Priced(order.shop, order.at, order.amount * 3)


async def discount(batch: list[Priced]) -> list[Priced]:
    await asyncio.sleep(0)
    return [Priced(priced.shop, priced.at, priced.price - priced.price // 10) for priced in batch]


async def rank(w: Closed[str, flowkit.Record]) -> Window:
    await asyncio.sleep(0)
    total: int = w.value.total  # type: ignore[attr-defined]
    return Window(w.key, w.end, total, total % 7)


priced = orders.map_async(price, concurrency=16, retry=Retry(attempts=2, backoff=0)).map_async_batches(discount, size=8)
sums = app.table("sums", of=priced, by="shop", window=Tumbling(500), total=Sum("price"))


@app.each(priced, sinks=[priced_out])
def tell(event: Priced) -> Priced:
    return event


@app.each(sums.closed.map_async(rank, concurrency=4), sinks=[windows_out])
def tell_window(window: Window) -> Window:
    return window
