"""Owners of a store killed at random moments: nothing promised is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flowkit
from flowkit.errors import StoreLocked
from flowkit.store import Host, LsmStore, open_store, read_store
from flowkit.store.runner import Helper
from tests.integration.store_owner import changes, everything, expected, options

KILLS = 200


class Owners:
    """Starts owners, one after the other, in the directory `path`."""

    def __init__(self, path: Path) -> None:
        self.path, self.promised = path, 0
        self.mark = uuid.uuid4().hex
        here = Path(__file__).parent
        self.server = subprocess.Popen(
            [sys.executable, here / "store_owner.py", flowkit.__path__[0]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"STORE_TEST": self.mark},
        )  # fmt: skip
        self.pid = 0

    def line(self) -> str:
        assert self.server.stdout is not None
        line = self.server.stdout.readline().decode().strip()
        assert line, "the server is gone"
        return line

    def start(self, runner: str = "helper", durability: str = "os") -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(f"{self.path} {runner} {durability} {self.promised}\n".encode())
        self.server.stdin.flush()
        self.pid = int(self.line().removeprefix("owner "))

    def wait_for_commits(self, count: int) -> None:
        """Until the owner is open and has promised so many."""
        while count:
            self.promised = int(self.line().removeprefix("opened "))
            count -= 1

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while not (line := self.line()).startswith("end "):
            self.promised = int(line.removeprefix("opened "))
        assert line == f"end {signal.SIGKILL.value}", "the owner had ended by itself"

    def left(self) -> set[int]:
        """Processes that an owner has left behind."""
        found = set()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
        return found - {self.server.pid}

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.server.wait(10)
        assert self.server.stdout is not None
        self.server.stdout.close()


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[Owners]:
    made = Owners(tmp_path / "store")
    yield made
    made.close()


def soon(what: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


async def check(path: Path) -> int:
    """Open as its owner, look at everything, and close; the number of the last commit."""
    async with open_store(path, options=options("os")) as store:
        assert isinstance(store, LsmStore)
        if store.undecided is not None:
            await store.resolve(store.undecided.commit_id, applied=True)
        assert everything(store) == expected(store.number)
        written = [*store._journal.logs, store._core.catalog.manifest.path]
        named = {*store.version.files, *(path.name for path in written), "LOCK"}
        assert set(os.listdir(path)) <= named  # noqa: PTH208 - pathlib is no better here
        return store.number


@pytest.mark.timeout(300)
def test_nothing_promised_is_lost_by_two_hundred_kills(owners: Owners) -> None:
    luck = random.Random()
    stopped = 0
    tables = 0
    for n in range(KILLS):
        durability = luck.choice(["os", "os", "interval", "commit"])
        if n % 8 == 0:
            # Long enough for the process that flushes and compacts to be in the midst of it.
            owners.start("helper", durability)
            owners.wait_for_commits(luck.randint(1, 200))
            time.sleep(luck.uniform(0, 0.2))
        elif n % 8 == 1:
            owners.start("inline", durability)
            time.sleep(luck.uniform(0, 0.02))  # while it opens, most likely
        else:
            owners.start("inline", durability)
            owners.wait_for_commits(1)
            time.sleep(luck.uniform(0.005, 0.06))
        owners.kill()
        stopped += 1
        look = read_store(owners.path)
        assert look.number >= owners.promised
        assert everything(look) == expected(look.number)
        tables += bool(look.version.files)
        assert len(list(owners.path.iterdir())) < 60
    assert stopped == KILLS
    assert tables > KILLS // 2
    assert owners.promised > KILLS
    soon(lambda: not owners.left())
    assert asyncio.run(check(owners.path)) >= owners.promised


def test_the_process_that_compacts_ends_with_its_owner(owners: Owners) -> None:
    owners.start("helper")
    owners.wait_for_commits(200)
    soon(lambda: len(owners.left()) == 2)
    owners.kill()
    soon(lambda: not owners.left())


def test_a_store_in_use_is_refused_with_its_owners_pid_and_free_once_that_is_killed(owners: Owners) -> None:
    owners.start("inline")
    owners.wait_for_commits(1)
    with pytest.raises(StoreLocked, match=f"in use by process {owners.pid}:"):
        asyncio.run(check(owners.path))
    owners.kill()
    assert asyncio.run(check(owners.path)) >= owners.promised


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_of_an_owner_that_stands_still_it_is_told_how_to_end_it(owners: Owners) -> None:
    owners.start("inline")
    owners.wait_for_commits(1)
    os.kill(owners.pid, signal.SIGSTOP)
    words = f"in use by process {owners.pid}, which stands still .SIGSTOP.: kill -CONT {owners.pid} or kill -9"
    soon(lambda: "T" in Path(f"/proc/{owners.pid}/stat").read_text().rpartition(")")[2].split())
    with pytest.raises(StoreLocked, match=words):
        asyncio.run(check(owners.path))
    os.kill(owners.pid, signal.SIGCONT)
    with pytest.raises(StoreLocked, match=f"in use by process {owners.pid}: stop it"):
        asyncio.run(check(owners.path))


def test_looks_are_consistent_while_the_owner_flushes_and_compacts(owners: Owners) -> None:
    owners.start("helper")
    owners.wait_for_commits(2)
    numbers = []
    until = time.monotonic() + 4
    while time.monotonic() < until:
        look = read_store(owners.path)
        assert everything(look) == expected(look.number)
        numbers.append(look.number)
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 5
    owners.kill()
    assert len(list(owners.path.glob("*.sst"))) > 0


async def test_a_killed_compaction_process_is_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    helper = Helper()
    host = Host(runner=helper)
    async with open_store(tmp_path, host=host, options=options("os")) as store, asyncio.timeout(60):
        assert isinstance(store, LsmStore)
        for _ in range(100):
            await store.commit(*changes(store.number + 1))
        await store.flush()
        for _ in range(4):
            assert helper._process is not None
            before = helper._process.pid
            # Stopped, it surely has not done its job when it is killed.
            os.kill(before, signal.SIGSTOP)
            for _ in range(30):
                await store.commit(*changes(store.number + 1))
            flush = asyncio.ensure_future(store.flush())
            while not helper._waiting:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0.001)
            os.kill(before, signal.SIGKILL)
            await flush
            assert helper._process.pid != before
            assert store._core.trouble is None
        await store.compact()
        assert everything(store) == expected(store.number)
        last = store.number
    await host.close()
    assert await check(tmp_path) == last
