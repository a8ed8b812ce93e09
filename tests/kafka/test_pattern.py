"""Topics by pattern on a real cluster: they come and go while workers run, and every record counts once."""

import asyncio
import json
import signal
from collections import defaultdict
from pathlib import Path

import pytest

import flowkit
from flowkit.errors import ConfigError
from flowkit.options import WorkerOptions
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.worker import run
from tests.integration.processes import Crew, Process, crew_in

APP = str(Path(__file__).with_name("pattern_app.py"))


class Shop:
    """The topics outside of the app, and how many events of each key were written."""

    def __init__(self, broker: KafkaBroker, name: str) -> None:
        self.broker, self.name = broker, name
        self.sent: dict[str, int] = defaultdict(int)
        self.seen: dict[str, list[int]] = defaultdict(list)
        self._at = [0, 0]
        self._number = 0

    async def make(self, region: str, partitions: int = 2) -> str:
        topic = f"{self.name}.in.{region}"
        await self.broker.create(topic, partitions)
        return topic

    async def feed(self, region: str, count: int) -> None:
        rows: list[tuple[bytes | None, bytes | None, int]] = []
        for _ in range(count):
            self._number += 1
            key = f"{region}-{self._number % 5}"
            self.sent[key] += 1
            rows.append((key.encode(), json.dumps({"key": key, "at": self._number}).encode(), self._number))
        await self.broker.put(f"{self.name}.in.{region}", rows)

    async def delete(self, region: str) -> None:
        await self.broker._topics._admin.delete_topics([f"{self.name}.in.{region}"])

    async def all_is_counted(self, worker: Process, seconds: float = 40.0) -> None:
        """Until each key's counts are 1, 2, 3 … as many as were sent."""
        async with asyncio.timeout(seconds):
            while {key: len(counts) for key, counts in self.seen.items()} != self.sent:
                assert worker.popen.poll() is None, worker.said()
                for partition in range(2):
                    batch = await self.broker.read(f"{self.name}-out", partition, self._at[partition], 10_000)
                    self._at[partition] = batch.position(len(batch))
                    for value in batch.values:
                        total = json.loads(value or b"")
                        self.seen[total["key"]].append(total["total"])
                assert all(len(counts) <= self.sent[key] for key, counts in self.seen.items()), "twice"
                await asyncio.sleep(0.05)
        assert self.seen == {key: list(range(1, count + 1)) for key, count in self.sent.items()}

    async def letters(self) -> list[str]:
        batch = await self.broker.read(f"{self.name}-letters", 0, 0, 100)
        return [json.loads(value or b"") for value in batch.values]


def start(crew: Crew, name: str, url: str, number: int, state: str = "state") -> Process:
    env = {"PATTERN_APP": name, "FLOWKIT_COMMIT_INTERVAL": "50", "FLOWKIT_TOPIC_REFRESH": "300"}
    words = ["worker", APP, "--broker", url, "--state", state]
    return crew.flowkit(f"w{number}", *words, env={**env, "FLOWKIT_LEASE_TTL": "6000"})


def test_topics_come_while_workers_run_and_are_killed(kafka_address: str, tmp_path: Path, name: str) -> None:
    """Records that lie in a topic before it is found, and in the midst of a restart, are counted once."""
    url = f"kafka://{kafka_address}"
    with crew_in(tmp_path) as crew:

        async def story() -> None:
            async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
                shop = Shop(broker, name)
                await broker.create(f"{name}-out", 2)
                await shop.make("eu")
                await shop.make("us")
                await shop.feed("eu", 100)
                first = start(crew, name, url, 0)
                await asyncio.to_thread(first.heard, "task opened")
                await shop.feed("us", 100)
                await shop.make("asia")
                await shop.feed("asia", 100)  # before anyone has found it
                await shop.all_is_counted(first)
                assert {log["found"] for log in first.logs("topic joined")} == {f"{name}.in.asia"}
                second = start(crew, name, url, 1, "second")
                await shop.make("africa")
                await shop.feed("africa", 100)
                await shop.feed("asia", 50)
                first.kill()
                await shop.make("oceania")
                for region in ("eu", "us", "asia", "africa", "oceania"):
                    await shop.feed(region, 40)
                third = start(crew, name, url, 2)
                await shop.all_is_counted(third)
                for each in (second, third):
                    each.send(signal.SIGTERM)
                    assert await asyncio.to_thread(each.wait) == 0, each.said()

        asyncio.run(story())


