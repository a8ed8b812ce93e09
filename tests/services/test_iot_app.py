"""The service on the engine: what it sees, what it leaves alone, and the same alerts whatever crashes."""

import pytest

from flowkit import hours, minutes
from flowkit.testing import harness
from services.iot_maintenance.app import alerts, app, registry
from services.iot_maintenance.app import readings as readings_topic
from services.iot_maintenance.records import Alert, Device, Reading, Recovery
from tests.services.iot_world import day, heats_up, readings, registered, run, vanishes

TROUBLE = {"d1": vanishes(4.1), "d2": heats_up(3.2, 8), "d5": heats_up(3.5, 9)}


def told(alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(alert.device, alert.kind) for alert in alerts]


def entry(device: str, days: float, state: str = "running", limit: float | None = None) -> Device:
    return Device(device, day(days), site="hall", state=state, every=1800, max_temperature=limit)


# --- degradation -----------------------------------------------------------------------------------------------------


def test_a_device_that_grows_hotter_than_its_own_past_is_told_once() -> None:
    alerts, _ = run(readings({"d2": heats_up(3.2, 8)}), registered())
    assert told(alerts) == [("d2", "degradation")]
    assert day(3.2) < alerts[0].since < alerts[0].at < day(4)
    assert "temperature" in alerts[0].reasons[0]


def test_a_hot_day_of_the_whole_site_is_weather() -> None:
    alerts, _ = run(readings({f"d{n}": heats_up(3.2, 8) for n in range(8)}), registered())
    assert told(alerts) == []


def test_a_hump_that_passes_is_a_recovery() -> None:
    def hump(reading: Reading, now: float) -> Reading:
        assert reading.temperature is not None
        reading.temperature += 9 if 4.0 <= now < 4.1 else 0
        return reading

    alerts, world = run(readings({"d2": hump}), registered())
    assert told(alerts) == []
    assert {recovery.device for recovery in world.out("recoveries", Recovery)} == {"d2"}


def test_more_and_more_current_surges_are_told() -> None:
    def surges(reading: Reading, now: float) -> Reading:
        reading.current = 99.0 if 2.0 <= now < 2.04 or now >= 2.2 else reading.current
        return reading

    limits = registered(max_current=20.0)
    assert told(run(readings({"d4": surges}, days=2.6), limits)[0]) == [("d4", "surges")]
    assert told(run(readings({"d4": surges}, days=2.6), registered())[0]) == []


# --- the registry as it was ------------------------------------------------------------------------------------------


def hot(reading: Reading, now: float) -> Reading:
    reading.temperature = 90.0 if 1.0 <= now < 1.2 or 1.4 <= now < 1.6 else reading.temperature
    return reading


@pytest.mark.parametrize("raised_at,expected", [(0.5, []), (1.3, [("d3", "limit")]), (2.5, [("d3", "limit")])])
def test_a_reading_is_judged_by_the_limit_of_its_time(raised_at: float, expected: list[tuple[str, str]]) -> None:
    registry = [*registered(), entry("d3", raised_at, limit=95.0)]
    assert told(run(readings({"d3": hot}, days=2.6), registry)[0]) == expected


def test_a_limit_that_is_lowered_counts_from_then_on() -> None:
    registry = [*registered(max_temperature=95.0), entry("d3", 1.3, limit=80.0)]
    (alert,) = run(readings({"d3": hot}, days=2.6), registry)[0]
    assert alert.kind == "limit"
    assert alert.since >= day(1.4)


def test_a_repair_closes_a_case_and_begins_a_norm() -> None:
    """After it the device runs ten degrees hotter: that is its norm now. But its limit counts anew."""

    def repaired(reading: Reading, now: float) -> Reading | None:
        if 2.0 <= now < 2.3:
            return None
        assert reading.temperature is not None
        reading.temperature = 90.0 if 1.8 <= now < 2.0 or 4.8 <= now < 4.9 else reading.temperature + 10 * (now >= 2.3)
        return reading

    registry = [*registered(), entry("d3", 1.99, "maintenance"), entry("d3", 2.3, limit=80.0)]
    alerts, _ = run(readings({"d3": repaired}), registry)
    assert told(alerts) == [("d3", "limit"), ("d3", "limit")]


