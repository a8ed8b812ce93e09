"""A service that takes a request and never answers, under full input: the worker holds still, and goes on afterwards.

Its memory stays as it is, for its input waits; nobody takes it for dead or stuck; it says what it waits for; SIGTERM
ends it in time; and when the service answers again all arrives, as if nothing had been. It hangs for a few seconds
here, and for a minute in .ci/long (FLOWKIT_TEST_HANG_SECONDS).
"""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flowkit.clock import SystemClock
from flowkit.source.embedded import EmbeddedBroker
from tests.aws.places import PLACES, Place, writes
from tests.aws.proxy import Fault, Proxy, Request, proxy_to
from tests.aws.servers import aws_environment

APP = Path(__file__).with_name("hanging_app.py")
ROOT = Path(__file__).parents[2]
HANG_SECONDS = float(os.environ.get("FLOWKIT_TEST_HANG_SECONDS", "3"))
GRACE = 2.0
FILLER, FIRST, MORE, LAST = 20_000, 200, 1_500, 300
"""Bytes of a record, how many get through before the service hangs, how many wait then, 30 MB, and the second time."""
COMMIT = 50
HEADROOM = 20 << 20
"""Bytes that a hanging sink may cost: a hand-off, the one that is cut meanwhile, what is read ahead, requests."""
ENVIRON = {
    "FLOWKIT_COMMIT_EVERY": str(COMMIT),
    "FLOWKIT_COMMIT_INTERVAL": "200",
    "FLOWKIT_BATCH_SIZE": str(COMMIT),
    "FLOWKIT_GRACE": str(round(GRACE * 1000)),
    # Shorter than the service hangs: a worker that is taken for dead or stuck would show.
    "FLOWKIT_LEASE_TTL": "1500",
    "FLOWKIT_STALL_AFTER": "1000",
    "FLOWKIT_LOG_LEVEL": "info",
}


def resident(pid: int) -> int:
    """Bytes that a process and those that it started take."""
    children = [int(child) for each in Path(f"/proc/{pid}/task").iterdir() for child in _children(each)]
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident, children))


def _children(thread: Path) -> list[str]:
    try:
        return (thread / "children").read_text().split()
    except OSError:
        return []


