"""A run of 20,000 records against a service behind a bad network, broken off again and again until it is through."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec

from flowkit import App, Record, Stream
from flowkit.options import WorkerOptions
from flowkit.worker import run
from tests.aws.proxy import Fault, Proxy, Request

STEPS = ("cut", "prepared", "resolved", "delivered")
"""Of a commit: a run is broken off after each."""
WRITES = {
    *("PutRecords", "PutRecordBatch", "PutItem", "BatchWriteItem", "Invoke", "_bulk"),
    *("SendMessageBatch", "PublishBatch", "PutEvents"),
}
COUNT = 20_000


class Reading(Record):
    """One record, `n` counts them."""

    id: str
    n: int
    at: int


class BrokenOff(Exception):
    """What ends a run, without any of its clean-up that a kill would not do either."""


def readings(keys: int, count: int = COUNT) -> list[Reading]:
    """Readings of `keys` keys, ten a second."""
    rng = random.Random(5)
    return [Reading(f"k{rng.randrange(keys)}", n, n * 100) for n in range(count)]


def copying() -> App:
    """An app that sends what it gets to its sink `out`."""
    app = App("copy")
    source = app.topic("readings", Reading, key="id", time="at")
    out = app.sink("out", Reading, key="id")

    @app.agent(source, sinks=[out])
    async def copy(stream: Stream[Reading]) -> AsyncIterator[Reading]:
        async for reading in stream:
            yield reading

    return app


def all_faults(action: str, seed: int, share: float = 0.25) -> Callable[[Request], Fault | None]:
    """Of a service's calls that share goes wrong, in turn in each way that there is but being refused."""
    rng = random.Random(seed)
    faults: Sequence[Fault] = ("part", "lost", "throttle", "reset", "half", "broken", "slow")
    due = cycle(faults)
    return lambda request: next(due) if request.action == action and rng.random() < share else None


async def run_through(
    app: App, rows: Sequence[Record], url: str, place: Path, *, commit_every: int = 2_000, proxy: Proxy | None = None
) -> int:
    """Run it over `rows`, broken off after each step of a commit, in the middle of a delivery (with `proxy`: at one of
    its requests), and again; then to the end. How often it was broken off.

    The dead letters are in `place` / dead.jsonl.
    """
    path = place / "readings.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    inside = [("request", 3), ("request", 2)] if proxy is not None else []
    broken = 0
    for stop, after in [*((step, 0) for step in STEPS), *inside, ("resolved", 1), ("delivered", 1), ("", 0)]:
        seen = 0

        async def hook(step: str, stop: str = stop, after: int = after) -> None:
            nonlocal seen
            seen += step == stop
            if seen > after:
                raise BrokenOff

        running = asyncio.ensure_future(
            run(
                app,
                [("readings", str(path))],
                [("out", url), ("dead-letters", str(place / "dead.jsonl"))],
                state=place / "state",
                options=WorkerOptions(commit_every=commit_every, commit_interval=600_000),
                hook=hook,
            )
        )
        with ended_at(proxy, after, running) if stop == "request" and proxy is not None else nullcontext():
            try:
                await running
            except (BrokenOff, asyncio.CancelledError):
                broken += 1
    return broken


@contextmanager
def ended_at(proxy: Proxy, number: int, running: "asyncio.Future[Any]") -> Iterator[None]:
    """What runs is cancelled when that many writing requests have come."""
    fault, seen = proxy.fault, 0

    def look(request: Request) -> Fault | None:
        nonlocal seen
        seen += request.action in WRITES
        if seen == number:
            running.cancel()
        return fault(request)

    proxy.fault = look
    yield
    proxy.fault = fault
