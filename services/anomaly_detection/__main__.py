"""`python -m services.anomaly_detection`: simulated metrics, or files of one's own, through the service.

It makes one file of all series, merged by time, runs the app over it as `flowkit run` does, shows the alerts as they
come, and ends by itself with a summary.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.anomaly_detection.detector import THRESHOLD
from services.anomaly_detection.job import Finished, JobFailed, command, run_job
from services.anomaly_detection.mapping import FIELDS, MappingError, TimeReading, convert
from services.anomaly_detection.records import Alert
from services.anomaly_detection.simulator import Simulated, simulate, time_of

HELP = f"""Anomaly detection on metrics: simulated ones, or files of your own.

Every series is judged by its own history, value by value, without a look ahead; nothing is to be set for a series.
It alerts where a value is so rare that the surprise (3 is one in a thousand) reaches the threshold [{THRESHOLD}]:
lower it to hear more, raise it to hear less. Each series needs some hundred values before the first alert.

\b
  python -m services.anomaly_detection
  python -m services.anomaly_detection --input metrics.csv --keep out
  python -m services.anomaly_detection --input data/ --map timestamp=time --map value=cpu --map name=host

A directory is read with all CSV and JSON lines files below it. Without a column `name` each file is a series.
With --keep the directory holds metrics.jsonl, scores.jsonl, alerts.jsonl and, if there are any, dead-letters.jsonl.
"""
MOST_SERIES = 40
"""Series that the summary names."""


def main(
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="PATH", help="CSV or JSON lines (.gz too, - for stdin), or a directory."),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help=f"Where FIELD stands in a file: {', '.join(FIELDS)}."),
    ] = None,
    time_format: Annotated[
        str, typer.Option(help="How times are written: a strptime format, or s, ms, us [ISO 8601 or since 1970].")
    ] = "",
    timezone: Annotated[str, typer.Option(help="The zone of times that name none.")] = "UTC",
    threshold: Annotated[
        float | None, typer.Option(min=0.1, help=f"The surprise from which on to alert [{THRESHOLD}].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which simulated metrics, without --input.")] = 1,
    days: Annotated[int, typer.Option(min=3, help="Days of simulated metrics.")] = 14,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all files there.")] = None,
) -> None:
    """Run the service; told in HELP."""
    console = Console(highlight=False)
    try:
        with _directory(keep) as directory:
            planted: Mapping[str, Simulated] = {}
            if input_:
                times = TimeReading(time_format, _zone(timezone))
                metrics, series = _own(console, directory, input_, map_ or [], times)
            else:
                planted = simulate(seed, days)
                metrics, series = _simulated(directory, planted)
                console.print(f"{len(series)} simulated series over {days} days (seed {seed})")
            console.print(f"flowkit {' '.join(command(metrics, directory))}", style="dim", soft_wrap=True, markup=False)
            done = run_job(metrics, directory, threshold=threshold, on_alerts=lambda alerts: _tell(console, alerts))
            _summarise(console, series, done, planted)
    except (JobFailed, MappingError, OSError) as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]", escape(str(error)), highlight=False)
        raise typer.Exit(1) from None


def _own(
    console: Console, directory: Path, sources: Sequence[str], given: Sequence[str], times: TimeReading
) -> tuple[Path, Mapping[str, int]]:
    with console.status("reading"):
        found = convert(sources, directory, given, times=times)
    span = " … ".join(f"{at:%Y-%m-%d %H:%M}" for at in (found.first, found.last))
    console.print(f"{sum(found.series.values()):,} values of {len(found.series):,} series, {span}", markup=False)
    for example in found.examples:
        console.print(f"  left out: {example}", style="yellow", markup=False)
    if found.refused > len(found.examples):
        console.print(f"  and {found.refused - len(found.examples):,} lines more", style="yellow")
    return found.metrics, found.series


def _simulated(directory: Path, planted: Mapping[str, Simulated]) -> tuple[Path, Mapping[str, int]]:
    path = directory / "metrics.jsonl"
    series = {name: len(simulated.values) for name, simulated in planted.items()}
    with path.open("w", encoding="utf-8") as file:
        for row in range(max(series.values())):
            for name, simulated in planted.items():
                record = {"timestamp": time_of(row).isoformat(), "value": simulated.values[row], "name": name}
                file.write(json.dumps(record) + "\n")
    return path, series


def _tell(console: Console, alerts: Sequence[Alert]) -> None:
    for alert in alerts:
        words = f"{alert.timestamp.astimezone(UTC):%Y-%m-%d %H:%M}  {alert.name}  {alert.surprise:.1f}  {alert.reason}"
        console.print(words, markup=False, soft_wrap=True)


def _summarise(console: Console, series: Mapping[str, int], done: Finished, planted: Mapping[str, Simulated]) -> None:
    counts: dict[str, list[Alert]] = {name: [] for name in series}
    for alert in done.alerts:
        counts[alert.name].append(alert)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("series", "values", "alerts", "highest surprise", *(["planted"] if planted else [])):
        table.add_column(column, justify="left" if column in ("series", "planted") else "right")
    busiest = sorted(counts.items(), key=lambda item: (-len(item[1]), item[0]))
    for name, alerts in busiest[:MOST_SERIES]:
        highest = f"{max(alert.surprise for alert in alerts):.1f}" if alerts else ""
        row = [escape(name), f"{series[name]:,}", f"{len(alerts):,}", highest]
        table.add_row(*row, *([_outcome(planted[name], alerts)] if planted else []))
    console.print(table)
    if len(busiest) > MOST_SERIES:
        console.print(f"and {len(busiest) - MOST_SERIES:,} series more, with fewer alerts")
    values = sum(series.values())
    rate = f"{values / done.seconds:,.0f} values/s with start and end, {done.seconds:.1f} s"
    console.print(f"{len(done.alerts):,} alerts on {values:,} values of {len(series):,} series ({rate})")
    if done.dead:
        console.print(f"[yellow]{done.dead:,} records could not be used[/] (dead-letters.jsonl; --keep DIR keeps it)")


def _outcome(simulated: Simulated, alerts: Sequence[Alert]) -> str:
    if simulated.anomaly is None:
        return "nothing"
    first, last = (time_of(row) for row in simulated.anomaly)
    found = [alert.timestamp for alert in alerts if first <= alert.timestamp <= last]
    if not found:
        return "[red]missed[/]"
    return f"[green]found[/] after {(found[0] - first).total_seconds() / 60:.0f} minutes"


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise MappingError(f"--timezone {name}: no such zone; write it like Europe/Paris") from None


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="anomaly-detection-") as directory:
        yield Path(directory)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=HELP)(main)
    sys.exit(app())