class Worker:
    """`flowkit worker` in a process of its own; what it says is in `log`."""

    def __init__(self, directory: Path, words: list[str], environ: dict[str, str]) -> None:
        self.state, self.log = directory / "state", directory / "worker.log"
        self.words = [sys.executable, "-m", "flowkit", "worker", str(APP), *words, "--state", str(self.state)]
        self.environ = {**os.environ, **ENVIRON, **environ, "PYTHONPATH": str(ROOT)}
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ
            )

    async def stop(self) -> tuple[int, float]:
        """Tell it to stop. Its exit code, and how many seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 60), time.monotonic() - began

    def health(self) -> Any:
        return json.loads((self.state / "health.json").read_bytes())

    @property
    def resident(self) -> int:
        return resident(self.process.pid)


async def until(check: Callable[[], Any], seconds: float = 60) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := check()):  # noqa: ASYNC110  it is another process
            await asyncio.sleep(0.02)
    return found


def rows(numbers: Iterable[int]) -> list[tuple[bytes, bytes, int]]:
    now, filler = int(time.time() * 1000) - 600_000, "x" * FILLER
    return [
        (b"k%d" % (n % 500), json.dumps({"id": f"k{n % 500}", "n": n, "at": now + n, "filler": filler}).encode(), 0)
        for n in numbers
    ]


@asynccontextmanager
async def hanging(proxy: Proxy) -> AsyncIterator[Callable[[], int]]:
    """The service hangs within this. How many requests wait for it."""
    waiting = 0

    def fault(request: Request) -> Fault | None:
        nonlocal waiting
        if not writes(request):
            return None
        waiting += 1
        return "hang"

    proxy.resumed.clear()
    proxy.fault = fault
    try:
        yield lambda: waiting
    finally:
        proxy.fault = lambda _: None
        proxy.resumed.set()


async def plateau(worker: Worker, seconds: float) -> list[int]:
    """What it takes, sample after sample, while so many seconds pass."""
    samples, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        samples.append(worker.resident)
        await asyncio.sleep(0.05)
    return samples


async def committed(broker: EmbeddedBroker) -> int:
    """How many records of the input are done with; the last commit may be under way still."""
    return int((await broker.positions("hanging/copy/0") or {}).get("readings[0]", 0))


async def all_there(place: Place, broker: EmbeddedBroker, proxy: Proxy, count: int) -> None:
    async with asyncio.timeout(60):
        while await committed(broker) < count:  # what is there is much, and reading it no light thing  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while len({each.n for each in await place.read(proxy)}) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


OPTIONS = {"opensearch": "", "s3": "&tries=1&roll_bytes=500KB"}
SINKS = ["dynamodb", "firehose", "kinesis", "lambda", "opensearch", "s3"]


@pytest.mark.parametrize("name", SINKS)
async def test_a_service_that_hangs_holds_up_its_input_and_costs_no_memory(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fixture,), make = PLACES[name]
    server: str = request.getfixturevalue(fixture)
    environ = aws_environment(server)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    async with (
        EmbeddedBroker(tmp_path / "topics", SystemClock()) as broker,
        proxy_to(server) as proxy,
        make(tmp_path, server) as place,
    ):
        await broker.create("readings", 1)
        bind = f"out={place.url(proxy.url)}&timeout=1{OPTIONS.get(name, '&tries=1')}"
        words = ["--broker", f"embedded://{tmp_path / 'topics'}", "--bind", bind]
        worker = Worker(tmp_path, [*words, "--bind", f"dead-letters={tmp_path / 'dead.jsonl'}"], environ)
        await worker.start()
        try:
            await hang_and_resume(worker, broker, proxy, place)
        except BaseException:
            print(worker.log.read_text()[-6000:])
            raise
        finally:
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()


async def hang_and_resume(worker: Worker, broker: EmbeddedBroker, proxy: Proxy, place: Place) -> None:
    await broker.put("readings", rows(range(FIRST)))
    await all_there(place, broker, proxy, FIRST)
    before = worker.resident
    async with hanging(proxy) as requests:
        await broker.put("readings", rows(range(FIRST, FIRST + MORE)))
        await until(requests)
        samples = await plateau(worker, HANG_SECONDS)
        (waits,) = (await until(lambda: worker.health()["waiting"])).values()
        assert re.fullmatch(r"sink 'out' has not taken what it was handed \d+ s ago", waits)
        assert worker.health()["stalled"] == []
        assert await committed(broker) <= FIRST + 2 * COMMIT  # the rest of the input waits where it is
    third = len(samples) // 3
    assert max(samples[-third:]) - max(samples[third:-third]) < 2 << 20, samples
    assert max(samples) - before < HEADROOM, (before, max(samples))
    peak, end = max(samples) >> 20, samples[-1] >> 20
    await all_there(place, broker, proxy, FIRST + MORE)
    async with hanging(proxy) as requests:
        last = range(FIRST + MORE, FIRST + MORE + LAST)
        await broker.put("readings", rows(last))
        await until(requests)
        code, seconds = await worker.stop()
        assert (code, seconds < GRACE + 1.5) == (0, True), (code, seconds)
    said = worker.log.read_text()
    assert said.count("task opened") == 1
    assert "no progress" not in said
    assert "another worker" not in said
    await worker.start()
    await all_there(place, broker, proxy, last.stop)
    assert (await worker.stop())[0] == 0
    again = place.check(await place.read(proxy), range(last.stop))
    print(f"resident before {before >> 20} MiB, at most {peak}, after {HANG_SECONDS:g} s {end}; again: {again}")
