"""The life of a store in a process of its own, told as JSON: what it took of memory, disk and patience."""

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

from flowkit.store.compaction import choose
from tests.benchmarks.stores import (
    PLAIN,
    RECORD,
    Ours,
    Shuffled,
    batches,
    bytes_under,
    helper_of,
    key_of,
    process_seconds,
    resident,
    value_of,
)


class Sampler:
    """Looks at memory each few commits."""

    def __init__(self, ours: Ours, path: Path) -> None:
        self.ours, self.path = ours, path
        self.resident = self.helper = self.disk = 0

    def look(self) -> None:
        self.resident = max(self.resident, resident("self"))
        self.helper = max(self.helper, resident(helper_of(self.ours.host)))

    async def keep_looking(self) -> None:
        while True:
            self.look()
            self.disk = max(self.disk, bytes_under(self.path))
            await asyncio.sleep(0.05)


Timed = tuple[float, float]
"""Seconds by the clock, and of CPU of the event loop's thread."""


def quantiles(times: list[Timed]) -> list[list[float]]:
    """p50, p99, p99.9, and how many there are: by the clock, and in CPU."""
    columns = [sorted(column) for column in zip(*(times or [(0.0, 0.0)]), strict=True)]
    places = [min(len(columns[0]) - 1, int(len(columns[0]) * q)) for q in (0.5, 0.99, 0.999)]
    return [[*(column[place] for place in places), len(times)] for column in columns]


async def main(path: Path, keys: int, *, kill: bool) -> None:
    """Fill a store; then be killed, or read, compact and tell."""
    path.mkdir(parents=True)  # noqa: ASYNC240  nobody waits
    before = resident("self")
    async with Ours.open(path) as ours:
        sampler = Sampler(ours, path)
        looking = asyncio.create_task(sampler.keep_looking())
        full_speed: list[Timed] = []
        began = time.perf_counter()
        for some, values in batches(Shuffled(keys)):
            full_speed.append(await timed(ours, some, values))
            sampler.look()
        if kill:
            print(json.dumps({"killed": True}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        await ours.settle()
        wall = time.perf_counter() - began
        stats, disk = ours.db.stats(), bytes_under(path)
        helper_seconds = process_seconds(helper_of(ours.host))
        rng = random.Random(2)
        for _ in range(20):
            ours.read([key_of(rng.randrange(keys)) for _ in range(10_000)])
            sampler.look()
        for n, _ in enumerate(ours.db.scan(PLAIN)):
            if n % 100_000 == 0:
                sampler.look()
        looking.cancel()
        quiet, busy = await paced(ours, keys)
        sizes = {
            "resident_before": before,
            "resident": sampler.resident,
            "helper_resident": sampler.helper,
            "disk_peak": sampler.disk,
            "disk": disk,
            "user": keys * RECORD,
            "logged": stats.logged,
            "flushed": stats.flushed,
            "compacted": stats.compacted,
            "written": stats.logged + stats.flushed + stats.compacted,
        }
        await ours.db.compact()
        sizes["least"] = ours.db.stats().table_bytes
        told = {
            "bytes": list(sizes),
            "compactions": stats.compactions,
            "waited": stats.waited_seconds,
            "helper_seconds": helper_seconds,
            "wall": wall,
            "full_speed": quantiles(full_speed),
            "quiet": quantiles(quiet),
            "busy": quantiles(busy),
        }
        print(json.dumps(sizes | told), flush=True)


async def timed(ours: Ours, keys: list[bytes], values: list[bytes]) -> Timed:
    """What a commit takes."""
    started, cpu = time.perf_counter(), time.thread_time()
    await ours.write(keys, values)
    return time.perf_counter() - started, time.thread_time() - cpu


async def paced(ours: Ours, keys: int) -> tuple[list[Timed], list[Timed]]:
    """Commits of 1,000 that leave the machine some room: first alone, then while everything is merged into one run."""
    db, rng = ours.db, random.Random(4)
    quiet: list[Timed] = []
    busy: list[Timed] = []
    compacting: asyncio.Task[None] | None = None
    for n in range(5000):
        if n == 1000:
            choice = choose(db.version.files, db.options.compaction, all_of_it=True)
            if choice is None:
                break
            compacting = db._background.begin(choice)
        numbers = [rng.randrange(keys) for _ in range(1000)]
        took = await timed(ours, [key_of(m) for m in numbers], [value_of(m + n) for m in numbers])
        flush = db._background.flushing
        flushing = flush is not None and not flush.done()
        if n < 1000 and not flushing:
            quiet.append(took)
        elif compacting is not None:
            if compacting.done():
                break
            busy.append(took)
        await asyncio.sleep(0.004)
    if compacting is not None:
        await compacting
    return quiet, busy