def test_a_topic_that_goes_is_left_and_one_of_another_size_is_refused(
    kafka_address: str, tmp_path: Path, name: str
) -> None:
    url = f"kafka://{kafka_address}"
    with crew_in(tmp_path) as crew:

        async def story() -> None:
            async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
                shop = Shop(broker, name)
                await broker.create(f"{name}-out", 2)
                worker = start(crew, name, url, 0)
                await asyncio.to_thread(worker.heard, "no topic matches yet, so the number of tasks is not known")
                await shop.make("eu")
                await shop.feed("eu", 50)
                await shop.make("us")
                await shop.feed("us", 50)
                await shop.all_is_counted(worker)
                await shop.delete("us")
                gone = await asyncio.to_thread(worker.heard, "topic is not read any more: its position stays")
                assert gone["split"].startswith(f"{name}.in.us[")
                await shop.make("odd", partitions=3)
                refused = await asyncio.to_thread(worker.heard, "topic not read: its number of partitions")
                assert (refused["level"], refused["found"], refused["wanted"]) == ("error", f"{name}.in.odd", 2)
                await shop.feed("eu", 50)
                await shop.all_is_counted(worker)
                await shop.make("us")  # anew: its position lies beyond, and the app says what then
                await shop.feed("us", 5)
                await broker.put(f"{name}.in.eu", [(b"k", b"no json", 1)], 1)
                await shop.all_is_counted(worker)
                async with asyncio.timeout(20):
                    while not (letters := await shop.letters()):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert letters[0].startswith(f"{name}.in.eu {name}.in.eu[1] offset ")
                worker.send(signal.SIGTERM)
                assert await asyncio.to_thread(worker.wait) == 0
                assert worker.logs("task failed") == []
                said = [json.loads(line) for line in worker.said().splitlines()]  # what aiokafka says is JSON, too
                assert "aiokafka.cluster" in {line.get("logger") for line in said}
                again = start(crew, name, url, 1)  # the odd one is no reason not to start again
                await asyncio.to_thread(again.heard, "topic not read: its number of partitions")
                await shop.feed("eu", 10)
                await shop.all_is_counted(again)

        asyncio.run(story())


def test_unequal_topics_are_refused_before_anything_starts(kafka_address: str, tmp_path: Path, name: str) -> None:
    url = f"kafka://{kafka_address}"
    with crew_in(tmp_path) as crew:

        async def story() -> None:
            async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
                shop = Shop(broker, name)
                await shop.make("eu", 2)
                await shop.make("us", 3)
                worker = start(crew, name, url, 0)
                assert await asyncio.to_thread(worker.wait) == 2
                assert f"{name}.in.eu has 2, {name}.in.us has 3" in worker.said()
                assert await broker.partitions(f"{name}-out") == 0

        asyncio.run(story())


# --- bounded ----------------------------------------------------------------------------------------------------------


def merging(name: str) -> flowkit.App:
    """Sends each event on, so that the order of all shows."""
    app = flowkit.App("merging")

    class Event(flowkit.Record):
        key: str
        at: int

    events = app.topic("events", Event, time="at", pattern=rf"{name}\.in\..*")
    out = app.topic("out", Event)

    @app.each(events, sinks=[out])
    def on(event: Event) -> Event:
        return event

    return app


async def test_a_bounded_run_merges_all_that_match_by_time(kafka_address: str, tmp_path: Path, name: str) -> None:
    url = f"kafka://{kafka_address}"
    async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
        shop = Shop(broker, name)
        for region, partitions in (("us", 1), ("eu", 3), ("empty", 2)):
            await shop.make(region, partitions)
        for n in range(60):
            await shop.feed("eu" if n % 3 else "us", 1)
        kept = []
        for number, batch_size in enumerate((1, 7, 5_000)):
            out = tmp_path / f"out{number}.jsonl"
            options, state = WorkerOptions(batch_size=batch_size), tmp_path / str(number)
            await run(merging(name), [("events", url)], [("out", str(out))], state=state, options=options)
            kept.append(out.read_text())
        assert [json.loads(line)["at"] for line in kept[0].splitlines()] == list(range(1, 61))
        assert len(set(kept)) == 1
        one = tmp_path / "one.jsonl"
        await run(merging(name), [("events", f"{url}/{name}.in.us")], [("out", str(one))])
        assert len(one.read_text().splitlines()) == 20
        with pytest.raises(ConfigError, match=rf"no topic at kafka://.* matches '{name}-none"):
            await run(merging(f"{name}-none"), [("events", url)], [("out", str(one))])
