"""Workers on Kinesis in processes of their own, to be killed, and what they have put out."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flowkit.aws import AwsOptions
from flowkit.clock import SystemClock
from flowkit.source.kinesis_batch import Arrivals
from flowkit.source.kinesis_reader import KinesisSource
from flowkit.source.kinesis_streams import KinesisStreams
from tests.aws.policies import ACCOUNT
from tests.aws.proxy import Proxy, proxy_to
from tests.aws.recording import check

TOLD = ("--checkpoints", "--bind")

APP = Path(__file__).parent / "kinesis_app.py"
ROOT = Path(__file__).parents[2]


class Fleet:
    """Workers of one app, its streams, and the directory where each has its state. Use it within `async with`.

    What workers ask of Amazon goes through proxies; at the end all of it was allowed by the policy that `flowkit iam`
    prints for what they were started with. Not so with `gates`, which has gates of its own.
    """

    def __init__(
        self,
        place: Path,
        environ: dict[str, str],
        *,
        shards: int = 2,
        options: str = "",
        app: Path = APP,
        gates: bool = False,
    ) -> None:
        self.name = f"app-{uuid.uuid4().hex[:8]}"
        self.place, self.shards, self.app = place, shards, app
        self.broker = f"kinesis://us-east-1?leases=leases-{self.name}{options}"
        self.environ = {**os.environ, **environ, "KINESIS_APP": self.name, "PYTHONPATH": str(ROOT)}
        self.environ |= {"FLOWKIT_LEASE_TTL": "3000", "FLOWKIT_COMMIT_INTERVAL": "100", "FLOWKIT_LOG_LEVEL": "info"}
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.streams = KinesisStreams(AwsOptions(), SystemClock(), "kinesis://")
        self._gates = gates
        self._proxies: list[Proxy] = []
        self._told: dict[tuple[str, str], None] = {}
        """What workers were started with that matters to a policy."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if not self._gates:
            for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS"):
                if name in self.environ:
                    proxy = await self._stack.enter_async_context(proxy_to(self.environ[name], watched=False))
                    self.environ[name] = proxy.url
                    self._proxies.append(proxy)
        await self.streams.open()
        await self.streams.create(f"{self.name}-in", self.shards)
        await self.streams.create(f"{self.name}-out", 1)
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in list(self.workers):
            self.kill(worker)
        await self.streams.close()
        await self._stack.aclose()
        if error is None and self._proxies:
            check(await asyncio.to_thread(self._policy), [each for proxy in self._proxies for each in proxy.requests])
        if error is not None:
            for log in sorted(self.place.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-6000:]}")

    def start(self, worker: str, *more: str, environ: Mapping[str, str] | None = None) -> None:
        """Start a worker, or start it again in its old directory; `environ` is what others do not have."""
        words = [sys.executable, "-m", "flowkit", "worker", *self._asked(), "--state", str(self.place / worker)]
        self._told |= dict.fromkeys(pair for pair in pairwise(more) if pair[0] in TOLD)
        with (self.place / f"{worker}.log").open("ab") as log:
            self.workers[worker] = subprocess.Popen(
                [*words, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environ, **(environ or {})},
                cwd=self.place,
            )

    def _asked(self) -> list[str]:
        letters = f"dead-letters={self.place}/{{group}}-{{partition}}.dlq.jsonl"
        return [str(self.app), "--broker", self.broker, "--bind", letters]

    def _policy(self) -> Any:
        told = [word for pair in self._told for word in pair]
        words = [sys.executable, "-m", "flowkit", "iam", *self._asked(), *told, "--account", ACCOUNT]
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)

    def kill(self, worker: str) -> None:
        """Kill it as a machine dies."""
        process = self.workers.pop(worker)
        process.kill()
        process.wait(10)

    async def stop(self, worker: str) -> int:
        """Stop it in good order; its exit code."""
        process = self.workers.pop(worker)
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, 40)  # it speaks to proxies in this loop

    async def put(self, numbers: Iterable[int], keys: int = 20) -> None:
        """Put events with these numbers."""
        rows = [(b"k%d" % (n % keys), json.dumps({"key": f"k{n % keys}", "number": n}).encode(), 0) for n in numbers]
        await self.streams.put(f"{self.name}-in", rows)

    async def outputs(self) -> dict[str, list[tuple[int, int]]]:
        """By key: (number, total) of all that was put out, in order."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in await self.rows():
            found[row["key"]].append((row["number"], row["total"]))
        return found

    async def rows(self) -> list[dict[str, Any]]:
        """All that was put out."""
        found: list[dict[str, Any]] = []
        source = KinesisSource(
            self.streams, Arrivals(), f"{self.name}-out", start="earliest", out_of_range="fail", until_end=True
        )
        reader = await source.open(0, None)
        try:
            while not reader.at_end:
                batch = await reader.fetch(1000)
                if batch is None:
                    await source.arrivals.wait(50, None)
                    continue
                found += [json.loads(value or b"null") for value in batch.values]
        finally:
            await reader.close()
        return found

    async def until(self, count: int, seconds: float = 60) -> dict[str, list[tuple[int, int]]]:
        """What was put out, once it holds so many different rows."""
        async with asyncio.timeout(seconds):
            while True:
                found = await self.outputs()
                if sum(len(set(rows)) for rows in found.values()) >= count:
                    return found
                for worker, process in self.workers.items():
                    assert process.poll() is None, f"{worker} ended with {process.returncode}"
                await asyncio.sleep(0.2)


def check_counts(found: dict[str, list[tuple[int, int]]], count: int, keys: int = 20) -> int:
    """Each key was counted exactly; its rows are in order, but for what came again. How many did."""
    again = 0
    for n in range(keys):
        numbers = list(range(n, count, keys))
        rows = found[f"k{n}"]
        assert list(dict.fromkeys(rows)) == [(number, place) for place, number in enumerate(numbers, 1)], f"k{n}"
        again += len(rows) - len(numbers)
    return again


def dead(place: Path) -> list[str]:
    """What was given up."""
    return [path.name for path in place.glob("*.dlq.jsonl") if path.stat().st_size]


async def split(streams: KinesisStreams, stream: str, number: int) -> None:
    """Split a shard in the middle, and wait until that is done."""
    shards = {shard.number: shard for shard in await streams.shards(stream, fresh=True)}
    shard = shards[number]
    middle = str((shard.first + shard.last) // 2 + 1)
    await streams.client.split_shard(StreamName=stream, ShardToSplit=shard.id, NewStartingHashKey=middle)
    await _until_more(streams, stream, len(shards) + 2)


async def merge(streams: KinesisStreams, stream: str, one: int, other: int) -> None:
    """Merge two shards, and wait until that is done."""
    shards = {shard.number: shard for shard in await streams.shards(stream, fresh=True)}
    await streams.client.merge_shards(
        StreamName=stream, ShardToMerge=shards[one].id, AdjacentShardToMerge=shards[other].id
    )
    await _until_more(streams, stream, len(shards) + 1)


async def _until_more(streams: KinesisStreams, stream: str, count: int) -> None:
    async with asyncio.timeout(20):
        while len(await streams.shards(stream, fresh=True)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def split_in_two(streams: KinesisStreams, name: str) -> None:
    """Split the only shard at a server that forgets it at once."""
    await streams.client.split_shard(
        StreamName=name, ShardToSplit="shardId-000000000000", NewStartingHashKey=str(2**127)
    )
    async with asyncio.timeout(20):
        while [shard.number for shard in await streams.shards(name, fresh=True)] != [1, 2]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
