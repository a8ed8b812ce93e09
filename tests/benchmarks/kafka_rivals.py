"""The job of kafka_app.py on flowkit, faust-streaming and quixstreams: events a CPU-second of each worker, in turn.

    python -m tests.benchmarks.kafka_rivals [--events 200000] [--rounds 2] [--only faust,quix]

A topic of JSON events with 10,000 keys goes in; counts and sums of one-minute tumbling windows in event time come out,
at least once, in a topic. All work on the same topic of the same broker (FLOWKIT_TEST_KAFKA, or one made for it). The
others come from PyPI into environments of their own below the user's cache directory. CPU time is that of the worker's
process and its children from when it says that it reads to when it has committed the last event, so that what else the
machine does matters little; the best of the rounds counts. What each put out is compared with a model.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from tests.benchmarks.stores import TICK
from tests.kafka.real import Kafka

HERE = Path(__file__).parent
KEYS, MINUTE, WINDOWS = 10_000, 60_000, 5
PATIENCE = 900
"""Seconds by the clock that one run may take."""

Found = dict[tuple[str, int], tuple[int, int]]
"""(count, sum) by key and end of window."""


class System(NamedTuple):
    """How one runs: the words of its command after its Python, what its log says when it reads, how it is set."""

    name: str
    words: Sequence[str]
    reads: str
    settings: Mapping[str, str]
    note: str
    packages: Sequence[str] = ()
    changelog: str = ""
    """The topic that shows its state, where it puts out nothing here."""

    @property
    def family(self) -> str:
        """What `--only` names."""
        return self.name.split()[0]


FLOWKIT = ("-m", "flowkit", "worker", str(HERE / "kafka_app.py"), "--broker", "kafka://{kafka}", "--state", "{state}")
FAUST = ("-m", "faust", "-A", "faust_app", "--loop", "uvloop", "worker", "--loglevel", "info", "--without-web")
FAST = ("faust-streaming[fast,uvloop,rocksdict]",)
OURS = {"FLOWKIT_COMMIT_INTERVAL": "1000", "FLOWKIT_COMMIT_EVERY": "1000000", "BENCH_GUARANTEE": "at least once"}
THEIRS = {
    "RIVAL_BUFFER": "131072",
    "RIVAL_STORE": "memory://",
    # Without them it sends each change of the table as soon as it can, which takes up to half as much time again.
    "PRODUCER_LINGER": "0.05",
    "PRODUCER_MAX_BATCH_SIZE": "262144",
}
BY_HAND = "its windows are closed by the wall clock: these are kept in a plain table and closed by hand in event time"

SYSTEMS = [
    System("flowkit agent", FLOWKIT, "task opened", {**OURS, "BENCH_FORM": "agent"}, "commits each second; its store"),
    System(
        "flowkit declared", FLOWKIT, "task opened", {**OURS, "BENCH_FORM": "declared"}, "commits each second; its store"
    ),
    System(
        "faust memory",
        FAUST,
        "Worker ready",
        {**THEIRS, "RIVAL_FORM": "event time"},
        "Cython, orjson, uvloop, stream buffer of 131072, producer linger of 50 ms and batches of 256 KiB, memory://, "
        f"commits each 2.8 s or 10,000 events; {BY_HAND}",
        FAST,
    ),
    System(
        "faust windowed",
        FAUST,
        "Worker ready",
        {**THEIRS, "RIVAL_FORM": "windowed"},
        "the same with its own windowed table, which puts out nothing here: by the clock no window is over in time "
        "(expires=1 day), or each is while it fills; so closing and sending is not in its time, and its changelog is "
        "what is compared",
        FAST,
        changelog="{name}-sums-changelog",
    ),
    System(
        "faust rocksdb",
        FAUST,
        "Worker ready",
        {**THEIRS, "RIVAL_FORM": "event time", "RIVAL_STORE": "rocksdb://?driver=rocksdict"},
        "as `faust memory`, in RocksDB, which its documentation wants in production",
        FAST,
    ),
    System(
        "quix 5 s",
        (str(HERE / "rivals" / "quix_app.py"),),
        "now processing incoming messages",
        {"RIVAL_COMMIT_INTERVAL": "5", "RIVAL_FORM": "partition"},
        "orjson, RocksDB and changelog, commits each 5 s (its default), final results, closing_strategy=partition: a "
        "window closes when a later event of its partition comes, and never if none does; by its default, "
        "closing_strategy=key, only one of the same key closes it",
        ("quixstreams",),
    ),
    System(
        "quix 20 s",
        (str(HERE / "rivals" / "quix_app.py"),),
        "now processing incoming messages",
        {"RIVAL_COMMIT_INTERVAL": "20", "RIVAL_FORM": "partition"},
        "the same with commits each 20 s: after a crash up to 20 s of events are done again",
        ("quixstreams",),
    ),
]


class Failed(Exception):
    """A system cannot run here; the message says why."""


class Took(NamedTuple):
    """Of one run: seconds of CPU, by the clock, and what came out."""

    cpu: float
    wall: float
    found: Found


# --- the input, and what should come of it ---------------------------------------------------------------------------


@asynccontextmanager
async def broker_at(kafka: str) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker(KafkaAddress.parse(f"kafka://{kafka}", {})) as broker:
        yield broker


async def fill(kafka: str, topic: str, events: int) -> Found:
    """Put the events in order of their times, and one long after them that closes all windows; the model's answer."""
    rng, model = random.Random(1), dict[tuple[str, int], tuple[int, int]]()
    span = WINDOWS * MINUTE
    began = (int(time.time() * 1000) - 10 * span) // MINUTE * MINUTE  # brokers delete what is old
    async with broker_at(kafka) as broker:
        await broker.create(topic, 1)
        for start in range(0, events, 20_000):
            rows = []
            for n in range(start, min(events, start + 20_000)):
                key, at, amount = f"k{rng.randrange(KEYS)}", began + n * span // events, rng.randrange(100)
                rows.append(row(key, at, amount))
                window = key, at // MINUTE * MINUTE + MINUTE
                count, total = model.get(window, (0, 0))
                model[window] = count + 1, total + amount
            await broker.put(topic, rows)
        await broker.put(topic, [row("closing", began + 2 * span, 0)])
    return model


