"""What users write, for type checkers alone: nothing here runs. First right uses, then wrong ones.

Each wrong use carries the errors that it must give, as comments by which mypy and pyright let exactly these pass. Both
are set up to complain about a comment that lets nothing pass, so an error that is lost is a failure too: see
test_typing.py.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NotRequired, TypedDict, assert_type

import flowkit
import flowkit.lookup
from flowkit.lookup import Cache
from flowkit import (
    Change,
    Closed,
    Count,
    CountDistinct,
    Cumulative,
    Custom,
    DeadLetter,
    Enriched,
    First,
    Global,
    Last,
    Max,
    Mean,
    Min,
    Open,
    OverlappingTable,
    Quantile,
    Retry,
    Session,
    Sink,
    Sliding,
    Stream,
    Sum,
    Table,
    Tick,
    Timer,
    Timers,
    TopK,
    Topic,
    Tumbling,
    Variance,
    WindowedTable,
    days,
    hours,
    milliseconds,
    minutes,
    seconds,
)

app = flowkit.App("fraud-detection", retry=Retry(attempts=3, backoff=milliseconds(50), errors=(OSError,)))


class Transaction(flowkit.Record):
    card: str
    amount: float
    country: str
    at: datetime


class Device(flowkit.Record):
    id: str
    card: str


class Login(flowkit.Record):
    user: str


class Logout(flowkit.Record):
    user: str


class Spend(flowkit.Record):
    count: int = 0
    total: float = 0.0


class Alert(flowkit.Record):
    card: str
    reason: str


class Feature(flowkit.Record):
    card: str
    until: int
    spent: float


class Pair(flowkit.Record, frozen=True):
    card: str
    country: str


@dataclass
class Reading:
    sensor: str
    value: float
    tags: list[str] = field(default_factory=list[str])


class Heartbeat(TypedDict):
    sensor: str
    at: int
    note: NotRequired[str]


class Model:
    """Any object, by `to_state` and `from_state`."""

    def __init__(self, weight: float = 0.0) -> None:
        self.weight = weight

    def to_state(self) -> dict[str, float]:
        return {"weight": self.weight}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> "Model":
        return cls(state["weight"])


# --- topics, tables, sinks ------------------------------------------------------------------------------------------

transactions = app.topic("transactions", Transaction, key="card", time="at", out_of_order=seconds(5))
alerts = app.topic("alerts", Alert, key="card")
features = app.sink("features", Feature)
devices = app.topic("devices", Device, key=lambda device: device.card, idle_after=minutes(1))
logins = app.topic("logins", Login, pattern=r"logins\..*")
logouts = app.topic("logouts", Logout, codec="msgpack")
readings = app.topic("readings", Reading, key="sensor", codec="csv")
heartbeats = app.topic("heartbeats", Heartbeat, key="sensor", time="at", time_unit="s", timezone="Europe/Berlin")
documents = app.topic("documents", dict[str, Any], key="id", time=lambda document: document["at"])
lines = app.topic("lines", str, codec="text")
blobs = app.topic("blobs", bytes, codec="bytes", close_after_idle=hours(1))
numbers = app.sink("numbers", int, key=lambda n: n % 2)

assert_type(transactions, Topic[Transaction])
assert_type(features, Sink[Feature])
assert_type(heartbeats, Topic[Heartbeat])
assert_type(documents, Topic[dict[str, Any]])

spend = app.table("spend", str, Spend, window=Tumbling(minutes(10)), ttl=hours(1))
profiles = app.table("profiles", str, Spend, ttl=days(30), broadcast=True)
sliding = app.table("sliding", str, Spend, window=Sliding(minutes(10), minutes(1), offset=seconds(5)))
cumulative = app.table("cumulative", str, Spend, window=Cumulative(hours(1), days(1)), early=minutes(5))
sessions = app.table(
    "sessions",
    str,
    Spend,
    window=Session(minutes(5)),
    merge=lambda a, b: Spend(a.count + b.count, a.total + b.total),
    allowed_lateness=minutes(1),
    late="deliver",
)
counted = app.table("counted", str, Spend, window=Count(100))
forever = app.table("forever", str, Spend, window=Global(), close_after_idle=minutes(1))
by_pair = app.table("by_pair", Pair, int)
last_reading = app.table("last_reading", str, Reading, default=lambda: Reading("", 0.0))
last_heartbeat = app.table("last_heartbeat", str, Heartbeat)
words = app.table("words", str, dict[str, int])
models = app.table("models", int, Model, local=True, version=2)

assert_type(spend, WindowedTable[str, Spend])
assert_type(profiles, Table[str, Spend])
assert_type(sliding, OverlappingTable[str, Spend])
assert_type(cumulative, OverlappingTable[str, Spend])
assert_type(sessions, WindowedTable[str, Spend])
assert_type(by_pair, Table[Pair, int])
assert_type(last_heartbeat, Table[str, Heartbeat])
assert_type(words, Table[str, dict[str, int]])


@models.migrate(1)
def with_weight(state: Any) -> Any:
    return {"weight": state}


totals = app.table(
    "totals",
    of=transactions,
    by="card",
    window=Tumbling(minutes(1)),
    allowed_lateness=seconds(10),
    n=Count(),
    total=Sum("amount"),
    mean=Mean("amount"),
    least=Min("amount"),
    most=Max("amount"),
    spread=Variance("amount", ddof=1),
    first=First("country"),
    last=Last("country"),
    countries=CountDistinct("country", error=0.02),
    top=TopK("country", 3),
    median=Quantile(lambda tx: tx.amount, 0.5),
    longest=Custom(
        initial=str,
        step=lambda state, tx: max(state, tx.country, key=len),
        merge=lambda a, b: max(a, b, key=len),
        result=str.upper,
    ),
)
running = app.table("running", of=transactions, by=lambda tx: tx.card, ttl=days(1), n=Count())
sliding_totals = app.table("sliding_totals", of=transactions, by="card", window=Sliding(100, 10), n=Count())
session_totals = app.table("session_totals", of=transactions, by="card", window=Session(100), n=Count())
of_closed = app.table("of_closed", of=spend.closed, by=lambda w: w.key, window=Tumbling(hours(1)), n=Count())

assert_type(totals, WindowedTable[Any, Any])
assert_type(running, Table[str, Any])
assert_type(sliding_totals, OverlappingTable[Any, Any])
assert_type(of_closed, WindowedTable[str, Any])


silence = app.timers("silence", str)
by_clock = app.timers("by_clock", Pair, clock="wall")

assert_type(silence, Timers[str])
assert_type(by_clock, Timers[Pair])


# --- calls of async functions, and lookups ----------------------------------------------------------------------------


class Score(flowkit.Record):
    card: str
    value: float


async def score(tx: Transaction) -> Score:
    return Score(tx.card, 0.5)


async def score_all(txs: list[Transaction]) -> list[Score]:
    return [await score(tx) for tx in txs]


class Holder(flowkit.Record):
    card: str
    name: str


async def find_profile(card: str) -> Holder | None:
    return None


assert_type(transactions.map_async(score), flowkit.Events[Score])
assert_type(transactions.map_async(score, concurrency=8, timeout=seconds(2), retry=Retry(3)), flowkit.Events[Score])
assert_type(transactions.map_async_batches(score_all, size=32, within=50), flowkit.Events[Score])
assert_type(
    transactions.filter(lambda tx: tx.amount > 0).map_async(score).map(lambda s: s.value), flowkit.Events[float]
)
assert_type(
    transactions.enrich(find_profile, key="card", cache=Cache(ttl=minutes(5))),
    flowkit.Events[Enriched[Transaction, Holder | None]],
)
assert_type(
    transactions.enrich(find_profile, key=lambda tx: tx.card, how="inner"),
    flowkit.Events[Enriched[Transaction, Holder]],
)
assert_type(
    transactions.enrich(flowkit.lookup.http("http://127.0.0.1/{key}", Holder), key="card"),
    flowkit.Events[Enriched[Transaction, Holder | None]],
)


@app.each(transactions.map_async(score))
async def take_score(result: Score) -> None: ...


@app.each(transactions.enrich(find_profile, key="card"))
def take_enriched(result: Enriched[Transaction, Holder | None]) -> None: ...


# --- settings and resources -----------------------------------------------------------------------------------------


class Limits(flowkit.Settings, prefix="FRAUD_"):
    model: str
    threshold: float = 0.8
    regions: list[str] = []
    region: str | None = None


limits = Limits.load()
assert_type(limits, Limits)
assert_type(limits.threshold, float)
in_a_test = Limits(model="m", threshold=0.5)


class Client:
    async def score(self, tx: Transaction) -> float:
        return tx.amount


@app.resource
async def client() -> AsyncIterator[Client]:
    yield Client()


@app.resource(reload_every=minutes(5))
async def model() -> AsyncIterator[Client]:
    yield Client()


assert_type(model(), Client)


async def swap() -> None:
    assert_type(await model.reload(), None)


@app.resource
@asynccontextmanager
async def other_client() -> AsyncGenerator[Client]:
    yield Client()


# --- agents ---------------------------------------------------------------------------------------------------------


@app.agent(transactions, tables=[spend], sinks=[alerts])
async def detect(stream: Stream[Transaction]) -> AsyncIterator[Alert]:
    async for tx in stream:
        assert_type(tx, Transaction)
        recent = spend[tx.card]
        assert_type(recent, Spend)
        recent.count += 1
        recent.total += tx.amount
        if recent.count > 20:
            yield Alert(card=tx.card, reason="velocity")


@app.agent(transactions, sinks=[alerts])
async def as_generator(stream: Stream[Transaction]) -> AsyncGenerator[Alert, None]:
    async for tx in stream:
        yield Alert(card=tx.card, reason="generator")


@app.agent(transactions, tables=[by_pair, words, profiles], reads=[spend, sliding, totals], name="counter")
async def count(stream: Stream[Transaction]) -> None:
    async for tx in stream:
        by_pair[Pair(tx.card, tx.country)] = 1
        words[tx.card]["n"] += 1
        del profiles[tx.card]
        assert_type(spend.get(tx.card), Spend | None)
        for window in spend.windows(tx.card):
            assert_type(window, Open[Spend])
            assert_type(window.value, Spend)
            assert_type(window.end, int)
        for overlapping in sliding.windows(tx.card):
            overlapping.value.count += 1
        for card, entry in spend.scan():
            assert_type(card, str)
            assert_type(entry.value, Spend)
        if tx.card in profiles:
            totals[tx.card].n


@app.agent(transactions, tables=[sessions], sinks=[alerts, features])
async def emits(stream: Stream[Transaction]) -> None:
    async for batch in stream.batches(100, within=seconds(1)):
        assert_type(batch, list[Transaction])
        for tx in batch:
            sessions.at(tx)[tx.card].count += 1
            alerts.emit(Alert(tx.card, "batch"), key=tx.card, time=0)
            features.emit(Feature(tx.card, 0, await client().score(tx)))


@app.agent(transactions, devices, sinks=[alerts])
async def two(stream: Stream[Transaction | Device]) -> AsyncIterator[Alert]:
    async for event in stream:
        match event:
            case Transaction(card=card):
                yield Alert(card, "transaction")
            case Device(id=id):
                yield Alert(event.card, id)


@app.agent(transactions, devices, logins)
async def three(stream: Stream[Transaction | Device | Login]) -> None:
    async for event in stream:
        assert_type(event, Transaction | Device | Login)


@app.agent(transactions, devices, logins, logouts)
async def four(stream: Stream[Transaction | Device | Login | Logout]) -> None:
    async for event in stream:
        assert_type(event, Transaction | Device | Login | Logout)


@app.agent(transactions, devices, logins, logouts, readings, app.dead_letters)
async def more_than_four(stream: Stream[Transaction | Device | Login | Logout | Reading | DeadLetter]) -> None:
    async for _ in stream:
        pass


@app.agent(transactions, logins)
async def wider_than_needed(stream: Stream[flowkit.Record]) -> None:
    async for _ in stream:
        pass


@app.agent(transactions, spend.closed, profiles.changes)
async def mixed(stream: Stream[Transaction | Closed[str, Spend] | Change[str, Spend]]) -> None:
    async for event in stream:
        match event:
            case Closed():
                assert_type(event.value, Spend)
            case Change():
                assert_type(event.old, Spend | None)
            case Transaction():
                pass


@app.agent(transactions, sinks=[alerts, features])
async def to_several(stream: Stream[Transaction]) -> AsyncIterator[Alert | Feature]:
    async for tx in stream:
        yield Alert(tx.card, "both")
        yield Feature(tx.card, 0, tx.amount)


@app.agent(readings, heartbeats, tables=[last_reading, last_heartbeat])
async def values(stream: Stream[Reading | Heartbeat]) -> None:
    async for event in stream:
        if isinstance(event, Reading):
            last_reading[event.sensor] = event
        else:
            last_heartbeat[event["sensor"]] = event


@app.each(spend.closed, sinks=[features])
async def feature(w: Closed[str, Spend]) -> Feature | None:
    return Feature(card=w.key, until=w.end, spent=w.value.total) if w.pane == "on_time" else None


@app.each(spend.closed, sinks=[features])
def feature_sync(w: Closed[str, Spend]) -> Feature:
    return Feature(card=w.key, until=w.end, spent=w.value.total)


@app.each(transactions, sinks=[alerts, features])
def one_of_several(tx: Transaction) -> Alert | Feature | None:
    return None


@app.each(transactions, devices, tables=[models])
async def nothing(event: Transaction | Device) -> None:
    models[0].weight += 1


@app.each(transactions, sinks=[alerts], retry=Retry(attempts=2))
def only_emits(tx: Transaction) -> None:
    alerts.emit(Alert(tx.card, "emitted"))


@app.each(totals.closed)
def of_declared(w: Closed[str, Any]) -> None:
    w.value.n + w.start


@app.each(spend.late, app.dead_letters)
def lost(event: Transaction | DeadLetter) -> None: ...


@app.each(documents, sinks=[numbers])
def of_dicts(document: dict[str, Any]) -> int:
    return len(document)


@app.agent(transactions, silence, tables=[spend, by_clock], sinks=[alerts])
async def silent(stream: Stream[Transaction | Timer[str]]) -> AsyncIterator[Alert]:
    async for event in stream:
        match event:
            case Transaction():
                silence.set(event.card, 0)
                by_clock.set(Pair(event.card, event.country), 0)
                assert_type(silence.get(event.card), int | None)
            case Timer():
                assert_type(event.key, str)
                assert_type(event.at, int)
                silence.cancel(event.key)
                yield Alert(event.key, "silent")


@app.each(silence.map(lambda timer: timer.key), sinks=[alerts])
def of_timers(card: str) -> Alert:
    return Alert(card, "")


@app.timer(seconds(30), reads=[profiles], sinks=[alerts], name="ticker", retry=Retry(attempts=2))
async def every_so_often(tick: Tick) -> Alert | None:
    assert_type(tick.at, int)
    return None


@app.timer(minutes(1), clock="event", tables=[words])
def in_event_time(tick: Tick) -> None: ...


@app.crontab("*/5 * * * *", timezone="Europe/Berlin", sinks=[alerts, features])
async def at_times(tick: Tick) -> Alert | Feature:
    return Alert("", "")


# --- wrong: timers --------------------------------------------------------------------------------------------------


@app.agent(transactions, silence)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def no_timers_taken(stream: Stream[Transaction]) -> None: ...


@app.each(silence)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_timer_key(timer: Timer[int]) -> None: ...


@app.timer(seconds(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def takes_no_tick(tx: Transaction) -> None: ...


@app.timer(seconds(1), sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_sink_of_timer(tick: Tick) -> Feature | None: ...


@app.crontab("* * * * *")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_sink_of_crontab(tick: Tick) -> Alert:
    return Alert("", "")


silence.set(5, 0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
silence.set("a", datetime.min)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
silence.get(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
silence["a"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
app.timers("t1", str, clock="cpu")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.timers("t2", "str")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.timer("30s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.timer(seconds(30), timezone="UTC")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
app.crontab("* * * * *", zone="UTC")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# --- wrong: what an agent takes -------------------------------------------------------------------------------------


@app.agent(devices, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_event(stream: Stream[Transaction]) -> AsyncIterator[Alert]:
    async for tx in stream:
        yield Alert(card=tx.card, reason="")


@app.agent(transactions, devices)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def one_of_two_events(stream: Stream[Transaction]) -> None: ...


@app.agent(transactions, devices, logins)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def two_of_three_events(stream: Stream[Transaction | Device]) -> None: ...


@app.agent(transactions, devices, logins, logouts)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def three_of_four_events(stream: Stream[Transaction | Device | Login]) -> None: ...


@app.agent(transactions)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def no_stream(tx: Transaction) -> None: ...


@app.agent(transactions)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_coroutine(stream: Stream[Transaction]) -> None: ...


@app.agent()  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
async def no_source(stream: Stream[Transaction]) -> None: ...


@app.agent(features)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def reads_a_sink(stream: Stream[Feature]) -> None: ...


@app.agent(spend)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def reads_a_table(stream: Stream[Any]) -> None: ...


@app.each(devices)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_event_each(tx: Transaction) -> None: ...


@app.each(transactions, devices)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def one_of_two_events_each(tx: Transaction) -> None: ...


@app.each(spend.closed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_closed_value(w: Closed[str, Alert]) -> None: ...


@app.each(spend.closed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_closed_key(w: Closed[int, Spend]) -> None: ...


@app.each(profiles.changes)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def closed_for_changes(w: Closed[str, Spend]) -> None: ...


@app.each(transactions)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def a_stream_in_each(stream: Stream[Transaction]) -> None: ...


profiles.closed  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


# --- wrong: what an agent gives -------------------------------------------------------------------------------------


@app.agent(transactions, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_sink(stream: Stream[Transaction]) -> AsyncIterator[Feature]:
    async for tx in stream:
        yield Feature(tx.card, 0, 0.0)


@app.agent(transactions)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def no_sink(stream: Stream[Transaction]) -> AsyncIterator[Alert]:
    async for tx in stream:
        yield Alert(tx.card, "")


@app.agent(transactions, devices, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_sink_of_two_sources(stream: Stream[Transaction | Device]) -> AsyncIterator[Feature]:
    async for event in stream:
        yield Feature(event.card, 0, 0.0)


@app.agent(transactions, sinks=[alerts, features])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_sinks(stream: Stream[Transaction]) -> AsyncIterator[int]:
    async for _ in stream:
        yield 1


# mypy takes what several sinks have in common for the type of what they take (here Record), so the next one is lost on
# it. Pyright sees it, and so does the check before the start.
@app.agent(transactions, sinks=[alerts, features])  # pyright: ignore[reportArgumentType]
async def wrong_record_for_several_sinks(stream: Stream[Transaction]) -> AsyncIterator[Login]:
    async for tx in stream:
        yield Login(tx.card)


@app.agent(transactions, sinks=[alerts])
async def wrong_yield(stream: Stream[Transaction]) -> AsyncIterator[Alert]:
    async for tx in stream:
        yield Feature(tx.card, 0, 0.0)  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@app.agent(transactions, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def returns_a_value(stream: Stream[Transaction]) -> Alert:
    return Alert("", "")


@app.agent(transactions, sinks=[spend])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
async def into_a_table(stream: Stream[Transaction]) -> None: ...


@app.agent(transactions, tables=[alerts])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
async def topic_for_table(stream: Stream[Transaction]) -> None: ...


@app.each(transactions, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_sink_each(tx: Transaction) -> Feature | None: ...


@app.each(transactions, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_sink_each_sync(tx: Transaction) -> Feature:
    return Feature(tx.card, 0, 0.0)


@app.each(transactions)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_sink_each(tx: Transaction) -> Alert | None: ...


@app.each(transactions, sinks=[alerts])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def yields_in_each(tx: Transaction) -> AsyncIterator[Alert]:
    yield Alert(tx.card, "")


alerts.emit(Feature("", 0, 0.0))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
features.emit("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
alerts.emit(Alert("", ""), time="now")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- wrong: tables --------------------------------------------------------------------------------------------------

spend[5]  # type: ignore[index]  # pyright: ignore[reportArgumentType]
spend.get(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
spend.windows(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
spend["a"] = 5  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
spend["a"].missing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
del profiles[b"a"]  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
by_pair[("card", "country")]  # type: ignore[index]  # pyright: ignore[reportArgumentType]
sliding["a"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
cumulative["a"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
sliding.get("a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
sliding_totals["a"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
profiles.windows("a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
spend.get("a").count  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
spend.at(Transaction)[5]  # type: ignore[index]  # pyright: ignore[reportArgumentType]

app.table("w1", str, Spend, window=Session(5))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
app.table("w2", str, Spend, window=Session(5), merge=lambda a, b: a.count)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
app.table("w3", str, Spend, window=Tumbling(5), merge=lambda a, b: a)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
app.table("w4", str, Spend, allowed_lateness=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
app.table("w5", str, Spend, window=Tumbling(5), late="keep")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
app.table("w6", str, Spend, window=600)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
app.table("w7", str)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
app.table("w8", "str", Spend)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
app.table("w9", str, Spend, unknown=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
app.table("w10", of=transactions, by="card", n=Count)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
app.table("w11", of=transactions, by=lambda tx: tx.missing, n=Count())  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
app.table("w12", of=transactions, n=Count())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
app.table("w13", of=features, by="card", n=Count())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


# --- wrong: calls and lookups -----------------------------------------------------------------------------------------


def score_now(tx: Transaction) -> Score:
    return Score(tx.card, 0.5)


async def score_alert(alert: Alert) -> Score:
    return Score(alert.card, 0.5)


transactions.map_async(score_now)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
transactions.map_async(score_alert)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
transactions.map_async(score_all)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
transactions.map_async_batches(score)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
transactions.map_async(score, timeout=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
transactions.enrich(find_profile)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
transactions.enrich(find_profile, key="card", how="outer")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
transactions.enrich(find_profile, key="card", cache=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


@app.each(transactions.map_async(score))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def take_wrong_result(result: Alert) -> None: ...


@app.each(transactions.enrich(find_profile, key="card"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def take_wrong_found(result: Enriched[Transaction, Holder]) -> None: ...


# --- wrong: topics, settings, resources -----------------------------------------------------------------------------

app.topic("x1", Transaction("", 0.0, "", datetime.min))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.topic("x2", Transaction, key=lambda tx: tx.missing)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
app.topic("x3", Transaction, codec="xml")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.topic("x4", Transaction, time_unit="minutes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.topic("x5", Transaction, out_of_order="5s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.topic(Transaction)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]


@app.resource  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def no_resource() -> Client:
    return Client()


@app.resource(reload_every="5 min")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def no_time() -> AsyncIterator[Client]:
    yield Client()


client().missing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
Limits(model=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Limits("m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Limits(threshold=0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
limits.missing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
limits.threshold = 0.9  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
Retry(attempts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
