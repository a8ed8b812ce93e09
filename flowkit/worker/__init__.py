"""The runtime: what turns an app's declarations into tasks that read, keep, commit and send."""

from typing import TYPE_CHECKING, Any

from flowkit.worker.beginning import check_names
from flowkit.worker.build import random_ids
from flowkit.worker.emf import Emf
from flowkit.worker.feed import ClockMark, Finished, Idle, Piece, Records, Waiting
from flowkit.worker.finder import TopicFinder
from flowkit.worker.health import Health, read_health, write_health
from flowkit.worker.live import LiveTask, task_name
from flowkit.worker.looking import NO_KEY, Entry, entries, read_table, read_tasks
from flowkit.worker.meter import BACK_PRESSURED, BUSY, IDLE, Meter
from flowkit.worker.resources import resources
from flowkit.worker.rights import copy_rights_of, copy_rights_of_run, rights_of, rights_of_run
from flowkit.worker.run import Progress, Summary, run
from flowkit.worker.savepoint import Manifest, Parts, Request, Requests, check_place, read_manifest
from flowkit.worker.tally import counts_of
from flowkit.worker.task import Task
from flowkit.worker.tracing import Tracing
from flowkit.worker.view import RunView, TaskView, Watched, WorkerView, behind, watermark_of
from flowkit.worker.why import Facts, SplitFacts, TaskFacts, WindowFacts, key_of, table_facts, windowed_table
from flowkit.worker.worker import Worker, serve

if TYPE_CHECKING:
    from flowkit.worker.metrics import exposition

__all__ = [
    "BACK_PRESSURED",
    "BUSY",
    "IDLE",
    "NO_KEY",
    "ClockMark",
    "Emf",
    "Entry",
    "Facts",
    "Finished",
    "Health",
    "Idle",
    "LiveTask",
    "Manifest",
    "Meter",
    "Parts",
    "Piece",
    "Progress",
    "Records",
    "Request",
    "Requests",
    "RunView",
    "SplitFacts",
    "Summary",
    "Task",
    "TaskFacts",
    "TaskView",
    "TopicFinder",
    "Tracing",
    "Waiting",
    "Watched",
    "WindowFacts",
    "Worker",
    "WorkerView",
    "behind",
    "check_names",
    "check_place",
    "copy_rights_of",
    "copy_rights_of_run",
    "counts_of",
    "entries",
    "exposition",
    "key_of",
    "random_ids",
    "read_health",
    "read_manifest",
    "read_table",
    "read_tasks",
    "resources",
    "rights_of",
    "rights_of_run",
    "run",
    "serve",
    "table_facts",
    "task_name",
    "watermark_of",
    "windowed_table",
    "write_health",
]


def __getattr__(name: str) -> Any:
    """What needs the Prometheus library is loaded when it is first asked for."""
    if name != "exposition":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flowkit.worker.metrics import exposition

    return exposition
