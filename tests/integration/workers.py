"""Workers within the test's own event loop, on a real broker and real state directories."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import flowkit
from flowkit import App
from flowkit.clock import SystemClock
from flowkit.options import WorkerOptions
from flowkit.source.embedded import EmbeddedBroker
from flowkit.worker import Worker
from tests.jsonl import whole_lines

T = TypeVar("T")


async def eventually(check: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Ask `check` again and again until it gives something true, and return that. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what} (the last answer was {found!r})"
        await asyncio.sleep(0.01)
    return found


def url_of(directory: Path) -> str:
    return f"embedded://{directory / 'topics'}"


@asynccontextmanager
async def topics_in(directory: Path, **topics: int) -> AsyncIterator[EmbeddedBroker]:
    """The broker of a directory, with these topics (partitions by name)."""
    async with EmbeddedBroker(directory / "topics", SystemClock()) as broker:
        for name, partitions in topics.items():
            await broker.create(name, partitions)
        yield broker


def new_worker(
    app: App, directory: Path, *, state: str = "state", binds: Mapping[str, str] | None = None, **options: Any
) -> Worker:
    """A worker with quick options; `options` are fields of WorkerOptions."""
    given = {"commit_interval": 50, "lease_ttl": 2_000, "grace": 5_000, **options}
    return Worker(app, url_of(directory), directory / state, binds=binds, options=WorkerOptions(**given))


@asynccontextmanager
async def working(app: App, directory: Path, **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs meanwhile, and is then stopped cleanly. What it raises is raised here."""
    worker = new_worker(app, directory, **options)
    job = asyncio.create_task(worker.run())
    try:
        yield worker
        assert not job.done() or job.exception() is None
    finally:
        worker.stop()
        await job


async def refused(worker: Worker) -> None:
    """Run a worker that is expected to raise; it must not go on for long if it does not."""
    async with asyncio.timeout(20):
        await worker.run()


async def put(broker: EmbeddedBroker, topic: str, *values: dict[str, Any], partition: int | None = None) -> None:
    """Put values as JSON; their field `key`, if they have one, is the key."""
    rows = []
    for value in values:
        key = value.get("key")
        rows.append((None if key is None else str(key).encode(), json.dumps(value).encode(), 0))
    await broker.put(topic, rows, partition)


# --- an app to work on ------------------------------------------------------------------------------------------------


class Event(flowkit.Record):
    key: str
    at: int = 0
    value: int = 0


class Total(flowkit.Record):
    key: str
    total: int


def adding_up(name: str = "adding", table: str = "totals") -> App:
    """Topic `events`, a table, sink `out`: the running total of each key."""
    app = App(name)
    events = app.topic("events", Event, key="key", time="at")
    out = app.sink("out", Total)
    totals = app.table(table, str, int)

    @app.each(events, tables=[totals], sinks=[out])
    def add(event: Event) -> Total:
        totals[event.key] += event.value
        return Total(event.key, totals[event.key])

    return app


def an_event(value: int = 1, key: str = "k", at: int = 0) -> dict[str, Any]:
    """An Event, to be put."""
    return {"key": key, "at": at, "value": value}


def totals(directory: Path, file: str = "out.jsonl") -> list[int]:
    """The totals in a file of Total."""
    return [line["total"] for line in whole_lines(directory / file)]


def out_in(directory: Path) -> dict[str, str]:
    """Sink `out` leads to `out.jsonl`."""
    return {"out": str(directory / "out.jsonl")}
