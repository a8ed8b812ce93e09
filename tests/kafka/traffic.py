"""An app that shows each mistake (the running count of each key), its input and output, and workers in this process."""

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import flowkit
from flowkit.errors import BrokerError
from flowkit.options import WorkerOptions
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.worker import Worker

KEYS = [f"key {n}" for n in range(20)]


class Event(flowkit.Record):
    key: str
    at: int


class Total(flowkit.Record):
    key: str
    total: int


def moved(event: Event) -> Event:
    """Nobody can know that its key is the same."""
    return event


def counting(name: str, *, hop: bool = False, table: str = "totals", **how: Any) -> flowkit.App:
    """From `NAME-in` to `NAME-out`; with a `hop` by way of an internal topic. `how` goes to the input."""
    app = flowkit.App(name)
    events = app.topic(f"{name}-in", Event, key="key", time="at", **how)
    out = app.topic(f"{name}-out", Total, key="key")
    totals = app.table(table, str, int)
    source: Any = events.map(moved).group_by("key", name="moved") if hop else events

    @app.each(source, tables=[totals], sinks=[out])
    def count(event: Event) -> Total:
        totals[event.key] += 1
        return Total(event.key, totals[event.key])

    return app


def worker_of(app: flowkit.App, url: str, state: Path, kind: type[Worker] = Worker, **options: Any) -> Worker:
    """A worker with quick options; `options` are fields of WorkerOptions."""
    given = {"commit_interval": 50, "lease_ttl": 1_800, "grace": 5_000, **options}
    return kind(app, url, state, options=WorkerOptions(**given))


@asynccontextmanager
async def at_work(*args: Any, **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs meanwhile, and is then stopped cleanly. What it raises is raised here."""
    worker = worker_of(*args, **options)
    job = asyncio.create_task(worker.run())
    try:
        yield worker
        assert not job.done() or job.exception() is None
    finally:
        worker.stop()
        await job


@asynccontextmanager
async def open_broker(url: str) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
        yield broker


class Traffic:
    """The input of a counting app, and its output."""

    def __init__(self, broker: KafkaBroker, name: str) -> None:
        self.broker, self.name = broker, name
        self.put: dict[str, int] = defaultdict(int)
        self.at = 0
        self._chance = random.Random(5)

    async def begin(self, partitions: int = 2) -> "Traffic":
        """Make the topics."""
        for end in ("in", "out"):
            await self.broker.create(f"{self.name}-{end}", partitions)
        return self

    async def feed(self, events: int) -> None:
        rows = []
        for _ in range(events):
            key = self._chance.choice(KEYS)
            self.put[key] += 1
            self.at += 10
            rows.append((key.encode(), json.dumps({"key": key, "at": self.at}).encode(), self.at))
        await self.broker.put(f"{self.name}-in", rows)

    async def totals(self) -> dict[str, list[int]]:
        """All that came out, by key."""
        found: dict[str, list[int]] = defaultdict(list)
        for value in await values(self.broker, f"{self.name}-out"):
            found[value["key"]].append(value["total"])
        return found

    async def all_counted(self, seconds: float = 30.0) -> float:
        """Wait until each event is counted, exactly once, or this fails; how many seconds it took."""
        began = time.monotonic()
        expected = {key: list(range(1, count + 1)) for key, count in self.put.items()}
        found: dict[str, list[int]] = {}
        async with asyncio.timeout(seconds):
            while found != expected:
                try:
                    found = await self.totals()
                except BrokerError:  # it may be looking at a node that has just gone
                    continue
                for key, totals in found.items():
                    assert totals == expected[key][: len(totals)], key
                await asyncio.sleep(0.05)
        return time.monotonic() - began


async def values(broker: KafkaBroker, topic: str) -> list[Any]:
    """All committed values of a topic."""
    found: list[Any] = []
    for partition, end in enumerate(await broker.end_offsets(topic)):
        at = 0
        while at < end:
            batch = await broker.read(topic, partition, at, 10_000)
            if not len(batch):
                break
            found += map(json.loads, filter(None, batch.values))
            at = batch.position(len(batch))
    return found


@asynccontextmanager
async def thread_that_lasts() -> AsyncIterator[Callable[..., Any]]:
    """Calls things in one thread, the same for all: a broker dies with the thread that started it."""
    with ThreadPoolExecutor(1) as pool:
        loop = asyncio.get_running_loop()
        yield lambda call, *args: loop.run_in_executor(pool, call, *args)


def said(logs: list[Any], event: str) -> list[Any]:
    """The logs whose event begins so."""
    return [log for log in logs if log["event"].startswith(event)]


async def until_told(ask: Callable[[], Awaitable[Any]], what: str, seconds: float = 30.0) -> Any:
    """Ask, over the network, again and again until there is something true, and give that."""
    deadline = time.monotonic() + seconds
    while True:
        if found := await ask():
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)


async def until(check: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Ask again and again until there is something true, and give that."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
    return found
