"""An app for workers that are killed: sales keyed by user, windows by shop, and windows of those by their size."""

import os
from typing import Any

import flowkit
from flowkit import Closed, Count, Sum, Tumbling

app = flowkit.App(os.environ.get("REKEY_APP_AS", "rekey"))


class Sale(flowkit.Record):
    user: str
    shop: str
    at: int
    value: int


class Window(flowkit.Record):
    shop: str
    end: int
    n: int
    total: int


class Sized(flowkit.Record):
    size: str
    total: int


class Size(flowkit.Record):
    size: str
    end: int
    n: int
    total: int


sales = app.topic("sales", Sale, key="user", time="at", out_of_order=20)
windows = app.topic("windows", Window, key="shop", time="end")
sizes = app.topic("sizes", Size, key="size", time="end")

by_shop = app.table(
    "by-shop",
    of=sales.filter(lambda sale: sale.value % 10 > 0).group_by("shop", name="sales-by-shop"),
    by="shop",
    window=Tumbling(100),
    n=Count(),
    total=Sum("value"),
)


def sized(window: Closed[str, Any]) -> Sized:
    return Sized("large" if window.value.n > 5 else "small", window.value.total)


by_size = app.table(
    "by-size",
    of=by_shop.closed.map(sized).group_by("size", name="windows-by-size"),
    by="size",
    window=Tumbling(1_000),
    n=Count(),
    total=Sum("total"),
)


@app.each(by_shop.closed, sinks=[windows])
def closed(w: Closed[str, Any]) -> Window:
    return Window(w.key, w.end, w.value.n, w.value.total)


@app.each(by_size.closed, sinks=[sizes])
def closed_sizes(w: Closed[str, Any]) -> Size:
    return Size(w.key, w.end, w.value.n, w.value.total)
