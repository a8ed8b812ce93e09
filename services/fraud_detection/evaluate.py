"""`python -m services.fraud_detection.evaluate`: the service on many simulated worlds, with and without its score.

Each seed is a world of its own. Everything goes through the app as it is run, from the first payment to the last.
"""

import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer

from services.fraud_detection import simulator
from services.fraud_detection.job import Inputs, run_job
from services.fraud_detection.measure import Outcome, measure, read_labels


def main(
    seeds: Annotated[str, typer.Option(help="FIRST-LAST, both included.")] = "101-120",
    transactions: Annotated[int, typer.Option(min=1, help="Payments a world.")] = 60_000,
) -> None:
    """Print precision, recall and F1 for each seed, by the service and by its rules alone; then mean and worst."""
    first, _, last = seeds.partition("-")
    rows: list[tuple[Outcome, Outcome]] = []
    print("seed     precision recall  F1      rules: precision recall  F1      F1 gained")
    for seed in range(int(first), int(last or first) + 1):
        with tempfile.TemporaryDirectory(prefix="fraud-detection-") as name:
            rows.append(_one(Path(name), seed, transactions))
        print(_row(str(seed), [_figures(*rows[-1])]), flush=True)
    figures = [_figures(*row) for row in rows]
    print(_row("mean", figures))
    print(_row("worst", [[min(column) for column in zip(*figures, strict=True)]]))


def _one(directory: Path, seed: int, transactions: int) -> tuple[Outcome, Outcome]:
    files = simulator.write(directory, seed, transactions)
    labels = read_labels(files.labels)
    inputs = Inputs(files.transactions, files.chargebacks)
    full, rules = (
        run_job(inputs, directory / f"alerts-{rules_only:d}.jsonl", rules_only=rules_only)
        for rules_only in (False, True)
    )
    return measure((a.id for a in full.alerts), labels), measure((a.id for a in rules.alerts), labels)


def _figures(full: Outcome, rules: Outcome) -> list[float]:
    return [full.precision, full.recall, full.f1, rules.precision, rules.recall, rules.f1, full.f1 - rules.f1]


def _row(name: str, figures: list[list[float]]) -> str:
    p, r, f, rules_p, rules_r, rules_f, gained = (mean(column) for column in zip(*figures, strict=True))
    rules = f"{rules_p:.3f}     {rules_r:.3f}   {rules_f:.3f}"
    return f"{name:8} {p:.3f}     {r:.3f}   {f:.3f}          {rules}   {gained:+.3f}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    sys.exit(app())
