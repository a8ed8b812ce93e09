"""Members that are known by their disk: back in their place at once, gone at once, and never two of them for long.

Sessions last longer than a test may take: whoever waits for one to run out fails.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_group import KafkaGroup
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.worker.state_home import StateHome
from tests.integration.processes import Process, crew_in

SESSION_MS = 180_000
SOON = 60.0
"""Much, for a machine that has other things to do; much less than a session."""
APP = str(Path(__file__).with_name("checkpoint_app.py"))


class Member:
    """A worker without its work: it takes and lets go of tasks as it is told."""

    def __init__(self, group: KafkaGroup, tasks: list[str]) -> None:
        self.group, self.tasks = group, tasks
        self.held: set[str] = set()

    async def turn(self) -> None:
        claims, releases = await self.group.place(self.tasks, self.held)
        self.held = (self.held | set(claims)) - set(releases)

    @property
    def numbers(self) -> list[int]:
        return sorted(int(task[-1]) for task in self.held)

    async def die(self) -> None:
        """As by kill -9: without leaving."""
        self.group._consumer._coordinator.generation = -1
        await self.group.stop()


async def turns(members: list[Member], until: Callable[[], bool]) -> None:
    """They take turns until then, which must be soon."""
    async with asyncio.timeout(SOON):
        while not until():
            for member in members:
                await member.turn()
            await asyncio.sleep(0.02)


Join = Callable[..., Any]


@pytest.fixture
async def join(kafka_address: str, name: str, tmp_path: Path) -> AsyncIterator[Join]:
    """Makes members of one group of two tasks; the name is that of the member's disk."""
    address = KafkaAddress.parse(f"kafka://{kafka_address}", {})
    async with KafkaTopics(address) as topics:
        await topics.create(name, 2)
    async with AsyncExitStack() as stack:

        async def joined(
            disk: str,
            notes: dict[int, int] | None = None,
            numbers: Sequence[int] = (0, 1),
            session_ms: int = SESSION_MS,
        ) -> Member:
            (tmp_path / disk).mkdir(exist_ok=True)
            home = StateHome(tmp_path / disk)
            for task in notes or {}:
                home.begin(f"{name}/g/{task}", "")
            home.note({f"{name}/g/{task}": number for task, number in (notes or {}).items()})
            worker = f"{name}/{disk}-{os.urandom(3).hex()}"
            group = KafkaGroup(address, name, worker, [name], session_ms, home)
            tasks = [f"{name}/g/{number}" for number in numbers]
            await group.start(tasks)
            stack.push_async_callback(group.stop)
            return Member(group, tasks)

        yield joined


async def shared(join: Join) -> tuple[Member, Member]:
    """Ada and Bob, with a task each."""
    ada = await join("ada")
    await turns([ada], lambda: ada.numbers == [0, 1])
    bob = await join("bob")
    await turns([ada, bob], lambda: (ada.numbers, bob.numbers) == ([0], [1]))
    return ada, bob


async def test_one_who_died_is_back_in_its_place_without_a_round(join: Join) -> None:
    ada, bob = await shared(join)
    before = bob.group.generation
    await ada.die()
    again = await join("ada")
    await turns([again, bob], lambda: again.numbers == [0])
    for _ in range(10):
        await turns([again, bob], lambda: True)
    assert (again.group.generation, bob.group.generation) == (before, before)


@pytest.mark.parametrize("who", ["ada", "bob"])
async def test_the_leader_and_the_others_come_back_and_rounds_go_on(join: Join, who: str) -> None:
    members = dict(zip(("ada", "bob"), await shared(join), strict=True))
    before = members[who].numbers
    await members[who].die()
    members[who] = await join(who)
    await turns(list(members.values()), lambda: members[who].numbers == before)
    eve = await join("eve")
    members["bob"].group._consumer._coordinator.request_rejoin()
    generation = members["bob"].group.generation
    everybody = [*members.values(), eve]
    await turns(everybody, lambda: all(member.group.generation > generation for member in everybody))
    assert (members["ada"].numbers, members["bob"].numbers, eve.numbers) == ([0], [1], [])


