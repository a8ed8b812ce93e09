"""A small fleet on a bench: devices of one site that report every half hour, and what is to become of some of them."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from random import Random

from services.iot_maintenance.app import app
from services.iot_maintenance.records import Alert, Device, Reading
from tests.model.world import World, lines, with_crash

START = datetime(2025, 3, 3, tzinfo=UTC)
EVERY = timedelta(minutes=30)
DAYS = 5

Change = Callable[[Reading, float], Reading | None]
"""What becomes of a device's reading so many days after the start; None: it is never sent."""


def day(days: float) -> datetime:
    return START + timedelta(days=days)


def registered(devices: int = 8, *, days: float = -0.1, **entry: object) -> list[Device]:
    given: dict[str, object] = {"site": "hall", "every": EVERY.total_seconds(), "max_temperature": 80.0, **entry}
    return [Device(f"d{n}", day(days), **given) for n in range(devices)]  # type: ignore[arg-type]


def readings(changes: dict[str, Change], devices: int = 8, days: float = DAYS) -> list[Reading]:
    """Readings of a fleet that is well, but for the changes."""
    rng, found = Random("bench"), []
    for step in range(round(days * 48)):
        for n in range(devices):
            at = START + step * EVERY + timedelta(seconds=30 * n)
            load = 1 + 0.3 * ((step % 48) >= 16) * ((step % 48) < 36)
            values = 40 + 12 * load + rng.gauss(0, 0.4), 2.0 * load * (1 + rng.gauss(0, 0.03)), 10 * load
            reading: Reading | None = Reading(f"d{n}", at, *values)
            if reading is not None and reading.device in changes:
                reading = changes[reading.device](reading, step / 48)
            if reading is not None:
                found.append(reading)
    return found


def run(given: Iterable[Reading], registry: list[Device], crash: int = 0, **cut: int) -> tuple[list[Alert], World]:
    """The alerts of a run over files, which may crash once and go on."""
    entries = sorted(registry, key=lambda entry: entry.at)
    world = World([("readings", lines(list(given))), ("registry", lines(entries))])
    with_crash(world, app, cut, crash)
    assert world.letters() == []
    return world.out("alerts", Alert), world


def vanishes(at: float) -> Change:
    return lambda reading, now: None if now >= at else reading


def heats_up(at: float, degrees_a_day: float) -> Change:
    def change(reading: Reading, now: float) -> Reading:
        assert reading.temperature is not None
        reading.temperature += max(0.0, now - at) * degrees_a_day
        return reading

    return change
