"""Prometheus metrics of a worker or a bounded run, made from what its tasks have counted when they are scraped.

Counts by topic, agent and table are those of the last commit: they never go back, not at a rollback nor at a restart,
for they are part of the state (see `tally`). All else is of this process. Nothing here costs a task anything between
two scrapes, and no scrape reads a table.
"""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.store import block_cache, table_sizes
from flowkit.worker.meter import BACK_PRESSURED, BUSY, IDLE, Histogram
from flowkit.worker.tally import counts_of
from flowkit.worker.view import TaskView, Watched, behind, watermark_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TASK = ("app", "task")

COUNTS: Sequence[tuple[str, str, str, tuple[str, ...]]] = (
    ("records", "records", "Records taken in, unusable ones included.", ("topic",)),
    ("bytes", "bytes", "Bytes of the values taken in, while metrics were asked for.", ("topic",)),
    ("late", "late_records", "Records that came after the end of all their windows of a table.", ("table",)),
    ("dead", "dead_letters", "Records given up: unusable (no agent), or failed by an agent.", ("topic", "agent")),
    ("failed", "agent_errors", "Attempts at an event in which an agent raised.", ("agent",)),
    ("results", "window_results", "Results of windows handed out: one a key, with early and late ones.", ("table",)),
    ("fired", "fired_windows", "Times that the windows of one end were fired, all keys together.", ("table",)),
    ("called", "called_events", "Events whose calls have ended, those given up included.", ("stream",)),
    ("emitted", "emitted_records", "Records sent to a topic or sink, dead letters included.", ("topic",)),
    ("emitted_bytes", "emitted_bytes", "Bytes of the values sent, while metrics were asked for.", ("topic",)),
)
"""Column of the tally, name, help, labels."""

STORE_COUNTS = (
    ("flushes", "store_flushes", "Memtables written to sstables."),
    ("flushed", "store_flushed_bytes", "Bytes of sstables written by flushes."),
    ("compactions", "compactions", "Compactions that merged files."),
    ("compaction_read", "compaction_read_bytes", "Bytes read by compactions."),
    ("compacted", "compaction_written_bytes", "Bytes written by compactions."),
    ("compaction_seconds", "compaction_seconds", "Time that compactions took."),
    ("waited_seconds", "store_waited_seconds", "Time that commits waited for flushes."),
    ("checkpoints", "checkpoints", "Checkpoints published."),
    ("checkpoint_uploaded", "checkpoint_uploaded_bytes", "Bytes uploaded for checkpoints."),
    ("checkpoint_seconds", "checkpoint_seconds", "Time that checkpoints took."),
)
STORE_SIZES = (
    ("memtable", "store_memtable_bytes", "Bytes in memory that are in no sstable yet."),
    ("table_bytes", "store_file_bytes", "Bytes of sstables."),
    ("tables", "store_files", "Sstables."),
)
PHASES = ((BUSY, "busy", "busy"), (IDLE, "idle", "idle"), (BACK_PRESSURED, "back_pressured", "backPressured"))


