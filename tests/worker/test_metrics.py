"""What is told of a task is what it has done: each metric, by known inputs, through rollbacks and restarts."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowkit import App, Closed, Count, Enriched, Record, Retry, Stream, Tumbling, seconds
from flowkit.clock import VirtualClock
from flowkit.errors import OutcomeUnknown
from flowkit.lookup import Cache
from flowkit.options import WorkerOptions
from flowkit.source import MemoryBroker
from flowkit.store import Checkpoints, DirectoryBlobs, LsmStore, Reading, Store, open_store, table_sizes
from flowkit.window import Splits
from flowkit.worker import IDLE, LiveTask, Meter, TaskView, exposition, random_ids, watermark_of
from flowkit.worker.calls import hold_of
from flowkit.worker.meter import BACK_PRESSURED, BUSY, Histogram

Labels = tuple[tuple[str, str], ...]


class Event(Record):
    key: str
    at: int
    n: int = 0


class Result(Record):
    key: str
    n: int


def counting(fails: set[int]) -> App:
    """Windows of 10 s, a sink topic for their results, an agent that fails on some numbers."""
    app = App("counting")
    events = app.topic("events", Event, key="key", time="at", out_of_order=1_000)
    results = app.topic("results", Result, key="key")
    sums = app.table("sums", str, int, window=Tumbling(seconds(10)))

    @app.each(events, tables=[sums], retry=Retry(attempts=2, backoff=0))
    def add(event: Event) -> None:
        sums[event.key] += event.n
        if event.n in fails:
            raise ValueError(event.n)

    @app.each(sums.closed, sinks=[results])
    def closed(w: Closed[str, int]) -> Result:
        return Result(w.key, w.value)

    return app


class One:
    """One live task, watched."""

    def __init__(self, app: App, clock: VirtualClock, broker: MemoryBroker) -> None:
        self.app, self.clock, self.broker = app, clock, broker
        self.meter = Meter(lambda: clock.now_ms() / 1000)
        self.meter.measured = True
        self.disk: list[bytes] = []
        self.live: LiveTask | None = None
        self.late: dict[str, int] = {}
        """By split, what its source says of how far behind it is."""

    async def open(self, **options: Any) -> LiveTask:
        (group,) = self.app.plan().groups
        claim = await self.broker.claim(f"{self.app.name}/{group.name}/0", "")
        self.live = LiveTask(
            self.app, group, 0, 1,
            broker=self.broker,
            topics={"dead-letters": 1, "results": 1},
            sinks={},
            store=open_store(None, disk=self.disk),
            epoch=claim.epoch,
            clock=self.clock,
            options=WorkerOptions(**options),
            new_id=random_ids(1),
            meter=self.meter,
        )  # fmt: skip
        await self.live.open()
        return self.live

    async def take(self, *events: dict[str, Any] | bytes) -> None:
        """Put events, and handle them without a commit."""
        assert self.live is not None
        rows = [(b"k", event if isinstance(event, bytes) else json.dumps(event).encode(), 0) for event in events]
        await self.broker.put("events", rows)
        await self.live.fetch(1_000)
        while (piece := await self.live.task.next(1_000)) is not None:
            await self.live.task.handle(piece)  # type: ignore[arg-type]

    async def commit(self) -> None:
        assert self.live is not None
        await self.live.task.commit()
        await self.live.task.settled()

    # As the exposition asks

    def tasks(self) -> list[TaskView]:
        live = self.live
        if live is None or not live.opened:
            return [TaskView("counting/sums/0", [], self.meter, failing="broken")]
        told: dict[str, Any] = {"positions": live.feed.positions, "late_ms": self.late}
        return [TaskView("sums/0", [live.group], self.meter, 0, live.task, [live.engine], **told)]

    def trouble(self) -> str:
        return ""

    def unready(self) -> str:
        return "" if self.live is not None and self.live.opened else "broken"

    async def ends(self) -> dict[str, int]:
        return {"events[0]": (await self.broker.end_offsets("events"))[0]}

    async def scrape(self) -> dict[str, dict[Labels, float]]:
        """All samples by name, then by their labels other than app and task."""
        return parsed(exposition(self, await self.ends()))


def parsed(text: bytes) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("app", "task")))
            assert labels not in found.get(sample.name, {}), sample
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@asynccontextmanager
async def one(fails: Sequence[int] = ()) -> AsyncIterator[One]:
    clock = VirtualClock(1_700_000_000_000)
    async with MemoryBroker(clock) as broker:
        for topic in ("events", "results", "dead-letters"):
            await broker.create(topic, 1)
        made = One(counting(set(fails)), clock, broker)
        await made.open()
        yield made
        if made.live is not None:
            await made.live.close()


AT = 1_700_000_000_000 - 60_000


def event(n: int = 1, at: int = 0, key: str = "k") -> dict[str, Any]:
    return {"key": key, "at": AT + at, "n": n}


def of(**labels: str) -> Labels:
    return tuple(sorted(labels.items()))


COUNTS = (
    *("flowkit_records_total", "flowkit_bytes_total", "flowkit_late_records_total", "flowkit_dead_letters_total"),
    *("flowkit_agent_errors_total", "flowkit_window_results_total", "flowkit_fired_windows_total"),
    *("flowkit_emitted_records_total", "flowkit_emitted_bytes_total"),
)


async def counts(watched: One) -> dict[str, dict[Labels, float]]:
    found = await watched.scrape()
    return {name: found[name] for name in COUNTS if name in found}


async def story(watched: One) -> list[bytes]:
    """Events, a late one, one that is no JSON, one that fails; two keys in the first window, which fires."""
    lines = [event(1), event(2, 1_000, "j"), event(3, 25_000), event(4, 2_000), event(13, 26_000)]
    raw = [json.dumps(line).encode() for line in lines]
    await watched.take(raw[0], raw[1], raw[2], b"{", raw[3], raw[4])
    return [*raw[:3], b"{", *raw[3:]]


async def expected(watched: One, raw: list[bytes]) -> dict[str, dict[Labels, float]]:
    letters = await watched.broker.read("dead-letters", 0, 0, 100)
    results = await watched.broker.read("results", 0, 0, 100)
    return {
        "flowkit_records_total": {of(topic="events"): 6},
        "flowkit_bytes_total": {of(topic="events"): sum(map(len, raw))},
        "flowkit_late_records_total": {of(table="sums"): 1},
        "flowkit_dead_letters_total": {of(topic="events", agent=""): 1, of(topic="events", agent="add"): 1},
        "flowkit_agent_errors_total": {of(agent="add"): 2},  # two attempts
        "flowkit_window_results_total": {of(table="sums"): 2},
        "flowkit_fired_windows_total": {of(table="sums"): 1},
        "flowkit_emitted_records_total": {of(topic="results"): 2, of(topic="dead-letters"): 2},
        "flowkit_emitted_bytes_total": {
            of(topic="results"): sum(len(value or b"") for value in results.values),
            of(topic="dead-letters"): sum(len(value or b"") for value in letters.values),
        },
    }


async def test_counts_are_exact_though_the_task_went_back_and_came_again() -> None:
    async with one([13]) as watched:
        raw = await story(watched)
        await watched.commit()
        assert await counts(watched) == await expected(watched, raw)
        assert (await watched.scrape())["flowkit_rollbacks_total"] == {(): 1}


async def test_counts_are_those_of_the_last_commit_so_that_they_never_go_back() -> None:
    async with one([13]) as watched:
        await watched.take(event(1), event(2))
        assert "flowkit_records_total" not in await watched.scrape()
        await watched.commit()
        await watched.take(event(3))
        assert watched.live is not None
        assert watched.live.counters.tally.records == {"events": 3}
        assert (await watched.scrape())["flowkit_records_total"] == {of(topic="events"): 2}
        await watched.take(event(13))  # went back, and came again
        assert (await watched.scrape())["flowkit_records_total"] == {of(topic="events"): 2}
        await watched.commit()
        assert (await watched.scrape())["flowkit_records_total"] == {of(topic="events"): 4}


async def test_counts_go_on_where_they_were_when_the_task_is_opened_again() -> None:
    async with one([13]) as watched:
        raw = await story(watched)
        await watched.commit()
        assert watched.live is not None
        await watched.take(event(5, 27_000))  # dropped with the task: it comes again
        await watched.live.close()
        watched.live = None
        await watched.open()
        assert await counts(watched) == await expected(watched, raw)
        await watched.take()
        await watched.commit()
        found = await watched.scrape()
        assert found["flowkit_records_total"] == {of(topic="events"): 7}
        assert found["flowkit_task_restarts_total"] == {(): 1}


async def test_a_commit_of_unknown_outcome_is_counted_if_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with one() as watched:
        real = watched.broker.commit

        async def answer_is_lost(*args: Any) -> None:
            await real(*args)
            raise OutcomeUnknown("the line went dead")

        monkeypatch.setattr(watched.broker, "commit", answer_is_lost)
        await watched.take(event(1), event(2))
        with pytest.raises(OutcomeUnknown):
            await watched.commit()
        monkeypatch.undo()
        assert watched.live is not None
        assert watched.meter.commit_seconds.count == 0
        await watched.live.close()
        await watched.open()
        assert (await watched.scrape())["flowkit_records_total"] == {of(topic="events"): 2}


async def test_watermark_and_lags_are_told_in_seconds_and_records() -> None:
    async with one() as watched:
        found = await watched.scrape()
        assert "flowkit_watermark_seconds" not in found  # nothing has come yet
        assert found["flowkit_source_lag_records"] == {of(topic="events"): 0}
        await watched.take(event(1, 0), event(1, 30_000))
        await watched.broker.put("events", [(b"k", b"{}", 0)] * 3)
        found = await watched.scrape()
        assert found["flowkit_watermark_seconds"] == {(): (AT + 30_000 - 1_001) / 1000}
        assert found["flowkit_watermark_lag_seconds"] == {(): 31.001}
        assert found["flowkit_event_lag_seconds"] == {of(topic="events"): 30.0}
        assert found["flowkit_source_lag_records"] == {of(topic="events"): 3}
        watched.clock.advance(5_000)
        assert (await watched.scrape())["flowkit_watermark_lag_seconds"] == {(): 36.001}


async def test_what_a_source_says_of_its_lag_is_told_by_partition_where_it_says_it() -> None:
    async with one() as watched:
        assert "flowkit_source_lag_seconds" not in await watched.scrape()
        for late in (1_500, 0):
            watched.late["events[0]"] = late
            found = await watched.scrape()
            assert found["flowkit_source_lag_seconds"] == {of(partition="0", topic="events"): late / 1000}


async def test_commits_are_counted_with_their_number_and_time() -> None:
    async with one() as watched:
        for n in range(3):
            await watched.take(event(n))
            await watched.commit()
        await watched.commit()  # nothing to commit
        found = await watched.scrape()
        assert found["flowkit_commit_seconds_count"] == {(): 3}
        assert found["flowkit_commit_seconds_bucket"][of(le="+Inf")] == 3
        assert 0 < found["flowkit_commit_seconds_sum"][()] < 60
        assert found["flowkit_commit_number"] == {(): 3}
        assert found["flowkit_last_commit_timestamp_seconds"][()] > 1_000_000_000


async def test_state_is_told_by_table_without_reading_it() -> None:
    async with one() as watched:
        await watched.take(event(1, 0, "a"), event(1, 1, "a"), event(1, 2, "b"), event(1, 12_000, "c"))
        await watched.commit()
        await watched.take(event(1, 12_000, "c"))
        await watched.commit()
        found = await watched.scrape()
        assert found["flowkit_state_keys"] == {of(table="sums"): 1}  # the first window has fired
        assert found["flowkit_state_bytes"][of(table="sums")] > 0


async def test_a_task_that_is_not_open_is_told_not_ready() -> None:
    async with one() as watched:
        found = await watched.scrape()
        assert (found["flowkit_ready"], found["flowkit_task_ready"]) == ({(): 1}, {(): 1})
        assert watched.live is not None
        await watched.live.close()
        watched.live = None
        found = await watched.scrape()
        assert (found["flowkit_ready"], found["flowkit_task_ready"]) == ({(): 0}, {(): 0})


# --- time, by a clock of the test's own -------------------------------------------------------------------------------


def ticking(meter_time: list[float]) -> Meter:
    return Meter(lambda: meter_time[0])


def test_time_is_busy_idle_or_back_pressured_and_makes_up_a_second() -> None:
    now = [100.0]
    meter = ticking(now)
    meter.look()

    def for_(seconds: float) -> None:
        now[0] += seconds

    for_(1.0)
    meter.enter(BUSY)
    for_(3.0)
    with meter.held_up():
        for_(0.5)
    for_(0.5)
    meter.enter(IDLE)
    for_(5.0)
    assert meter.seconds() == [6.0, 3.5, 0.5]
    assert meter.per_second() == [600.0, 350.0, 50.0]
    assert meter.phase == IDLE
    assert (BUSY, BACK_PRESSURED) == (1, 2)


def test_times_a_second_are_those_of_the_last_ten_seconds() -> None:
    now = [0.0]
    meter = ticking(now)
    meter.enter(BUSY)
    for _ in range(60):
        meter.look()
        now[0] += 1.0
    assert meter.per_second() == [0.0, 1000.0, 0.0]
    meter.enter(IDLE)
    for _ in range(5):
        meter.look()
        now[0] += 1.0
    assert meter.per_second()[IDLE] == pytest.approx(500, abs=60)
    for _ in range(20):
        meter.look()
        now[0] += 1.0
    assert meter.per_second() == [1000.0, 0.0, 0.0]


async def test_times_are_exposed_under_flinks_names() -> None:
    async with one() as watched:
        meter = watched.meter
        meter.enter(BUSY)
        meter.look()
        watched.clock.advance(2_000)
        meter.enter(IDLE)
        watched.clock.advance(6_000)
        found = await watched.scrape()
        assert found["flowkit_task_busyTimeMsPerSecond"] == {(): 250.0}
        assert found["flowkit_task_idleTimeMsPerSecond"] == {(): 750.0}
        assert found["flowkit_task_backPressuredTimeMsPerSecond"] == {(): 0.0}
        assert found["flowkit_task_busy_seconds_total"] == {(): 2.0}
        assert found["flowkit_task_back_pressured_seconds_total"] == {(): 0.0}


async def test_waiting_for_the_commit_before_is_back_pressure_and_work_is_busy() -> None:
    async with one() as watched:
        assert watched.live is not None
        before = list(watched.meter.seconds())
        real = watched.live.task.hook

        async def slow(step: str) -> None:
            if step == "prepared":
                watched.clock.advance(4_000)
            await real(step)

        watched.live.task.hook = slow
        await watched.take(event(1))
        await watched.live.task.commit()
        await watched.live.task.settled()
        spent = [now - then for now, then in zip(watched.meter.seconds(), before, strict=True)]
        assert spent[BACK_PRESSURED] == pytest.approx(4.0)
        assert spent[BUSY] == pytest.approx(0.0)


# --- stores on disk ---------------------------------------------------------------------------------------------------


async def test_what_a_store_has_done_is_told_and_outlives_it(tmp_path: Any) -> None:
    meter = Meter()
    for round_ in range(2):
        async with open_store(tmp_path / "store") as store:
            for n in range(4):
                await store.commit({("t", None): {b"%d" % n: b"x" * 100}})
                await store.flush()  # type: ignore[union-attr]
            await store.compact()  # type: ignore[union-attr]
            stats = meter.stats(store)
            assert (stats.commits, stats.flushes) == (4 * (round_ + 1), 4 * (round_ + 1))
            assert stats.compactions >= round_ + 1
            assert stats.compacted > 0
            assert 0 < stats.compaction_seconds <= stats.background_seconds
            assert stats.tables == 1  # of this store, not added up
            meter.closes(store, {})


def test_a_histogram_counts_each_value_once() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert list(histogram.buckets()) == [("1.0", 1), ("2.0", 3), ("+Inf", 4)]
    assert (histogram.sum, histogram.count) == (13.5, 4)


def keys_by_table(store: Reading) -> dict[str, int]:
    return {name: size.keys for name, size in table_sizes(store).items()}


async def test_a_space_that_was_dropped_is_no_longer_counted(tmp_path: Any) -> None:
    async with open_store(tmp_path / "store") as store:
        await store.commit({("t", 10): {b"a": b"x"}, ("t", 20): {b"b": b"x", b"c": b"x"}, ("u", None): {b"d": b"x"}})
        await store.flush()  # type: ignore[union-attr]
        await store.commit({("t", 20): {b"c": b"y"}})
        assert keys_by_table(store) == {"t": 4, "u": 1}  # one of them twice, until it is merged
        await store.commit({}, [("t", 20)])
        assert keys_by_table(store) == {"t": 1, "u": 1}
        await store.flush()  # type: ignore[union-attr]
        assert keys_by_table(store) == {"t": 1, "u": 1}


async def test_checkpoints_are_counted_with_what_they_uploaded(tmp_path: Any) -> None:
    async with open_store(tmp_path / "store") as store:
        await store.commit({("t", None): {b"a": b"x" * 1000}})
        checkpoints = Checkpoints(DirectoryBlobs(tmp_path / "blobs"))
        await checkpoints.claim()
        assert isinstance(store, LsmStore)
        first, second = await checkpoints.publish(store), await checkpoints.publish(store)
        stats = store.stats()
        assert stats.checkpoints == 2
        assert stats.checkpoint_uploaded == first.uploaded_bytes + second.uploaded_bytes > 0
        assert 0 < stats.checkpoint_seconds < 60


# --- every way in which windows give results and records are late -----------------------------------------------------


async def tally_of(app: App, *events: dict[str, Any]) -> dict[str, Any]:
    """What a run over `events` has counted."""
    clock = VirtualClock(1_700_000_000_000)
    async with MemoryBroker(clock) as broker:
        for topic in ("events", "dead-letters"):
            await broker.create(topic, 1)
        (group,) = app.plan().groups
        claim = await broker.claim(f"{app.name}/{group.name}/0", "")
        live = LiveTask(
            app, group, 0, 1,
            broker=broker, topics={"dead-letters": 1}, sinks={}, store=open_store(None), epoch=claim.epoch,
            clock=clock, options=WorkerOptions(), new_id=random_ids(1),
        )  # fmt: skip
        await live.open()
        await broker.put("events", [(b"k", json.dumps(event).encode(), 0) for event in events])
        await live.fetch(1_000)
        while await live.step():
            pass
        await live.finish(10)
        saved: dict[str, Any] = live.task.store.meta["counts"]
        await live.close()
        return {name: sorted(rows) for name, rows in saved.items()}


def take(closed: Closed[str, int]) -> None:
    """Somebody wants the results."""


async def test_late_results_and_what_is_late_for_the_next_table_are_counted() -> None:
    app = App("lateness")
    events = app.topic("events", Event, key="key", time="at")
    first = app.table("first", str, int, window=Tumbling(10), allowed_lateness=1_000)
    second = app.table("second", str, int, window=Tumbling(10))

    @app.each(events, tables=[first])
    def add(event: Event) -> None:
        first[event.key] += 1

    @app.each(first.closed, tables=[second])
    def count(w: Closed[str, int]) -> None:
        second[w.key] += 1

    app.each(second.closed)(take)
    found = await tally_of(app, *({"key": "k", "at": at} for at in (5, 35, 6)))
    assert found["results"] == [["first", 2], ["second", 1]]  # on time, and late; the latter is late for the second
    assert found["late"] == [["second", 1]]


async def test_results_of_full_count_windows_are_counted() -> None:
    app = App("full")
    events = app.topic("events", Event, key="key", time="at")
    pairs = app.table("pairs", str, int, window=Count(2))

    @app.each(events, tables=[pairs])
    def add(event: Event) -> None:
        pairs[event.key] += 1

    app.each(pairs.closed)(take)
    found = await tally_of(app, *({"key": "k", "at": at} for at in range(5)))
    assert found["results"] == [["pairs", 2]]


async def test_what_is_late_within_a_batch_is_counted() -> None:
    app = App("batches")
    events = app.topic("events", Event, key="key", time="at")
    sums = app.table("sums", str, int, window=Tumbling(10), late="deliver")

    @app.agent(events, tables=[sums])
    async def add(stream: Stream[Event]) -> None:
        async for batch in stream.batches(1):
            for event in batch:
                sums.at(event)[event.key] += 1

    found = await tally_of(app, *({"key": "k", "at": at} for at in (5, 35, 6)))
    assert found["late"] == [["sums", 1]]
    assert found["records"] == [["events", 3]]
    assert "failed" not in found  # to be late is no failure


async def test_what_a_store_has_done_is_told_once_while_its_task_closes(tmp_path: Any) -> None:
    """Told twice for a moment it would go back, which Prometheus takes for a restart, and for as much again."""
    seen: list[tuple[bool, int]] = []
    async with one() as watched:
        live = watched.live
        assert live is not None
        await live.close()

        @asynccontextmanager
        async def looked_at() -> AsyncIterator[Store]:
            async with open_store(tmp_path / "store") as store:
                yield store
                seen.append((live.opened, watched.meter.stats(None).flushes))

        live._store = looked_at()
        await live.open()
        await watched.take(event(1))
        await watched.commit()
        await live.task.store.flush()  # type: ignore[union-attr]
        found = await watched.scrape()
        assert found["flowkit_store_flushes_total"] == {(): 1}
        assert found["flowkit_store_files"] == {(): 1}
        await live.close()
        assert seen == [(False, 1)]


async def test_events_whose_calls_have_ended_are_counted_by_stream_and_those_under_way_hold_what_people_see() -> None:
    app = App("calls")
    events = app.topic("events", Event, key="key", time="at")

    async def call(event: Event) -> Event:
        if event.n == 0:
            raise ValueError("refused")
        return event

    @app.each(events.map_async(call))
    def take(event: Event) -> None: ...

    found = await tally_of(app, *({"key": "k", "at": at, "n": n} for at, n in ((5, 1), (35, 0), (36, 1))))
    assert found["called"] == [["events.map_async", 3]]
    assert found["dead"] == [["events", "events.map_async", 1]]

    splits = Splits()
    splits.add("events[0]", 0).high = 100
    splits.hold = hold_of({"calls": {"s": [[[[None, 80, 79, False]]], [[None, 60, 59, True]], 0]}})
    assert watermark_of(splits) == 59
    splits.hold = hold_of({})
    assert watermark_of(splits) == 99


def asking() -> App:
    """Events beside what is looked up for their key, through a cache."""
    app = App("asking")
    events = app.topic("events", Event, key="key", time="at")

    async def find(key: str) -> int | None:
        return len(key)

    @app.each(events.enrich(find, key="key", cache=Cache(10), name="found"))
    def take(pair: Enriched[Event, int | None]) -> None: ...

    return app


async def test_what_caches_before_look_ups_had_is_counted_by_stream_and_goes_on_when_the_task_is_opened_again() -> None:
    clock = VirtualClock(1_700_000_000_000)
    async with MemoryBroker(clock) as broker:
        for topic in ("events", "dead-letters"):
            await broker.create(topic, 1)
        made = One(asking(), clock, broker)

        async def take(key: str) -> None:
            await made.take(event(key=key))
            assert made.live is not None
            for _ in range(5):  # a call needs some turns of the event loop
                await asyncio.sleep(0)
                while (piece := await made.live.task.next(1_000)) is not None:
                    await made.live.task.handle(piece)  # type: ignore[arg-type]
            await made.commit()

        for keys, hits, misses in (("aab", 1, 2), ("aa", 2, 3)):
            live = await made.open()
            for key in keys:
                await take(key)
            found = await made.scrape()
            assert found["flowkit_called_events_total"][of(stream="found")] == hits + misses
            assert found["flowkit_lookup_cache_hits_total"] == {of(stream="found"): hits}
            assert found["flowkit_lookup_cache_misses_total"] == {of(stream="found"): misses}
            await live.close()


async def test_blocks_that_reads_found_in_the_cache_are_counted_for_all_stores_of_the_process(tmp_path: Any) -> None:
    async with one() as watched:
        live = watched.live
        assert live is not None
        await live.close()
        live._store = open_store(tmp_path / "store")
        await live.open()
        store = live.task.store
        await watched.take(event(1, 0, "a"))
        await watched.commit()
        assert isinstance(store, LsmStore)
        await store.flush()
        space = ("sums", store.ends("sums")[0])
        keys = [key for key, _ in store.scan(space)]
        before = await watched.scrape()
        for _ in range(3):  # it is kept at the second miss
            assert all(store.get_many(space, keys))
        found = await watched.scrape()
        grown = {
            name: found[name][()] - before[name][()]
            for name in ("flowkit_store_block_cache_hits_total", "flowkit_store_block_cache_misses_total")
        }
        assert list(grown.values()) == [1, 2]
        await live.close()
