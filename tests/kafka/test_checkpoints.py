"""Checkpoints beside Kafka: frames are trimmed below them, and workers with empty disks go on from both."""

import asyncio
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowkit.errors import StoreCorrupt
from flowkit.source.internal import changelog_of
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_frames import PART_BYTES
from flowkit.store import Frame, SpaceChange, read_store
from tests.integration.processes import Crew, Process, crew_in
from tests.store.s3_server import own_bucket, s3_environment, s3_server

APP = str(Path(__file__).with_name("checkpoint_app.py"))
KEYS = [f"key {n}" for n in range(20)]


@pytest.fixture
async def broker(kafka_address: str) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as broker:
        yield broker


# Trimming


async def commits(broker: KafkaBroker, task: str, epoch: int, start: int, stop: int) -> None:
    for number in range(start, stop):
        change = SpaceChange("t", None, [b"k"], [os.urandom(PART_BYTES + 1 if number % 4 == 0 else 10)])
        parent = b"id%d" % (number - 1) if number > 1 else b""
        frame = Frame(number, b"id%d" % number, parent, 0, {}, [change])
        await broker.commit(task, epoch, number, frame.commit_id, {}, [], frame)


async def numbers(broker: KafkaBroker, task: str, after: int) -> list[int]:
    return [frame.number async for frame in broker.frames(task, after)]


@pytest.mark.parametrize("again", [False, True])
async def test_frames_before_a_number_are_forgotten(broker: KafkaBroker, name: str, again: bool) -> None:
    """Where they lie is known of those that this owner wrote, and looked up of those from before it."""
    task = f"{name}/g/0"
    await broker.create(changelog_of(task)[0], 1)
    claim = await broker.claim(task, "")
    await commits(broker, task, claim.epoch, 1, 10)
    if again:
        claim = await broker.claim(task, "")
    for number in (3, 4, 5, 8):
        await broker.trim(task, number)
        assert await numbers(broker, task, number - 1) == list(range(number, 10))
        with pytest.raises(StoreCorrupt, match=rf"commit {number - 1} is not there, the next one is {number}"):
            await numbers(broker, task, number - 2)
    await broker.trim(task, 2)  # of one that is gone already
    assert await numbers(broker, task, 7) == [8, 9]
    await commits(broker, task, claim.epoch, 10, 12)
    await broker.trim(task, 10)
    assert await numbers(broker, task, 9) == [10, 11]


async def test_the_last_frame_stays_for_it_says_which_commit_counts(broker: KafkaBroker, name: str) -> None:
    task = f"{name}/g/0"
    await broker.create(changelog_of(task)[0], 1)
    claim = await broker.claim(task, "/state/here")
    await commits(broker, task, claim.epoch, 1, 6)
    for again in range(3):
        await broker.trim(task, 99)
        assert await numbers(broker, task, 4) == [5]
        assert await broker.last_commit(task) == (5, b"id5")
        claim = await broker.claim(task, "")
        assert (claim.number, claim.commit_id, claim.state) == (5, b"id5", "/state/here"), again


async def test_what_an_owner_says_when_it_begins_is_not_taken_for_a_frame(kafka_address: str, name: str) -> None:
    """Without transactions an owner's claim is a record, and it may be the last one."""
    task = f"{name}/g/0"
    address = KafkaAddress.parse(f"kafka://{kafka_address}", {})
    async with KafkaBroker(address, "at least once") as broker:
        await broker.create(changelog_of(task)[0], 1)
        claim = await broker.claim(task, "")
        await commits(broker, task, claim.epoch, 1, 4)
        for _ in range(3):
            claim = await broker.claim(task, "")
        for number in (2, 99):
            await broker.trim(task, number)
            assert (await numbers(broker, task, 2)) == [3]
        again = await broker.claim(task, "")
        assert (again.number, again.epoch) == (3, claim.epoch + 1)
        await commits(broker, task, again.epoch, 4, 6)
        await broker.trim(task, 5)
        assert await numbers(broker, task, 4) == [5]


# Workers on machines whose disks vanish


