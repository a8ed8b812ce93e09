"""Topics that are deleted, records that are gone, and a restore that is taken away: see the table in test_liveness."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import flowkit
from flowkit.cli.check import check_broker
from flowkit.cli.health import what_is_wrong
from flowkit.cli.outcome import WRONG, code_of
from flowkit.errors import ConfigError
from flowkit.source import kafka as kafka_module
from flowkit.source import kafka_tasks
from flowkit.source.internal import changelog_of
from flowkit.source.kafka import KafkaBroker
from flowkit.store import Frame
from flowkit.worker import Worker, ownership
from flowkit.worker.restoring import Frames
from tests.kafka.traffic import (
    KEYS,
    Event,
    Traffic,
    at_work,
    counting,
    open_broker,
    said,
    until,
    until_told,
    values,
    worker_of,
)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "FIRST_WAIT", 0.2)


@pytest.fixture
def url(kafka_address: str) -> str:
    return f"kafka://{kafka_address}?timeout_ms=5000"


@pytest.fixture
async def broker(url: str) -> AsyncIterator[KafkaBroker]:
    async with open_broker(url) as broker:
        yield broker


@pytest.fixture
async def traffic(broker: KafkaBroker, name: str) -> Traffic:
    return await Traffic(broker, name).begin()


# --- deleted topics ---------------------------------------------------------------------------------------------------


async def delete(broker: KafkaBroker, topic: str) -> None:
    await broker._topics._admin.delete_topics([topic])


async def ends_with(worker: Worker, job: "asyncio.Task[None]") -> str:
    """What a worker says that stops by itself, as one that a person has to look after."""
    await asyncio.wait([job], timeout=40)
    worker.stop()
    error = job.exception()
    assert isinstance(error, ConfigError)
    assert code_of(error) == WRONG
    return str(error)


async def test_an_input_topic_that_is_missing_is_made_and_one_that_is_deleted_stops_the_worker(
    url: str, broker: KafkaBroker, tmp_path: Path, name: str
) -> None:
    worker = worker_of(counting(name), url, tmp_path, partitions=2)
    with capture_logs() as logs:
        job = asyncio.create_task(worker.run())
        await until(lambda: said(logs, "worker started"), "started")
        made = {entry["topic"]: entry["partitions"] for entry in said(logs, "topic made")}
        assert (made[f"{name}-in"], made[f"{name}-out"]) == (2, 2)
        traffic = Traffic(broker, name)
        await traffic.feed(50)
        await traffic.all_counted()
        await delete(broker, f"{name}-in")
        assert f"no topic '{name}-in' at kafka://" in await ends_with(worker, job)
    assert any("was deleted while it was read" in entry["error"] for entry in said(logs, "task failed"))


async def test_an_internal_topic_that_is_deleted_stops_the_worker(
    url: str, broker: KafkaBroker, traffic: Traffic, tmp_path: Path, name: str
) -> None:
    worker = worker_of(counting(name, hop=True), url, tmp_path)
    job = asyncio.create_task(worker.run())
    await traffic.feed(50)
    await traffic.all_counted()
    (internal,) = [topic for topic in await broker.topics() if topic.startswith(f"{name}.")]
    await delete(broker, internal)
    assert f"no topic '{internal}' at kafka://" in await ends_with(worker, job)
    # At the next start it is made anew, and does not have what the state goes on from. Whoever only tried again would
    # go on once that much had been sent, and never see it.
    again = worker_of(counting(name, hop=True), url, tmp_path)
    told = await ends_with(again, asyncio.create_task(again.run()))
    assert told.startswith(f"{internal}[")
    assert "this is not the topic that the state belongs to" in told


async def test_an_app_whose_first_table_has_another_name_does_not_begin_anew_in_silence(
    url: str, broker: KafkaBroker, traffic: Traffic, tmp_path: Path, name: str
) -> None:
    """A table whose name comes before the others' gives the group its name, and with it another state."""
    changelog, _ = changelog_of(f"{name}/totals/0")

    async def noted() -> bool:
        return f"{name}-in" in await broker.left(name, [])

    async with at_work(counting(name), url, tmp_path):
        await traffic.feed(50)
        await traffic.all_counted()
        await until_told(noted, "it is noted where the commits are")
    assert await broker.left(name, []) == {f"{name}-in": [changelog]}
    assert await broker.left(name, ["totals"]) == {}
    renamed = worker_of(counting(name, table="counts"), url, tmp_path)
    told = await ends_with(renamed, asyncio.create_task(renamed.run()))
    assert told.startswith(f"group 'counts' (tables: counts) has not run yet and would read {name}-in from the start")
    assert told.endswith(f"to begin anew, delete topic '{changelog}'")
    groups = counting(name, table="counts").plan(rekey=True).groups
    findings = await asyncio.to_thread(lambda: list(check_broker(name, groups, url)))  # it has a loop of its own
    assert [finding.message for finding in findings if finding.severity == "error"] == [told]
    await delete(broker, changelog)
    async with at_work(counting(name, table="counts"), url, tmp_path) as anew:
        await until(lambda: anew.owned, "it begins anew")


