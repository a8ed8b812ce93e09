"""A worker under steady load for half an hour: its memory must stay flat, and its state must not grow.

    python -m tests.benchmarks.soak [--minutes 30] [--rate 500] [--users 2000]

`flowkit worker` runs tests/benchmarks/soak_app.py over embedded topics, with events of now. Each ten seconds it is told
what the worker and its helper hold of memory, and the state directory of disk. In the end the last fifth of the time
is held against the second: by then everything that has an end has come to one for the first time. Exit code 1 if
memory has grown by more than a tenth, or state by more than a third.
"""

import argparse
import asyncio
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec

from flowkit.clock import SystemClock
from flowkit.source import open_broker
from tests.benchmarks.soak_app import Order, Payment

ROOT = Path(__file__).parents[2]
SAMPLE = 10.0


class Sample(msgspec.Struct):
    """What there was at one moment. Sizes in bytes."""

    seconds: float
    sent: int
    resident: int
    helper: int
    state: int


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def bytes_under(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # compaction is faster than we are
            continue
    return total


class Load:
    """Orders and payments of now: nine orders in ten are paid, a few records come late, users come and go."""

    def __init__(self, users: int) -> None:
        self.rng, self.users, self.number = random.Random(1), users, 0

    def batch(self, count: int, now: int) -> tuple[list[Order], list[Payment]]:
        rng = self.rng
        some, paid = [], []
        for _ in range(count):
            self.number += 1
            # Users of this minute: so keys end, as those of a real service do.
            user = f"u{(now // 60_000) % 1_000_000}-{rng.randrange(self.users)}"
            at = now - rng.randrange(2_000) - (30_000 if rng.random() < 0.001 else 0)
            some.append(Order(f"o{self.number}", user, rng.random() * 100, at))
            if rng.random() < 0.9:
                paid.append(Payment(f"o{self.number}", user, 1.0, now - rng.randrange(1_000)))
        return some, paid


async def feed(
    url: str, load: Load, rate: int, until: float, worker: subprocess.Popen[bytes], state: Path
) -> list[Sample]:
    """Send events until the time has come; what was seen meanwhile."""
    encode = msgspec.json.encode
    samples: list[Sample] = []
    began = time.monotonic()
    next_sample, sent = began + SAMPLE, 0
    async with open_broker(url, SystemClock()) as broker:
        for topic in ("orders", "payments"):
            if not await broker.partitions(topic):
                await broker.create(topic, 1)
        while (now := time.monotonic()) < until:
            if worker.poll() is not None:
                raise SystemExit(f"the worker has ended with {worker.returncode}")
            due = int((now - began) * rate) - sent
            some, paid = load.batch(due, int(time.time() * 1000))
            sent += due
            for topic, rows in (("orders", some), ("payments", paid)):
                if rows:
                    await broker.put(topic, [(row.user.encode(), encode(row), row.at) for row in rows])
            if now >= next_sample:
                helpers = sum(resident(pid) for pid in children(worker.pid))
                sample = Sample(now - began, sent, resident(worker.pid), helpers, bytes_under(state))
                samples.append(sample)
                print(
                    f"{sample.seconds:6.0f} s  {sample.sent:>9,} orders  worker {sample.resident >> 20} MiB  "
                    f"helper {sample.helper >> 20} MiB  state {sample.state / 2**20:.1f} MiB",
                    flush=True,
                )
                next_sample += SAMPLE
            await asyncio.sleep(0.1)
    return samples


def verdict(samples: list[Sample]) -> bool:
    """Whether nothing has grown; prints what it goes by."""
    part = max(1, len(samples) // 5)
    early, late = samples[part : 2 * part] or samples[:1], samples[-part:]
    flat = True
    for name, most in (("resident", 1.1), ("helper", 1.1), ("state", 1.33)):
        before, after = (max(1.0, median(getattr(sample, name) for sample in some)) for some in (early, late))
        flat = flat and after <= most * before
        print(
            f"{name:9} {before / 2**20:8.1f} MiB then {after / 2**20:8.1f} MiB: {after / before:.2f}x (at most {most}x)"
        )
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=500, help="orders a second")
    parser.add_argument("--users", type=int, default=2000, help="new ones each minute")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="flowkit-soak-"))
    url, state = f"embedded://{place / 'topics'}", place / "state"
    command = [sys.executable, "-m", "flowkit", "worker", "tests/benchmarks/soak_app.py"]
    command += ["--broker", url, "--state", str(state)]
    worker = subprocess.Popen(command, cwd=ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the worker does not outlive us
    try:
        until = time.monotonic() + given.minutes * 60
        samples = asyncio.run(feed(url, Load(given.users), given.rate, until, worker, state))
    finally:
        worker.terminate()
        code = worker.wait(60)
        shutil.rmtree(place, ignore_errors=True)
    if code not in (0, 143):  # done, or told to stop while it worked
        raise SystemExit(f"the worker did not stop cleanly: {code}")
    raise SystemExit(0 if verdict(samples) else 1)


if __name__ == "__main__":
    main()
