"""kill -9 between any two steps of a commit, for each destination: what a reader of it was told holds.

A real process (killed.py) kills itself after a step, or is killed at a request: before the service has it, or when the
service has done it and nobody has heard. It is started again, killed elsewhere, and so on; then it may end. With
FLOWKIT_TEST_KILLS=all it is killed at each place alone, and after each step once more in each of what follows on that.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.aws.broken import Reading
from tests.aws.killed import Job, Mortals
from tests.aws.places import PLACES, Place, writes
from tests.aws.proxy import Fault, Proxy, Request, proxy_to
from tests.aws.servers import aws_environment

ALL = os.environ.get("FLOWKIT_TEST_KILLS") == "all"
pytestmark = pytest.mark.timeout(3600 if ALL else 300)
COUNT, EVERY, KEYS = 200, 20, 30
"""Records, records a commit, and keys."""
Stop = tuple[str, int]
CHAIN: list[Stop] = [
    *(("cut", 1), ("before", 1), ("prepared", 1), ("after", 1), ("resolved", 0), ("after", 0), ("before", 0)),
    *(("resolved", 1), ("delivered", 0)),
]
"""A step, and how often it is done before: of `before` and `after` a request that writes."""
STEPS = ("cut", "prepared", "resolved", "delivered", "before", "after")
ALONE: list[Stop] = [(step, n) for step in STEPS for n in (0, 1, 2)]
AGAIN: list[Stop] = [("prepared", 0), ("resolved", 0), ("before", 0), ("after", 0)]
STATEMENTS: list[Stop] = [(f"statement {when}", n) for n in range(12) for when in ("before", "after")]
"""Those of a connection to Redshift: the look at the table, and each step of a load's transaction."""


def chains_of(name: str) -> list[list[Stop]]:
    """What befalls this destination: a file has no requests, and only one has statements."""

    def fit(stops: Iterable[Stop]) -> list[Stop]:
        return [stop for stop in stops if name != "file" or stop[0] not in ("before", "after")]

    found = [fit(CHAIN)]
    if name == "redshift":
        found += [STATEMENTS[6::5]]
    if ALL:
        found += [[stop] for stop in fit(ALONE)]
        found += [[(step, 1), other] for step, n in fit(ALONE) if n == 0 for other in fit(AGAIN)]
        if name == "redshift":
            found += [[stop, other] for stop in STATEMENTS for other in (stop, ("statement after", 5))]
    return found


def readings() -> list[Reading]:
    """Of the last minutes: CloudWatch takes nothing older than two weeks."""
    chance, begin = random.Random(3), int(time.time()) * 1000 - COUNT * 100
    return [Reading(f"k{chance.randrange(KEYS)}", n, begin + n * 100) for n in range(COUNT)]


class Chain:
    """A run that is killed at one place after the other, until it is through."""

    def __init__(self, mortals: Mortals, proxy: Proxy, place: Place, where: Path, environ: dict[str, str]) -> None:
        self.mortals, self.proxy, self.place = mortals, proxy, place
        source = where / "readings.jsonl"
        source.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in readings()))
        self.dead = where / "dead.jsonl"
        url = place.url(proxy.url)
        self.job = Job(str(source), url, str(where / "state"), str(self.dead), EVERY, environ)

    async def run(self, stops: Iterable[Stop]) -> int:
        """How often it was killed."""
        for kills, (step, after) in enumerate([*stops, ("", 0)]):
            self._watch(step, after)
            code = await self.mortals.run(self.job._replace(stop=step, after=after))
            if code == 0:
                return kills
            assert code == -signal.SIGKILL, self.mortals.log.read_text()[-4000:]
        raise AssertionError("it was never through")

    def _watch(self, step: str, after: int) -> None:
        """Kill at that request."""
        seen = 0

        def due(request: Request) -> bool:
            nonlocal seen
            if not writes(request) or not self.mortals.pid:  # of one that is dead a request may still be under way
                return False
            seen += 1
            return seen == after + 1

        def fault(request: Request) -> Fault | None:
            if not due(request):
                return None
            self.mortals.kill()
            return "reset"

        def answered(request: Request) -> None:
            if due(request):
                self.mortals.kill()

        self.proxy.fault = fault if step == "before" else lambda _: None
        self.proxy.answered = answered if step == "after" else lambda _: None

    async def check(self) -> int:
        """How many records came again."""
        assert self.dead.read_bytes() == b""
        return self.place.check(await self.place.read(self.proxy), range(COUNT))


@pytest.fixture
async def mortals(tmp_path: Path) -> AsyncIterator[Mortals]:
    async with Mortals(tmp_path / "log") as running:
        yield running


@asynccontextmanager
async def chain_to(name: str, request: pytest.FixtureRequest, mortals: Mortals, where: Path) -> AsyncIterator[Chain]:
    fixtures, make = PLACES[name]
    servers = [request.getfixturevalue(fixture) for fixture in fixtures]
    await asyncio.to_thread(where.mkdir)
    async with proxy_to(servers[0]) as proxy, make(where, *servers) as place:
        yield Chain(mortals, proxy, place, where, {**aws_environment(servers[0]), **place.environ})


@pytest.mark.parametrize("name", PLACES)
async def test_killed_between_any_two_steps_nothing_is_lost_and_what_comes_again_is_told(
    name: str, request: pytest.FixtureRequest, mortals: Mortals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fixture, *_), _ = PLACES[name]
    for variable, value in aws_environment(request.getfixturevalue(fixture)).items():
        monkeypatch.setenv(variable, value)
    again, chains = 0, chains_of(name)
    for number, stops in enumerate(chains):
        async with chain_to(name, request, mortals, tmp_path / str(number)) as chain:
            kills = await chain.run(stops)
            assert kills == len(stops)
            again += await chain.check()
    print(f"{name}: {len(chains)} chains, {again} records came again")