async def test_what_the_dead_one_was_to_give_up_its_successor_does(join: Join) -> None:
    ada = await join("ada")
    await turns([ada], lambda: ada.numbers == [0, 1])
    bob = await join("bob")
    # Bob takes his turns, Ada none: she has been told, and dies before she lets go.
    await turns([bob], lambda: ada.group.assigned == {f"{ada.group.group}/g/0"})
    await ada.die()
    again = await join("ada")
    await turns([again, bob], lambda: (again.numbers, bob.numbers) == ([0], [1]))


@pytest.mark.parametrize("numbers", [[0, 1, 2], [1, 2], [1]])
async def test_one_who_comes_back_with_other_tasks_has_them_shared_out(join: Join, numbers: list[int]) -> None:
    ada = await join("ada")
    await turns([ada], lambda: ada.numbers == [0, 1])
    await ada.die()
    again = await join("ada", numbers=numbers)
    await turns([again], lambda: again.numbers == numbers)
    generation = again.group.generation
    until = time.monotonic() + 1.5
    await turns([again], lambda: time.monotonic() > until)
    assert (again.numbers, again.group.generation - generation) in [(numbers, 0), (numbers, 1)]


async def test_one_who_leaves_is_gone_at_once(join: Join) -> None:
    ada, bob = await shared(join)
    await ada.group.stop()
    await turns([bob], lambda: bob.numbers == [0, 1])


async def test_one_who_is_idle_for_too_long_is_gone_and_comes_back(join: Join) -> None:
    """A worker whose loop turns, and whose tasks do not: see `max_poll_interval_ms`."""
    ada, bob = await shared(join)
    await ada.group._consumer._coordinator._maybe_leave_group()
    ada.held.clear()
    await turns([ada, bob], lambda: len(ada.held) == len(bob.held) == 1)
    assert not ada.group._consumer._coordinator.fenced


async def test_one_whose_session_has_run_out_comes_back_as_itself(join: Join) -> None:
    from aiokafka import TopicPartition

    ada = await join("ada", session_ms=1_500)
    await turns([ada], lambda: ada.numbers == [0, 1])
    await ada.group._consumer._coordinator._stop_heartbeat_task()
    bob = await join("bob")
    await turns([bob], lambda: bob.numbers == [0, 1])
    ada.held.clear()
    instance = ada.group.home.instance()
    await ada.group.tell({TopicPartition(ada.group.group, 0): 1}, {})
    await turns([ada, bob], lambda: len(ada.held) == len(bob.held) == 1)
    assert ada.group.home.instance() == instance