def row(key: str, at: int, amount: int) -> tuple[bytes, bytes, int]:
    return key.encode(), json.dumps({"key": key, "at": at, "amount": amount}).encode(), at


async def results(kafka: str, system: System, name: str) -> Found:
    """What came out by now; the window of the closing event, where it is told, is left away."""
    found: Found = {}
    topic = system.changelog.format(name=name) or f"{name}-out"
    async with broker_at(kafka) as broker:
        at, (end,) = 0, await broker.end_offsets(topic)
        while at < end:
            batch = await broker.read(topic, 0, at, 10_000)
            if not len(batch):
                break
            for key, value in zip(batch.keys or (), batch.values, strict=True):
                if key is not None and value is not None:
                    found.update([told(key, json.loads(value))])
            at = batch.position(len(batch))
    return {window: sums for window, sums in found.items() if window[0] != "closing"}


def told(key: bytes, value: Any) -> tuple[tuple[str, int], tuple[int, int]]:
    """One result, as any of them writes it."""
    if isinstance(value, list):  # a change of faust's windowed table: [key, [start, end]] and the value
        name, (start, _) = json.loads(key)
        return (name, int(start) * 1000 + MINUTE), (value[0], value[1])
    return (value.get("key", key.decode()), value["end"]), (value["n"], value["total"])


# --- running one -----------------------------------------------------------------------------------------------------


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowkit-tests" / "rivals"


def python_of(system: System) -> str:
    """The Python that has the system, made if it is not there. Raises Failed with what pip says."""
    if not system.packages:
        return sys.executable
    directory = cache() / f"{system.family}-{sys.version_info[0]}.{sys.version_info[1]}"
    python, ready = directory / "bin" / "python", directory / "ready"
    if not ready.exists():
        venv.create(directory, with_pip=True, clear=True)
        command = (str(python), "-m", "pip", "install", "--quiet", *system.packages)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"pip install {' '.join(system.packages)}: {done.stderr.strip()[-800:]}")
        ready.touch()
    return str(python)


def version_of(python: str, system: System) -> str:
    """The versions of the system and of the Kafka client below it."""
    names = {"faust": ("faust-streaming", "aiokafka"), "quix": ("quixstreams", "confluent-kafka")}
    told = names.get(system.family, ("flowkit", "aiokafka"))
    code = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {told!r}))"
    return subprocess.run((python, "-c", code), capture_output=True, text=True, check=False).stdout.strip()


