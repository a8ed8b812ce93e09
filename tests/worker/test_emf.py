"""Lines in the Embedded Metric Format: what CloudWatch makes of them, under names that Managed Flink's users know."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flowkit.store import Stats
from flowkit.worker import Emf, TaskView
from flowkit.worker.emf import UNITS
from tests.worker.test_metrics import AT, One, event, one


def told(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Lines as CloudWatch reads them: what is declared is there, a number, in units that it knows; and nothing else."""
    found = []
    for line in lines:
        assert "\n" not in line
        values = json.loads(line)
        head = values.pop("_aws")
        (directive,) = head["CloudWatchMetrics"]
        assert directive["Namespace"] == "shop"
        (dimensions,) = directive["Dimensions"]
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert all(metric["Unit"] == UNITS[metric["Name"]] for metric in directive["Metrics"])
        assert len(names) <= 100
        assert set(values) == {*names, *dimensions}
        assert all(isinstance(values[name], int | float) for name in names)
        found.append({"at": head["Timestamp"], **values})
    return found


class Renamed:
    """What is watched, as tasks of these names: each as far behind as `late` says (ms)."""

    def __init__(self, watched: One, names: Sequence[str], late: Sequence[int]) -> None:
        self.watched, self.app, self.clock = watched, watched.app, watched.clock
        self.names, self.late = names, late
        self.trouble, self.unready, self.ends = watched.trouble, watched.unready, watched.ends

    def tasks(self) -> list[TaskView]:
        (view,) = self.watched.tasks()
        return [replace(view, name=name, late_ms={"s": late}) for name, late in zip(self.names, self.late, strict=True)]


def emf_of(watched: One | Renamed, level: Any = "app") -> Emf:
    return Emf(watched, "shop", level, now=lambda: watched.clock.now_ms() / 1000)


async def test_a_line_tells_what_was_done_since_the_one_before() -> None:
    async with one([13]) as watched:
        emf = emf_of(watched)
        (first,) = told(emf.lines(await watched.ends()))
        assert first["numRecordsIn"] == 0
        assert "currentInputWatermark" not in first  # no event yet
        raw: Any = [event(1), event(2, 1_000, "j"), event(3, 25_000), b"{", event(4, 2_000), event(13, 26_000)]
        await watched.take(*raw)
        await watched.commit()
        watched.clock.advance(2_000)
        (line,) = told(emf.lines(await watched.ends()))
        assert line["Application"] == "counting"
        assert line["at"] == watched.clock.now_ms()
        assert (line["numRecordsIn"], line["numRecordsOut"]) == (6, 4)  # two results, two dead letters
        assert line["numRecordsOutPerSecond"] == 2.0
        assert (line["numLateRecordsDropped"], line["numDeadLetters"]) == (1, 2)
        assert line["currentInputWatermark"] == line["currentOutputWatermark"] == AT + 26_000 - 1_000 - 1
        assert (line["uptime"], line["downtime"], line["fullRestarts"]) == (2_000, 0, 0)
        assert line["records_lag_max"] == 0
        assert "lastCheckpointSize" not in line
        (again,) = told(emf.lines(await watched.ends()))
        assert (again["numRecordsIn"], again["numRecordsOut"], again["numDeadLetters"]) == (0, 0, 0)
        await watched.broker.put("events", [(b"k", b"{}", 0)] * 3)
        assert told(emf.lines(await watched.ends()))[0]["records_lag_max"] == 3


async def test_what_was_done_before_is_not_told_again_when_a_task_is_opened_again() -> None:
    async with one() as watched:
        emf = emf_of(Renamed(watched, ["a"], [0]))
        emf.lines()
        await watched.take(event(1), event(2))
        await watched.commit()
        assert watched.live is not None
        await watched.live.close()
        watched.live = None
        watched.clock.advance(1_000)
        (down,) = told(emf.lines())
        assert (down["numRecordsIn"], down["uptime"]) == (2, 0)
        watched.clock.advance(5_000)
        assert told(emf.lines())[0]["downtime"] == 5_000
        await watched.open()
        await watched.take(event(3))
        await watched.commit()
        (line,) = told(emf.lines())
        assert (line["numRecordsIn"], line["downtime"]) == (1, 0)


async def test_what_was_done_since_the_last_line_is_told_of_a_task_that_is_gone_as_at_a_workers_end() -> None:
    async with one() as watched:
        moving = Renamed(watched, ["a"], [0])
        emf = emf_of(moving)
        emf.look()
        watched.clock.advance(59_000)
        await watched.take(event(1), event(2))
        await watched.commit()
        moving.names, moving.late = [], []
        (last,) = told(emf.lines())
        assert (last["numRecordsIn"], last["uptime"], last["downtime"]) == (2, 59_000, 0)
        moving.names, moving.late = ["a"], [0]
        emf.lines()
        moving.names, moving.late = [], []
        assert told(emf.lines())[0]["numRecordsIn"] == 0  # gone before it was looked at again
        assert "numRecordsIn" not in told(emf.lines())[0]


async def test_of_several_tasks_lags_are_the_largest_and_counts_the_sum_and_each_has_a_line_if_asked() -> None:
    async with one() as watched:
        both = Renamed(watched, ["a", "b"], [7, 9])
        emf = emf_of(both, "task")
        await watched.take(event(1), event(2))
        await watched.commit()
        whole, first, second = told(emf.lines())
        assert (whole["millisBehindLatest"], first["millisBehindLatest"], second["millisBehindLatest"]) == (9, 7, 9)
        assert (whole["numRecordsIn"], first["numRecordsIn"]) == (4, 2)
        assert [each.get("Task") for each in (whole, first, second)] == [None, "a", "b"]
        assert whole["currentInputWatermark"] == first["currentInputWatermark"]
        assert "uptime" not in first  # it is the worker's


async def test_the_last_checkpoint_is_told_until_there_is_another() -> None:
    async with one() as watched:
        emf = emf_of(watched)
        for stats, size in (
            (Stats(), None),
            (Stats(checkpoints=1, checkpoint_seconds=0.5, checkpoint_uploaded=1_000), 1_000),
            (Stats(checkpoints=1, checkpoint_seconds=0.5, checkpoint_uploaded=1_000), 1_000),
            (Stats(checkpoints=3, checkpoint_seconds=2.5, checkpoint_uploaded=1_400), 200),
        ):
            watched.meter._past = stats
            (line,) = told(emf.lines())
            assert line.get("lastCheckpointSize") == size
        assert line["lastCheckpointDuration"] == 1_000
        watched.meter.checkpoint_failures = 2
        assert told(emf.lines())[0]["numberOfFailedCheckpoints"] == 2
        assert told(emf.lines())[0]["numberOfFailedCheckpoints"] == 0
