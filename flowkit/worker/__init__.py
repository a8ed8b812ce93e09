"""The runtime: what turns an app's declarations into tasks that read, keep, commit and send."""

from flowkit.worker.build import random_ids, resources
from flowkit.worker.feed import ClockMark, Finished, Records
from flowkit.worker.live import LiveTask, partitions_of, task_name
from flowkit.worker.run import Progress, Summary, run

__all__ = [
    "ClockMark",
    "Finished",
    "LiveTask",
    "Progress",
    "Records",
    "Summary",
    "partitions_of",
    "random_ids",
    "resources",
    "run",
    "task_name",
]
