"""A table that is broadcast, on a real cluster: every task of a worker reads all of its topic."""

import asyncio
import json
from pathlib import Path

import flowkit
from flowkit.options import WorkerOptions
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.worker import Worker


class Event(flowkit.Record):
    key: str
    n: int = 0


def app_of(name: str) -> flowkit.App:
    """Answers each question with what it has learnt."""
    app = flowkit.App(f"{name}-app")
    rates = app.topic("rates", Event, key="key", pattern=rf"{name}\.rates\..*")
    asked = app.topic(f"{name}-asked", Event, key="key")
    rate = app.table("rate", str, int, broadcast=True)
    out = app.topic(f"{name}-out", Event, key="key")

    @app.each(rates, tables=[rate])
    def learn(event: Event) -> None:
        rate[event.key] = event.n

    @app.each(asked, reads=[rate], sinks=[out])
    def answer(event: Event) -> Event:
        return Event(event.key, rate.get("eur") or 0)

    return app


def row(key: str, n: int) -> tuple[bytes, bytes, int]:
    return key.encode(), json.dumps({"key": key, "n": n}).encode(), 0


async def test_several_tasks_of_one_worker_read_all_of_a_broadcast_topic(
    kafka_address: str, tmp_path: Path, name: str
) -> None:
    url = f"kafka://{kafka_address}"
    async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
        await broker.create(f"{name}-asked", 3)
        await broker.create(f"{name}.rates.a", 2)
        await broker.put(f"{name}.rates.a", [row("eur", 7)])
        options = WorkerOptions(commit_interval=50, topic_refresh=200)
        worker = Worker(app_of(name), url, tmp_path / "state", options=options)
        job = asyncio.create_task(worker.run())

        async def learnt(split: str, position: int) -> None:
            """By all three tasks."""
            async with asyncio.timeout(30):
                while True:
                    lives = [owned.live for owned in worker.owned.values()]
                    opened = [live for live in lives if live is not None and live.opened]
                    if [live.feed.positions.get(split) for live in opened] == [position] * 3:
                        return
                    assert not job.done()
                    await asyncio.sleep(0.02)

        async def answers(count: int) -> list[int]:
            async with asyncio.timeout(30):
                while True:
                    batches = [await broker.read(f"{name}-out", partition, 0, 100) for partition in range(1)]
                    found = [json.loads(value or b"")["n"] for batch in batches for value in batch.values]
                    if len(found) >= count:
                        return found
                    await asyncio.sleep(0.02)

        try:
            (written,) = [p for p in range(2) if (await broker.end_offsets(f"{name}.rates.a"))[p]]
            await learnt(f"{name}.rates.a[{written}]", 1)
            await broker.put(f"{name}-asked", [row(f"k{n}", 0) for n in range(9)])
            assert await answers(9) == [7] * 9
            await broker.create(f"{name}.rates.b", 1)
            await broker.put(f"{name}.rates.b", [row("eur", 8)])
            await learnt(f"{name}.rates.b[0]", 1)
            await broker.put(f"{name}-asked", [row(f"k{n}", 0) for n in range(9)])
            assert await answers(18) == [7] * 9 + [8] * 9
        finally:
            worker.stop()
            await job
