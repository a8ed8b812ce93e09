"""A live run in one go, or stopped and killed at seeded points: what is left of it, to be compared byte by byte.

Of two topics a task takes records as they arrive, so which comes first is chance: here a topic is written only once all
that was written to the other has been worked on.
"""

import asyncio
import json
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowkit.codec import encode_key
from flowkit.errors import FlowkitError
from flowkit.store import read_store
from tests.integration.processes import Crew, Process

APP = str(Path(__file__).parent / "determined_app.py")
PARTITIONS = 2
STOPS = ("clean", "kill", "kill and lose the disk")
TABLES = ("windows", "running", "silence", "readings.join", "readings.match")

Row = tuple[bytes | None, bytes | None, int]


class Left(NamedTuple):
    """What is there at the end: of the outputs (key, value, time) by partition, and rows by task and table."""

    told: list[list[Row]]
    tables: dict[tuple[int, str], list[tuple[int | None, bytes, bytes]]]


def chunks(seed: int = 11) -> list[tuple[str, list[dict[str, Any]]]]:
    """What is written, in turn to the one and to the other topic. Some of it comes too late."""
    chance = random.Random(seed)
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for part in range(4):
        start = 1_790_000_000_000 + 300 * part
        keys = [f"k{chance.randrange(6)}" for _ in range(40)]
        found.append(("rates", [{"key": k, "at": start + 25 * n, "rate": n} for n, k in enumerate(keys[:12])]))
        readings = [
            {
                "key": k,
                "at": start + 7 * n - (250 if chance.random() < 0.1 else chance.randrange(40)),
                "n": 40 * part + n,
            }
            for n, k in enumerate(keys)
        ]
        found.append(("readings", readings))
    return found


@dataclass
class Run:
    """One run: a worker on `url`, which `broker` is, with topics and a directory of its own."""

    broker: Any
    url: str
    name: str
    crew: Crew
    path: Path
    lives: int = 0

    def __post_init__(self) -> None:
        self.path.mkdir(exist_ok=True)

    async def play(self, stops: int, seed: int, kinds: Sequence[str] = STOPS) -> Left:
        """Write everything, with so many stops: each after some records of a chunk, while the others are worked on."""
        for topic in ("readings", "rates", "told", "echo"):
            await self.broker.create(f"{self.name}-{topic}", PARTITIONS)
        chance = random.Random(seed)
        parts = chunks()
        places = sorted(chance.sample([n for n, (topic, _) in enumerate(parts) if topic == "readings"], stops))
        turn = [kinds[(seed + n) % len(kinds)] for n in range(stops)]
        process = self._start()
        done = 0
        for n, (topic, records) in enumerate(parts):
            await self._put(topic, records)
            if n in places:
                await self._worked(process, done + chance.randrange(len(records)))
                process = self._stop(process, turn[places.index(n)])
            done += len(records)
            await self._worked(process, done)
        self._end(process)
        return Left(await self._sent("told"), self._tables())

    def _start(self) -> Process:
        self.lives += 1
        env = {"DETERMINED_APP": self.name, "FLOWKIT_COMMIT_INTERVAL": "20", "FLOWKIT_LEASE_TTL": "6000"}
        # Few at a time: a stop then comes in the middle of things.
        env |= {"FLOWKIT_BATCH_SIZE": "5"}
        words = ["worker", APP, "--broker", self.url, "--state", "state"]
        return self.crew.flowkit(f"{self.name}-{self.lives}", *words, env=env)

    def _stop(self, process: Process, kind: str) -> Process:
        """End it so, and go on with another."""
        if kind == "clean":
            self._end(process)
        else:
            process.kill()
        if kind == "kill and lose the disk":
            shutil.rmtree(self.path / "state")
        return self._start()

    def _end(self, process: Process) -> None:
        process.heard("worker started", 60)  # before that a signal is no clean stop
        process.send(signal.SIGTERM)
        assert process.wait() == 0, process.said()

    async def _put(self, topic: str, records: Sequence[dict[str, Any]]) -> None:
        rows = [(encode_key(each["key"]), json.dumps(each).encode(), each["at"]) for each in records]
        await self.broker.put(f"{self.name}-{topic}", rows)

    async def _worked(self, process: Process, count: int) -> None:
        """Wait until so many records have been worked on, and that counts."""
        until = time.monotonic() + 60
        while (found := sum(map(len, await self._sent("echo")))) < count:
            assert process.popen.poll() is None, process.said()
            assert time.monotonic() < until, f"{found} records of {count} are done:\n{process.said()}"
            await asyncio.sleep(0.05)

    async def _sent(self, topic: str) -> list[list[Row]]:
        found: list[list[Row]] = []
        for partition, end in enumerate(await self.broker.end_offsets(f"{self.name}-{topic}")):
            rows: list[Row] = []
            at = 0
            while at < end and len(batch := await self.broker.read(f"{self.name}-{topic}", partition, at, 10_000)):
                rows += zip(batch.keys, batch.values, batch.times, strict=True)
                at = batch.position(len(batch))
            found.append(rows)
        return found

    def _tables(self) -> dict[tuple[int, str], list[tuple[int | None, bytes, bytes]]]:
        """The rows of all tables as the last worker left them."""
        found: dict[tuple[int, str], list[tuple[int | None, bytes, bytes]]] = {}
        for partition in range(PARTITIONS):
            (task,) = (self.path / "state" / "tasks").glob(f"*%2F{partition}")
            store = max((look for look in map(_look, task.iterdir()) if look is not None), key=lambda look: look.number)
            for table in TABLES:
                space = table if "." not in table else f"{self.name}-{table}"
                ends = [None, *store.ends(space)]
                found[partition, table] = [(end, *row) for end in ends for row in store.scan((space, end))]
        return found


def _look(place: Path) -> Any:
    try:
        return read_store(place)
    except (FlowkitError, OSError):
        return None  # of one who was killed while he made it


def differences(one: Left, other: Left) -> list[str]:
    """Where two runs differ, for a person."""
    found = []
    for n, (ours, theirs) in enumerate(zip(one.told, other.told, strict=True)):
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        if ours != theirs:
            found.append(f"told[{n}] from record {at} on: {ours[at : at + 3]}, not {theirs[at : at + 3]}")
    for place, rows in one.tables.items():
        if rows != other.tables[place]:
            found.append(f"table {place}: {rows}, not {other.tables[place]}")
    return found


def check_rich(left: Left) -> None:
    """All that hangs on time has happened: else that it is the same would say little."""
    whats = {json.loads(value)["what"] for rows in left.told for _, value, _ in rows if value is not None}
    assert whats == {"running", "window", "late", "silent", "pair", "match", "timed out"}
    assert all(left.tables[n, table] for n in range(PARTITIONS) for table in TABLES), left.tables
