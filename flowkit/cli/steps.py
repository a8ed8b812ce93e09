"""A bar for long work on files: on a terminal only, and only once it has taken a moment."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from flowkit.store import Step

QUIET_SECONDS = 0.3


class StepBar:
    """A progress bar in bytes on stderr; nothing at all if that is no terminal. Call it with each `Step`."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self._since = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: Step) -> None:
        """Show how far it is."""
        if not self.shown or (self._bar is None and time.monotonic() - self._since < QUIET_SECONDS):
            return
        if self._bar is None:
            self._start()
        self._bar.update(self._task, total=step.total or None, completed=step.done, name=step.name)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            TextColumn("{task.fields[name]}"),
            console=Console(file=sys.stderr, stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.what, total=None, name="")
