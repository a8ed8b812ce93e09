"""The workload of the design: JSON events, 10,000 keys, 1-minute tumbling count and sum, a commit each 5,000 events."""

import asyncio
import gc
import os
import random
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import uvloop

import flowkit
from flowkit import App, Count, Stream, Sum, Tumbling, minutes, seconds
from flowkit.options import WorkerOptions
from flowkit.worker import Summary, run

EVENTS = int(os.environ.get("FLOWKIT_BENCH_EVENTS", "1000000"))
MINUTE = Tumbling(minutes(1))


class Event(flowkit.Record):
    key: str
    amount: float
    ts: int
    country: str
    merchant: str


class Totals(flowkit.Record):
    count: int = 0
    total: float = 0.0


def agent_app(window: Tumbling | None = MINUTE) -> App:
    app = App("bench-agent")
    events = app.topic("events", Event, key="key", time="ts", out_of_order=seconds(1))
    # One call for each kind of table: the types differ.
    totals = app.table("totals", str, Totals) if window is None else app.table("totals", str, Totals, window=window)

    @app.agent(events, tables=[totals])
    async def count(stream: Stream[Event]) -> None:
        async for event in stream:
            window = totals[event.key]
            window.count += 1
            window.total += event.amount

    return app


def declared_app(window: Tumbling | None = MINUTE) -> App:
    app = App("bench-declared")
    events = app.topic("events", Event, key="key", time="ts", out_of_order=seconds(1))
    if window is None:
        app.table("totals", of=events, by="key", n=Count(), total=Sum("amount"))
    else:
        app.table("totals", of=events, by="key", window=window, n=Count(), total=Sum("amount"))
    return app


def empty_app() -> App:
    app = App("bench-empty")
    events = app.topic("events", Event, key="key", time="ts", out_of_order=seconds(1))

    @app.agent(events)
    async def nothing(stream: Stream[Event]) -> None:
        async for _ in stream:
            pass

    return app


def write_events(path: Path, events: int, keys: int, per_ms: float = 0.5) -> Path:
    """Seeded events, up to a second out of order."""
    if not path.exists():
        rng = random.Random(1)
        with path.open("w") as file:
            for n in range(events):
                at = 1_700_000_000_000 + int(n / per_ms) - rng.randrange(1000)
                file.write(
                    f'{{"key":"k{rng.randrange(keys)}","amount":{rng.random() * 100:.2f},"ts":{at},'
                    f'"country":"DE","merchant":"m{rng.randrange(100)}"}}\n'
                )
    return path


def bare_loop(path: Path) -> float:
    """What anyone would write by hand, without durability, event time or recovery. CPU seconds."""
    decode = msgspec.json.Decoder(Event).decode
    windows: dict[tuple[str, int], list[float]] = {}
    gc.collect()
    started = time.process_time()
    with path.open("rb") as file:
        for line in file:
            event = decode(line)
            key = (event.key, event.ts // 60_000)
            found = windows.get(key)
            if found is None:
                windows[key] = [1, event.amount]
            else:
                found[0] += 1
                found[1] += event.amount
    return time.process_time() - started


def bare_pass(path: Path, creating: int) -> tuple[float, float]:
    """The bare loop, timed apart over the first `creating` events and over the others. CPU seconds an event."""
    decode = msgspec.json.Decoder(Event).decode
    windows: dict[tuple[str, int], list[float]] = {}
    gc.collect()
    marks = []
    with path.open("rb") as file:
        n = 0
        for stop in (creating, None):
            started, first = time.process_time(), n
            for line in islice(file, stop):
                event = decode(line)
                key = (event.key, event.ts // 60_000)
                found = windows.get(key)
                if found is None:
                    windows[key] = [1, event.amount]
                else:
                    found[0] += 1
                    found[1] += event.amount
                n += 1
            marks.append((time.process_time() - started) / (n - first))
    return marks[0], marks[1]


def flow(app: App, path: Path, **options: int) -> float:
    """A bounded run with durable state. CPU seconds of all threads."""
    gc.collect()
    with tempfile.TemporaryDirectory(dir=path.parent) as state:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        with runner:
            started = time.process_time()
            runner.run(_run(app, path, state, options))
            return time.process_time() - started


async def _run(app: App, path: Path, state: str, options: dict[str, Any]) -> Summary:
    return await run(app, [("events", str(path))], state=f"{state}/s", options=WorkerOptions(**options))


def best(*functions: Callable[[], float], rounds: int = 4) -> list[float]:
    """The least time of each, all timed in turn, round by round: the machine's mood hits all alike."""
    times = [[function() for function in functions] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def show(capsys: object, *lines: str) -> None:
    """Print past pytest's capture."""
    with capsys.disabled():  # type: ignore[attr-defined]
        print("\n" + "\n".join(lines))
