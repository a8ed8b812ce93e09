"""What a run shows in the terminal: the latest alerts while it runs, and a summary at the end."""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.iot_maintenance.job import Finished
from services.iot_maintenance.measure import Outcome, low, middle
from services.iot_maintenance.records import Alert

LATEST = 10


class Board:
    """The live part. Call it with new alerts; on something that is no terminal it stays silent.

    The run's progress is seen from the times of the alerts, which lie between `first` and `last`.
    """

    def __init__(self, console: Console, first: datetime, last: datetime) -> None:
        self._first, self._now = first, first
        self._span = max((last - first) / timedelta(seconds=1), 1.0)
        self._latest: deque[Alert] = deque(maxlen=LATEST)
        self._alerts = 0
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._live.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, alerts: Sequence[Alert]) -> None:
        """Show new alerts."""
        self._latest.extend(alerts)
        self._alerts += len(alerts)
        self._now = max([self._now, *(alert.at for alert in alerts)])
        if alerts:
            self._live.update(self._render())

    def _render(self) -> RenderableType:
        done = (self._now - self._first) / timedelta(seconds=1)
        words = f"{self._now.astimezone(UTC):%d %b %Y %H:%M}   {self._alerts:,} alerts"
        return Group(
            ProgressBar(total=self._span, completed=min(done, self._span)), Text(words), alert_table(self._latest)
        )


def alert_table(alerts: Sequence[Alert] | deque[Alert]) -> Table:
    """Alerts as people read them."""
    table = Table(box=None, padding=(0, 1))
    for column in ("time", "device", "kind", "since", "why"):
        table.add_column(column, no_wrap=column != "why", max_width=None if column == "why" else 24, overflow="fold")
    for alert in alerts:
        times = [f"{at.astimezone(UTC):%d %b %H:%M}" for at in (alert.at, alert.since)]
        table.add_row(times[0], escape(alert.device), alert.kind, times[1], escape("; ".join(alert.reasons)))
    return table


def summary(readings: int, done: Finished, outcome: Outcome | None) -> RenderableType:
    """The end of a run: alerts, rate and, where the truth is known, how good they were."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    kinds = sorted({alert.kind for alert in done.alerts})
    counts = ", ".join(f"{sum(alert.kind == kind for alert in done.alerts):,} {kind}" for kind in kinds)
    table.add_row("readings", f"{readings:,}")
    table.add_row("alerts", f"{len(done.alerts):,}" + (f" ({counts})" if counts else ""))
    table.add_row("recovered", f"{done.recoveries:,} times a raised score went back by itself")
    table.add_row("rate", f"{readings / done.seconds:,.0f} readings/s ({done.seconds:.1f} s, with start and end)")
    if outcome is None:
        return table
    of = f"{len(outcome.leads)} of {outcome.foreseeable} ({outcome.recall:.0%})"
    lead = f"{middle(outcome.leads):.1f} h in the median, {low(outcome.leads):.1f} h in nine of ten"
    table.add_row("foreseen", f"{of}, {lead}" if outcome.leads else of)
    for kind, (foreseen, count) in sorted(outcome.kinds.items()):
        if len(outcome.kinds) > 1:
            table.add_row(f"  {escape(kind)}", f"{foreseen} of {count}")
    table.add_row("false alarms", f"{outcome.false_alarms}, {outcome.false_a_day:.2f} a day of 1,000 devices")
    if outcome.delays:
        noticed = f"{len(outcome.delays)} of {outcome.silent}, after {middle(outcome.delays):.2f} h"
        table.add_row("silences", f"{noticed}; {outcome.false_silences} false ones")
    return table
