"""The runtime: what turns an app's declarations into tasks that read, keep, commit and send."""

from flowkit.worker.run import Progress, Summary, run

__all__ = ["Progress", "Summary", "run"]