# --- silence ---------------------------------------------------------------------------------------------------------


def absent(reading: Reading, now: float) -> Reading | None:
    return None if 2.0 <= now < 2.4 else reading


def test_a_device_that_stops_is_told_after_some_missed_reports() -> None:
    (alert,) = run(readings({"d1": vanishes(2.1)}, days=3), registered())[0]
    assert (alert.device, alert.kind) == ("d1", "silence")
    assert day(2.1 - 1 / 40) < alert.since < day(2.1)
    assert day(2.1 + 0.08) < alert.at < day(2.1 + 0.13)


def test_an_announced_stop_is_no_silence() -> None:
    assert told(run(readings({"d1": absent}, days=3), registered())[0]) == [("d1", "silence")]
    announced = [*registered(), entry("d1", 1.99, "maintenance"), entry("d1", 2.4)]
    assert told(run(readings({"d1": absent}, days=3), announced)[0]) == []


def test_who_does_not_come_back_from_a_repair_is_silent() -> None:
    registry = [*registered(), entry("d1", 1.99, "maintenance"), entry("d1", 2.4)]
    alerts, _ = run(readings({"d1": vanishes(2.0)}, days=3), registry)
    assert told(alerts) == [("d1", "silence")]
    assert alerts[0].at > day(2.4)


def test_devices_that_fall_silent_hours_apart_are_no_outage() -> None:
    gone = {f"d{n}": vanishes(1.0 + n / 5) for n in range(5)}
    alerts, _ = run(readings(gone, days=3), registered())
    assert told(alerts) == [(f"d{n}", "silence") for n in range(5)]
    assert all(day(1.08 + n / 5) < alert.at < day(1.13 + n / 5) for n, alert in enumerate(alerts))


def test_a_site_that_falls_silent_together_is_one_outage() -> None:
    (alert,) = run(readings({f"d{n}": absent for n in range(5)}, days=3), registered())[0]
    assert (alert.kind, alert.site) == ("outage", "hall")
    assert [alert.device, *alert.others] == ["d0", "d1", "d2", "d3", "d4"]


def test_a_clock_that_is_put_back_and_the_end_of_a_file_are_no_silence() -> None:
    some = readings({}, days=2)
    again = [reading for reading in readings({}, days=2) if reading.at < day(1)][-40:]
    middle = next(n for n, reading in enumerate(some) if reading.at >= day(1))
    assert told(run([*some[:middle], *again, *some[middle:]], registered())[0]) == []


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crash", [33])
def test_a_crash_changes_no_alert(crash: int) -> None:
    registry = [*registered(), entry("d3", 3.9, "maintenance"), entry("d3", 4.2)]
    given = readings({**TROUBLE, "d3": lambda reading, now: None if 3.9 <= now < 4.2 else reading})
    expected, whole = run(given, registry)
    assert sorted(told(expected)) == [("d1", "silence"), ("d2", "degradation"), ("d5", "degradation")]
    alerts, world = run(given, registry, crash, commit_every=97, batch_size=61, piece=13)
    assert alerts == expected
    assert world.out("recoveries", Recovery) == whole.out("recoveries", Recovery)


BOTH = readings({"d1": vanishes(0.8), "d3": hot}, devices=8, days=1.3)


@pytest.fixture
def of_files() -> list[Alert]:
    return run(BOTH, registered())[0]


async def test_two_live_partitions_that_crash_tell_what_one_run_over_files_tells(of_files: list[Alert]) -> None:
    assert sorted(told(of_files)) == [("d1", "silence"), ("d3", "limit")]
    async with harness(app, seed=4, partitions=2, crashes=0.004) as h:
        await h.send(registry, *registered())
        await h.advance(minutes(2))
        for start in range(0, len(BOTH), 160):
            await h.send(readings_topic, *BOTH[start : start + 160])
        await h.advance(hours(3))
        assert h.crashed
        assert sorted(map(repr, h.sent(alerts))) == sorted(map(repr, of_files))
        assert h.sent(app.dead_letters) == []
