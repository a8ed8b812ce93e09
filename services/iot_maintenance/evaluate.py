"""`python -m services.iot_maintenance.evaluate`: the service on many simulated fleets, beside simpler rules.

Each seed is a world of its own. Everything goes through the app as it is run, from the first reading to the last.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from services.iot_maintenance import baselines, simulator
from services.iot_maintenance.job import run_job
from services.iot_maintenance.measure import Outcome, low, measure, merged, middle, read_labels

HEAD = "          foreseen      lead h: median  p10   false/day/1000   silences: noticed  delay h  false/day/1000"


def main(
    seeds: Annotated[str, typer.Option(help="FIRST-LAST, both included.")] = "101-105",
    devices: Annotated[int, typer.Option(min=1, help="Devices of a fleet.")] = 300,
    days: Annotated[int, typer.Option(min=4, help="Days of a run.")] = 10,
) -> None:
    """Print what was foreseen and what was a false alarm for each seed; then over all, beside simpler rules."""
    first, _, last = seeds.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
        raise typer.BadParameter(f"--seeds {seeds}: write FIRST-LAST, like 101-105")
    rows: dict[str, list[Outcome]] = {"service": [], **{name: [] for name in baselines.RULES}}
    print(HEAD)
    for seed in range(int(first), int(last or first) + 1):
        with tempfile.TemporaryDirectory(prefix="iot-maintenance-") as name:
            directory = Path(name)
            labels = read_labels(simulator.write(directory, seed, devices, days).labels)
            rows["service"].append(measure(run_job(directory).alerts, labels, devices, days))
            for rule, alerts in baselines.alerts_of(directory).items():
                rows[rule].append(measure(alerts, labels, devices, days))
        print(row(f"seed {seed}", rows["service"][-1]), flush=True)
    for name, outcomes in rows.items():
        print(row(name, merged(outcomes)))
    for kind, (foreseen, count) in sorted(merged(rows["service"]).kinds.items()):
        print(f"  {kind:12} {foreseen} of {count} foreseen")


def row(name: str, outcome: Outcome) -> str:
    """One line of figures, below HEAD."""
    foreseen = f"{len(outcome.leads)}/{outcome.foreseeable} {outcome.recall:.3f}"
    lead = f"{middle(outcome.leads):14.1f} {low(outcome.leads):6.1f}"
    silent = f"{len(outcome.delays)}/{outcome.silent}"
    delay = f"{middle(outcome.delays):8.2f} {outcome.false_silences_a_day:15.2f}"
    return f"{name:12} {foreseen:12} {lead} {outcome.false_a_day:16.2f} {silent:>19} {delay}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    sys.exit(app())
