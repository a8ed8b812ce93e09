"""A worker's life: what it refuses to start with, how it stops, what it says of its health meanwhile."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flowkit import App, ConfigError, Count
from flowkit.errors import StoreLocked
from flowkit.source import partition_of
from flowkit.worker import read_health
from tests.integration.processes import Crew, until
from tests.integration.workers import (
    Event,
    adding_up,
    an_event,
    eventually,
    new_worker,
    out_in,
    put,
    refused,
    topics_in,
    totals,
    url_of,
    working,
)
from tests.jsonl import whole_lines

CHAIN = str(Path(__file__).with_name("chain_app.py"))


# --- what it refuses to start with ------------------------------------------------------------------------------------


def written_twice() -> App:
    """Two groups that write one sink."""
    app = App("twice")
    a, b, out = app.topic("a", Event), app.topic("b", Event), app.sink("out", Event)

    @app.each(a, sinks=[out])
    def from_a(event: Event) -> Event:
        return event

    @app.each(b, sinks=[out])
    def from_b(event: Event) -> Event:
        return event

    return app


@pytest.mark.parametrize(
    ("make", "binds", "problems"),
    [
        (adding_up, {}, ["sink 'out' leads nowhere: bind it with --bind out=FILE"]),
        (
            adding_up,
            {"nothing": "a.jsonl", "out": "gopher://b/c"},
            ["no topic or sink 'nothing'", "--bind out: gopher://…: unknown scheme 'gopher'"],
        ),
        (adding_up, {"events": "a.jsonl", "out": "b.jsonl"}, ["no agent writes 'events'"]),
        (adding_up, {"out": "no/such/directory/out.jsonl"}, ["the directory no/such/directory does not exist"]),
        (adding_up, {"out": "out.parquet"}, ["a name must end in one of"]),
        (lambda: App("empty"), {}, ["app 'empty' has no agents and no declared tables"]),
    ],
)
async def test_wrong_bindings_are_told_before_anything_starts(
    tmp_path: Path, make: Callable[[], App], binds: dict[str, str], problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        await refused(new_worker(make(), tmp_path, binds=binds))
    assert len(caught.value.problems) == len(problems)
    for problem, told in zip(problems, caught.value.problems, strict=True):
        assert problem in told
    assert not any(path.exists() for path in (tmp_path / "state", tmp_path / "topics"))


async def test_a_topic_that_agents_read_cannot_be_bound_to_a_file(tmp_path: Path) -> None:
    app = App("chained")
    first, second = app.topic("first", Event), app.topic("second", Event)

    @app.each(first, sinks=[second])
    def forward(event: Event) -> Event:
        return event

    app.table("n", of=second, by="key", n=Count())
    with pytest.raises(ConfigError, match="table 'n' reads topic 'second', so it has to be on the broker"):
        await refused(new_worker(app, tmp_path, binds={"second": "second.jsonl"}))


def test_two_outputs_cannot_be_bound_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    worker = new_worker(adding_up(), tmp_path, binds={"out": str(file), "dead-letters": f"file://{file}"})
    with pytest.raises(ConfigError, match=r"--bind dead-letters=.*: 'out' leads there, and a file has one writer"):
        worker.wiring.check()


@pytest.mark.parametrize(
    ("make", "topics", "file", "missing"),
    [
        (adding_up, {"events": 2}, "out.jsonl", "2 tasks write it, and a file has one writer: put {partition} into"),
        (written_twice, {"a": 1, "b": 1}, "out.jsonl", "2 tasks write it, and a file has one writer: put {group} into"),
        (written_twice, {"a": 2, "b": 1}, "out.jsonl", "3 tasks write it, .* put {group} and {partition} into"),
    ],
)
async def test_a_file_has_one_writer(
    tmp_path: Path, make: Callable[[], App], topics: dict[str, int], file: str, missing: str
) -> None:
    async with topics_in(tmp_path, **topics):
        with pytest.raises(ConfigError, match=missing):
            await refused(new_worker(make(), tmp_path, binds={"out": str(tmp_path / file)}))


async def test_each_task_writes_a_file_of_its_own(tmp_path: Path) -> None:
    worker = working(written_twice(), tmp_path, binds={"out": str(tmp_path / "{group}-{partition}.jsonl")})
    async with topics_in(tmp_path, a=2, b=1) as broker, worker:
        for topic, partition in (("a", 0), ("a", 1), ("b", 0)):
            await put(broker, topic, an_event(partition), partition=partition)
        names, wanted = ("a-0", "a-1", "b-0"), [[an_event(0)], [an_event(1)], [an_event(0)]]
        await eventually(lambda: [whole_lines(tmp_path / f"from_{n}.jsonl") for n in names] == wanted, "three files")


async def test_topics_that_share_a_table_need_equal_partition_counts(tmp_path: Path) -> None:
    app = App("unequal")
    a, b = app.topic("a", Event, key="key"), app.topic("b", Event, key="key")
    app.topic("c", Event)
    table = app.table("table", str, int)

    @app.each(a, b, app.topics["c"], tables=[table])
    def count(event: Event) -> None:
        table[event.key] += 1

    async with topics_in(tmp_path, a=4, b=2) as broker:
        with pytest.raises(ConfigError, match=r"agents count share state, .* equal partition counts: a has 4, b has 2"):
            await refused(new_worker(app, tmp_path))
        assert await broker.topics() == {"a": 4, "b": 2}  # c was not made, nor the dead letters


async def test_missing_topics_are_made_to_fit(tmp_path: Path) -> None:
    app = App("making")
    a, b = app.topic("a", Event, key="key"), app.topic("b", Event, key="key")
    out = app.topic("out", Event, key="key")
    table = app.table("table", str, int)

    @app.each(a, b, tables=[table], sinks=[out])
    def count(event: Event) -> Event:
        table[event.key] += 1
        return event

    async with topics_in(tmp_path, a=3) as broker:
        with capture_logs() as logs:
            async with working(app, tmp_path, partitions=2):
                await eventually(lambda: [log for log in logs if log["event"] == "worker started"], "started")
        assert await broker.topics() == {"a": 3, "b": 3, "out": 2, "dead-letters": 2}
        made = {log["topic"]: log["partitions"] for log in logs if log["event"] == "topic made"}
        assert made == {"b": 3, "out": 2, "dead-letters": 2}


async def test_the_state_directory_of_another_app_is_refused(tmp_path: Path) -> None:
    async with working(adding_up("first"), tmp_path, binds=out_in(tmp_path)) as worker:
        await eventually(lambda: worker.owned, "a task")
    with pytest.raises(ConfigError, match="belongs to the app 'first', not to 'second': give each app its own --state"):
        await refused(new_worker(adding_up("second"), tmp_path, binds=out_in(tmp_path)))


async def test_the_state_directory_of_a_newer_flowkit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "flowkit.json").write_text('{"format": 99, "app": "adding"}')
    with pytest.raises(ConfigError, match=r"written by a newer flowkit \(format 99;.*upgrade flowkit"):
        await refused(new_worker(adding_up(), tmp_path, binds=out_in(tmp_path)))


async def test_one_state_directory_takes_one_worker(tmp_path: Path) -> None:
    async with working(adding_up(), tmp_path, binds=out_in(tmp_path)) as worker:
        await eventually(lambda: worker.owned, "a task")
        with pytest.raises(StoreLocked, match=rf"in use by process {os.getpid()}: stop it, or give this one its own"):
            await refused(new_worker(adding_up(), tmp_path, binds=out_in(tmp_path)))


# --- stopping ---------------------------------------------------------------------------------------------------------


def worker_words(directory: Path, state: str = "state") -> list[str]:
    return ["worker", CHAIN, "--broker", url_of(directory), "--state", state, "--bind", "ledger=ledger.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly(crew: Crew, tmp_path: Path, number: signal.Signals) -> None:
    async with topics_in(tmp_path, events=1, windows=1) as broker:
        await put(broker, "events", *(an_event(n, at=50 * n) for n in range(1_000)))
        worker = crew.flowkit("worker", *worker_words(tmp_path), env={"FLOWKIT_COMMIT_INTERVAL": "3600000"})
        worker.heard("task opened")
        worker.send(number)
        assert worker.wait(20) == 0, worker.said()
        assert worker.heard("worker stopped")
        done = await broker.positions("chain/sums/0")
        windows = (await broker.end_offsets("windows"))[0]
        # Two events a window, which closes 20 ms after its end: what is committed is whole.
        assert windows == max((done["events[0]"] - 1) // 2, 0) if done else windows == 0
        assert await broker.members() == []
        assert {lease.owner for lease in await broker.leases()} == {""}
    assert not (tmp_path / "state" / "health.json").exists()


async def test_a_second_worker_on_its_directory_is_told_the_first_ones_pid(crew: Crew, tmp_path: Path) -> None:
    first = crew.flowkit("first", *worker_words(tmp_path))
    first.heard("worker started")
    second = crew.flowkit("second", *worker_words(tmp_path))
    assert second.wait() == 3
    assert f"in use by process {first.pid}: stop it, or give this one its own --state" in second.said()
    assert "Traceback" not in second.said()


async def test_a_successor_need_not_wait_for_the_leases_of_the_dead(crew: Crew, tmp_path: Path) -> None:
    long = {"FLOWKIT_LEASE_TTL": "600000"}
    first = crew.flowkit("first", *worker_words(tmp_path), env=long)
    first.heard("task opened")
    first.kill()
    second = crew.flowkit("second", *worker_words(tmp_path), env=long)
    assert second.heard("task opened", 10)


async def test_what_does_not_end_within_the_grace_is_dropped_and_comes_again(tmp_path: Path) -> None:
    app = App("slow")
    events = app.topic("events", Event)
    out = app.sink("out", Event)
    patient, begun = False, asyncio.Event()

    @app.each(events, sinks=[out])
    async def wait(event: Event) -> Event:
        begun.set()
        if not patient:
            await asyncio.Event().wait()
        return event

    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", an_event(1), an_event(2))
        with capture_logs() as logs:
            async with working(app, tmp_path, binds=out_in(tmp_path), grace=200):
                await begun.wait()
                stopped_at = time.monotonic()
            assert time.monotonic() - stopped_at < 3
        (told,) = [log for log in logs if log["event"].startswith("not done within the grace")]
        assert "wait (" in str(told["waits_for"])
        patient = True
        async with working(app, tmp_path, binds=out_in(tmp_path)):
            await eventually(lambda: whole_lines(tmp_path / "out.jsonl") == [an_event(1), an_event(2)], "both events")


async def test_a_stop_commits_what_is_done_and_leaves_the_rest(tmp_path: Path) -> None:
    app = App("slow")
    events = app.topic("events", Event)
    out = app.sink("out", Event)

    @app.each(events, sinks=[out])
    async def slowly(event: Event) -> Event:
        await asyncio.sleep(0.02)
        return event

    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", *map(an_event, range(200)))
        async with working(app, tmp_path, binds=out_in(tmp_path), grace=600):
            await eventually(lambda: len(whole_lines(tmp_path / "out.jsonl")) >= 5, "some events")
        done = len(whole_lines(tmp_path / "out.jsonl"))
        assert 5 <= done < 200
        assert await broker.positions("slow/slowly/0") == {"events[0]": done}


# --- health -----------------------------------------------------------------------------------------------------------


async def test_health_says_ready_stalled_silent_and_dead(crew: Crew, tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(HANGS)
    state = tmp_path / "state"
    with pytest.raises(ConfigError, match="not there: no worker runs with this state directory"):
        read_health(state)
    async with topics_in(tmp_path, events=1) as broker:
        words = ["worker", "hang.py", "--broker", url_of(tmp_path), "--state", "state"]
        env = {"FLOWKIT_STALL_AFTER": "500", "FLOWKIT_COMMIT_INTERVAL": "50"}
        worker = crew.flowkit("worker", *words, env=env)
        worker.heard("task opened")
        until(lambda: (state / "health.json").exists() and read_health(state).ready, "ready")
        assert (read_health(state).pid, read_health(state).tasks) == (worker.pid, ["hang/hang/0"])
        await put(broker, "events", an_event(1))
        until(lambda: read_health(state).stalled == ["hang/hang/0"], "stalled")
    worker.send(signal.SIGSTOP)
    until(lambda: silent(state), "silent")
    worker.send(signal.SIGCONT)
    until(lambda: not silent(state), "no longer silent")
    worker.kill()
    with pytest.raises(ConfigError, match=f"worker {worker.pid} is dead"):
        read_health(state)


HANGS = """
import asyncio, flowkit
app = flowkit.App("hang")
events = app.topic("events", dict)