async def test_a_changelog_that_is_deleted_stops_the_worker_and_keeps_it_from_starting(
    url: str, broker: KafkaBroker, traffic: Traffic, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_tasks, "TRANSACTION_MS", 1_000)
    monkeypatch.setattr(kafka_module, "GONE_MS", 50)
    worker = worker_of(counting(name), url, tmp_path)
    job = asyncio.create_task(worker.run())
    await traffic.feed(50)
    await traffic.all_counted()
    changelog, _ = changelog_of(f"{name}/totals/0")

    async def noted() -> bool:
        return f"{name}-in" in await broker.left(name, [])

    await until_told(noted, "it is noted where the commits are")
    await delete(broker, changelog)
    await traffic.feed(50)
    gone = f"topic '{changelog}' at {url} was deleted: it is the changelog of tasks that have worked"
    assert gone in await ends_with(worker, job)
    elsewhere = worker_of(counting(name), url, tmp_path / "empty")
    assert gone in await ends_with(elsewhere, asyncio.create_task(elsewhere.run()))


# --- offsets out of range ---------------------------------------------------------------------------------------------


def passing_on(name: str) -> flowkit.App:
    """A topic and a task of its own for each policy; all is passed on. What is to be `fail` has two partitions."""
    app = flowkit.App(name)
    out = app.topic(f"{name}-out", Event, key="key")
    policies: Any = ("fail", "earliest", "latest")
    for policy in policies:
        topic = app.topic(f"{name}-{policy}", Event, key="key", time="at", out_of_range=policy)

        def forward(event: Event) -> Event:
            return event

        forward.__name__ = f"forward_{policy}"
        app.each(topic, sinks=[out])(forward)
    return app


@pytest.mark.parametrize("running", [False, True])
async def test_offsets_that_are_gone_are_left_to_the_policy(
    url: str, broker: KafkaBroker, tmp_path: Path, name: str, running: bool
) -> None:
    """Records are deleted that the worker has not read: it was not there, or stood still."""
    partitions = {"fail": 2, "earliest": 1, "latest": 1}
    for policy, count in partitions.items():
        await broker.create(f"{name}-{policy}", count)
    await broker.create(f"{name}-out", 1)

    async def put(policy: str, at: range, partition: int = 0) -> None:
        rows = [(b"k", b'{"key": "%s %d", "at": %d}' % (policy.encode(), partition, n), n) for n in at]
        await broker.put(f"{name}-{policy}", rows, partition)

    async def found() -> dict[str, list[int]]:
        told: dict[str, list[int]] = {}
        for value in await values(broker, f"{name}-out"):
            told.setdefault(value["key"], []).append(value["at"])
        return told

    async def until_found(wanted: dict[str, list[int]]) -> None:
        async def is_found() -> bool:
            return await found() == wanted

        await until_told(is_found, str(wanted))

    async def let_them_go() -> None:
        for policy in partitions:
            await put(policy, range(2, 10))
            await broker.delete_before(f"{name}-{policy}", 0, (await broker.end_offsets(f"{name}-{policy}"))[0] - 3)

    first = {"fail 0": [0, 1], "fail 1": [0], "earliest 0": [0, 1], "latest 0": [0, 1]}
    with capture_logs() as logs:
        async with at_work(passing_on(name), url, tmp_path) as worker:
            for policy in partitions:
                await put(policy, range(2))
            await put("fail", range(1), 1)
            await until_found(first)
            if running:
                # What has come between two looks of the worker, and is gone at the second.
                assert isinstance(worker.broker, KafkaBroker)
                consumer = worker.broker._readers._consumer
                parts = [part for part in consumer.assignment() if part.topic != f"{name}-out"]
                consumer.pause(*parts)
                await asyncio.sleep(0.2)  # a fetch that is under way ends, with nothing
                await let_them_go()
                consumer.resume(*parts)
                await after(put, until_found, first, logs, tmp_path)
        if not running:
            await let_them_go()
            async with at_work(passing_on(name), url, tmp_path):
                await after(put, until_found, first, logs, tmp_path)


