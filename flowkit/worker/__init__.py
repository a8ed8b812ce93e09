"""The runtime: what turns an app's declarations into tasks that read, keep, commit and send."""

from flowkit.worker.build import random_ids
from flowkit.worker.feed import ClockMark, Finished, Idle, Piece, Records, Waiting
from flowkit.worker.health import Health, read_health
from flowkit.worker.live import LiveTask, task_name
from flowkit.worker.resources import resources
from flowkit.worker.run import Progress, Summary, run
from flowkit.worker.worker import Worker, serve

__all__ = [
    "ClockMark",
    "Finished",
    "Health",
    "Idle",
    "LiveTask",
    "Piece",
    "Progress",
    "Records",
    "Summary",
    "Waiting",
    "Worker",
    "random_ids",
    "read_health",
    "resources",
    "run",
    "serve",
    "task_name",
]
