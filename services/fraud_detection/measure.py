"""Alerts against the truth: precision, recall and F1, of single payments.

Every payment of a run counts, from the first one on: there is no warm-up that is left out. A payment is caught if
there is an alert about that very payment; an alert about a neighbour of the same episode does not count.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec


class Label(msgspec.Struct):
    """A payment that is fraudulent; `at` is its time (ISO 8601), `scenario` how it came about, if anyone knows."""

    id: str
    at: str = ""
    scenario: str = "fraud"


class Outcome(NamedTuple):
    """What a run came to. `scenarios` gives caught and all payments for each kind of fraud."""

    alerts: int
    frauds: int
    caught: int
    scenarios: Mapping[str, tuple[int, int]]

    @property
    def precision(self) -> float:
        """The share of alerts that were right; 1 if there were none."""
        return self.caught / self.alerts if self.alerts else 1.0

    @property
    def recall(self) -> float:
        """The share of frauds that were caught; 1 if there were none."""
        return self.caught / self.frauds if self.frauds else 1.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        both = self.alerts + self.frauds
        return 2 * self.caught / both if both else 1.0


def measure(alerts: Iterable[str], labels: Iterable[Label]) -> Outcome:
    """Compare the ids of alerted payments with the labels of fraudulent ones.

    >>> outcome = measure(["a", "b", "b", "x"], [Label("a"), Label("b"), Label("c"), Label("d")])
    >>> outcome.alerts, outcome.caught, outcome.recall
    (3, 2, 0.5)
    """
    alerted = set(alerts)
    scenarios: dict[str, tuple[int, int]] = {}
    for label in labels:
        caught, count = scenarios.get(label.scenario, (0, 0))
        scenarios[label.scenario] = (caught + (label.id in alerted), count + 1)
    caught = sum(hit for hit, _ in scenarios.values())
    return Outcome(len(alerted), sum(count for _, count in scenarios.values()), caught, scenarios)


def read_labels(path: Path) -> list[Label]:
    """The lines of a labels file (JSON). Raises OSError, msgspec.DecodeError."""
    decoder = msgspec.json.Decoder(Label)
    return decoder.decode_lines(path.read_bytes())
