"""From kill -9 of a worker on Kafka until its tasks go on, with a state of many keys, while events keep coming.

    python -m tests.benchmarks.kafka_recovery [--keys 1000000] [--partitions 4] [--guarantee "at least once"]

A worker fills a table; then workers are killed, one after the other, and each time another one goes on: in place (in
the same directory, where it is the member that it was and waits for nobody's time-out), in another one beside it
(started at the kill, or a member already), from the frames in Kafka alone, and from checkpoints in a directory, in S3
(a local server of its protocol) and in a Kafka topic, all of these with no state left on disk. At the end the
checkpoints of each place are restored once more, and fetched by a bare client, in turn.

Time is from the kill to the first output, in the last of the partitions, of an event that came after it; a dead
member's time-out (FLOWKIT_LEASE_TTL) is told beside it. Each output's count must be the one before plus one: nothing
lost and, exactly once, nothing twice. Times are by the clock, those of the parts from the new worker's log: a loaded
machine is slower.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from flowkit.source import open_storage
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.store import Checkpoints, Listing, folder_of, tasks_in
from flowkit.store.checkpoint import AHEAD
from tests.benchmarks.kafka_rivals import tree_seconds
from tests.integration.processes import Crew, Process, crew_in
from tests.kafka.real import Kafka
from tests.store.s3_server import own_bucket, s3_environment, s3_server

APP = Path(__file__).with_name("kafka_app.py")
TTL_MS, AIM, AIM_IN_PLACE = 6_000, 3.0, 2.0
A_SECOND, TURN = 500, 0.02
"""Events while workers die; put each so many seconds."""


class Setting(NamedTuple):
    """What a run is of."""

    kafka: str
    name: str
    keys: int
    partitions: int
    guarantee: str
    note: int
    """Bytes in each value that do not compress; as hex digits, so twice as many before compression."""
    directory: Path
    places: dict[str, str]
    """URLs of checkpoints, by what is there."""

    @property
    def topic(self) -> str:
        return f"{self.name}-in"

    def start(self, crew: Crew, name: str, state: str, *more: str, checkpoint_ms: int = 3_600_000) -> Process:
        """A worker whose state is in `state`."""
        env = {
            "BENCH_NAME": self.name,
            "BENCH_TOPIC": self.topic,
            "BENCH_FORM": "keyed",
            "BENCH_GUARANTEE": self.guarantee,
            "BENCH_NOTE": str(self.note),
            "FLOWKIT_LEASE_TTL": str(TTL_MS),
            "FLOWKIT_COMMIT_INTERVAL": "100",
            "FLOWKIT_CHECKPOINT_INTERVAL": str(checkpoint_ms),
            "FLOWKIT_LOG_LEVEL": "info",
            "PYTHONWARNINGS": "default",
        }
        words = ("worker", str(APP), "--broker", f"kafka://{self.kafka}", "--state", state, *more)
        return crew.flowkit(name, *words, env=env)


# --- what goes in and comes out --------------------------------------------------------------------------------------


def row(key: str, amount: int) -> tuple[bytes, bytes, int]:
    at = time.time_ns() // 1_000_000
    return key.encode(), json.dumps({"key": key, "at": at, "amount": amount}).encode(), at


async def fill(broker: KafkaBroker, setting: Setting) -> None:
    """One event a key."""
    for topic in (setting.topic, f"{setting.name}-out"):
        await broker.create(topic, setting.partitions)
    for start in range(0, setting.keys, 20_000):
        some = range(start, min(setting.keys, start + 20_000))
        await broker.put(setting.topic, [row(f"key-{n:09}", n % 100) for n in some])


async def all_read(broker: KafkaBroker, setting: Setting, process: Process) -> None:
    """Until the group says that it is at the topic's end."""
    ends = await broker.end_offsets(setting.topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=setting.kafka, group_id=setting.name, enable_auto_commit=False)
    await consumer.start()
    parts = [TopicPartition(setting.topic, n) for n in range(setting.partitions)]
    try:
        while [await consumer.committed(part) or 0 for part in parts] != ends:
            assert process.popen.poll() is None, process.said()
            await asyncio.sleep(0.1)
    finally:
        await consumer.stop()


async def feed(broker: KafkaBroker, setting: Setting) -> None:
    """Events of any keys, for ever."""
    chance = random.Random(3)
    while True:
        began = time.monotonic()
        rows = [row(f"key-{chance.randrange(setting.keys):09}", 1) for _ in range(int(A_SECOND * TURN))]
        await broker.put(setting.topic, rows)
        await asyncio.sleep(max(0.0, TURN - (time.monotonic() - began)))


