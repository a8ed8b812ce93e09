"""A simulated fleet with known failures, as files: readings, the registry's entries, and the truth.

The same seed gives the same world, to the byte. It imports nothing of the detector and the detector imports nothing
of it: what the detector knows, it has learned from the readings and the registry.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

from services.iot_maintenance.failures import FORESEEABLE, Failure, ail, draw
from services.iot_maintenance.fleet import DAY, HOUR, Machine, Site

EPOCH = datetime(2025, 3, 3, tzinfo=UTC).timestamp()
PER_SITE = 40
STEP = 600
FAILS_A_DAY = 0.012
"""How many of all devices come to a failure in a day: more than in life, so that a run shows enough of them."""


class Files(NamedTuple):
    """Where a world was written, and what it holds."""

    readings: Path
    registry: Path
    labels: Path
    rows: int
    devices: int
    days: int
    failures: int


class Plan(NamedTuple):
    """A machine's fate. `stops` are planned ones: (start, end) in seconds, all of them told to the registry."""

    machine: Machine
    failure: Failure | None
    stops: list[tuple[float, float]]


def write(
    directory: Path, seed: int, devices: int = 300, days: int = 10, on_day: Callable[[int], None] = lambda _: None
) -> Files:
    """Write `readings.jsonl`, `registry.jsonl` and `labels.jsonl` into the directory.

    `on_day` is told each day that is done. Raises ValueError for less than one device or four days, OSError if the
    directory cannot be written.
    """
    if devices < 1 or days < 4:
        raise ValueError(f"{devices} devices over {days} days: at least 1 device and 4 days are needed")
    rng = Random(f"fleet {seed}")
    sites = [Site(rng, f"site-{n:03}", days) for n in range(-(-devices // PER_SITE))]
    plans = [_plan(rng, f"d{n:05}", sites[n // PER_SITE], days) for n in range(devices)]
    plans.sort(key=lambda plan: plan.machine.phase)
    paths = [directory / f"{name}.jsonl" for name in ("readings", "registry", "labels")]
    paths[1].write_text("".join(map(_line, sorted(_entries(rng, plans), key=_at))), encoding="utf-8")
    failed = [plan for plan in plans if plan.failure]
    labels = sorted((_label(plan) for plan in failed), key=_at)
    outages: list[dict[str, object]] = [
        {"device": "", "site": site.name, "kind": "outage", "onset": _iso(a), "at": _iso(a), "until": _iso(b)}
        for site in sites
        for a, b in site.outages
    ]
    paths[2].write_text("".join(map(_line, labels + outages)), encoding="utf-8")
    count = 0
    with paths[0].open("w", encoding="utf-8") as file:
        for day in range(days):
            for step in range(day * 144, (day + 1) * 144):
                rows = _rows(rng, plans, sites, step)
                count += len(rows)
                file.writelines(rows)
            on_day(day + 1)
    return Files(paths[0], paths[1], paths[2], count, devices, days, len(failed))


def _plan(rng: Random, name: str, site: Site, days: int) -> Plan:
    machine = Machine(rng, name, site, days)
    failure = draw(rng, days) if rng.random() < FAILS_A_DAY * (days - 3) else None
    stops: list[tuple[float, float]] = []
    if failure is None:
        for day in range(1, days):
            if rng.random() < 1 / 20:
                start = (day + rng.uniform(0.3, 0.7)) * DAY
                stops.append((start, start + rng.uniform(1.5, 7) * HOUR))
    return Plan(machine, failure, stops)


def _rows(rng: Random, plans: list[Plan], sites: list[Site], step: int) -> list[str]:
    """All that the fleet says within ten minutes."""
    begin = step * STEP
    air = {site.name: (site.weather(begin), site.work(begin), site.is_down(begin)) for site in sites}
    rows = []
    for machine, failure, stops in plans:
        at = begin + machine.phase
        weather, work, down = air[machine.site.name]
        values = machine.run(rng, at, weather, work)
        if failure is not None and at >= failure.onset:
            if failure.at <= at < failure.repaired:
                continue
            if at < failure.at:
                values = ail(rng, failure, at, machine.model.current, values)
        if down or rng.random() < machine.loss or any(start <= at < end for start, end in stops):
            continue
        temperature, vibration, current = values
        rows.append(
            f'{{"device":"{machine.name}","at":"{_iso(at)}","temperature":{temperature:.2f},'
            f'"vibration":{vibration:.3f},"current":{current:.2f}}}\n'
        )
    return rows


def _entries(rng: Random, plans: list[Plan]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for machine, failure, stops in plans:
        first = -rng.uniform(1, 400) * DAY
        entry: dict[str, object] = {
            "id": machine.name,
            "at": _iso(-HOUR),
            "site": machine.site.name,
            "model": machine.model.name,
            "commissioned": _iso(first),
            "state": "running",
            "every": STEP,
            "max_temperature": machine.max_temperature,
            "max_vibration": machine.max_vibration,
            "max_current": machine.max_current,
        }
        entries.append(entry)
        if failure is not None:
            stops = [(failure.stopped, failure.repaired)]
        for start, end in stops:
            told = start if failure else start - rng.uniform(0, 1) * HOUR
            entries.append({**entry, "at": _iso(told), "state": "maintenance"})
            if rng.random() < 0.2:  # looked over, and allowed a little more from now on
                entry = {**entry, "max_temperature": machine.max_temperature + 3}
            entries.append({**entry, "at": _iso(end)})
    return entries


def _label(plan: Plan) -> dict[str, object]:
    machine, failure = plan.machine, plan.failure
    assert failure is not None
    return {
        "device": machine.name,
        "site": machine.site.name,
        "kind": failure.kind,
        "onset": _iso(failure.onset),
        "at": _iso(failure.at),
        "until": _iso(failure.repaired),
        "foreseeable": failure.kind in FORESEEABLE,
    }


def _at(entry: dict[str, object]) -> str:
    return str(entry["at"])


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(round(EPOCH + seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _line(record: dict[str, object]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"