@contextmanager
def worker(python: str, system: System, kafka: str, topic: str, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The system's worker; its log is beside its state."""
    state.mkdir()
    told = {"BENCH_NAME": state.name, "BENCH_TOPIC": topic, "BENCH_KAFKA": kafka, "RIVAL_STATE": str(state)}
    path = {"PYTHONPATH": str(HERE.parents[1] if not system.packages else HERE / "rivals")}
    words = [python, *(word.format(kafka=kafka, state=state) for word in system.words)]
    with log_of(state).open("wb") as log:
        process = subprocess.Popen(
            words, env={**os.environ, **told, **path, **system.settings}, stdout=log, stderr=log, cwd=state
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def log_of(state: Path) -> Path:
    return state.with_suffix(".log")


async def until_it_reads(process: subprocess.Popen[bytes], system: System, state: Path) -> None:
    until = time.monotonic() + 90
    while system.reads not in log_of(state).read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > until:
            raise Failed(f"it did not begin to read:\n{log_of(state).read_text(errors='replace')[-2000:]}")
        await asyncio.sleep(0.01)


async def until_it_has_read(process: subprocess.Popen[bytes], kafka: str, topic: str, state: Path, end: int) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=state.name, enable_auto_commit=False)
    await consumer.start()
    until = time.monotonic() + PATIENCE
    try:
        while (at := await consumer.committed(TopicPartition(topic, 0)) or 0) < end:
            if process.poll() is not None or time.monotonic() > until:
                raise Failed(f"it got to {at} of {end}:\n{log_of(state).read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.1)
    finally:
        await consumer.stop()


async def run(python: str, system: System, kafka: str, topic: str, directory: Path, events: int) -> Took:
    """One run from the topic's beginning to its end, in a group of its own."""
    state = directory / f"rival-{system.name.replace(' ', '-')}-{random.SystemRandom().randrange(10**9)}"
    async with broker_at(kafka) as broker:
        await broker.create(f"{state.name}-out", 1)
    with worker(python, system, kafka, topic, state) as process:
        await until_it_reads(process, system, state)
        before, began = tree_seconds(process.pid), time.monotonic()
        await until_it_has_read(process, kafka, topic, state, events + 1)
        cpu, wall = tree_seconds(process.pid) - before, time.monotonic() - began
    return Took(cpu, wall, await results(kafka, system, state.name))


def tree_seconds(pid: int) -> float:
    """CPU time of a process, of its children, and of those of them that are gone."""
    total = 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total = sum(map(int, fields[11:15])) / TICK
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(tree_seconds(int(child)) for child in children.read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended between two looks
    return total


# --- the table -------------------------------------------------------------------------------------------------------


async def compare(kafka: str, systems: Sequence[System], events: int, rounds: int) -> bool:
    """Run all in turn and print; whether all that ran were right."""
    topic = f"rivals-in-{random.SystemRandom().randrange(10**9)}"
    model = await fill(kafka, topic, events)
    print(
        f"{events:,} events, {KEYS:,} keys, {WINDOWS} windows of a minute, {len(model):,} results; best of {rounds} "
        "rounds in turn; CPU time of the worker and its children, so that a loaded machine matters little (load "
        f"average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)",
        flush=True,
    )
    best: dict[str, Took] = {}
    left: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as made:
        for _ in range(rounds):
            for system in systems:
                if system.name in left:
                    continue
                try:
                    took = await run(python_of(system), system, kafka, topic, Path(made), events)
                except Failed as error:
                    left[system.name] = str(error)
                    continue
                print(f"  {system.name:<18} {events / took.cpu:>9,.0f}   {verdict(took.found, model)}", flush=True)
                if system.name not in best or took.cpu < best[system.name].cpu:
                    best[system.name] = took
    tell(systems, best, left, model, events)
    return not left and all(took.found == model for took in best.values())


def tell(
    systems: Sequence[System], best: Mapping[str, Took], left: Mapping[str, str], model: Found, events: int
) -> None:
    aims = {"faust": 15, "quix": 5}
    ours = {name: took for name, took in best.items() if name.startswith("flowkit")}
    print(f"\n{'':<18} events a CPU-second   by the clock   " + "   ".join(f"{name} is" for name in ours))
    for system in systems:
        if system.name in left:
            print(f"{system.name:<18} DID NOT RUN: {left[system.name]}")
            continue
        took = best[system.name]
        ratios = "" if system.name in ours else "   ".join(f"{took.cpu / one.cpu:>14.1f}x" for one in ours.values())
        aim = f"   (aim {aims[system.family]}x)" if system.family in aims else ""
        print(f"{system.name:<18} {events / took.cpu:>19,.0f}   {events / took.wall:>12,.0f}   {ratios}{aim}")
    print()
    for system in systems:
        if system.name in best:
            version = version_of(python_of(system), system)
            print(f"{system.name}: {version}: {system.note}. {verdict(best[system.name].found, model)}")


def verdict(found: Found, model: Found) -> str:
    if found == model:
        return "Its counts and sums are the model's"
    wrong = sum(found.get(window) != sums for window, sums in model.items())
    return f"WRONG: {wrong:,} of {len(model):,} windows missing or not the model's, {len(found):,} put out"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="rivals by name, with commas: faust, quix (flowkit is always there)")
    given = parser.parse_args()
    only = {"flowkit", *filter(None, given.only.split(","))} if given.only else set()
    systems = [system for system in SYSTEMS if not only or system.family in only]
    with ExitStack() as stack:
        kafka = os.environ.get("FLOWKIT_TEST_KAFKA")
        if not kafka:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            kafka = stack.enter_context(Kafka(directory, properties={"auto.create.topics.enable": "true"})).bootstrap
        return 0 if asyncio.run(compare(kafka, systems, given.events, given.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
