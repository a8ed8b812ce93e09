"""Two workers that send a stream on by another key, and are killed at random moments: windows hold what one would find.

Twice on the way the key changes, so each event passes three tasks, of either worker.
"""

import asyncio
import json
import random
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from flowkit.clock import SystemClock
from flowkit.codec import decode_mark
from flowkit.source import partition_of
from flowkit.source.embedded import EmbeddedBroker
from tests.integration.processes import Crew, Process, until

APP = str(Path(__file__).with_name("rekey_app.py"))
PARTITIONS = 4
LAST = 10**9
USERS = [f"user {n}" for n in range(60)]
SHOPS = [f"shop {n}" for n in range(15)]

Sums = dict[tuple[str, int], tuple[int, int]]
"""By key and end of the window: number and sum."""


class Book:
    """The sequential model: what lies in each window."""

    def __init__(self) -> None:
        self.shops: Sums = {}

    def add(self, shop: str, at: int, value: int) -> None:
        if value % 10:
            _add(self.shops, (shop, at - at % 100 + 100), value)

    @property
    def sizes(self) -> Sums:
        found: Sums = {}
        for (_, end), (n, total) in self.shops.items():
            at = end - 1
            _add(found, ("large" if n > 5 else "small", at - at % 1_000 + 1_000), total)
        return found


def _add(sums: Sums, key: tuple[str, int], value: int) -> None:
    n, total = sums.get(key, (0, 0))
    sums[key] = n + 1, total + value


class Outside:
    """The broker as the test sees it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance, self.book, self.now = random.Random(seed), Book(), 0
        self.runner = asyncio.Runner()
        self.broker = EmbeddedBroker(directory / "topics", SystemClock())
        self.runner.run(self.broker.open())
        for topic, count in (("sales", PARTITIONS), ("windows", 2), ("sizes", 1)):
            self.runner.run(self.broker.create(topic, count))

    def close(self) -> None:
        self.runner.run(self.broker.close())
        self.runner.close()

    def put(self, count: int) -> None:
        records = []
        for _ in range(count):
            user, shop = self.chance.choice(USERS), self.chance.choice(SHOPS)
            at, value = self.now + self.chance.randrange(20), self.chance.randrange(1_000)
            self.now += self.chance.randrange(3)
            self.book.add(shop, at, value)
            records.append(_record(user, shop, at, value))
        self.runner.run(self.broker.put("sales", records))

    def put_last(self) -> None:
        """In each partition an event that closes everything; what it makes itself stays open, or comes later."""
        for partition in range(PARTITIONS):
            user = next(u for n in range(1_000) if partition_of((u := f"last {n}").encode(), PARTITIONS) == partition)
            self.runner.run(self.broker.put("sales", [_record(user, "last", LAST, 1)]))

    def values(self, topic: str) -> list[Any]:
        found: list[Any] = []
        for partition, end in enumerate(self.runner.run(self.broker.end_offsets(topic))):
            at = 0
            while at < end:
                batch = self.runner.run(self.broker.read(topic, partition, at, 5_000))
                found += batch.values
                at += len(batch)
        return found

    def count(self, topic: str) -> int:
        return sum(self.runner.run(self.broker.end_offsets(topic)))

    def sums(self, topic: str, key: str) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """What was sent to a topic: each window once, if all is well."""
        found: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for value in self.values(topic):
            row = json.loads(value)
            if row["end"] <= LAST:
                found[row[key], row["end"]].append((row["n"], row["total"]))
        return dict(found)


def _record(user: str, shop: str, at: int, value: int) -> tuple[bytes, bytes, int]:
    return user.encode(), json.dumps({"user": user, "shop": shop, "at": at, "value": value}).encode(), 0


def start(crew: Crew, name: str) -> Process:
    words = ["worker", APP, "--broker", f"embedded://{crew.directory / 'topics'}", "--state", f"state-{name}"]
    env = {"COMMIT_INTERVAL": "40", "COMMIT_EVERY": "100", "LEASE_TTL": "1500", "GRACE": "10000"}
    env |= {"PARTITIONS": "3", "BATCH_SIZE": "200"}
    return crew.start(name, "-m", "flowkit", *words, env={f"FLOWKIT_{k}": v for k, v in env.items()})


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_by_another_key_hold_every_event_once_whoever_is_killed(crew: Crew, seed: int) -> None:
    outside = Outside(crew.directory, seed)
    try:
        alive = {name: start(crew, name) for name in ("ada", "bob")}
        outside.put(500)
        until(lambda: outside.count("windows") > 0, "the first windows", 60)
        for _ in range(8):
            outside.put(200)
            enough = outside.count("windows") + outside.chance.randrange(20)
            until(lambda enough=enough: outside.count("windows") >= enough, "more windows", 60)  # type: ignore[misc]
            name = outside.chance.choice(sorted(alive))
            alive[name].kill()
            alive[name] = start(crew, name)
        outside.put_last()
        shops, sizes = outside.book.shops, outside.book.sizes
        # The window that the last events make open stays so: what is sent is what the book has.
        until(lambda: outside.count("windows") >= len(shops), "all windows", 60)
        until(lambda: len(outside.sums("sizes", "size")) >= len(sizes), "all sizes", 60)
        for process in alive.values():
            process.heard("worker started")
            process.send(signal.SIGTERM)
        for process in alive.values():
            assert process.wait() == 0, process.said()
        assert outside.sums("windows", "shop") == {key: [sums] for key, sums in shops.items()}
        assert outside.sums("sizes", "size") == {key: [sums] for key, sums in sizes.items()}
        assert outside.count("dead-letters") == 0
        topics = outside.runner.run(outside.broker.topics())
        assert (topics["rekey.sales-by-shop"], topics["rekey.windows-by-size"]) == (PARTITIONS, PARTITIONS)
        senders = {mark[0] for mark in map(decode_mark, outside.values("rekey.sales-by-shop")) if mark is not None}
        assert senders == {f"from-sales/{n}" for n in range(PARTITIONS)}
    finally:
        outside.close()