def exposition(watched: Watched, ends: Mapping[str, int] | None = None) -> bytes:
    """All metrics in Prometheus' text format. `ends` are what `Watched.ends` gave, for the lag of sources."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TaskCollector(watched, ends or {}))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class TaskCollector(Collector):
    """The metrics of all tasks, asked for anew at each scrape."""

    def __init__(self, watched: Watched, ends: Mapping[str, int]) -> None:
        self.watched, self.ends = watched, ends
        self.app = watched.app.name

    def collect(self) -> Iterator[Metric]:
        views = self.watched.tasks()
        ready = _gauge("ready", "1 if all tasks are recovered and running.", ("app",))
        ready.add_metric([self.app], float(not self.watched.unready()))
        yield ready
        opened = [view for view in views if view.task is not None]
        yield from self._tasks(views)
        yield from self._counts(opened)
        yield self._calls(opened)
        yield from self._caches(opened)
        yield from self._times(opened)
        yield from self._commits(views)
        yield from self._stores(opened)

    def _labels(self, view: TaskView) -> list[str]:
        return [self.app, view.name]

    def _tasks(self, views: Sequence[TaskView]) -> Iterator[Metric]:
        up = _gauge("task_ready", "1 if the task is recovered and running.", TASK)
        stalled = _gauge("task_stalled", "1 if the watchdog sees no progress.", TASK)
        restarts = _counter("task_restarts", "Times that the task was opened again after a failure or a stall.", TASK)
        rollbacks = _counter("rollbacks", "Times that the task went back to its last commit.", TASK)
        spent = [_counter(f"task_{name}_seconds", f"Time that the task was {name}.", TASK) for _, name, _ in PHASES]
        rates = [
            _gauge(f"task_{flink}TimeMsPerSecond", f"Time (ms a second) that the task was {name}, of late.", TASK)
            for _, name, flink in PHASES
        ]
        for view in views:
            labels, meter = self._labels(view), view.meter
            up.add_metric(labels, float(view.ready))
            stalled.add_metric(labels, float(view.stalled))
            restarts.add_metric(labels, max(0, meter.opened - 1))
            rollbacks.add_metric(labels, meter.rollbacks)
            seconds, lately = meter.seconds(), meter.per_second()
            for (phase, _, _), total, rate in zip(PHASES, spent, rates, strict=True):
                total.add_metric(labels, seconds[phase])
                rate.add_metric(labels, lately[phase])
        yield from (up, stalled, restarts, rollbacks, *spent, *rates)

    def _counts(self, views: Sequence[TaskView]) -> Iterator[Metric]:
        for column, name, what, names in COUNTS:
            family = _counter(name, what, (*TASK, *names))
            for view in views:
                for labels, n in counts_of(view.meta.get("counts", {}), column, single=False).items():
                    family.add_metric([*self._labels(view), *labels], n)
            yield family

    def _calls(self, views: Sequence[TaskView]) -> Metric:
        under_way = _gauge("calls_under_way", "Calls of async functions that are not handed on yet.", (*TASK, "stream"))
        for view in views:
            for driver in (driver for engine in view.engines for driver in engine.calls.drivers):
                under_way.add_metric([*self._labels(view), driver.name], len(driver.pending))
        return under_way

    def _caches(self, views: Sequence[TaskView]) -> Iterator[Metric]:
        streams = (*TASK, "stream")
        hits = _counter("lookup_cache_hits", "Keys whose answer the cache before a look-up had.", streams)
        misses = _counter("lookup_cache_misses", "Keys for which it was looked up, or waited for.", streams)
        for view in views:
            now = {name: counts for engine in view.engines for name, counts in engine.calls.cached().items()}
            for name, (hit, missed) in view.meter.cached(now).items():
                hits.add_metric([*self._labels(view), name], hit)
                misses.add_metric([*self._labels(view), name], missed)
        yield from (hits, misses)
        # All stores of a process share one, so that it has no task.
        found = _counter("store_block_cache_hits", "Blocks of sstables that reads found in the cache.", ("app",))
        read = _counter("store_block_cache_misses", "Blocks of sstables that reads took from their files.", ("app",))
        blocks = {id(cache): cache for view in views if (cache := block_cache(view.store)) is not None}
        for family, counts in ((found, [c.hits for c in blocks.values()]), (read, [c.misses for c in blocks.values()])):
            if counts:
                family.add_metric([self.app], sum(counts))
        yield from (found, read)

    def _times(self, views: Sequence[TaskView]) -> Iterator[Metric]:
        mark = _gauge("watermark_seconds", "How far event time has come, as a time since the epoch.", TASK)
        lag = _gauge("watermark_lag_seconds", "How far the watermark is behind the clock.", TASK)
        event_lag = _gauge("event_lag_seconds", "How far the newest event of a topic is behind the clock.", TASK_TOPIC)
        source_lag = _gauge("source_lag_records", "Records of a topic that were not taken in yet.", TASK_TOPIC)
        late = _gauge(
            "source_lag_seconds",
            "How far what was read last of a partition is behind its newest record, by the source's own word "
            "(Kinesis: millisBehindLatest); 0 at the tip.",
            (*TASK_TOPIC, "partition"),
        )
        now = self.watched.clock.now_ms()
        for view in views:
            labels = self._labels(view)
            for split, behind_ms in view.late_splits():
                late.add_metric([*labels, split.topic, str(split.number)], behind_ms / 1000)
            watermark = min((watermark_of(engine.splits) for engine in view.engines), default=MIN_TIME)
            if MIN_TIME < watermark < END_OF_TIME:  # before the first event, and after the last, there is none
                mark.add_metric(labels, watermark / 1000)
                lag.add_metric(labels, (now - watermark) / 1000)
            for topic, high in _highs(view).items():
                event_lag.add_metric([*labels, topic], (now - high) / 1000)
            for topic, records in behind(view, self.ends).items():
                source_lag.add_metric([*labels, topic], records)
        yield from (mark, lag, event_lag, source_lag, late)

    def _commits(self, views: Sequence[TaskView]) -> Iterator[Metric]:
        took = HistogramMetricFamily("flowkit_commit_seconds", "Time from cut to delivery.", labels=TASK)
        sizes = HistogramMetricFamily("flowkit_commit_bytes", "Bytes of a commit in the log.", labels=TASK)
        last = _gauge("last_commit_timestamp_seconds", "When the last commit was through.", TASK)
        number = _gauge("commit_number", "The number of the last commit since the state began.", TASK)
        kept = _gauge("last_checkpoint_timestamp_seconds", "When a checkpoint last held all commits.", TASK)
        failed = _counter("checkpoint_failures", "Checkpoints not published, and frames not trimmed, at a try.", TASK)
        for view in views:
            labels, meter = self._labels(view), view.meter
            _add_histogram(took, labels, meter.commit_seconds)
            _add_histogram(sizes, labels, meter.commit_bytes)
            if meter.committed_at is not None:
                last.add_metric(labels, meter.committed_at / 1000)
            if meter.checkpointed_at is not None:
                kept.add_metric(labels, meter.checkpointed_at / 1000)
            failed.add_metric(labels, meter.checkpoint_failures)
            if view.store is not None:
                number.add_metric(labels, view.store.number)
        yield from (took, sizes, last, number, kept, failed)

    def _stores(self, views: Sequence[TaskView]) -> Iterator[Metric]:
        keys = _gauge("state_keys", "Keys of a table, at most: see flowkit.store.Size.", (*TASK, "table"))
        size = _gauge("state_bytes", "Bytes of a table's keys and values, about.", (*TASK, "table"))
        done = [_counter(name, what, TASK) for _, name, what in STORE_COUNTS]
        sizes = [_gauge(name, what, TASK) for _, name, what in STORE_SIZES]
        for view in views:
            assert view.store is not None
            labels, stats = self._labels(view), view.meter.stats(view.store)
            for table, held in sorted(table_sizes(view.store).items()):
                keys.add_metric([*labels, table], held.keys)
                size.add_metric([*labels, table], held.bytes)
            for (field, _, _), family in zip(STORE_COUNTS, done, strict=True):
                family.add_metric(labels, getattr(stats, field))
            for (field, _, _), gauge in zip(STORE_SIZES, sizes, strict=True):
                gauge.add_metric(labels, getattr(stats, field))
        yield from (keys, size, *done, *sizes)


TASK_TOPIC = (*TASK, "topic")


def _gauge(name: str, what: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flowkit_{name}", what, labels=labels)


def _counter(name: str, what: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"flowkit_{name}", what, labels=labels)


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    family.add_metric(labels, list(histogram.buckets()), histogram.sum)


def _highs(view: TaskView) -> dict[str, int]:
    """The newest event time (ms) of each topic that has had any."""
    found: dict[str, int] = {}
    for engine in view.engines:
        for split in engine.splits.by_name.values():
            if split.high > MIN_TIME:
                topic = split.topic
                found[topic] = max(found.get(topic, MIN_TIME), split.high)
    return found
