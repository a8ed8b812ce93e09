"""A worker's metrics as lines in CloudWatch's Embedded Metric Format, under the names of Managed Flink and of Flink.

CloudWatch makes metrics of such lines wherever they reach one of its log groups: by the awslogs driver, FireLens, the
agent, or Lambda. Each has one set of dimensions, so that no value is counted twice: `Application` for all of a worker's
tasks together, and, with `level=task`, one a task with `Application` and `Task`.

name                          unit          what it is here                                               of several
millisBehindLatest            Milliseconds  how far reading is behind the newest record (Kinesis)         largest
records_lag_max               Count         of a split, records not taken in yet (Kafka, embedded)        largest
currentInputWatermark         Milliseconds  how far the splits have come, in event time                   smallest
currentOutputWatermark        Milliseconds  the same, but for what calls under way hold back              smallest
numRecordsIn                  Count         records taken in and committed, since the line before         sum
numRecordsInPerSecond         Count/Second  the same, of the last ten seconds                             sum
numRecordsOut                 Count         records sent, since the line before                           sum
numRecordsOutPerSecond        Count/Second  the same, a second                                            sum
numLateRecordsDropped         Count         too late for all of their windows, since the line before      sum
numDeadLetters                Count         flowkit's own: given up, since the line before                sum
lastCheckpointDuration        Milliseconds  of the last one published (--checkpoints)                     largest
lastCheckpointSize            Bytes         uploaded for it: what was new                                 sum
numberOfFailedCheckpoints     Count         tries that failed, since the line before                      sum
fullRestarts                  Count         times that tasks were opened again in this process            sum
busyTimeMsPerSecond           Milliseconds  and idleTimeMsPerSecond, backPressuredTimeMsPerSecond         mean
uptime                        Milliseconds  since all of the worker's tasks run without interruption      of the worker
downtime                      Milliseconds  since they do not; 0 while they run                           of the worker

Managed Flink reports totals where it says `since the line before` here: so the statistic Sum is the number of a period.
What is not known (no event yet, no checkpoint, no such source) is left out. `ready` has no such name: see downtime.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.worker.meter import BACK_PRESSURED, BUSY, IDLE
from flowkit.worker.tally import Tally
from flowkit.worker.view import TaskView, Watched, reached_of, watermark_of

Level = Literal["app", "task"]

UNITS: Mapping[str, str] = {
    "millisBehindLatest": "Milliseconds",
    "records_lag_max": "Count",
    "currentInputWatermark": "Milliseconds",
    "currentOutputWatermark": "Milliseconds",
    "numRecordsIn": "Count",
    "numRecordsInPerSecond": "Count/Second",
    "numRecordsOut": "Count",
    "numRecordsOutPerSecond": "Count/Second",
    "numLateRecordsDropped": "Count",
    "numDeadLetters": "Count",
    "lastCheckpointDuration": "Milliseconds",
    "lastCheckpointSize": "Bytes",
    "numberOfFailedCheckpoints": "Count",
    "fullRestarts": "Count",
    "busyTimeMsPerSecond": "Milliseconds",
    "idleTimeMsPerSecond": "Milliseconds",
    "backPressuredTimeMsPerSecond": "Milliseconds",
    "uptime": "Milliseconds",
    "downtime": "Milliseconds",
}

_COUNTS = (("numRecordsIn", "records"), ("numRecordsOut", "emitted"), ("numLateRecordsDropped", "late"),
           ("numDeadLetters", "dead"))  # fmt: skip
"""By name: the column of the tally."""

_TOGETHER: Mapping[str, Callable[[list[float]], float]] = {
    **dict.fromkeys(("millisBehindLatest", "records_lag_max", "lastCheckpointDuration"), max),
    **dict.fromkeys(("currentInputWatermark", "currentOutputWatermark"), min),
    **dict.fromkeys(
        ("busyTimeMsPerSecond", "idleTimeMsPerSecond", "backPressuredTimeMsPerSecond"),
        lambda values: sum(values) / len(values),
    ),
}
"""What many tasks' values are together; else their sum."""


class _Seen(NamedTuple):
    """How a task stood when it was looked at last."""

    at: float
    tally: Tally | None = None
    counts: Mapping[str, int] = {}
    checkpoints: tuple[int, float, int] = (0, 0.0, 0)
    failures: int = 0
    last: Mapping[str, float] = {}
    """Of the last checkpoint."""