async def test_of_two_with_one_disk_the_younger_has_it_and_the_older_is_a_newcomer(join: Join, tmp_path: Path) -> None:
    ada, bob = await shared(join)
    shutil.copytree(tmp_path / "ada", tmp_path / "twin")
    with capture_logs() as logs:
        twin = await join("twin")
        await turns([twin, bob], lambda: twin.numbers == [0])
        assert ada.group.home.instance() == twin.group.home.instance()  # type: ignore[union-attr]
        await turns([ada, bob, twin], lambda: ada.held == set() and ada.group.assigned == set())
        everybody = [ada, bob, twin]
        await turns(everybody, lambda: len({member.group.generation for member in everybody}) == 1)
    (told,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert told["event"].startswith("another worker has joined under this one's instance id: the state directory")
    assert told["worker"] == ada.group.worker
    assert (ada.numbers, bob.numbers, twin.numbers) == ([], [1], [0])
    assert StateHome(tmp_path / "ada").instance() == told["instance_now"] != told["instance"]
    assert StateHome(tmp_path / "twin").instance() == told["instance"]
    # For longer than three heartbeats nobody throws out anybody.
    generation = ada.group.generation
    until = time.monotonic() + 3.5
    await turns(everybody, lambda: time.monotonic() > until)
    assert {member.group.generation for member in everybody} == {generation}


async def test_one_who_is_thrown_out_while_it_tells_offsets_throws_nobody_out(join: Join, tmp_path: Path) -> None:
    """Kafka says that it is unknown, to which aiokafka's answer is to join as if newly started."""
    from aiokafka import TopicPartition

    ada, bob = await shared(join)
    shutil.copytree(tmp_path / "ada", tmp_path / "twin")
    twin = await join("twin")
    await turns([twin, bob], lambda: twin.numbers == [0])
    for offset in (1, 2):
        await ada.group.tell({TopicPartition(ada.group.group, 0): offset}, {})
    await turns([ada, bob, twin], lambda: ada.held == set())
    assert twin.numbers == [0]
    assert not twin.group._consumer._coordinator.fenced


async def test_a_free_task_goes_where_its_newest_state_is(join: Join) -> None:
    carol = await join("carol")
    await turns([carol], lambda: carol.numbers == [0, 1])
    ada, bob = await join("ada", {0: 7, 1: 3}), await join("bob", {0: 6, 1: 5})
    # By their names alone Ada would come first.
    await turns([ada, bob, carol], lambda: (carol.numbers, bob.numbers) == ([0], [1]))
    await carol.group.stop()
    await turns([ada, bob], lambda: (ada.numbers, bob.numbers) == ([0], [1]))


# Processes


async def outputs(broker: KafkaBroker, topic: str) -> dict[str, int]:
    """The last total of each key."""
    found: dict[str, int] = {}
    batch = await broker.read(topic, 0, 0, 10_000)
    for value in batch.values:
        total = json.loads(value or b"")
        assert total["total"] == found.get(total["key"], 0) + 1
        found[total["key"]] = total["total"]
    return found


async def counted(broker: KafkaBroker, name: str, total: int, process: Process) -> None:
    """Until all of `total` events have been counted, which must be soon."""
    async with asyncio.timeout(SOON):
        while sum((await outputs(broker, f"{name}-out")).values()) < total:
            assert process.popen.poll() is None, process.said()
            await asyncio.sleep(0.02)


async def put(broker: KafkaBroker, name: str, count: int) -> None:
    await broker.put(f"{name}-in", [(b"k", b'{"key": "k", "at": 1000}', 1000)] * count)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_goes_on_at_once_in_its_place_and_leaves_at_once(
    kafka_address: str, name: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Killed, it is started again where it was; asked to stop, it makes way for one with another disk."""
    env = {"CHECKPOINT_APP": name, "FLOWKIT_LEASE_TTL": str(SESSION_MS), "PYTHONWARNINGS": "default"}

    def words(state: str) -> list[str]:
        return ["worker", APP, "--broker", f"kafka://{kafka_address}", "--state", str(tmp_path / state)]

    async with KafkaBroker(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as broker:
        for topic in (f"{name}-in", f"{name}-out"):
            await broker.create(topic, 1)
        with crew_in(tmp_path) as crew:
            one = crew.flowkit("one", *words("a"), env=env)
            await put(broker, name, 3)
            await counted(broker, name, 3, one)
            if number == signal.SIGKILL:
                one.kill()
            else:
                one.send(number)
                assert one.wait() == 0
            await put(broker, name, 2)
            two = crew.flowkit("two", *words("a" if number == signal.SIGKILL else "b"), env=env)
            await counted(broker, name, 5, two)
            assert await outputs(broker, f"{name}-out") == {"k": 5}


async def test_two_workers_with_copies_of_one_disk_do_each_event_once(
    kafka_address: str, name: str, tmp_path: Path
) -> None:
    env = {"CHECKPOINT_APP": name, "FLOWKIT_LEASE_TTL": str(SESSION_MS), "PYTHONWARNINGS": "default"}
    address = f"kafka://{kafka_address}"
    async with KafkaBroker(KafkaAddress.parse(address, {})) as broker:
        for topic in (f"{name}-in", f"{name}-out"):
            await broker.create(topic, 1)
        with crew_in(tmp_path) as crew:
            older = crew.flowkit("older", "worker", APP, "--broker", address, "--state", str(tmp_path / "a"), env=env)
            await put(broker, name, 3)
            await counted(broker, name, 3, older)
            shutil.copytree(tmp_path / "a", tmp_path / "b")
            younger = crew.flowkit(
                "younger", "worker", APP, "--broker", address, "--state", str(tmp_path / "b"), env=env
            )
            for total in range(4, 20):
                await put(broker, name, 1)
                await counted(broker, name, total, older)
            older.heard("another worker has joined under this one's instance id")
            younger.heard("task opened")
            await put(broker, name, 1)
            await counted(broker, name, 20, younger)
            assert await outputs(broker, f"{name}-out") == {"k": 20}
            assert not younger.logs("another worker has joined")
            for worker in (older, younger):
                worker.send(signal.SIGTERM)
                assert worker.wait() == 0, worker.said()
