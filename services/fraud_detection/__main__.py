"""`python -m services.fraud_detection`: simulated card traffic, or a file of payments, through the service.

It makes the files, runs the app over them as `flowkit run` does, shows the alerts while they come, and ends by itself
with a summary.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from rich.console import Console

from services.fraud_detection import simulator
from services.fraud_detection.job import Inputs, JobFailed, command, dead_letters, run_job
from services.fraud_detection.live import Board, summary
from services.fraud_detection.mapping import FIELDS, MappingError, TimeReading, convert
from services.fraud_detection.measure import Label, read_labels
from services.fraud_detection.model import available

HELP = """Fraud detection on card payments, live: simulated traffic, or a file of your own.

\b
  python -m services.fraud_detection
  python -m services.fraud_detection --seed 7 --transactions 20000 --rules-only
  python -m services.fraud_detection --input tx.csv --map card=cc_num --map amount=amt --map at=trans_date
"""


class Traffic(NamedTuple):
    """What is run over, and what is known of it."""

    inputs: Inputs
    payments: int
    first: datetime
    last: datetime
    labels: list[Label] | None


def main(
    seed: Annotated[int, typer.Option(help="Which simulated world.")] = 1,
    transactions: Annotated[int, typer.Option(min=1, help="How many simulated payments.")] = 100_000,
    rules_only: Annotated[  # noqa: FBT002  # a flag
        bool, typer.Option("--rules-only", help="Do without the learned score.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="The risk from which on to alert.")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="FILE", help="CSV or JSON lines (.gz too, - for stdin) to read.")
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help=f"Where FIELD stands in FILE: {', '.join(FIELDS)}."),
    ] = None,
    time_format: Annotated[
        str, typer.Option(help="How times are written: a strptime format, or s, ms, us [ISO 8601 or since 1970].")
    ] = "",
    timezone: Annotated[str, typer.Option(help="The zone of times that name none.")] = "UTC",
    report_after: Annotated[float, typer.Option(min=0, help="Days until a fraud in FILE is reported.")] = 1.0,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all files there.")] = None,
) -> None:
    """Run the service; told in HELP."""
    console = Console()
    if not rules_only and not available():
        console.print(
            "[yellow]river is not installed: the three rules decide alone, nothing is learned "
            "(pip install 'flowkit\\[ml]')[/]"
        )
    try:
        with _directory(keep) as directory:
            if input_ is None:
                traffic = _simulated(console, directory, seed, transactions)
            else:
                times = TimeReading(time_format, _zone(timezone))
                traffic = _own(console, directory, input_, map_ or [], times, timedelta(days=report_after))
            _run(console, traffic, directory / "alerts.jsonl", rules_only=rules_only, threshold=threshold)
    except (JobFailed, MappingError, OSError) as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]", str(error), markup=True, highlight=False)
        raise typer.Exit(1) from None


def _run(
    console: Console, traffic: Traffic, alerts: Path, *, rules_only: bool = False, threshold: float | None = None
) -> None:
    console.print(f"flowkit {' '.join(command(traffic.inputs, alerts))}", style="dim", soft_wrap=True, highlight=False)
    with Board(console, traffic.first, traffic.last, traffic.labels) as board:
        done = run_job(traffic.inputs, alerts, rules_only=rules_only, threshold=threshold, on_alerts=board)
    console.print(summary(traffic.payments, done.alerts, traffic.labels, done.seconds))
    lost = dead_letters(alerts)
    if lost:
        console.print(f"[yellow]{lost:,} records could not be used[/] (dead-letters.jsonl; --keep DIR keeps it)")


def _simulated(console: Console, directory: Path, seed: int, transactions: int) -> Traffic:
    with console.status(f"simulating {transactions:,} payments"):
        files = simulator.write(directory, seed, transactions)
    days = (files.last - files.first).days
    console.print(
        f"{files.payments:,} simulated payments over {days} days (seed {seed}), {files.frauds:,} of them fraudulent, "
        f"{files.complaints:,} chargebacks"
    )
    inputs = Inputs(files.transactions, files.chargebacks)
    return Traffic(inputs, files.payments, files.first, files.last, read_labels(files.labels))


def _own(
    console: Console, directory: Path, source: str, given: Sequence[str], times: TimeReading, report_after: timedelta
) -> Traffic:
    with console.status(f"reading {source}"):
        found = convert(source, directory, given, times=times, report_after=report_after)
    span = " … ".join(f"{at:%Y-%m-%d %H:%M}" for at in (found.first, found.last))
    console.print(f"{found.payments:,} payments of {source}, {span}", markup=False)
    for example in found.examples:
        console.print(f"  left out: {example}", style="yellow", markup=False)
    if found.refused > len(found.examples):
        console.print(f"  and {found.refused - len(found.examples):,} lines more", style="yellow")
    if found.chargebacks is None:
        console.print("no column `fraud`: the score learns what is ordinary, but never hears of fraud")
    labels = read_labels(found.labels) if found.labels is not None else None
    return Traffic(Inputs(found.transactions, found.chargebacks), found.payments, found.first, found.last, labels)


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
    with tempfile.TemporaryDirectory(prefix="fraud-detection-") as directory:
        yield Path(directory)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=HELP)(main)
    sys.exit(app())
