"""What simpler rules would have said of the same readings, to see what the service gains.

Both are told of repairs by the registry, as the service is, and give one alert a case of two days.
"""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from services.iot_maintenance.records import Alert, at_of, ms_of

HOUR = 3_600_000
CHANNELS = ("temperature", "vibration")
"""Not the current: each start of a machine is far over any limit of it, and would be a false alarm."""

Rule = Callable[[dict[str, float], dict[str, object], dict[str, list[float]]], str]


def fixed_limits(reading: dict[str, float], entry: dict[str, object], _: dict[str, list[float]]) -> str:
    """The channel of one reading that is over the registry's limit, or ""."""
    for channel in CHANNELS:
        limit = entry.get(f"max_{channel}")
        if isinstance(limit, int | float) and channel in reading and reading[channel] > limit:
            return channel
    return ""


def own_sigmas(reading: dict[str, float], _: dict[str, object], past: dict[str, list[float]]) -> str:
    """The channel of one reading that lies four standard deviations from the device's mean so far, after a day."""
    found = ""
    for channel in CHANNELS:
        if channel not in reading:
            continue
        value, known = reading[channel], past.setdefault(channel, [0.0, 0.0, 0.0])
        count, mean, squares = known
        if count >= 144 and abs(value - mean) > 4 * (squares / count) ** 0.5:
            found = found or channel
        known[0] += 1
        known[1] += (value - mean) / known[0]
        known[2] += (value - mean) * (value - known[1])
    return found


RULES: dict[str, Rule] = {"fixed limits": fixed_limits, "own 4 sigmas": own_sigmas}


def alerts_of(directory: Path) -> dict[str, list[Alert]]:
    """The alerts of each rule over a directory's readings and registry."""
    entries: dict[str, list[tuple[int, dict[str, object]]]] = {}
    for line in (directory / "registry.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entries.setdefault(entry["id"], []).append((ms_of(datetime.fromisoformat(entry["at"])), entry))
    found: dict[str, list[Alert]] = {name: [] for name in RULES}
    last: dict[tuple[str, str], int] = {}
    past: dict[str, dict[str, list[float]]] = {}
    with (directory / "readings.jsonl").open(encoding="utf-8") as file:
        for line in file:
            reading = json.loads(line)
            device, at = reading["device"], ms_of(datetime.fromisoformat(reading["at"]))
            known = entries.get(device, [])
            while len(known) > 1 and known[1][0] <= at:
                known.pop(0)
                last = {key: value for key, value in last.items() if key[1] != device}
                if known[0][1]["state"] == "running":
                    past.pop(device, None)
            if not known or known[0][1]["state"] != "running":
                continue
            for name, rule in RULES.items():
                channel = rule(reading, known[0][1], past.setdefault(device, {}) if rule is own_sigmas else {})
                if channel:
                    if at - last.get((name, device), -(10**15)) > 48 * HOUR:
                        found[name].append(Alert(device, at_of(at), "limit", at_of(at), reasons=[channel]))
                    last[name, device] = at
    return found
