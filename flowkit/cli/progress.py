"""What a bounded run shows: a bar while it runs, on a terminal only, and one line at its end."""

import sys
from types import TracebackType
from typing import Any, Self

from flowkit.cli.outcome import say
from flowkit.cli.show import count, iso
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.worker import Progress, Summary

QUIET_SECONDS = 0.3
"""A run that is done by then shows no bar, and does not wait for rich to load."""


class Bar:
    """A progress bar on stderr; nothing at all if that is no terminal. Call it with each `Progress`."""

    def __init__(self) -> None:
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far the run is."""
        if not self.shown or (self._bar is None and progress.seconds < QUIET_SECONDS):
            return
        if self._bar is None:
            self._start()
        rate = progress.records / progress.seconds if progress.seconds else 0.0
        self._bar.update(
            self._task,
            total=progress.size or None,
            completed=progress.read,
            records=f"{progress.records:,}",
            rate=f"{rate:,.0f}",
            watermark=_watermark(progress.watermark),
        )

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[records]} records"),
            TextColumn("{task.fields[rate]}/s"),
            TextColumn("watermark {task.fields[watermark]}"),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr, stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("run", total=None, records="0", rate="0", watermark="-")


def _watermark(ms: int) -> str:
    return "-" if ms <= MIN_TIME else "end" if ms >= END_OF_TIME else iso(ms)


def say_summary(
    app: str, summary: Summary, bound: set[str], unbound: set[str], empty: set[str], stopped: str | None
) -> None:
    """The one line at the end of a run.

    `bound` are the outputs that were named, `unbound` those that were not; `empty` the topics without input.
    """
    if summary.already_done:
        say(f"{app}: nothing left to do: the run in this state directory is complete")
        return
    counters = summary.counters
    rate = counters.records / summary.seconds if summary.seconds else 0.0
    words = [f"{count(counters.records, 'record')} in {summary.seconds:.2f} s ({rate:,.0f}/s)"]
    for name, sent in sorted(summary.emitted.items()):
        if sent and name in bound:
            words.append(f"{sent:,} to {name}")
        elif sent and name in unbound:
            words.append(f"{sent:,} to {name} dropped (no --output)")
    words += [f"{name} taken as empty (no --input)" for name in sorted(empty)]
    if counters.late:
        words.append(f"{counters.late:,} late")
    if counters.dead:
        where = f" in {summary.dead_letters}" if summary.dead_letters else ""
        words.append(count(counters.dead, "dead letter") + where)
    how = f"stopped by {stopped}, committed" if stopped else "went on and is done" if summary.resumed else "done"
    say(f"{app}: {how}: {', '.join(words)}")
