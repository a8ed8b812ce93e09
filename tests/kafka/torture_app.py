"""The app that is tortured: running totals by key and by another key, windows by a third, and windows of those windows.

Whatever is sent tells which event made it and what the table held then, so that one event lost or taken twice shows.
The variable TORTURE_APP names the app and its topics, for several runs against one broker; TORTURE_GUARANTEE is the
app's guarantee.
"""

import os
from collections.abc import AsyncIterator
from typing import Any, get_args

import flowkit
from flowkit import Closed, Count, Stream, Sum, Tumbling
from flowkit.options import Guarantee

NAME = os.environ.get("TORTURE_APP", "torture")
SHOP_MS, SIZE_MS, LATE_MS = 1_000, 5_000, 100
LARGE = 12
"""A window of more events than that is large."""

GUARANTEE: Guarantee = next(
    each for each in get_args(Guarantee) if each == os.environ.get("TORTURE_GUARANTEE", "exactly once")
)

app = flowkit.App(NAME, guarantee=GUARANTEE)


class Event(flowkit.Record):
    n: int
    user: str
    shop: str
    item: str
    at: int
    value: int


class Tally(flowkit.Record):
    count: int = 0
    total: int = 0


class Running(flowkit.Record):
    key: str
    n: int
    count: int
    total: int


class Window(flowkit.Record):
    key: str
    end: int
    count: int
    total: int


class Sized(flowkit.Record):
    size: str
    total: int


events = app.topic(f"{NAME}-events", Event, key="user", time="at", out_of_order=LATE_MS)
users = app.topic(f"{NAME}-users", Running, key="key")
items = app.topic(f"{NAME}-items", Running, key="key")
shops = app.topic(f"{NAME}-shops", Window, key="key", time="end")
sizes = app.topic(f"{NAME}-sizes", Window, key="key", time="end")
ledger = app.sink("ledger", Running)

by_user = app.table("by-user", str, Tally)
by_item = app.table("by-item", str, Tally)


@app.agent(events, tables=[by_user], sinks=[users, ledger])
async def add_up_users(stream: Stream[Event]) -> AsyncIterator[Running]:
    async for event in stream:
        yield _add(by_user[event.user], event.user, event)


@app.agent(events.group_by("item", name=f"{NAME}-by-item"), tables=[by_item], sinks=[items])
async def add_up_items(stream: Stream[Event]) -> AsyncIterator[Running]:
    async for event in stream:
        yield _add(by_item[event.item], event.item, event)


def _add(tally: Tally, key: str, event: Event) -> Running:
    tally.count += 1
    tally.total += event.value
    return Running(key, event.n, tally.count, tally.total)


by_shop = app.table(
    "by-shop",
    of=events.group_by("shop", name=f"{NAME}-by-shop"),
    by="shop",
    window=Tumbling(SHOP_MS),
    count=Count(),
    total=Sum("value"),
)


def sized(window: Closed[str, Any]) -> Sized:
    return Sized("large" if window.value.count > LARGE else "small", window.value.total)


by_size = app.table(
    "by-size",
    of=by_shop.closed.map(sized).group_by("size", name=f"{NAME}-by-size"),
    by="size",
    window=Tumbling(SIZE_MS),
    count=Count(),
    total=Sum("total"),
)


@app.each(by_shop.closed, sinks=[shops])
def closed_shops(w: Closed[str, Any]) -> Window:
    return Window(w.key, w.end, w.value.count, w.value.total)


@app.each(by_size.closed, sinks=[sizes])
def closed_sizes(w: Closed[str, Any]) -> Window:
    return Window(w.key, w.end, w.value.count, w.value.total)
