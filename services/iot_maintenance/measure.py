"""Alerts against the truth: how many failures were foreseen, how long before, and how often it was nothing.

A failure is foreseen if an alert about its device comes between its first trace and its end. An alert that belongs to
no failure of its device is a false alarm. Every day of a run counts, those on which norms are still learned too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from services.iot_maintenance.records import Alert

HOUR = timedelta(hours=1)


class Label(msgspec.Struct):
    """Trouble of a device that shows from `onset` on, ends `at` with silence, and is repaired `until`.

    Of a site's outage `device` is empty. What is not `foreseeable` leaves no trace before its end.
    """

    device: str
    kind: str
    onset: datetime
    at: datetime
    until: datetime
    site: str = ""
    foreseeable: bool = False


class Outcome(NamedTuple):
    """What a run came to, over so many device-days. Leads and delays are in hours."""

    device_days: float
    foreseeable: int
    leads: list[float]
    kinds: Mapping[str, tuple[int, int]]
    """Foreseen and all failures of each kind that is foreseeable."""
    false_alarms: int
    silent: int
    delays: list[float]
    false_silences: int
    outages: int

    @property
    def recall(self) -> float:
        """The share of foreseeable failures that were foreseen; 1 if there were none."""
        return len(self.leads) / self.foreseeable if self.foreseeable else 1.0

    @property
    def false_a_day(self) -> float:
        """False alarms a day of 1,000 devices."""
        return 1000 * self.false_alarms / self.device_days

    @property
    def false_silences_a_day(self) -> float:
        """False silences a day of 1,000 devices."""
        return 1000 * self.false_silences / self.device_days


def measure(alerts: Iterable[Alert], labels: Iterable[Label], devices: int, days: float) -> Outcome:
    """Compare alerts with the truth."""
    troubles: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        if label.device:
            troubles[label.device].append(label)
    warned: dict[int, datetime] = {}
    noticed: dict[int, datetime] = {}
    false_alarms = false_silences = outages = 0
    for alert in sorted(alerts, key=lambda alert: alert.at):
        silent = alert.kind in ("silence", "outage")
        outages += alert.kind == "outage"
        for device in (alert.device, *alert.others):
            hit = next((label for label in troubles[device] if label.onset <= alert.at <= label.until), None)
            if not silent:
                false_alarms += hit is None
                if hit is not None and alert.at < hit.at:
                    warned.setdefault(id(hit), alert.at)
            elif hit is not None and alert.at >= hit.at:
                noticed.setdefault(id(hit), alert.at)
            else:
                false_silences += alert.kind == "silence"
    everything = [label for of_one in troubles.values() for label in of_one]
    kinds: dict[str, tuple[int, int]] = {}
    for label in everything:
        if label.foreseeable:
            foreseen, count = kinds.get(label.kind, (0, 0))
            kinds[label.kind] = foreseen + (id(label) in warned), count + 1
    return Outcome(
        devices * days,
        sum(label.foreseeable for label in everything),
        [(label.at - warned[id(label)]) / HOUR for label in everything if label.foreseeable and id(label) in warned],
        kinds,
        false_alarms,
        len(everything),
        [(noticed[id(label)] - label.at) / HOUR for label in everything if id(label) in noticed],
        false_silences,
        outages,
    )


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Several runs as one."""
    kinds: dict[str, tuple[int, int]] = {}
    for outcome in outcomes:
        for kind, (foreseen, count) in outcome.kinds.items():
            before = kinds.get(kind, (0, 0))
            kinds[kind] = before[0] + foreseen, before[1] + count
    return Outcome(
        sum(o.device_days for o in outcomes),
        sum(o.foreseeable for o in outcomes),
        [lead for o in outcomes for lead in o.leads],
        kinds,
        sum(o.false_alarms for o in outcomes),
        sum(o.silent for o in outcomes),
        [delay for o in outcomes for delay in o.delays],
        sum(o.false_silences for o in outcomes),
        sum(o.outages for o in outcomes),
    )


def middle(values: Sequence[float]) -> float:
    """The median; 0 of none."""
    return median(values) if values else 0.0


def low(values: Sequence[float]) -> float:
    """What nine of ten values reach (p10); 0 of none."""
    return sorted(values)[len(values) // 10] if values else 0.0


def read_labels(path: Path) -> list[Label]:
    """The lines of a labels file (JSON). Raises OSError, msgspec.DecodeError."""
    return msgspec.json.Decoder(Label).decode_lines(path.read_bytes())


def read_alerts(path: Path) -> list[Alert]:
    """The lines of an alerts file (JSON); none if there is no file. Raises msgspec.DecodeError."""
    return msgspec.json.Decoder(Alert).decode_lines(path.read_bytes()) if path.exists() else []
