"""A worker on Apache Kafka beside a bare consumer on the same broker, in turn; and how long an event takes through it.

    pytest tests/benchmarks/test_kafka.py -m benchmark -s

Throughput is told in events a second of the worker's CPU, opening and imports left out, so that what else the machine
does matters little. Latency is by the clock: it wants a quiet machine, and is told beside the broker's own round trip.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from tests.benchmarks.stores import process_seconds
from tests.benchmarks.workload import show
from tests.kafka.jars import need_kafka
from tests.kafka.real import Kafka

ROOT = Path(__file__).parents[2]
APP = Path(__file__).with_name("kafka_app.py")
EVENTS = int(os.environ.get("FLOWKIT_BENCH_EVENTS", "500000"))
KEYS = 10_000
SPAN_MS = 300_000
"""Of event time: five windows."""
RATE, SECONDS = 5_000, 10
ROUNDS = int(os.environ.get("FLOWKIT_BENCH_ROUNDS", "5"))


class Event(msgspec.Struct):
    """As the worker decodes it."""

    key: str
    at: int
    amount: int


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = os.environ.get("FLOWKIT_TEST_KAFKA")
    if given:
        yield given
        return
    need_kafka()
    with Kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka.bootstrap


def broker_at(kafka: str) -> KafkaBroker:
    return KafkaBroker(KafkaAddress.parse(f"kafka://{kafka}", {}))


async def fill(kafka: str, topic: str, partitions: int = 1) -> None:
    """EVENTS of KEYS keys, and one that closes their windows."""
    rng, began = random.Random(1), (int(time.time() * 1000) - 10 * SPAN_MS) // 60_000 * 60_000
    async with broker_at(kafka) as broker:
        await broker.create(topic, partitions)
        for start in range(0, EVENTS, 20_000):
            rows = []
            for n in range(start, min(EVENTS, start + 20_000)):
                key, at = f"k{rng.randrange(KEYS)}", began + n * SPAN_MS // EVENTS
                event = Event(key, at, rng.randrange(100))
                rows.append((key.encode(), msgspec.json.encode(event), at))
            await broker.put(topic, rows)


async def bare(kafka: str, topic: str) -> float:
    """Events a CPU-second of aiokafka's getmany and decoding alone, in a process of its own as a worker is."""
    words = [sys.executable, str(APP.with_name("kafka_bare.py")), kafka, topic, str(EVENTS)]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return EVENTS / float(out)