class Emf:
    """Makes the lines. `now` (seconds) is what rates and uptime are measured by."""

    def __init__(
        self, watched: Watched, namespace: str, level: Level = "app", now: Callable[[], float] = time.monotonic
    ) -> None:
        self.watched, self.namespace, self.level, self._now = watched, namespace, level, now
        self._tasks: dict[str, _Seen] = {}
        self._openings: defaultdict[str, list[Tally]] = defaultdict(list)
        """By task: the counts of each time that it was open since the line before."""
        self._began = now()
        self._since = self._began
        self._ready = False

    def lines(self, ends: Mapping[str, int] | None = None) -> list[str]:
        """What there is to tell now. `ends` are what `Watched.ends` gave."""
        app = self.watched.app.name
        self.look()
        views = self.watched.tasks()
        found = [(view.name, self._task(view, ends or {})) for view in views]
        gone = sorted(self._tasks.keys() - {view.name for view in views})
        # Another worker tells of such a one from where this one let go of it, and of nothing before.
        found += [(name, _grown(self._tasks.pop(name), self._openings.pop(name, []))[1]) for name in gone]
        whole = self._whole([values for _, values in found])
        lines = [self._line({"Application": app}, whole)]
        if self.level == "task":
            lines += [self._line({"Application": app, "Task": name}, values) for name, values in found if values]
        return lines

    def look(self) -> None:
        """See how the worker is. To be called more often than lines are made: what comes and goes in between counts."""
        ready = not self.watched.unready()
        if ready != self._ready:
            self._ready, self._since = ready, self._now()
        for view in self.watched.tasks():
            self._tasks.setdefault(view.name, _Seen(self._began))
            openings = self._openings[view.name]
            if view.task is not None and view.task.counters.tally not in openings:
                openings.append(view.task.counters.tally)

    def _line(self, dimensions: Mapping[str, str], values: Mapping[str, float]) -> str:
        metrics = [{"Name": name, "Unit": UNITS[name]} for name in values]
        directive = {"Namespace": self.namespace, "Dimensions": [list(dimensions)], "Metrics": metrics}
        head = {"Timestamp": self.watched.clock.now_ms(), "CloudWatchMetrics": [directive]}
        return msgspec.json.encode({"_aws": head, **dimensions, **values}).decode()

    def _whole(self, tasks: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """All tasks together, and how the worker is."""
        whole = {}
        for name in UNITS:
            values = [each[name] for each in tasks if name in each]
            if values:
                whole[name] = _TOGETHER.get(name, sum)(values)
        passed = round(1000 * (self._now() - self._since))
        return whole | ({"uptime": passed, "downtime": 0} if self._ready else {"uptime": 0, "downtime": passed})

    def _task(self, view: TaskView, ends: Mapping[str, int]) -> dict[str, float]:
        meter, now = view.meter, self._now()
        before, openings = self._tasks[view.name], self._openings.pop(view.name)
        counts, grown = _grown(before, openings)
        stats = meter.stats(view.store)
        done = (stats.checkpoints, stats.checkpoint_seconds, stats.checkpoint_uploaded)
        last, number = before.last, done[0] - before.checkpoints[0]
        if number > 0:  # of several since, their mean
            seconds, size = (then - was for then, was in zip(done[1:], before.checkpoints[1:], strict=True))
            last = {"lastCheckpointDuration": round(1000 * seconds / number), "lastCheckpointSize": size // number}
        self._tasks[view.name] = _Seen(
            now, openings[-1] if openings else before.tally, counts, done, meter.checkpoint_failures, last
        )
        idle, busy, held = (meter.per_second()[phase] for phase in (IDLE, BUSY, BACK_PRESSURED))
        passed = now - before.at
        return {
            **_watermarks(view),
            **_lags(view, ends),
            **grown,
            "numRecordsInPerSecond": round(meter.rate(), 3),
            "numRecordsOutPerSecond": round(grown["numRecordsOut"] / passed, 3) if passed > 0 else 0.0,
            **last,
            "numberOfFailedCheckpoints": meter.checkpoint_failures - before.failures,
            "fullRestarts": max(0, meter.opened - 1),
            "busyTimeMsPerSecond": round(busy, 1),
            "idleTimeMsPerSecond": round(idle, 1),
            "backPressuredTimeMsPerSecond": round(held, 1),
        }


def _grown(before: _Seen, openings: Sequence[Tally]) -> tuple[Mapping[str, int], dict[str, float]]:
    """The counts now, and by how much they grew in this process.

    They are part of the state, and go on where another worker has left them: so those of each opening count from what
    it took up.
    """
    grown: dict[str, float] = dict.fromkeys((name for name, _ in _COUNTS), 0)
    counts = before.counts
    for each in dict.fromkeys([*([] if before.tally is None else [before.tally]), *openings]):
        if each is not before.tally:
            counts = _sums(each.began or {})
        sums = _sums(each.committed)
        for name, _ in _COUNTS:
            grown[name] += max(0, sums[name] - counts.get(name, 0))
        counts = sums
    return counts, grown


def _sums(saved: Mapping[str, Any]) -> dict[str, int]:
    return {name: sum(row[-1] for row in saved.get(column, ())) for name, column in _COUNTS}


def _watermarks(view: TaskView) -> dict[str, float]:
    if not view.engines:
        return {}
    marks = {
        "currentInputWatermark": min(reached_of(engine.splits) for engine in view.engines),
        "currentOutputWatermark": min(watermark_of(engine.splits) for engine in view.engines),
    }
    return {name: mark for name, mark in marks.items() if MIN_TIME < mark < END_OF_TIME}


def _lags(view: TaskView, ends: Mapping[str, int]) -> dict[str, float]:
    found: dict[str, float] = {}
    if view.late_ms:
        found["millisBehindLatest"] = max(view.late_ms.values())
    lags = [
        max(0, ends[name] - position)
        for engine in view.engines
        for name in engine.splits.by_name
        if name in ends and isinstance(position := view.positions.get(name, 0), int)
    ]
    if lags:
        found["records_lag_max"] = max(lags)
    return found