class Outputs:
    """What comes out, as readers of committed outputs see it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.lost = self.twice = self.seen = 0
        self.latest: dict[int, int] = {}
        """By partition: when the newest event that has come out went in (ms)."""
        self._counts: dict[str, int] = {}

    async def watch(self) -> None:
        """Look on, from the end of the topic, for ever."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.setting.kafka,
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(f"{self.setting.name}-out", n) for n in range(self.setting.partitions)])
            await consumer.seek_to_end()
            while True:
                for part, records in (await consumer.getmany(timeout_ms=1000)).items():
                    for record in records:
                        self._saw(part.partition, json.loads(record.value))
        finally:
            await consumer.stop()

    def _saw(self, partition: int, value: dict[str, Any]) -> None:
        self.seen += 1
        expected = self._counts.get(value["key"], 1) + 1
        self.lost += value["n"] > expected
        self.twice += value["n"] < expected
        self._counts[value["key"]] = max(value["n"], expected - 1)
        self.latest[partition] = max(value["at"], self.latest.get(partition, 0))

    async def go_on(self, since_ms: int, process: Process) -> float:
        """Seconds (of the epoch) when an event from after `since_ms` has come out of each partition."""
        async with asyncio.timeout(300):
            while not all(self.latest.get(n, 0) > since_ms for n in range(self.setting.partitions)):
                assert process.popen.poll() is None, process.said()
                await asyncio.sleep(0.005)
        return time.time()


# --- what is measured ------------------------------------------------------------------------------------------------


class Recovery(NamedTuple):
    """One kill, and how it went on."""

    what: str
    took: float
    timeout: float
    """Of it, until the dead member was given up: s."""
    parts: str
    cpu: float
    """Seconds of it in the new worker: what it would take at the least on a machine that does nothing else."""
    note: str


def seconds(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["timestamp"]).timestamp()


def timeline(process: Process, killed: float, after: dict[str, int]) -> tuple[float, str]:
    """When its tasks were shared out, and the steps of its log: seconds since the kill, the last of each kind."""
    found: list[tuple[float, str]] = []
    for event in STEPS:
        entries = process.logs(event)[after.get(event, 0) :]
        if entries:
            found.append((seconds(entries[-1]) - killed, event))
    shared = [
        seconds(each) - killed
        for each in process.logs("tasks shared out")[after.get("tasks shared out", 0) :]
        if each["ours"]
    ]
    return shared[-1] if shared else 0.0, ", ".join(f"{event} {at:.2f}" for at, event in sorted(found))


STEPS = (
    "worker started",
    "tasks shared out",
    "state taken over",
    "checkpoint restored",
    "state restored from frames",
    "task opened",
)


async def recover(
    what: str, outputs: Outputs, victim: Process, successor: Callable[[], Process], clean: Callable[[], None]
) -> tuple[Recovery, Process]:
    """Kill the victim, do to its disk what is said, and see how the successor goes on."""
    since = time.time_ns() // 1_000_000
    victim.kill()
    killed = time.time()
    clean()
    began = time.time() - killed
    process = successor()
    before = tree_seconds(process.pid)
    said = {event: len([each for each in process.logs(event) if seconds(each) < killed]) for event in STEPS}
    took = await outputs.go_on(max(since, int(killed * 1000)) + 50, process) - killed
    cpu = tree_seconds(process.pid) - before
    shared, parts = timeline(process, killed, said)
    note = ""
    restored = process.logs("checkpoint restored")
    if restored:
        size = sum(each["bytes"] for each in restored) / 2**20
        first = min(seconds(each) for each in process.logs("restoring a checkpoint"))
        wall = max(seconds(each) for each in restored) - first
        note = f"; checkpoints of {size:,.0f} MiB in {wall:.2f} s: {size / wall:,.0f} MiB/s"
    frames = process.logs("state restored from frames")[said["state restored from frames"] :]
    if frames:
        wall, count = max(each["seconds"] for each in frames), sum(each["frames"] for each in frames)
        bare = sum(each["began_with"] == "nothing" for each in frames)
        note += (
            f"; {len(frames)} tasks, {bare} of them from nothing, applied {count:,} frames, the longest {wall:.2f} s"
        )
    note += f"; disk wiped in {began:.2f} s" if began > 0.05 else ""
    return Recovery(what, took, shared, parts, cpu, note), process


def tell(one: Recovery) -> None:
    waited, ttl = min(one.timeout, one.took), TTL_MS / 1000
    beyond = "without waiting for" if one.took < ttl / 2 else f"{one.took - ttl:+.2f} s beyond"
    print(
        f"{one.what:<40} {one.took:>6.2f} s: {beyond} a time-out of {ttl:.0f} s, "
        f"{one.took - waited:.2f} s after tasks were shared out; {one.cpu:.2f} s of CPU in the new worker{one.note}\n"
        f"    s since the kill: {one.parts}, outputs {one.took:.2f}",
        flush=True,
    )


