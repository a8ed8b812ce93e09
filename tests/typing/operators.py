"""Operators on streams as users write them, for type checkers alone. See api.py for how wrong uses are marked."""

from typing import Any, assert_type

import flowkit
from flowkit import Closed, Count, Joined, Kept, Session, Sum, Tumbling, minutes, seconds
from flowkit.flow import Events
from flowkit.pattern import Match, Pattern, TimedOut

app = flowkit.App("operators")


class Order(flowkit.Record):
    id: str
    user: str
    amount: float
    at: int


class Payment(flowkit.Record):
    order: str
    paid: float
    at: int


class Alert(flowkit.Record):
    text: str


orders = app.topic("orders", Order, key="id", time="at")
payments = app.topic("payments", Payment, key="order", time="at")
alerts = app.sink("alerts", Alert)
latest = app.table("latest", str, Payment, default=lambda: Payment("", 0.0, 0))


def amount_of(order: Order) -> float:
    return order.amount


async def call(order: Order) -> Alert:
    return Alert(order.id)


# --- right ------------------------------------------------------------------------------------------------------------

large = orders.filter(lambda order: order.amount > 100, name="large")
assert_type(large, Events[Order])
assert_type(orders.map(amount_of), Events[float])
assert_type(orders.map(lambda order: order.id, type=str), Events[str])
assert_type(orders.flat_map(lambda order: [order.id, order.user]), Events[str])
assert_type(orders.merge(payments), Events[Order | Payment])
assert_type(orders.join(payments, on=("id", "order"), within=(0, minutes(5))), Kept[Joined[Order, Payment]])
assert_type(
    orders.join(payments, on=("id", "order"), window=Tumbling(minutes(1)), how="left"),
    Kept[Joined[Order, Payment | None]],
)
assert_type(
    orders.join(payments, on=("id", "order"), window=Session(minutes(1)), how="outer"),
    Kept[Joined[Order | None, Payment | None]],
)
assert_type(orders.join_as_of(payments, on=("id", "order"), tolerance=minutes(1)), Kept[Joined[Order, Payment]])
assert_type(orders.join_table(latest, on="id", how="left"), Kept[Joined[Order, Payment | None]])

small = Pattern[Order].begin("small", lambda order: order.amount < 1)
probe = small.followed_by("large", lambda order: order.amount > 500).within(minutes(10))
found = orders.match(probe, by="user")
by_user = orders.group_by("user").window(Tumbling(minutes(1))).aggregate(n=Count(), total=Sum("amount"))


@app.each(found, sinks=[alerts])
def probed(match: Match[Any, Order]) -> Alert:
    return Alert(match.events["large"][0].id)


@app.each(found.timed_out)
def given_up(match: TimedOut[Any, Order]) -> None:
    print(match.at)


@app.each(large.join(payments, on=("id", "order"), within=seconds(5)), sinks=[alerts])
def paid(pair: Joined[Order, Payment]) -> Alert | None:
    return Alert(pair.left.id) if pair.right.paid < pair.left.amount else None


@app.each(by_user.closed.filter(lambda window: window.value.n > 3), sinks=[alerts])
def busy(window: Closed[str, Any]) -> Alert:
    return Alert(window.key)


# --- wrong ------------------------------------------------------------------------------------------------------------

orders.filter(lambda order: order.missing)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
orders.map(amount_of).filter(lambda amount: amount.missing)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
payments.map(amount_of)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
orders.flat_map(amount_of)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
orders.merge("payments")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
orders.join(payments, within=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
orders.join(payments, on="id", within=5, how="full")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
orders.join_as_of(payments, on="id", how="outer")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
payments.match(probe)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@app.each(orders.map(amount_of))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_event(event: Order) -> None:
    print(event.amount)


@app.each(orders.join(payments, on="id", within=5, how="left"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def forgets_none(pair: Joined[Order, Payment]) -> None:
    print(pair.right.paid)
