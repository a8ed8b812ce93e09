"""What a run shows in the terminal: the latest alerts and how good they are so far, and a summary at the end."""

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

from services.fraud_detection.measure import Label, Outcome, measure
from services.fraud_detection.records import Alert

LATEST = 12


class Board:
    """The live part. Call it with new alerts; on something that is no terminal it stays silent.

    `labels` is None if nobody knows the truth. The run's progress is seen from the times of the alerts, which lie
    between `first` and `last`.
    """

    def __init__(self, console: Console, first: datetime, last: datetime, labels: Sequence[Label] | None) -> None:
        self._first, self._last, self._labels = first, last, labels
        self._fraud = {label.id: label.scenario for label in labels or ()}
        self._times = sorted(datetime.fromisoformat(label.at) for label in labels or ())
        self._latest: deque[Alert] = deque(maxlen=LATEST)
        self._alerts = self._caught = 0
        self._now = first
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._live.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, alerts: Sequence[Alert]) -> None:
        """Show new alerts."""
        for alert in alerts:
            self._latest.append(alert)
            self._alerts += 1
            self._caught += alert.id in self._fraud
            self._now = max(self._now, alert.at)
        if alerts:
            self._live.update(self._render())

    def _render(self) -> RenderableType:
        span = max((self._last - self._first) / timedelta(seconds=1), 1.0)
        done = (self._now - self._first) / timedelta(seconds=1)
        words = f"{self._now.astimezone(UTC):%d %b %Y %H:%M}   {self._alerts:,} alerts"
        if self._labels is not None and self._alerts:
            frauds = sum(at <= self._now for at in self._times)
            precision, recall = self._caught / self._alerts, self._caught / max(frauds, 1)
            words += f"   precision {precision:.3f}   recall {recall:.3f} so far"
        return Group(ProgressBar(total=span, completed=min(done, span)), Text(words), self._table())

    def _table(self) -> Table:
        table = Table(expand=True, box=None, padding=(0, 1))
        for column in ("time", "card"):
            table.add_column(column, no_wrap=True)
        for column in ("amount", "score"):
            table.add_column(column, justify="right", no_wrap=True)
        if self._labels is not None:
            table.add_column("in truth", no_wrap=True)
        table.add_column("reasons", ratio=1, no_wrap=True, overflow="ellipsis")
        for alert in self._latest:
            score = "rule" if alert.score is None else f"{alert.score:.2f}"
            cells = [f"{alert.at.astimezone(UTC):%d %b %H:%M}", escape(alert.card), f"{alert.amount:,.2f}", score]
            if self._labels is not None:
                truth = self._fraud.get(alert.id)
                cells.append(f"[green]{escape(truth)}[/]" if truth else "[red]honest[/]")
            table.add_row(*cells, escape("; ".join(alert.reasons)))
        return table


def summary(payments: int, alerts: Sequence[Alert], labels: Sequence[Label] | None, seconds: float) -> RenderableType:
    """The end of a run: alerts, rate and, where the truth is known, precision and recall."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("payments", f"{payments:,}")
    table.add_row("alerts", f"{len(alerts):,} ({len(alerts) / payments:.2%} of payments)")
    table.add_row("rate", f"{payments / seconds:,.0f} payments/s ({seconds:.1f} s, with start and end)")
    if labels is None:
        return table
    outcome = measure((alert.id for alert in alerts), labels)
    table.add_row("frauds", f"{outcome.frauds:,} ({outcome.frauds / payments:.2%} of payments)")
    table.add_row("precision", f"{outcome.precision:.3f}   {outcome.caught:,} of {outcome.alerts:,} alerts are frauds")
    table.add_row("recall", f"{outcome.recall:.3f}   {outcome.caught:,} of {outcome.frauds:,} frauds have an alert")
    table.add_row("F1", f"{outcome.f1:.3f}")
    return Group(table, _by_scenario(outcome)) if len(outcome.scenarios) > 1 else table


def _by_scenario(outcome: Outcome) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("caught by scenario")
    table.add_column("frauds", justify="right")
    table.add_column("recall", justify="right")
    for name, (caught, count) in sorted(outcome.scenarios.items(), key=lambda item: -item[1][1]):
        table.add_row(f"  {escape(name)}", f"{count:,}", f"{caught / count:.3f}")
    return table