async def measure(setting: Setting, crew: Crew) -> bool:
    """Fill, then kill again and again; whether outputs were right."""
    async with KafkaBroker(KafkaAddress.parse(f"kafka://{setting.kafka}", {})) as broker:
        await fill(broker, setting)
        began = time.monotonic()
        worker = setting.start(crew, "a", "state-a")
        await all_read(broker, setting, worker)
        print(
            f"{setting.keys:,} keys with {setting.note} bytes of noise each in {setting.partitions} tasks, "
            f"{setting.guarantee}; filled in "
            f"{time.monotonic() - began:.0f} s; {A_SECOND} events a second while workers die; session time-out "
            f"{TTL_MS / 1000:.0f} s (aims: in place under {AIM_IN_PLACE:.0f} s in all, else under {AIM:.0f} s beyond "
            f"it with local state); load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            flush=True,
        )
        outputs = Outputs(setting)
        async with beside(outputs.watch()):
            await asyncio.sleep(1)  # the consumer stands at the end before the first event
            async with beside(feed(broker, setting)):
                await outputs.go_on(time.time_ns() // 1_000_000, worker)
                await kills(setting, crew, outputs, worker)
        for kind, url in setting.places.items():
            await compare(kind, url, setting)
        print(f"{outputs.seen:,} outputs seen: {outputs.lost} counts missing, {outputs.twice} twice", flush=True)
        return not outputs.lost and (setting.guarantee == "at least once" or not outputs.twice)


async def kills(setting: Setting, crew: Crew, outputs: Outputs, worker: Process) -> None:
    """Each way to go on, after each other."""

    def wipe() -> None:
        for state in setting.directory.glob("state-*"):
            shutil.rmtree(state)

    def nothing() -> None:
        pass

    one, worker = await recover(
        "restarted in place (the same directory)", outputs, worker, lambda: setting.start(crew, "b", "state-a"), nothing
    )
    tell(one)
    one, worker = await recover(
        "another directory, started at the kill", outputs, worker, lambda: setting.start(crew, "c", "state-c"), nothing
    )
    tell(one)
    member = setting.start(crew, "d", "state-d")
    await heard(member, "task opened", setting.partitions // 2)
    await outputs.go_on(time.time_ns() // 1_000_000, member)
    one, worker = await recover("another directory, a member already", outputs, worker, lambda: member, nothing)
    tell(one)
    one, worker = await recover(
        "no state on disk, from frames alone", outputs, worker, lambda: setting.start(crew, "e", "state-e"), wipe
    )
    tell(one)
    state = "state-e"
    for kind, url in setting.places.items():
        worker.kill()
        worker = setting.start(crew, f"to-{kind}", state, "--checkpoints", url, checkpoint_ms=5_000)
        await heard(worker, "checkpoint published", 1, each=setting.partitions)
        state = f"state-{kind}"

        def restoring(kind: str = kind, state: str = state, url: str = url) -> Process:
            return setting.start(crew, f"from-{kind}", state, "--checkpoints", url)

        one, worker = await recover(f"no state on disk, from a checkpoint, {kind}", outputs, worker, restoring, wipe)
        tell(one)
    worker.kill()


# --- restoring, beside what a bare client takes for the same bytes ---------------------------------------------------


async def compare(kind: str, url: str, setting: Setting) -> None:
    """Restore the newest checkpoints of all tasks at once, and fetch the same objects bare: the best of several."""
    bare = BARE.get(kind)
    async with open_storage(url) as storage:
        tasks = [Checkpoints(storage.blobs(*folder_of(task))) for task in await tasks_in(storage)]
        listings = [(each, (await each.look())[1]) for each in tasks]
        size = sum(stored.meta.bytes for _, listing in listings for stored in listing.files) / 2**20
        ours, theirs = [], []
        for n in range(TURNS):
            target = setting.directory / f"restored-{kind}-{n}"
            began, cpu = time.monotonic(), time.process_time()
            await asyncio.gather(*(each.restore(target / str(k)) for k, each in enumerate(tasks)))
            ours.append((time.monotonic() - began, time.process_time() - cpu))
            shutil.rmtree(target)
            if bare is not None:
                began, cpu = time.monotonic(), time.process_time()
                await bare(storage, listings)
                theirs.append((time.monotonic() - began, time.process_time() - cpu))
    (wall, cpu), told = min(ours), ""
    if theirs:
        least, other = min(theirs)
        told = (
            f"; a bare client fetches the same in {least:.2f} s, {size / least:,.0f} MiB/s, {other:.2f} s of CPU: "
            f"ratio {wall / least:.2f} (CPU {cpu / other:.2f})"
        )
    print(
        f"{kind}: {len(tasks)} checkpoints of {size:,.0f} MiB restored at once in {wall:.2f} s, "
        f"{size / wall:,.0f} MiB/s, {cpu:.2f} s of CPU{told}",
        flush=True,
    )


async def bare_s3(storage: Any, listings: list[tuple[Checkpoints, Listing]]) -> None:
    """By aiobotocore alone, as many at a time as a restore has under way."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    turns = asyncio.Semaphore(AHEAD * len(listings))
    async with get_session().create_client("s3", config=AioConfig(max_pool_connections=32)) as client:

        async def fetch(key: str, size: int) -> None:
            async with turns:
                found = await client.get_object(Bucket=storage.place.bucket, Key=key)
                async with found["Body"] as body:
                    assert len(await body.read()) == size

        await asyncio.gather(
            *(
                fetch(each.blobs.prefix + stored.object, stored.meta.bytes)  # type: ignore[attr-defined]
                for each, listing in listings
                for stored in listing.files
            )
        )


async def bare_kafka(storage: Any, listings: list[tuple[Checkpoints, Listing]]) -> None:
    """By consumers of aiokafka alone, one for each task: from the first chunk of its checkpoint to the last."""

    async def fetch(blobs: Any, listing: Listing) -> None:
        layout = await blobs.topic.layout(make=False)
        heads = (await blobs._entries(make=False)).items()  # where the objects lie
        named = {stored.object for stored in listing.files}
        chosen = [entry.head for name, entry in heads if name in named and entry.head.chunks]
        if not chosen:
            return  # all that is small lies in the heads
        part = TopicPartition(blobs.topic.name, layout.of_chunks(blobs.folder))
        consumer = AIOKafkaConsumer(
            bootstrap_servers=list(storage.place.address.servers), max_partition_fetch_bytes=4 * 2**20
        )
        await consumer.start()
        consumer.assign([part])
        consumer.seek(part, min(head.first for head in chosen))
        last = max(head.last for head in chosen)
        while await consumer.position(part) <= last:
            await consumer.getmany(part, timeout_ms=100)
        await consumer.stop()

    await asyncio.gather(*(fetch(each.blobs, listing) for each, listing in listings))


BARE: dict[str, Callable[..., Any]] = {"s3": bare_s3, "kafka": bare_kafka}
TURNS = 3


@contextmanager
def place_of(kind: str, kafka: str, name: str, directory: Path) -> Iterator[str]:
    """The URL of a place for checkpoints."""
    if kind == "s3":
        with s3_server() as server:
            os.environ.update(s3_environment(server))

            async def make() -> str:
                async with own_bucket() as storage:
                    return storage.url

            yield asyncio.run(make())
    else:
        yield f"kafka://{kafka}/{name}-states" if kind == "kafka" else (directory / "checkpoints").as_uri()


async def heard(process: Process, event: str, times: int, each: int = 1) -> None:
    """Until the log has it so many times, of so many tasks. Fails if the process ends."""
    async with asyncio.timeout(300):
        while True:
            found = process.logs(event)
            if len(found) >= times and len({entry["task"] for entry in found}) >= each:
                return
            assert process.popen.poll() is None, process.said()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[None]:
    """Meanwhile; its failure shows at the end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextmanager
def broker_for(given: str | None) -> Iterator[str]:
    """The address of a broker: the given one, or one of its own."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory() as made, Kafka(Path(made)) as kafka:
        yield kafka.bootstrap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--guarantee", default="exactly once", choices=["exactly once", "at least once"])
    parser.add_argument("--note", type=int, default=50, metavar="BYTES", help="in each value, not compressible")
    parser.add_argument("--places", default="files,s3,kafka", help="of checkpoints")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave states and logs there")
    given = parser.parse_args()
    with ExitStack() as stack:
        kafka = stack.enter_context(broker_for(os.environ.get("FLOWKIT_TEST_KAFKA")))
        directory = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        name = f"recovery-{random.SystemRandom().randrange(10**9)}"
        places = {kind: stack.enter_context(place_of(kind, kafka, name, directory)) for kind in given.places.split(",")}
        setting = Setting(kafka, name, given.keys, given.partitions, given.guarantee, given.note, directory, places)
        crew = stack.enter_context(crew_in(directory))
        return 0 if asyncio.run(measure(setting, crew)) else 1


if __name__ == "__main__":
    sys.exit(main())
