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
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flowkit.clock import SystemClock
from flowkit.source import open_broker
from flowkit.source.embedded import EmbeddedBroker
from tests.aws.places import PLACES, Place, writes
from tests.aws.proxy import Fault, Proxy, Request, proxy_to
from tests.aws.servers import aws_environment

pytestmark = pytest.mark.timeout(900)  # each takes ten seconds, but where many share a machine
APP = Path(__file__).with_name("hanging_app.py")
ROOT = Path(__file__).parents[2]
HANG_SECONDS = float(os.environ.get("FLOWKIT_TEST_HANG_SECONDS", "4"))
GRACE = 2.0
FILLER, FIRST, MORE, LAST = 20_000, 200, 1_500, 300
"""Bytes of a record, how many get through before the service hangs, how many wait then, 30 MB, and the second time."""
COMMIT = 50
SOURCES = {"embedded": (1, 20 << 20), "kafka": (1, 20 << 20), "kinesis": (3, 64 << 20)}
"""By source: how many times that much waits, and the bytes that a hanging sink may cost: a hand-off, the one that is
cut meanwhile, requests, and what is read ahead, which of Kinesis are some answers of 10 MiB."""
ENVIRON = {
    "FLOWKIT_COMMIT_EVERY": str(COMMIT),
    "FLOWKIT_COMMIT_INTERVAL": "200",
    "FLOWKIT_BATCH_SIZE": str(COMMIT),
    "FLOWKIT_GRACE": str(round(GRACE * 1000)),
    # Shorter than the service hangs: a worker that is taken for dead or stuck would show.
    "FLOWKIT_LEASE_TTL": "3000",
    "FLOWKIT_STALL_AFTER": "2000",
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
    """`flowkit worker`, or `run`, in a process of its own; what it says is in `log`."""

    def __init__(self, directory: Path, words: list[str], environ: dict[str, str], command: str = "worker") -> None:
        self.state, self.log = directory / "state", directory / "worker.log"
        self.words = [sys.executable, "-m", "flowkit", command, str(APP), *words, "--state", str(self.state)]
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


async def until(check: Callable[[], Any], seconds: float = 120) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := check()):  # noqa: ASYNC110  it is another process
            await asyncio.sleep(0.02)
    return found


def batched(rows: list[Any], size: int) -> Iterator[list[Any]]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


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


class Input(NamedTuple):
    """The topic of an app on its broker."""

    app: str
    broker: Any

    async def put(self, numbers: Iterable[int]) -> None:
        """As much at once as any broker takes."""
        for batch in batched(rows(numbers), 100):
            await self.broker.put(f"{self.app}-readings", batch)

    async def committed(self) -> int:
        """How many records are done with; the last commit may be under way still. -1: only the worker knows."""
        if not isinstance(self.broker, EmbeddedBroker):
            return -1
        positions = await self.broker.positions(f"{self.app}/copy/0") or {}
        return int(positions.get(f"{self.app}-readings[0]", 0))


async def all_there(place: Place, source: Input, proxy: Proxy, count: int) -> None:
    async with asyncio.timeout(200):
        while -1 < await source.committed() < count:  # what is there is much, and reading it no light thing  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while len({each.n for each in await place.read(proxy)}) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.2 if count == FIRST else 2)


OPTIONS = {"opensearch": "", "s3": "&tries=1&roll_bytes=500KB"}
CASES = [("dynamodb", "embedded"), ("kinesis", "embedded"), ("s3", "embedded"), ("opensearch", "kafka")]
"""One of each kind: single calls, batches, objects, documents."""
if HANG_SECONDS > 10:  # three answers of Kinesis are 30 MiB: to show that no more is read takes an emulator minutes
    CASES += [("firehose", "embedded"), ("lambda", "embedded"), ("opensearch", "embedded"), ("firehose", "kinesis")]


