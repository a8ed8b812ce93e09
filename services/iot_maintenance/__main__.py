"""`python -m services.iot_maintenance`: a simulated fleet, or a file of readings, through the service.

It makes the files, runs the app over them as `flowkit run` does, shows the alerts while they come, and ends by itself
with a summary.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import Progress

from services.iot_maintenance import simulator
from services.iot_maintenance.job import JobFailed, command, run_job
from services.iot_maintenance.live import Board, alert_table, summary
from services.iot_maintenance.measure import Label, measure, read_labels
from services.iot_maintenance.series import FIELDS, BadInput, convert, windows_of

HELP = """Maintenance of a fleet, live: a simulated one with known failures, or a file of your own.

\b
  python -m services.iot_maintenance
  python -m services.iot_maintenance --devices 5000 --keep fleet
  python -m services.iot_maintenance --input machine.csv --map at=timestamp --map temperature=value
  python -m services.iot_maintenance --input machine.csv --windows labelled_windows.json
"""


DAYS, MANY, DAYS_OF_MANY = 10, 1_000, 6


class Traffic(NamedTuple):
    """What is run over, and what is known of it."""

    readings: int
    devices: int
    first: datetime
    last: datetime
    labels: list[Label] | None


def main(
    seed: Annotated[int, typer.Option(help="Which simulated world.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="How many simulated devices.")] = 300,
    days: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="How many simulated days; nothing fails on the first three.",
            show_default=f"{DAYS}, or {DAYS_OF_MANY} for more than {MANY:,} devices",
        ),
    ] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="A CSV file to read instead, with a header.")
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help=f"Where FIELD stands in FILE: {', '.join(FIELDS)}."),
    ] = None,
    windows: Annotated[
        Path | None, typer.Option(metavar="JSON", help="When FILE was in trouble: {FILE: [[start, end], …]}.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all files there.")] = None,
) -> None:
    """Run the service; told in HELP."""
    console = Console()
    try:
        if input_ is None and (map_ or windows):
            raise BadInput("--map and --windows are about a file of your own: say which, with --input FILE")
        with _directory(keep) as directory:
            if input_ is None:
                traffic = _simulated(console, directory, seed, devices, days or days_for(devices))
            else:
                traffic = _own(console, directory, input_, map_ or [], windows)
            _run(console, traffic, directory)
    except (JobFailed, BadInput, OSError) as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]", str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def days_for(devices: int) -> int:
    """How many days a fleet is simulated if nobody says: of a large one less, so that it ends within minutes."""
    return DAYS if devices <= MANY else DAYS_OF_MANY


def _run(console: Console, traffic: Traffic, directory: Path) -> None:
    console.print(f"flowkit {' '.join(command(directory))}", style="dim", soft_wrap=True, highlight=False)
    with Board(console, traffic.first, traffic.last) as board:
        done = run_job(directory, board)
    if len(done.alerts) <= 20:
        console.print(alert_table(done.alerts))
    outcome = None
    if traffic.labels is not None:
        span = (traffic.last - traffic.first) / timedelta(days=1)
        outcome = measure(done.alerts, traffic.labels, traffic.devices, span)
    console.print(summary(traffic.readings, done, outcome))
    if done.unusable:
        console.print(f"[yellow]{done.unusable:,} records could not be used[/] (dead-letters.jsonl; --keep DIR)")


def _simulated(console: Console, directory: Path, seed: int, devices: int, days: int) -> Traffic:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"simulating {devices:,} devices", total=days)
        files = simulator.write(directory, seed, devices, days, lambda day: progress.update(task, completed=day))
    console.print(
        f"{files.rows:,} simulated readings of {devices:,} devices over {days} days (seed {seed}), "
        f"{files.failures:,} of which fail"
    )
    first = datetime.fromtimestamp(simulator.EPOCH, UTC)
    return Traffic(files.rows, devices, first, first + timedelta(days=days), read_labels(files.labels))


def _own(console: Console, directory: Path, source: Path, given: list[str], windows: Path | None) -> Traffic:
    found = convert(source, directory, given)
    labels = windows_of(windows, source, found.devices[0]) if windows is not None else None
    span = " … ".join(f"{at:%Y-%m-%d %H:%M}" for at in (found.first, found.last))
    console.print(f"{found.rows:,} readings of {len(found.devices):,} devices in {source}, {span}", markup=False)
    if found.refused:
        console.print(f"  {found.refused:,} lines left out: {found.example}", style="yellow", markup=False)
    return Traffic(found.rows, len(found.devices), found.first, found.last, labels)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="iot-maintenance-") as directory:
        yield Path(directory)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=HELP)(main)
    sys.exit(app())
