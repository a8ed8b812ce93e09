"""A worker whose agents wait for calls: over a broker in memory, woken by what ends, stopped and started again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from flowkit import App, Record
from flowkit.clock import SystemClock
from flowkit.options import WorkerOptions
from flowkit.source import open_broker
from flowkit.worker import Worker
from tests.integration.workers import eventually

URL = "memory://calls"


class Event(Record):
    n: int


class Service:
    """Its calls end when the test says so."""

    def __init__(self) -> None:
        self.called: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}

    def gate(self, n: int) -> asyncio.Event:
        return self.gates.setdefault(n, asyncio.Event())

    async def __call__(self, event: Event) -> Event:
        self.called.append(event.n)
        await self.gate(event.n).wait()
        return Event(event.n * 10)


def an_app(service: Service) -> App:
    app = App("calls")
    events, out = app.topic("events", Event), app.topic("out", Event)

    @app.each(events.map_async(service, concurrency=2, type=Event), sinks=[out])
    def tell(event: Event) -> Event:
        return event

    return app


@asynccontextmanager
async def working(app: App, state: Path, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(app, URL, state, options=WorkerOptions(**options))
    job = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await job


async def test_a_worker_is_woken_by_calls_and_drains_them_when_it_stops(tmp_path: Path) -> None:
    service = Service()
    async with open_broker(URL, SystemClock()) as broker:

        async def sent() -> list[bytes | None]:
            if not await broker.partitions("out"):
                return []
            reader = await broker.source("out").open(0, None)
            batch = await reader.fetch(100)
            return [] if batch is None else list(batch.values)

        await broker.create("events", 1)
        await broker.put("events", [(None, b'{"n":%d}' % n, 0) for n in range(5)])
        with capture_logs() as logs:
            async with working(an_app(service), tmp_path, commit_interval=20, stall_after=200, grace=2_000):
                await eventually(lambda: service.called == [0, 1], "two calls, and no more")
                await eventually(
                    lambda: [told for told in logs if told["event"] == "waiting for a call"], "who is waited for"
                )
                service.gate(0).set()
                await eventually(lambda: service.called == [0, 1, 2], "room for another")
                service.gate(1).set()
                await eventually(lambda: service.called == [0, 1, 2, 3], "room for another")
                # On its way out it takes what ends within the grace.
                asyncio.get_running_loop().call_later(0.2, service.gate(2).set)
        assert await sent() == [b'{"n":0}', b'{"n":10}', b'{"n":20}']
        assert not [told for told in logs if "no progress" in told["event"]]
        for n in range(5):
            service.gate(n).set()
        async with working(an_app(service), tmp_path, commit_interval=20):
            await eventually(lambda: len(service.called) >= 6, "those that were left")
        assert await sent() == [b'{"n":%d}' % (n * 10) for n in range(5)]
        assert service.called == [0, 1, 2, 3, 4, 3, 4]  # the last two were under way when it stopped
