"""Workers over topics by pattern, on topics in a directory: what they wait for, find, and take up again."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from flowkit import App
from flowkit.worker import Worker, WorkerView, read_health
from tests.integration.test_savepoint import _quick, carry_over, take
from tests.integration.workers import (
    Event,
    Total,
    an_event,
    eventually,
    new_worker,
    out_in,
    put,
    topics_in,
    working,
)
from tests.jsonl import whole_lines

__all__ = ["_quick"]  # the fixture of the tests of savepoints


def adding_up() -> App:
    """All topics `in.*`, table `totals`, sink `out`: the running total of each key."""
    app = App("adding")
    events = app.topic("events", Event, key="key", time="at", pattern=r"in\..*")
    out = app.sink("out", Total)
    totals = app.table("totals", str, int)

    @app.each(events, tables=[totals], sinks=[out])
    def add(event: Event) -> Total:
        totals[event.key] += event.value
        return Total(event.key, totals[event.key])

    return app


def totals(directory: Path) -> list[tuple[str, int]]:
    return [(line["key"], line["total"]) for line in whole_lines(directory / "out.jsonl")]


def runs(worker: Worker) -> bool:
    return bool(worker.owned) and all(owned.ready for owned in worker.owned.values())


async def test_a_worker_waits_for_the_first_topic_and_joins_later_ones(tmp_path: Path) -> None:
    async with topics_in(tmp_path) as broker:
        app = adding_up()
        async with working(app, tmp_path, binds=out_in(tmp_path), topic_refresh=50) as worker:
            view = WorkerView(worker)
            why = r"no topic matches yet: 'in\\..*'"
            await eventually(lambda: view.unready() == why, "it says why it does not begin")
            await eventually((tmp_path / "state" / "health.json").exists, "it says that it lives")
            assert not read_health(tmp_path / "state").ready
            assert await broker.topics() == {}
            await broker.create("in.eu", 1)
            await put(broker, "in.eu", an_event(1), an_event(2))
            await eventually(lambda: totals(tmp_path) == [("k", 1), ("k", 3)], "the first topic is read")
            await broker.create("in.us", 1)
            await put(broker, "in.us", an_event(4))
            await eventually(lambda: totals(tmp_path)[2:] == [("k", 7)], "the second topic is read")
            assert view.unready() == ""
            assert (await view.ends()).items() >= {"in.eu[0]": 2, "in.us[0]": 1}.items()
        assert await broker.positions("adding/totals/0") == {"in.eu[0]": 2, "in.us[0]": 1}
        async with working(adding_up(), tmp_path, binds=out_in(tmp_path), topic_refresh=50):
            await put(broker, "in.us", an_event(1))
            await eventually(lambda: totals(tmp_path)[3:] == [("k", 8)], "it goes on from where it was")


async def test_a_worker_that_waits_can_be_stopped(tmp_path: Path) -> None:
    worker = new_worker(adding_up(), tmp_path, binds=out_in(tmp_path), topic_refresh=60_000)
    job = asyncio.create_task(worker.run())
    await eventually(lambda: worker.waits_for, "it waits")
    worker.stop()
    async with asyncio.timeout(5):
        await job
    assert not (tmp_path / "state" / "health.json").exists()


async def test_a_topic_of_another_size_is_told_and_does_no_harm(tmp_path: Path) -> None:
    async with topics_in(tmp_path, **{"in.eu": 2}) as broker:
        binds = {"out": str(tmp_path / "out-{partition}.jsonl")}
        with capture_logs() as logs:
            async with working(adding_up(), tmp_path, binds=binds, topic_refresh=50) as worker:
                await eventually(lambda: runs(worker), "it runs")
                await broker.create("in.odd", 3)
                await eventually(lambda: [e for e in logs if e["log_level"] == "error"], "it is told")
                await put(broker, "in.eu", an_event(5))
                await eventually(lambda: [*tmp_path.glob("out-*.jsonl")], "the others are read")
            async with working(adding_up(), tmp_path, binds=binds, topic_refresh=50) as worker:
                await eventually(
                    lambda: all(o.ready for o in worker.owned.values()) and worker.owned, "it starts again"
                )
        told = [entry for entry in logs if entry["log_level"] == "error"]
        assert [(entry["found"], entry["partitions"], entry["wanted"]) for entry in told] == [("in.odd", 3, 2)] * 2


async def test_every_task_reads_all_of_a_pattern_that_feeds_a_broadcast_table(tmp_path: Path) -> None:
    app = App("adding")
    rates = app.topic("rates", Event, key="key", pattern=r"rates\..*")
    events = app.topic("events", Event, key="key")
    rate = app.table("rate", str, int, broadcast=True)
    out = app.sink("out", Total)

    @app.each(rates, tables=[rate])
    def learn(event: Event) -> None:
        rate[event.key] = event.value

    @app.each(events, reads=[rate], sinks=[out])
    def use(event: Event) -> Total:
        return Total(event.key, rate.get("k") or 0)

    binds = {"out": str(tmp_path / "out-{partition}.jsonl")}
    async with (
        topics_in(tmp_path, **{"events": 2, "rates.eu": 1}) as broker,
        working(app, tmp_path, binds=binds, topic_refresh=50) as worker,
    ):
        await eventually(lambda: runs(worker), "it runs")
        await broker.create("rates.us", 3)  # those need no equal numbers
        await put(broker, "rates.us", an_event(7), partition=2)
        for partition in range(2):
            name = f"adding/learn/{partition}"

            def learnt(name: str = name) -> bool:
                live = worker.owned[name].live
                return live is not None and live.feed.positions.get("rates.us[2]") == 1

            await eventually(learnt, "every task has learnt it")
            await put(broker, "events", an_event(), partition=partition)
        for partition in range(2):
            path = tmp_path / f"out-{partition}.jsonl"
            await eventually(lambda path=path: [r["total"] for r in whole_lines(path)] == [7], "it is used")  # type: ignore[misc]


async def test_an_app_goes_on_from_a_savepoint_with_topics_that_came_since(tmp_path: Path) -> None:
    old, new, saved = tmp_path / "old", tmp_path / "new", tmp_path / "old" / "saved"
    old.mkdir()
    new.mkdir()
    refresh = {"topic_refresh": 50}
    async with topics_in(old, **{"in.eu": 1}) as broker, topics_in(new, **{"in.eu": 1, "in.us": 1}) as other:
        kept = {"checkpoints": str(old / "kept"), "checkpoint_interval": 3_600_000}
        async with working(adding_up(), old, binds=out_in(old), **kept, **refresh):
            await put(broker, "in.eu", an_event(1))
            await eventually(lambda: totals(old) == [("k", 1)], "the first topic is read")
            await broker.create("in.us", 1)
            await put(broker, "in.us", an_event(2))
            await eventually(lambda: totals(old) == [("k", 1), ("k", 3)], "the second topic is read")
            manifest = await take(old, "adding")
        assert manifest.seals[0].positions == {"in.eu[0]": 1, "in.us[0]": 1}
        for topic in ("in.eu", "in.us"):
            await carry_over(broker, other, topic)
            await put(other, topic, an_event(10))
        await other.create("in.asia", 1)
        await put(other, "in.asia", an_event(100))
        async with working(adding_up(), new, binds=out_in(new), from_savepoint=str(saved), **refresh):
            await eventually(lambda: len(totals(new)) == 3, "it goes on")
        assert totals(new)[-1] == ("k", 123)
