"""The apps of the benchmark on Kafka. Names, form and guarantee come from the environment."""

import os
from collections.abc import AsyncIterator
from hashlib import shake_128
from typing import Any

import flowkit
from flowkit import Closed, Count, Stream, Sum, Tumbling, minutes

NAME, FORM = os.environ["BENCH_NAME"], os.environ.get("BENCH_FORM", "agent")
app = flowkit.App(NAME, guarantee=os.environ.get("BENCH_GUARANTEE", "exactly once"))  # type: ignore[arg-type]


class Event(flowkit.Record):
    key: str
    at: int
    amount: int


class Totals(flowkit.Record):
    n: int = 0
    total: int = 0


class Window(flowkit.Record):
    key: str
    end: int
    n: int
    total: int


class Running(flowkit.Record):
    """What a key has come to, at which event."""

    key: str
    at: int
    n: int
    total: int


events = app.topic(os.environ["BENCH_TOPIC"], Event, key="key", time="at")
SHAPES: dict[str, type[Any]] = {"pass": Event, "keyed": Running}
out = app.topic(f"{NAME}-out", SHAPES.get(FORM, Window), key="key")

if FORM == "agent":
    sums = app.table("sums", str, Totals, window=Tumbling(minutes(1)))

    @app.agent(events, tables=[sums])
    async def add(stream: Stream[Event]) -> None:
        async for event in stream:
            found = sums[event.key]
            found.n += 1
            found.total += event.amount

    @app.each(sums.closed, sinks=[out])
    def tell(w: Closed[str, Totals]) -> Window:
        return Window(key=w.key, end=w.end, n=w.value.n, total=w.value.total)

elif FORM == "declared":
    counts = events.window(Tumbling(minutes(1))).aggregate(n=Count(), total=Sum("amount"))

    @app.each(counts.closed, sinks=[out])
    def count(w: Any) -> Window:
        return Window(key=w.key, end=w.end, n=w.value.n, total=w.value.total)

elif FORM == "keyed":
    NOTE = int(os.environ.get("BENCH_NOTE", "0"))

    class Kept(flowkit.Record):
        n: int = 0
        total: int = 0
        note: str = ""

    totals = app.table("totals", str, Kept)

    @app.each(events, tables=[totals], sinks=[out])
    def run_on(event: Event) -> Running:
        found = totals[event.key]
        found.n += 1
        found.total += event.amount
        if NOTE and not found.note:
            found.note = shake_128(event.key.encode()).hexdigest(NOTE)
        return Running(key=event.key, at=event.at, n=found.n, total=found.total)

else:

    @app.agent(events, sinks=[out])
    async def pass_on(stream: Stream[Event]) -> AsyncIterator[Event]:
        async for event in stream:
            yield event
