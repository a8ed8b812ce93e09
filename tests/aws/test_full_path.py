"""The full path: a stream to windowed features in DynamoDB and S3, and alerts to a function, by two workers.

One is killed while it delivers, another is stopped while it commits and comes back as a zombie, shards are split and
merged, all of it under load. What is in the tables, the objects and the function's hands is what a single loop over
the events gives: nothing is lost anywhere, and nothing is there twice where the destination says so.
"""

import asyncio
import contextlib
import gzip
import json
import os
import random
import signal
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from flowkit.aws import AwsOptions, hash_of, open_client
from flowkit.source.kinesis_streams import ALL
from tests.aws.proxy import Fault, Proxy, Request, proxy_to
from tests.aws.test_lambda_sink import function
from tests.aws.workers import Fleet, dead, merge, split
from tests.jsonl import whole_lines

APP = Path(__file__).parent / "full_path_app.py"
CARDS, ROUND, WINDOW, JITTER = 24, 2_500, 10_000, 2_000
SLOW = 12_000
"""So far (ms) the cards of the lower half of the keys' hashes are behind the others."""
LAST = 100_000_000

REMEMBERS = """
import json, os

def handler(event, context):
    with open(os.environ["OUT"], "a") as out:  # one write: several of us append to it
        out.write(json.dumps(event) + chr(10))
"""


class Model:
    """What one loop over all events gives."""

    def __init__(self) -> None:
        self.windows: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
        self.journal: list[tuple[str, int, int]] = []
        self.alerts: list[tuple[str, int, int]] = []
        self._seen: dict[str, int] = defaultdict(int)

    def take(self, card: str, number: int, amount: int, at: int) -> None:
        """One event."""
        window = self.windows[card, at // WINDOW * WINDOW + WINDOW]
        window[0] += 1
        window[1] += amount
        self._seen[card] += 1
        entry = (card, number, self._seen[card])
        self.journal.append(entry)
        if self._seen[card] % 5 == 0:
            self.alerts.append(entry)

    def features(self) -> list[tuple[str, int, int, int]]:
        """Of all windows that are closed once the last events are in."""
        found = [(card, until, *sums) for (card, until), sums in self.windows.items() if until < LAST]
        return sorted(found)  # type: ignore[arg-type]


class Traffic:
    """Puts events, one of each card a round, until it is to stop; `model` is told of each."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.model, self.rounds = Model(), 0
        self._fleet, self._random, self._numbers = fleet, random.Random(seed), 0
        self._over = asyncio.Event()
        self._job = asyncio.create_task(self._flow(), name="traffic")

    async def _flow(self) -> None:
        while not self._over.is_set():
            now = self.rounds * ROUND
            await self._put((card, max(0, now - self._behind(card))) for card in range(CARDS))
            self.rounds += 1
            await asyncio.sleep(0.15 if self.rounds < 120 else 1)  # what is slow anyway is not buried

    def _behind(self, card: int) -> int:
        slow = hash_of(b"c%d" % card) <= ALL // 2
        return (SLOW if slow else 0) + self._random.randrange(JITTER)

    async def _put(self, events: Iterable[tuple[int, int]]) -> None:
        rows = []
        for card, at in events:
            self._numbers += 1
            name, amount = f"c{card}", self._random.randrange(1, 1000)
            self.model.take(name, self._numbers, amount, at)
            event = {"card": name, "number": self._numbers, "amount": amount, "at": at}
            rows.append((name.encode(), json.dumps(event).encode(), 0))
        await self._fleet.streams.put(f"{self._fleet.name}-in", rows)

    async def end(self) -> None:
        """Stop, and put what closes all windows."""
        self._over.set()
        await self._job
        await self._put((card, LAST) for card in range(CARDS))


class Results:
    """What came out, and where: tables, a bucket, and what a function was given."""

    def __init__(self, name: str, dynamodb: Any, s3: Any, function: str, given: Path) -> None:
        self.name, self.dynamodb, self.s3, self.function, self.given = name, dynamodb, s3, function, given

    def binds(self) -> list[str]:
        """For `flowkit worker`."""
        places = {
            "windows": f"dynamodb://windows-{self.name}",
            "latest": f"dynamodb://latest-{self.name}",
            # Of the one some are open whenever a shard ends, which nothing but its end can complete.
            "history": f"s3://{self.name}/history/dt={{dt}}?roll_after=8s",
            "journal": f"s3://{self.name}/journal/dt={{dt}}?roll_after=1500ms",
            "alerts": f"lambda://{self.function}?timeout=30",
        }
        return [word for name, url in places.items() for word in ("--bind", f"{name}={url}")]

    async def count(self, table: str) -> int:
        """How many items a table has."""
        pages = self.dynamodb.get_paginator("scan").paginate(
            TableName=f"{table}-{self.name}", ConsistentRead=True, Select="COUNT"
        )
        return sum([page["Count"] async for page in pages])

    async def items(self, table: str) -> list[tuple[str, int, int, int]]:
        """All items of a table."""
        found: list[tuple[str, int, int, int]] = []
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=f"{table}-{self.name}", ConsistentRead=True)
        async for page in pages:
            found += [
                (item["card"]["S"], int(item["until"]["N"]), int(item["count"]["N"]), int(item["total"]["N"]))
                for item in page["Items"]
            ]
        return sorted(found)

    async def rows(self, prefix: str) -> list[tuple[Any, ...]]:
        """All rows of all objects."""
        found: list[tuple[Any, ...]] = []
        async for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=f"{prefix}/"):
            for each in page.get("Contents", ()):
                answer = await self.s3.get_object(Bucket=self.name, Key=each["Key"])
                lines = gzip.decompress(await answer["Body"].read()).splitlines()
                found += [tuple(json.loads(line).values()) for line in lines]
        return sorted(found)

    def alerts(self) -> list[tuple[str, int, int]]:
        """What a function knows that looks at the records' ids."""
        by_id: dict[str, tuple[str, int, int]] = {}
        for batch in whole_lines(self.given):
            for record in batch["records"]:
                alert = tuple(record["value"].values())
                assert by_id.setdefault(record["id"], alert) == alert, "another record under the same id"
        return sorted(by_id.values())


@asynccontextmanager
async def results(fleet: Fleet, place: Path) -> AsyncIterator[Results]:
    """Tables, a bucket and a function for one app."""
    async with AsyncExitStack() as stack:
        dynamodb = await stack.enter_async_context(open_client("dynamodb", AwsOptions(), "dynamodb://"))
        s3 = await stack.enter_async_context(open_client("s3", AwsOptions(), "s3://"))
        name, given = await stack.enter_async_context(function(place, REMEMBERS))
        for table, keys in (("windows", ["card", "until"]), ("latest", ["card"])):
            await dynamodb.create_table(
                TableName=f"{table}-{fleet.name}",
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "SN"[n]} for n, key in enumerate(keys)],
                KeySchema=[{"AttributeName": key, "KeyType": ("HASH", "RANGE")[n]} for n, key in enumerate(keys)],
                BillingMode="PAY_PER_REQUEST",
            )
        await s3.create_bucket(Bucket=fleet.name)
        yield Results(fleet.name, dynamodb, s3, name, given)