@contextmanager
def worker(kafka: str, topic: str, name: str, state: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process on the app; its log is in `state` with the ending .log."""
    told = {"BENCH_NAME": name, "BENCH_TOPIC": topic, "PYTHONPATH": str(ROOT), "FLOWKIT_LOG_LEVEL": "info"}
    words = [sys.executable, "-m", "flowkit", "worker", str(APP), "--broker", f"kafka://{kafka}", "--state", str(state)]
    with state.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(words, env={**os.environ, **told, **env}, stderr=log, stdout=log)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0, state.with_suffix(".log").read_text()


async def opened(process: subprocess.Popen[bytes], state: Path) -> None:
    log = state.with_suffix(".log")
    while "task opened" not in log.read_text():
        assert process.poll() is None, log.read_text()
        await asyncio.sleep(0.01)


async def drained(kafka: str, topic: str, name: str, group: str) -> None:
    """Until the group's offsets are at the topic's end."""
    async with broker_at(kafka) as broker:
        ends = await broker.end_offsets(topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        for number, end in enumerate(ends):
            part = TopicPartition(topic, number)
            while (await consumer.committed(part) or 0) < end:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.1)
    finally:
        await consumer.stop()


async def throughput(kafka: str, topic: str, tmp_path: Path, form: str, guarantee: str, interval: int) -> float:
    """Events a CPU-second of a worker."""
    name = f"bench-{form}-{random.randrange(10**9)}"
    state = tmp_path / name
    env = {"BENCH_FORM": form, "BENCH_GUARANTEE": guarantee, "FLOWKIT_COMMIT_INTERVAL": str(interval)}
    with worker(kafka, topic, name, state, **env, FLOWKIT_COMMIT_EVERY="1000000") as process:
        await opened(process, state)
        before = process_seconds(process.pid)
        await drained(kafka, topic, name, name)
        return EVENTS / (process_seconds(process.pid) - before)


async def test_throughput(kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topic = f"in-{random.randrange(10**9)}"
    await fill(kafka, topic)
    forms = [
        ("agent, at least once", "agent", "at least once", 1000),
        ("declared, at least once", "declared", "at least once", 1000),
        ("agent, at least once, each 100 ms", "agent", "at least once", 100),
        ("agent, exactly once, each 100 ms", "agent", "exactly once", 100),
    ]
    rates: dict[str, list[float]] = {name: [] for name in ("bare", *(form[0] for form in forms))}
    for _ in range(ROUNDS):
        rates["bare"].append(await bare(kafka, topic))
        for name, form, guarantee, interval in forms:
            rates[name].append(await throughput(kafka, topic, tmp_path, form, guarantee, interval))

    def ratio(of: str, to: str) -> float:
        """The median of the rounds'."""
        return statistics.median(a / b for a, b in zip(rates[of], rates[to], strict=True))

    lines = [f"{'getmany and decode':<40} {statistics.median(rates['bare']):>10,.0f} events a CPU-second"]
    lines += [
        f"{name:<40} {statistics.median(rates[name]):>10,.0f}   {ratio(name, 'bare'):.2f} of that   ≥ 0.6"
        for name, *_ in forms
    ]
    cost = 1 - ratio("agent, exactly once, each 100 ms", "agent, at least once, each 100 ms")
    show(
        capsys,
        f"{EVENTS:,} events, {KEYS:,} keys, windows of a minute; {ROUNDS} rounds",
        *lines,
        f"exactly once costs {cost:.0%}   ≤ 20%",
    )


async def scaled(kafka: str, topic: str, tmp_path: Path, workers: int) -> float:
    """Events a CPU-second of so many workers together, which share the topic's two partitions."""
    name = f"bench-agent-{random.randrange(10**9)}"
    env = {"BENCH_FORM": "agent", "BENCH_GUARANTEE": "at least once", "FLOWKIT_COMMIT_EVERY": "1000000"}
    held = f"{topic}-held"  # nothing to do until all have their tasks, which are of the topic that is read
    with ExitStack() as stack:
        running = []
        async with broker_at(kafka) as broker:
            await broker.create(f"{held}-{name}", 2)
        for n in range(workers):
            state = tmp_path / f"{name}-{n}"
            process = stack.enter_context(worker(kafka, f"{held}-{name}", name, state, **env))
            running.append((process, state))
        for process, state in running:
            await opened(process, state)
        if workers > 1:  # the first one had both until the second came
            await asyncio.sleep(3)
        before = sum(process_seconds(process.pid) for process, _ in running)
        await copied(kafka, topic, f"{held}-{name}")
        await drained(kafka, f"{held}-{name}", name, name)
        return EVENTS / (sum(process_seconds(process.pid) for process, _ in running) - before)


async def copied(kafka: str, topic: str, to: str) -> None:
    """What is in one topic, into another of as many partitions."""
    async with broker_at(kafka) as broker:
        for partition, end in enumerate(await broker.end_offsets(topic)):
            offset = 0
            while offset < end:
                batch = await broker.read(topic, partition, offset, 5_000)
                assert batch.keys is not None
                assert batch.times is not None
                await broker.put(to, list(zip(batch.keys, batch.values, batch.times, strict=True)), partition)
                offset = batch.position(len(batch))


async def test_two_workers(kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topic = f"in-{random.randrange(10**9)}"
    await fill(kafka, topic, 2)
    best = {1: 0.0, 2: 0.0}
    for _ in range(2):
        for workers, rate in list(best.items()):
            best[workers] = max(rate, await scaled(kafka, topic, tmp_path, workers))
    show(
        capsys,
        f"{EVENTS:,} events in two partitions, an agent, at least once",
        f"one worker    {best[1]:>10,.0f} events a CPU-second",
        f"two workers   {best[2]:>10,.0f} events a CPU-second of both   {best[2] / best[1]:.2f} of one's   ≥ 0.85",
    )


async def test_latency(kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topic, name = f"in-{random.randrange(10**9)}", f"bench-pass-{random.randrange(10**9)}"
    async with broker_at(kafka) as broker:
        await broker.create(topic, 1)
        await broker.create(f"{name}-out", 1)
    env = {"BENCH_FORM": "pass", "BENCH_GUARANTEE": "at least once"}
    with worker(kafka, topic, name, tmp_path / name, **env) as process:
        await opened(process, tmp_path / name)
        through, round_trip = await measure(kafka, topic, f"{name}-out")
    rows = [
        f"{what:<32} p50 {p50:>6.1f} ms   p99 {p99:>6.1f} ms"
        for what, (p50, p99) in (("through the worker", through), ("the broker's round trip beside it", round_trip))
    ]
    beyond = [a - b for a, b in zip(through, round_trip, strict=True)]
    rows.append(f"beyond it: p50 {beyond[0]:.1f} ms (< 5), p99 {beyond[1]:.1f} ms (< 25)")
    show(capsys, f"{RATE:,} events a second for {SECONDS} s, at least once", *rows)


async def measure(kafka: str, topic: str, out: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """(p50, p99) in ms from sending to seeing: in the worker's output, and in its input, side by side."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    times: dict[str, list[float]] = {topic: [], out: []}
    consumers = []
    watching = []
    for name, seen in times.items():
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, fetch_max_wait_ms=50)
        await consumer.start()
        consumer.assign([TopicPartition(name, 0)])
        await consumer.seek_to_end()
        consumers.append(consumer)
        watching.append(asyncio.create_task(_watch(consumer, seen)))
    began = time.perf_counter()
    for n in range(RATE * SECONDS // 10):
        for m in range(10):
            at = int(time.time_ns() // 1000)
            value = msgspec.json.encode(Event(f"k{(n + m) % KEYS}", at // 1000, at))
            await producer.send(topic, value, key=b"k%d" % ((n + m) % KEYS), partition=0)
        ahead = began + (n + 1) * 10 / RATE - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
    await asyncio.sleep(1)
    for task in watching:
        task.cancel()
    for client in (*consumers, producer):
        await client.stop()
    assert len(times[out]) == len(times[topic]) == RATE * SECONDS
    return _quantiles(times[out]), _quantiles(times[topic])


async def _watch(consumer: Any, times: list[float]) -> None:
    decode = msgspec.json.Decoder(Event).decode
    while True:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            now = time.time_ns() / 1000
            times += [(now - decode(record.value).amount) / 1000 for record in records]


def _quantiles(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
