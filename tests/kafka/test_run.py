"""A bounded run over a topic of a real cluster: all that is there, once, and what comes later is left."""

import json
from pathlib import Path

import pytest

import flowkit
from flowkit import Closed, Stream, Tumbling
from flowkit.errors import ConfigError
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.worker import run

BEGAN = 1_790_000_000_000


def counting(topic: str, **how: object) -> flowkit.App:
    """Counts events by key and second."""
    app = flowkit.App("over")

    class Event(flowkit.Record):
        key: str
        at: int

    class Count(flowkit.Record):
        key: str
        end: int
        n: int

    events = app.topic(topic, Event, key="key", time="at", **how)  # type: ignore[arg-type]
    counts = app.table("counts", str, int, window=Tumbling(1000))
    out = app.topic("out", Count, key="key")

    @app.agent(events, tables=[counts])
    async def count(stream: Stream[Event]) -> None:
        async for event in stream:
            counts[event.key] += 1

    @app.each(counts.closed, sinks=[out])
    def tell(w: Closed[str, int]) -> Count:
        return Count(key=w.key, end=w.end, n=w.value)

    return app


async def put(kafka_address: str, topic: str, numbers: range) -> None:
    async with KafkaBroker(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as broker:
        if not await broker.partitions(topic):
            await broker.create(topic, 3)
        rows = [
            (b"k%d" % (n % 7), json.dumps({"key": f"k{n % 7}", "at": BEGAN + 10 * n}).encode(), BEGAN + 10 * n)
            for n in numbers
        ]
        await broker.put(topic, rows)


def found(path: Path) -> dict[tuple[str, int], int]:
    counts = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(counts) == len({(c["key"], c["end"]) for c in counts})
    return {(c["key"], c["end"]): c["n"] for c in counts}


def expected(numbers: range) -> dict[tuple[str, int], int]:
    told: dict[tuple[str, int], int] = {}
    for n in numbers:
        at = BEGAN + 10 * n
        key = f"k{n % 7}", at - at % 1000 + 1000
        told[key] = told.get(key, 0) + 1
    return told


async def test_all_partitions_are_read_to_their_end(kafka_address: str, name: str, tmp_path: Path) -> None:
    await put(kafka_address, name, range(5_000))
    out = tmp_path / "out.jsonl"
    summary = await run(
        counting(name), [(name, f"kafka://{kafka_address}/{name}")], [("out", str(out))], state=tmp_path / "state"
    )
    assert summary.counters.records == 5_000
    assert found(out) == expected(range(5_000))


async def test_a_run_begins_where_its_topic_says(kafka_address: str, name: str, tmp_path: Path) -> None:
    await put(kafka_address, name, range(2_000))
    out = tmp_path / "out.jsonl"
    app = counting(name, start=BEGAN + 10_000)
    await run(app, [(name, f"kafka://{kafka_address}/{name}")], [("out", str(out))], state=tmp_path / "state")
    assert found(out) == expected(range(1_000, 2_000))


async def test_what_is_no_topic_there_is_told(kafka_address: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no topic '{name}' at kafka://"):
        await run(counting(name), [(name, f"kafka://{kafka_address}/{name}")], state=tmp_path / "state")
    with pytest.raises(ConfigError, match="names no topic: use kafka://HOST:PORT/TOPIC"):
        await run(counting(name), [(name, f"kafka://{kafka_address}")], state=tmp_path / "state")
    inputs = [(name, f"kafka://{kafka_address}/{name}"), (name, str(tmp_path / "more.jsonl"))]
    with pytest.raises(ConfigError, match="name nothing beside it"):
        await run(counting(name), inputs, state=tmp_path / "state")