class Fate:
    """Makes something happen to a worker at the `count`th of its requests that `fits`. `met` once it has."""

    def __init__(self, proxy: Proxy) -> None:
        self.met = asyncio.Event()
        self.request: Request
        self._proxy = proxy

    def kills(self, fleet: Fleet, worker: str, table: str, count: int) -> None:
        """Kill it while it delivers to a table."""

        def fault(request: Request) -> Fault | None:
            nonlocal count
            if self.met.is_set():
                return "reset"
            if request.action == "PutItem" and request.json["TableName"] == table:
                count -= 1
                if not count:
                    fleet.kill(worker)
                    self._meet(request)
                    return "reset"
            return None

        self._proxy.fault = fault

    def stops(self, fleet: Fleet, worker: str) -> None:
        """Stop it while its commit is on its way, which stays there until the proxy's gate is opened."""

        def fault(request: Request) -> Fault | None:
            if (
                self.met.is_set()
                or request.action != "UpdateItem"
                or ":epoch" not in request.json.get("ExpressionAttributeValues", {})
            ):
                return None
            fleet.workers[worker].send_signal(signal.SIGSTOP)
            self._meet(request)
            return "hang"

        self._proxy.fault = fault

    def _meet(self, request: Request) -> None:
        self.request = request
        self.met.set()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds, and leave the servers most of the time."""
    asked = time.monotonic()
    while not await holds():
        await asyncio.sleep(max(0.1, 3 * (time.monotonic() - asked)))
        asked = time.monotonic()


class Scene:
    """What happens, step by step, told with its time."""

    def __init__(self, fleet: Fleet, found: Results, traffic: Traffic) -> None:
        self.fleet, self.found, self.traffic = fleet, found, traffic
        self.stream = f"{fleet.name}-in"
        self._began = time.monotonic()

    def tell(self, what: str) -> None:
        """For who looks for what went wrong."""
        print(f"{time.monotonic() - self._began:5.1f} s, round {self.traffic.rounds}: {what}")

    async def until_features(self, count: int) -> None:
        """Until there are so many items more."""
        count += await self.found.count("windows")

        async def are_there() -> bool:
            return await self.found.count("windows") >= count

        async with asyncio.timeout(60):
            await until(are_there)

    async def lease(self, task: str) -> dict[str, Any]:
        """A row of the lease table."""
        answer = await self.found.dynamodb.get_item(
            TableName=f"leases-{self.fleet.name}", Key={"leaseKey": {"S": task}}, ConsistentRead=True
        )
        item: dict[str, Any] = answer["Item"]
        return item

    async def until_taken_over(self, request: Request) -> None:
        """Until another has claimed the task whose commit this is."""
        task, epoch = request.json["Key"]["leaseKey"]["S"], request.json["ExpressionAttributeValues"][":epoch"]["N"]
        async with asyncio.timeout(60):
            while int((await self.lease(task))["epoch"]["N"]) <= int(epoch):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_nothing_is_lost_and_nothing_twice_from_a_stream_to_tables_objects_and_a_function(
    resharding: dict[str, str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("FULL_PATH_SEED", "0")) or uuid.uuid4().int % 10**6
    chance = random.Random(seed)
    async with (
        Fleet(tmp_path, resharding, shards=2, app=APP) as fleet,
        results(fleet, tmp_path) as found,
        proxy_to(resharding["AWS_ENDPOINT_URL"], watched=False) as first,
        proxy_to(resharding["AWS_ENDPOINT_URL"], watched=False) as second,
    ):
        print(f"seed {seed}")
        fleet.environ["FLOWKIT_LEASE_TTL"] = "5000"
        binds = found.binds()
        fleet.start("a", *binds, environ={"AWS_ENDPOINT_URL": first.url})
        fleet.start("b", *binds, environ={"AWS_ENDPOINT_URL": second.url})
        traffic = Traffic(fleet, seed)
        scene = Scene(fleet, found, traffic)
        await scene.until_features(CARDS)
        scene.tell("both workers are at work")

        killed = Fate(first)
        killed.kills(fleet, "a", f"windows-{fleet.name}", chance.randrange(1, 60))
        await split(fleet.streams, scene.stream, 0)
        scene.tell("shard 0 is split")
        await asyncio.wait_for(killed.met.wait(), 60)
        scene.tell("a is killed while it delivers")
        await scene.until_features(3 * CARDS)
        fleet.start("c", *binds)
        scene.tell("b goes on alone; c is started")
        await scene.until_features(CARDS)

        stopped = Fate(second)
        stopped.stops(fleet, "b")
        await asyncio.wait_for(stopped.met.wait(), 60)
        scene.tell("b is stopped while it commits")
        await merge(fleet.streams, scene.stream, 3, 1)
        scene.tell("shards 3 and 1 are merged")
        await scene.until_taken_over(stopped.request)
        second.resumed.set()
        scene.tell("c has taken over; the commit arrives")
        fleet.workers["b"].send_signal(signal.SIGCONT)
        await scene.until_features(3 * CARDS)
        await traffic.end()
        scene.tell("the traffic has ended")
        await check(found, traffic.model, scene)
        codes = [await fleet.stop(worker) for worker in "bc"]  # the proxies go on meanwhile
        assert codes == [0, 0]
        scene.tell("all workers have stopped")
        assert stopped.request.status == 400  # fenced
    assert dead(tmp_path) == []


async def check(found: Results, model: Model, scene: Scene) -> None:
    """Wait until there is as much as there has to be, and compare all of it."""
    features = model.features()

    async def has_all() -> bool:
        return (
            await found.count("windows") >= len(features)
            and len(found.alerts()) >= len(model.alerts)
            and len(await found.rows("journal")) >= len(model.journal)
            and len(await found.rows("history")) >= len(features)
        )

    with contextlib.suppress(TimeoutError):  # what is missing is told below
        async with asyncio.timeout(90):
            await until(has_all)
    scene.tell("looking at all that has come")
    last = {feature[0]: feature for feature in features}
    assert await found.items("windows") == features
    assert await found.items("latest") == sorted(last.values())
    assert await found.rows("history") == features
    assert await found.rows("journal") == sorted(model.journal)
    assert found.alerts() == sorted(model.alerts)