async def after(put: Any, until_found: Any, first: dict[str, list[int]], logs: list[Any], state: Path) -> None:
    """Two go on where their policy says, the third is told and not opened, and its neighbour works on."""
    await until(lambda: len({entry["topic"] for entry in said(logs, "kafka.offset_out_of_range")}) == 2, "told")
    await put("latest", range(10, 12))
    await put("fail", range(1, 3), 1)
    await until_found({**first, "earliest 0": [0, 1, 7, 8, 9], "latest 0": [0, 1, 10, 11], "fail 1": [0, 1, 2]})
    await until(lambda: "records were deleted before they were read" in what_is_wrong(state, 10_000), "told by health")
    failed = said(logs, "task failed")
    assert {entry["log_level"] for entry in failed} == {"error"}
    assert {entry["task"].rpartition("/")[2] for entry in failed} == {"0"}
    assert all("set out_of_range to earliest or latest" in entry["error"] for entry in failed)


# --- a restore that is taken away -------------------------------------------------------------------------------------


class Slow(Worker):
    """A worker to whom frames come slowly: none behind the third before `quick`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.quick = asyncio.Event()
        self.reached: set[str] = set()

    def _frames_of(self, name: str) -> Frames | None:
        frames = super()._frames_of(name)
        assert frames is not None

        async def slowly(after: int) -> Any:
            count = 0
            async for frame in frames(after):
                assert isinstance(frame, Frame)
                yield frame
                count += 1
                if count == 3:
                    self.reached.add(name)
                    await self.quick.wait()

        return slowly


async def test_a_rebalance_in_the_midst_of_a_restore_gives_the_task_to_the_other_worker(
    url: str, traffic: Traffic, tmp_path: Path, name: str
) -> None:
    async with at_work(counting(name), url, tmp_path / "first"):
        for _ in range(6):
            await traffic.feed(20)
            await traffic.all_counted()
    slow = worker_of(counting(name), url, tmp_path / "slow", Slow)
    assert isinstance(slow, Slow)
    tasks = {f"{name}/totals/{n}" for n in range(2)}
    (tmp_path / "first").rename(tmp_path / "away")  # the frames are all that there is
    with capture_logs() as logs:
        job = asyncio.create_task(slow.run())
        await until(lambda: slow.reached == tasks, "both are being restored")
        async with at_work(counting(name), url, tmp_path / "other") as other:
            await until(lambda: not all(owned.wanted for owned in slow.owned.values()), "one is wanted elsewhere")
            slow.quick.set()
            (broken,) = await until(lambda: said(logs, "task is handed over before it was open"), "broken off")
            await until(lambda: other.health().ready and list(other.owned) == [broken["task"]], "it is opened there")
            assert {entry["began_with"] for entry in said(logs, "state restored from frames")} == {"nothing"}
            await traffic.feed(len(KEYS) * 5)
            await traffic.all_counted()
            await until(lambda: slow.health().ready, "the other one, here")
            assert set(slow.owned) == tasks - {broken["task"]}
        slow.stop()
        await asyncio.wait_for(job, 20)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
