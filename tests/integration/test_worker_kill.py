"""Workers that are killed, stopped, frozen and restarted at random moments: nothing is lost, nothing comes twice."""

import asyncio
import fcntl
import json
import os
import random
import signal
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from flowkit.clock import SystemClock
from flowkit.source import partition_of
from flowkit.source.embedded import EmbeddedBroker
from tests.integration.processes import Crew, Process, crew_in, until

APP = str(Path(__file__).with_name("chain_app.py"))
PARTITIONS = {"events": 4, "windows": 3, "totals": 2}
KEYS = [f"key {n}" for n in range(40)]
SIZE = 100
LEASE_MS = 1_500
T = TypeVar("T")

Sums = dict[str, dict[int, tuple[int, int]]]
"""By key and window end: number of events and their sum."""


class Outside:
    """The broker as the test sees it: it puts events, and looks at what the workers made of them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.chance = random.Random(seed)
        self.sums: Sums = defaultdict(dict)
        self.at = 0
        self._runner = asyncio.Runner()
        self._broker = EmbeddedBroker(directory, SystemClock())

    def __enter__(self) -> Self:
        self.do(self._broker.open())
        for topic, partitions in PARTITIONS.items():
            self.do(self._broker.create(topic, partitions))
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._broker.close())
        self._runner.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def put(self, count: int) -> None:
        """Put events, some a little out of order, and add them up by the book: that is the sequential model."""
        records = []
        for _ in range(count):
            key, value = self.chance.choice(KEYS), self.chance.randrange(1_000)
            at = self.at + self.chance.randrange(20)
            self.at += self.chance.randrange(3)
            end = at - at % SIZE + SIZE
            n, total = self.sums[key].get(end, (0, 0))
            self.sums[key][end] = n + 1, total + value
            records.append((key.encode(), json.dumps({"key": key, "at": at, "value": value}).encode(), 0))
        self.do(self._broker.put("events", records))

    def put_last(self) -> None:
        """In each partition an event so late that everything else closes."""
        for partition in range(PARTITIONS["events"]):
            key = next(f"last {n}" for n in range(1_000) if partition_of(f"last {n}".encode(), 4) == partition)
            value = json.dumps({"key": key, "at": 10**9, "value": 0}).encode()
            self.do(self._broker.put("events", [(key.encode(), value, 0)]))

    def ends(self, topic: str) -> list[int]:
        return self.do(self._broker.end_offsets(topic))

    def values(self, topic: str) -> Iterator[Any]:
        """Everything in a topic."""
        for partition in range(PARTITIONS[topic]):
            offset = 0
            while len(batch := self.do(self._broker.read(topic, partition, offset, 5_000))):
                yield from (json.loads(value) for value in batch.values if value is not None)
                offset += len(batch)

    def wait_for_windows(self, count: int) -> None:
        """Until so many more windows are sent, or there is nothing left to do."""
        enough = sum(self.ends("windows")) + count
        until(lambda: sum(self.ends("windows")) >= enough or not self.behind(), "some commits")

    def owned_by(self, worker: str) -> list[str]:
        return [lease.task for lease in self.do(self._broker.leases("chain/")) if lease.owner == worker]

    def behind(self) -> int:
        """How many records are put but not committed by who reads them."""
        open_ = 0
        for topic, group in (("events", "sums"), ("windows", "running")):
            for partition, end in enumerate(self.ends(topic)):
                positions = self.do(self._broker.positions(f"chain/{group}/{partition}")) or {}
                open_ += end - positions.get(f"{topic}[{partition}]", 0)
        return open_

    def is_free(self) -> bool:
        """False while some process holds the broker's lock."""
        fd = os.open(self.directory / "broker.lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


class Workers:
    """Three workers, and what may befall them."""

    def __init__(self, crew: Crew, outside: Outside, sabotage: str | None = None) -> None:
        self.crew, self.outside, self.sabotage = crew, outside, sabotage
        self.chance = outside.chance
        self.alive: dict[str, Process] = {}
        self.zombies = 0
        for name in ("ada", "bob", "cyd"):
            self.start(name)

    def start(self, name: str) -> None:
        words = ["worker", APP, "--broker", f"embedded://{self.outside.directory}", "--state", f"state-{name}"]
        words += ["--bind", "ledger=ledger-{partition}.jsonl"]
        how = ["-m", "flowkit"] if self.sabotage is None else ["-m", "tests.integration.sabotaged", self.sabotage]
        env = {"COMMIT_INTERVAL": "40", "COMMIT_EVERY": "100", "LEASE_TTL": f"{LEASE_MS}", "GRACE": "10000"}
        env |= {"PARTITIONS": "3", "BATCH_SIZE": "200"}
        self.alive[name] = self.crew.start(name, *how, *words, env={f"FLOWKIT_{k}": v for k, v in env.items()})

    def kill(self, name: str) -> None:
        self.alive.pop(name).kill()
        self.start(name)

    def kill_all(self, _name: str) -> None:
        """As if the power went."""
        for process in self.alive.values():
            process.send(signal.SIGKILL)
        for name in list(self.alive):
            self.kill(name)

    def stop(self, name: str) -> None:
        process = self.alive.pop(name)
        process.heard("worker started")  # before that a signal ends it as it ends any process
        process.send(signal.SIGTERM)
        assert process.wait() == 0, process.said()
        self.start(name)

    def freeze(self, name: str) -> None:
        """Stop it for longer than its leases last, until all its tasks are others'; then it wakes as a zombie."""
        process, outside = self.alive[name], self.outside
        worker = process.heard("worker started")["worker"]
        until(lambda: outside.owned_by(worker), f"{name} owns something")
        self._hold_still(process)
        lost = outside.owned_by(worker)
        outside.put(100)
        until(lambda: not outside.owned_by(worker), f"the tasks of {name} are taken over")
        outside.put(100)
        process.send(signal.SIGCONT)
        if lost and self.sabotage is None:
            until(lambda: process.logs("task lost") or process.logs("task is another"), f"{name} notices", 10)
            self.zombies += 1

    def _hold_still(self, process: Process) -> None:
        """SIGSTOP, but not while it holds the broker's lock: that would stop all the others too."""
        while True:
            process.send(signal.SIGSTOP)
            until(lambda: _state_of(process.pid) == "T", "stopped")
            if self.outside.is_free():
                return
            process.send(signal.SIGCONT)

    def finish(self) -> None:
        """Let them do everything that is left, and stop them. Sabotaged ones may be past that."""
        self.outside.put_last()
        try:
            until(lambda: self.outside.behind() == 0, "everything is committed", 40 if self.sabotage is None else 3)
        except AssertionError:
            if self.sabotage is None:
                raise
        for process in self.alive.values():
            if self.sabotage is None:
                process.heard("worker started")
            process.send(signal.SIGTERM)
        for process in self.alive.values():
            assert process.wait() == 0 or self.sabotage is not None, process.said()


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def play(crew: Crew, seed: int, deeds: list[str], sabotage: str | None = None) -> tuple[Outside, Workers]:
    """Events come, workers go; what each deed is done to, and when, is drawn from the seed."""
    with Outside(crew.directory / "topics", seed) as outside:
        workers = Workers(crew, outside, sabotage)
        outside.put(500)
        until(lambda: sum(outside.ends("windows")) > 0, "the first windows")
        for deed in deeds:
            outside.put(300)
            outside.wait_for_windows(outside.chance.randrange(60))
            getattr(workers, deed)(outside.chance.choice(sorted(workers.alive)))
        workers.finish()
        check(outside, crew.directory)
        return outside, workers


def check(outside: Outside, directory: Path) -> None:
    """Every output equals the model's, each record once."""
    windows: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for w in outside.values("windows"):
        windows[w["key"], w["end"]].append((w["n"], w["total"]))
    expected = {(key, end): [sums] for key, ends in outside.sums.items() for end, sums in ends.items()}
    assert dict(windows) == expected, "not the windows of the model"
    totals: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for t in outside.values("totals"):
        totals[t["key"]].append((t["end"], t["total"]))
    assert dict(totals) == added_up(outside.sums), "not the totals of the model"
    kept: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for path in sorted(directory.glob("ledger-*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            kept[entry["key"]].append((entry["end"], entry["total"]))
    assert kept == totals, "not the ledger of the model"


def added_up(sums: Sums) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for key, ends in sums.items():
        total = 0
        for end in sorted(ends):
            total += ends[end][1]
            found.setdefault(key, []).append((end, total))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_and_nothing_comes_twice(crew: Crew, seed: int) -> None:
    deeds = ["kill"] * 7 + ["kill_all"] + ["stop"] * 2 + ["freeze"] * 2
    random.Random(seed).shuffle(deeds)
    _, workers = play(crew, seed, deeds)
    assert workers.zombies > 0
    state = [path for path in crew.directory.glob("state-*/tasks/*/*") if path.is_dir()]
    assert len(state) < 3 * (4 + 3), "directories of earlier owners are left behind"


@pytest.mark.parametrize(
    ("sabotage", "deeds"), [("outputs_before_positions", ["kill_all"] * 4), ("no_epochs", ["freeze"])]
)
def test_the_check_above_can_fail(tmp_path: Path, sabotage: str, deeds: list[str]) -> None:
    for seed in range(5, 9):  # a zombie that was frozen with nothing in hand does no harm
        place = tmp_path / str(seed)
        place.mkdir()
        with crew_in(place) as crew:
            try:
                play(crew, seed, deeds, sabotage)
            except AssertionError as error:
                if "of the model" not in str(error):
                    raise
                return
    pytest.fail(f"{sabotage} was not found out")