@app.each(events)
async def hang(event: dict) -> None:
    await asyncio.Event().wait()
"""


def silent(state: Path) -> bool:
    try:
        read_health(state, max_age_ms=1_500)
    except ConfigError as error:
        return "has been silent for" in str(error)
    return False


async def test_a_task_that_cannot_be_opened_is_told_and_harms_no_other(tmp_path: Path) -> None:
    app = adding_up()
    binds = {"out": str(tmp_path / "out-{partition}.jsonl")}
    async with topics_in(tmp_path, events=12) as broker:
        async with working(app, tmp_path, binds=binds):
            for partition in (1, 2):
                await put(broker, "events", an_event(1, key=KEYS_OF_12[partition]), partition=partition)
            await eventually(lambda: [totals(tmp_path, f"out-{p}.jsonl") for p in (1, 2)] == [[1], [1]], "both")
        for partition in (1, 2):
            await put(broker, "events", *[an_event(1, key=KEYS_OF_12[partition])] * 3, partition=partition)
        await broker.delete_before("events", 1, 3)  # retention was faster than the worker
        with capture_logs() as logs:
            async with working(app, tmp_path, binds=binds):
                await eventually(lambda: totals(tmp_path, "out-2.jsonl") == [1, 2, 3, 4], "the other goes on")
                failed = [log for log in logs if log["event"].startswith("task failed")]
                assert {log["task"] for log in failed} == {"adding/totals/1"}
                assert "records were deleted before they were read" in failed[0]["error"]
                await eventually(lambda: read_health(tmp_path / "state").failing, "told in the health file")
                assert not read_health(tmp_path / "state").ready
                await eventually(
                    lambda: len([log for log in logs if log["event"].startswith("task failed")]) > 1, "retry"
                )


KEYS_OF_12 = {partition_of(f"key {n}".encode(), 12): f"key {n}" for n in range(500)}
"""A key of each of 12 partitions."""


async def test_a_worker_that_was_forgotten_joins_again(tmp_path: Path) -> None:
    async with topics_in(tmp_path, events=1) as broker:
        with capture_logs() as logs:
            async with working(adding_up(), tmp_path, binds=out_in(tmp_path), lease_ttl=300) as worker:
                await put(broker, "events", an_event(1))
                await eventually(lambda: totals(tmp_path) == [1], "the first event")
                await broker.leave(worker.id)
                await eventually(lambda: [log for log in logs if log["event"].startswith("membership lost")], "noticed")
                await put(broker, "events", an_event(10))
                await eventually(lambda: totals(tmp_path) == [1, 11], "the second event")


# --- resources --------------------------------------------------------------------------------------------------------


async def test_a_resource_is_made_once_a_worker_and_closed_at_its_end(tmp_path: Path) -> None:
    app = App("resources")
    events = app.topic("events", Event)
    happened: list[str] = []

    @app.resource
    async def client() -> AsyncIterator[str]:
        happened.append("made")
        yield "the client"
        happened.append("closed")

    @app.each(events)
    def use(event: Event) -> None:
        happened.append(f"{event.value} by {client()}")

    async with topics_in(tmp_path, events=3) as broker, working(app, tmp_path):
        for partition in range(3):
            await put(broker, "events", an_event(partition), partition=partition)
        await eventually(lambda: len(happened) == 4, "used in three tasks")
    assert [happened[0], *sorted(happened[1:4]), happened[4]] == [
        "made",
        *(f"{n} by the client" for n in range(3)),
        "closed",
    ]


async def test_a_group_that_begins_anew_under_another_name_is_told(tmp_path: Path) -> None:
    async with topics_in(tmp_path, events=1) as broker:
        await put(broker, "events", an_event(1))
        told = []
        for table in ("totals", "totals", "sums"):
            with capture_logs() as logs:
                async with working(adding_up(table=table), tmp_path, binds=out_in(tmp_path)):
                    await eventually(lambda: totals(tmp_path), "the event")
            told.append([log for log in logs if log["event"].startswith("a group of tasks begins anew")])
    assert [len(each) for each in told] == [0, 0, 1]
    assert (told[2][0]["group"], told[2][0]["reads"], told[2][0]["instead_of"]) == ("sums", ["events"], "totals")