@pytest.mark.parametrize(("sink", "source"), CASES)
async def test_a_service_that_hangs_holds_up_its_input_and_costs_no_memory(
    sink: str, source: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fixture,), make = PLACES[sink]
    server: str = request.getfixturevalue(fixture)
    app = f"hanging-{uuid.uuid4().hex[:8]}"
    environ = {**aws_environment(server), "HANGING_APP": app}
    url = f"embedded://{tmp_path / 'topics'}"
    if source == "kinesis":
        # Taking an answer of 10 MiB apart may hold up the loop for longer than that on a busy machine.
        environ |= {"FLOWKIT_LEASE_TTL": "10000", "FLOWKIT_STALL_AFTER": "5000"}
        elsewhere = request.getfixturevalue("ministack_url")  # moto loses records that come at once
        environ |= {f"AWS_ENDPOINT_URL_{service}": elsewhere for service in ("KINESIS", "DYNAMODB")}
        url = f"kinesis://us-east-1?leases=leases-{app}"
    elif source == "kafka":
        url = f"kafka://{request.getfixturevalue('kafka_address')}"
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    async with (
        open_broker(url, SystemClock()) as broker,
        proxy_to(server) as proxy,
        make(tmp_path, server) as place,
    ):
        await broker.create(f"{app}-readings", 1)
        bind = f"out={place.url(proxy.url)}&timeout=1{OPTIONS.get(sink, '&tries=1')}"
        words = ["--broker", url, "--bind", bind, "--bind", f"dead-letters={tmp_path / 'dead.jsonl'}"]
        worker = Worker(tmp_path, words, environ)
        await worker.start()
        try:
            await hang_and_resume(worker, Input(app, broker), proxy, place, *SOURCES[source])
        except BaseException:
            print(worker.log.read_text()[-6000:])
            raise
        finally:
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()


async def hang_and_resume(worker: Worker, source: Input, proxy: Proxy, place: Place, times: int, headroom: int) -> None:
    more = FIRST + MORE * times
    await source.put(range(FIRST))
    await all_there(place, source, proxy, FIRST)
    before = worker.resident
    async with hanging(proxy) as requests:
        await source.put(range(FIRST, more))
        await until(requests)
        samples = await plateau(worker, HANG_SECONDS)
        (waits,) = (await until(lambda: worker.health()["waiting"])).values()
        assert re.fullmatch(r"sink 'out' has not taken what it was handed \d+ s ago", waits)
        assert worker.health()["stalled"] == []
        assert await source.committed() <= FIRST + 2 * COMMIT  # the rest of the input waits where it is
    third = len(samples) // 3
    assert max(samples[-third:]) - max(samples[third:-third]) < 3 << 20, samples
    assert max(samples) - before < headroom, (before, max(samples))
    peak, end = max(samples) >> 20, samples[-1] >> 20
    await all_there(place, source, proxy, more)
    async with hanging(proxy) as requests:
        last = range(more, more + LAST)
        await source.put(last)
        await until(requests)
        code, seconds = await worker.stop()
        assert (code, seconds < GRACE + 5) == (0, True), (code, seconds)
    said = worker.log.read_text()
    assert said.count("task opened") == 1
    assert "no progress" not in said
    assert "another worker" not in said
    await worker.start()
    await all_there(place, source, proxy, last.stop)
    assert (await worker.stop())[0] == 0
    again = place.check(await place.read(proxy), range(last.stop))
    print(f"resident before {before >> 20} MiB, at most {peak}, after {HANG_SECONDS:g} s {end}; again: {again}")


async def test_a_run_over_files_waits_too_and_goes_on_where_it_was_ended(osmem: str, tmp_path: Path) -> None:
    _, make = PLACES["opensearch"]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(value + b"\n" for _, value, _ in rows(range(LAST))))
    async with proxy_to(osmem) as proxy, make(tmp_path, osmem) as place:
        words = ["-i", f"hanging-readings={source}", "-o", f"out={place.url(proxy.url)}&timeout=1"]
        run = Worker(tmp_path, words, aws_environment(osmem), "run")
        passed = 0

        def fault(request: Request) -> Fault | None:
            nonlocal passed
            passed += writes(request)
            return "hang" if passed > 3 else None

        proxy.fault = fault
        await run.start()
        try:
            await until(lambda: passed > 3)
            samples = await plateau(run, HANG_SECONDS)
            third = len(samples) // 3
            assert max(samples[-third:]) - max(samples[third:-third]) < 3 << 20, samples
            code, seconds = await run.stop()
            assert (code, seconds < GRACE + 5) == (-signal.SIGTERM, True), (code, seconds)
            proxy.fault = lambda _: None
            proxy.resumed.set()
            await run.start()
            assert await asyncio.wait_for(run.process.wait(), 200) == 0
        except BaseException:
            print(run.log.read_text()[-6000:])
            raise
        finally:
            if run.process.returncode is None:
                run.process.kill()
        place.check(await place.read(proxy), range(LAST))
