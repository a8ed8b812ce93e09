"""Schedules, by drawings of what the clocks show."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from flowkit.record import EARLIEST, END_OF_TIME, LATEST
from flowkit.window import Crontab, Every

BERLIN = ZoneInfo("Europe/Berlin")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def shown(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, BERLIN).strftime("%d %H:%M %Z")


def after(crontab: Crontab, text: str, count: int) -> list[str]:
    at, found = ms(text), []
    for _ in range(count):
        at = crontab.after(at)
        found.append(shown(at))
    return found


def test_a_time_that_the_clocks_skip_is_skipped() -> None:
    daily = Crontab("30 2 * * *", "Europe/Berlin")
    assert after(daily, "2024-03-29T12:00+00:00", 3) == ["30 02:30 CET", "01 02:30 CEST", "02 02:30 CEST"]
    half_hours = Crontab("*/30 * * * *", "Europe/Berlin")
    assert after(half_hours, "2024-03-31T00:15+00:00", 3) == ["31 01:30 CET", "31 03:00 CEST", "31 03:30 CEST"]


def test_a_time_that_the_clocks_show_twice_counts_once() -> None:
    daily = Crontab("30 2 * * *", "Europe/Berlin")
    assert after(daily, "2024-10-26T12:00+00:00", 2) == ["27 02:30 CEST", "28 02:30 CET"]
    assert after(daily, "2024-10-27T01:10+00:00", 1) == ["28 02:30 CET"]  # in the hour that is repeated
    half_hours = Crontab("*/30 * * * *", "Europe/Berlin")
    assert after(half_hours, "2024-10-27T00:15+00:00", 3) == ["27 02:30 CEST", "27 03:00 CET", "27 03:30 CET"]


@pytest.mark.parametrize("expression", ["*/5 * * * *", "30 2 * * *", "0 0 1 * MON", "15 3 29 2 *", "0 */7 * * 1-5"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"])
def test_the_latest_is_that_after_which_the_next_comes(expression: str, zone: str) -> None:
    crontab = Crontab(expression, zone)
    for start in (
        "2024-03-09T00:00+00:00",
        "2024-03-31T00:59:59.999+00:00",
        "2024-10-27T01:30+00:00",
        "2024-11-03T04:31+00:00",
    ):
        t = ms(start)
        for _ in range(20):
            at = crontab.after(t)
            assert at > t
            assert crontab.latest(at) == at
            before = crontab.latest(at - 1)
            assert before is not None
            assert before <= t or t < before < at
            assert crontab.after(before) == at
            t = at


def test_every_minute_of_a_day_is_found_once() -> None:
    crontab, start = Crontab("* * * * *"), ms("2024-02-29T00:00+00:00")
    at, found = start - 1, []
    for _ in range(1440):
        at = crontab.after(at)
        found.append(at)
    assert found == [start + 60_000 * n for n in range(1440)]


def test_at_the_ends_of_the_calendar_there_is_nothing() -> None:
    crontab = Crontab("0 0 1 1 *", "Europe/Berlin")
    assert crontab.after(LATEST) > END_OF_TIME
    assert crontab.after(EARLIEST) < EARLIEST + timedelta(days=370) // timedelta(milliseconds=1)
    assert crontab.latest(EARLIEST) is None


def test_whole_multiples_also_before_the_epoch() -> None:
    assert [Every(10).after(t) for t in (-11, -10, -1, 0, 9)] == [-10, 0, 0, 10, 10]
    assert [Every(10).latest(t) for t in (-11, -10, -1, 0, 19)] == [-20, -10, -10, 0, 10]
    assert Crontab("0 0 * * *").after(-1) == 0
    assert datetime.fromtimestamp(Crontab("0 0 * * *").after(0) / 1000, UTC).isoformat() == "1970-01-02T00:00:00+00:00"