class Outside:
    """The cluster as the test sees it: it puts events, and looks at what the workers made of them."""

    def __init__(self, broker: KafkaBroker, name: str) -> None:
        self.broker, self.name = broker, name
        self.put: dict[str, int] = defaultdict(int)
        self.at = 0
        self.chance = random.Random(5)

    async def feed(self, events: int) -> None:
        rows = []
        for _ in range(events):
            key = self.chance.choice(KEYS)
            self.put[key] += 1
            self.at += 10
            rows.append((key.encode(), json.dumps({"key": key, "at": self.at}).encode(), self.at))
        await self.broker.put(f"{self.name}-in", rows)

    async def totals(self) -> dict[str, list[int]]:
        """All that came out, by key."""
        found: dict[str, list[int]] = defaultdict(list)
        topic = f"{self.name}-out"
        for partition, end in enumerate(await self.broker.end_offsets(topic)):
            at = 0
            while at < end:
                batch = await self.broker.read(topic, partition, at, 10_000)
                if not len(batch):
                    break
                for value in map(json.loads, filter(None, batch.values)):
                    found[value["key"]].append(value["total"])
                at = batch.position(len(batch))
        return found

    async def all_is_counted(self, process: Process) -> None:
        """Wait until each event is counted: exactly once, or this fails."""
        expected = {key: list(range(1, count + 1)) for key, count in self.put.items()}
        async with asyncio.timeout(60):
            while (found := await self.totals()) != expected:
                assert process.popen.poll() is None, process.said()
                for key, totals in found.items():
                    assert totals == expected[key][: len(totals)], f"{key}: {process.said()}"
                await asyncio.sleep(0.1)

    async def checkpointed(self, process: Process, tasks: int) -> None:
        """Put events until each task has published a checkpoint of some of them."""
        before = len(process.logs("checkpoint published"))
        await self.feed(100)
        await self.all_is_counted(process)
        async with asyncio.timeout(60):
            while len({entry["task"] for entry in process.logs("checkpoint published")[before:]}) < tasks:
                assert process.popen.poll() is None, process.said()
                await asyncio.sleep(0.1)


@contextmanager
def place_of(kind: str, path: Path, topic: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a storage for checkpoints, and the environment that it needs; `topic` is for those in Kafka."""
    if kind != "s3":
        yield topic if kind == "kafka" else (path / "checkpoints").as_uri(), {}
        return
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        environ = s3_environment(server)
        for variable, value in environ.items():
            patch.setenv(variable, value)

        async def make() -> str:
            async with own_bucket() as storage:
                return storage.url

        yield asyncio.run(make()), environ


def damage_newest(path: Path, task: str) -> str:
    """Spoil the newest checkpoint of a task; its name."""
    newest = max((path / "checkpoints" / task).glob("*.checkpoint"))
    newest.write_bytes(newest.read_bytes()[:-1])
    return newest.name


@pytest.mark.parametrize("kind", ["files", "s3", "kafka"])
def test_a_worker_with_an_empty_disk_goes_on_from_checkpoint_and_frames(
    kind: str, kafka_address: str, tmp_path: Path, name: str
) -> None:
    topic = f"kafka://{kafka_address}/{name}-states/prod"
    with place_of(kind, tmp_path, topic) as (url, environ), crew_in(tmp_path) as crew:
        env = {
            **environ,
            "CHECKPOINT_APP": name,
            "FLOWKIT_COMMIT_INTERVAL": "50",
            "FLOWKIT_LEASE_TTL": "6000",
            "FLOWKIT_CHECKPOINT_INTERVAL": "2000",
        }

        def start(number: int) -> Process:
            words = ["worker", APP, "--broker", f"kafka://{kafka_address}", "--state", "state", "--checkpoints", url]
            return crew.flowkit(f"w{number}", *words, env=env)

        async def story() -> None:
            async with KafkaBroker(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as broker:
                await broker.create(f"{name}-in", 2)
                await broker.create(f"{name}-out", 2)
                outside = Outside(broker, name)
                spoilt: list[str] = []
                for life in range(3):
                    process = start(life)
                    await outside.feed(300)
                    await outside.all_is_counted(process)
                    if life:
                        restored = process.logs("checkpoint restored")
                        assert len({entry["task"] for entry in restored}) == 2, process.said()
                        frames = sum(entry["frames"] for entry in process.logs("state restored from frames"))
                        assert frames > 0, process.said()
                        loud = process.logs("a checkpoint cannot be read")
                        assert [entry["error"].partition(":")[0] for entry in loud[:1]] == spoilt
                    for _ in range(2):  # as many as are kept, so that frames are trimmed
                        await outside.checkpointed(process, 2)
                    await outside.feed(100)
                    await outside.all_is_counted(process)
                    process.kill()
                    shutil.rmtree(tmp_path / "state")
                    if kind == "files" and life == 1:
                        spoilt.append(damage_newest(tmp_path, f"{name}/totals/0"))
                topic = next(each for each in await broker.topics() if each.endswith("-changelog") and name in each)
                for partition in range(2):
                    first, _ = await broker.bounds(topic, partition)
                    assert first > 5, "frames below the checkpoints are gone"

        asyncio.run(story())
        looked_into(crew, url, environ, f"{name}/totals/1")


def looked_into(crew: Crew, url: str, environ: dict[str, str], task: str) -> None:
    """What is there can be listed, inspected, verified and restored by hand."""

    def run(*words: str) -> str:
        process = crew.flowkit(words[0], "checkpoint", *words, "--checkpoints", url, env=environ)
        assert process.wait() == 0, process.said()
        return process.out.read_text() + process.said()

    assert len([line for line in run("list", "--task", task).splitlines() if line.startswith(task)]) == 2
    assert "totals" in run("inspect", task)
    assert f"{task}: sound" in run("verify", "--task", task)
    assert "restored from" in run("restore", task, "by-hand")
    look = read_store(crew.directory / "by-hand")
    assert look.number > 0
