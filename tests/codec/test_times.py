"""Event times: what a record may say, in ms since the epoch, and what is no time."""

import math
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any

import pytest

from flowkit.codec import EventTime, TimeUnit
from flowkit.errors import ConfigError, TimeError
from flowkit.record import EARLIEST, LATEST

DAY = 86_400_000
NEW_YEAR = 1_704_067_200_000  # 2024-01-01T00:00:00Z


class Nowhere(tzinfo):
    """A zone that does not say its offset."""

    def utcoffset(self, at: datetime | None) -> timedelta | None:
        return None

    def dst(self, at: datetime | None) -> timedelta | None:
        return None

    def tzname(self, at: datetime | None) -> str | None:
        return None


def at(*args: int, offset: float = 0) -> datetime:
    return datetime(*args, tzinfo=timezone(timedelta(hours=offset)))  # type: ignore[misc, arg-type]


TIMES: list[tuple[Any, TimeUnit, int]] = [
    (0, "ms", 0),
    (-1, "ms", -1),
    (NEW_YEAR, "ms", NEW_YEAR),
    (EARLIEST, "ms", EARLIEST),
    (LATEST, "ms", LATEST),
    (1, "s", 1000),
    (-1, "s", -1000),
    (1_999, "us", 1),
    (-1, "us", -1),  # half-open windows want the floor, also before 1970
    (-1_001, "us", -2),
    (1_999_999, "ns", 1),
    (-1, "ns", -1),
    (LATEST // 1000, "s", LATEST - 999),
    (EARLIEST * 1_000_000, "ns", EARLIEST),
    # floats
    (0.0, "ms", 0),
    (-0.0, "ms", 0),
    (1.5, "ms", 1),
    (-1.5, "ms", -2),
    (1.001, "s", 1001),  # 1.001 * 1000 is 1000.9999999999999
    (4.35, "s", 4350),
    (1_704_067_200.123, "s", NEW_YEAR + 123),
    (1_704_067_200.1239, "s", NEW_YEAR + 123),
    (-0.001, "s", -1),
    (2500.0, "us", 2),
    (1e18, "ns", 1_000_000_000_000),
    # datetimes
    (at(1970, 1, 1), "ms", 0),
    (at(2024, 1, 1), "ms", NEW_YEAR),
    (at(2024, 1, 1, 2, offset=2), "ms", NEW_YEAR),
    (at(2023, 12, 31, 18, 30, offset=-5.5), "ms", NEW_YEAR),
    (at(1969, 12, 31, 23, 59, 59, 999_999), "ms", -1),
    (at(1970, 1, 1, 0, 0, 0, 1_999), "ms", 1),
    (at(1, 1, 1), "ms", EARLIEST),
    (at(9999, 12, 31, 23, 59, 59, 999_999), "ms", LATEST),
    (at(2024, 1, 1), "ns", NEW_YEAR),  # the unit is of numbers
    # text
    ("2024-01-01T00:00:00Z", "ms", NEW_YEAR),
    ("2024-01-01T00:00:00+00:00", "ms", NEW_YEAR),
    ("2024-01-01 01:00+01:00", "ms", NEW_YEAR),
    ("20240101T000000Z", "ms", NEW_YEAR),
    ("2024-01-01T00:00:00.123456789Z", "ms", NEW_YEAR + 123),
    ("1969-12-31T23:59:59.999Z", "ms", -1),
    ("0001-01-01T00:00:00Z", "ms", EARLIEST),
    ("9999-12-31T23:59:59.999999Z", "ms", LATEST),
    # numbers as text: cells of a plain dict
    ("1704067200000", "ms", NEW_YEAR),
    ("1705121512000", "ms", 1_705_121_512_000),  # fromisoformat would see the year 1705
    ("-1", "ms", -1),
    ("+5", "s", 5000),
    ("1.001", "s", 1001),
]


@pytest.mark.parametrize(("value", "unit", "expected"), TIMES)
def test_a_time(value: Any, unit: TimeUnit, expected: int) -> None:
    assert EventTime(unit).one(value) == expected


NO_TIMES: list[tuple[Any, str]] = [
    (None, "no time"),
    (True, "True is not a time"),
    (False, "False is not a time"),
    (math.nan, "nan is not a time"),
    (math.inf, "inf is not a time"),
    (-math.inf, "-inf is not a time"),
    (1.7e308, "outside the years"),
    (Decimal(5), "is not a time"),
    (date(2024, 1, 1), "is not a time"),
    (b"5", "is not a time"),
    ([], "is not a time"),
    ({"at": 5}, "is not a time"),
    (object, "is not a time"),
    ("x" * 10_000, "x… is not ISO 8601"),
    ("", "is not ISO 8601"),
    ("soon", "is not ISO 8601"),
    ("2024-13-01T00:00:00Z", "is not ISO 8601"),
    ("2024-02-30T00:00:00Z", "is not ISO 8601"),
    ("2024-01-01T00:00:60Z", "is not ISO 8601"),
    ("1e3", "is not ISO 8601"),
    ("nan", "is not ISO 8601"),
    ("５", "is not ISO 8601"),  # a digit, but not an ASCII one
    ("2024-01-01T00:00:00\0Z", "is not ISO 8601"),
    ("2024-01-01T00:00:00", "2024-01-01T00:00:00 has no UTC offset: give one, or topic"),
    ("2024-01-01", "has no UTC offset"),
    (datetime(2024, 1, 1), "has no UTC offset"),  # noqa: DTZ001  what is refused
    (datetime(2024, 1, 1, tzinfo=Nowhere()), "has no UTC offset"),
    (at(1, 1, 1, offset=14), "outside the years 1 to 9999"),
    (at(9999, 12, 31, 23, offset=-12), "outside the years 1 to 9999"),
    (EARLIEST - 1, "outside the years 1 to 9999"),
    (LATEST + 1, "outside the years 1 to 9999"),
    (2_147_000_000_000_000, "outside the years 1 to 9999"),  # the year 70000
    ("+70000-01-01T00:00:00Z", "is not ISO 8601"),
    (2**63, "outside the years 1 to 9999"),
    (10**400, "an integer of 1329 bits lies outside the years 1 to 9999"),
    (-(10**400), "outside the years 1 to 9999"),
    (10**5000, "outside the years 1 to 9999"),  # Python refuses to print it
    ("9" * 400, "9… lies outside the years 1 to 9999"),
    ("9" * 5000, "outside the years 1 to 9999"),
]


@pytest.mark.parametrize(("value", "reason"), NO_TIMES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("unit", ["ms", "s"])
def test_no_time(value: Any, reason: str, unit: TimeUnit) -> None:
    with pytest.raises(TimeError) as caught:
        EventTime(unit).one(value)
    if not (unit == "s" and value == 1.7e308):
        assert reason in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1e300])
def test_a_float_that_overflows_is_no_time(value: float, unit: TimeUnit) -> None:
    with pytest.raises(TimeError):
        EventTime(unit).one(value)


BERLIN = [
    ("2024-01-01T01:00:00", NEW_YEAR),
    ("2024-01-01", NEW_YEAR - 3_600_000),
    (datetime(2024, 1, 1, 1), NEW_YEAR),  # noqa: DTZ001
    (datetime(2024, 7, 1, 2), 1_719_792_000_000),  # noqa: DTZ001  summer time
    ("2024-01-01T00:00:00Z", NEW_YEAR),  # an offset of its own counts
    (at(2024, 1, 1), NEW_YEAR),
    ("2024-10-27T02:30:00", 1_729_989_000_000),  # twice that night: the first
    ("2024-03-31T02:30:00", 1_711_848_600_000),  # never that night: as if the clock had not been moved yet
    (datetime(2024, 1, 1, 1, tzinfo=Nowhere()), NEW_YEAR),
]


@pytest.mark.parametrize(("value", "expected"), BERLIN)
def test_a_timezone_says_what_times_without_an_offset_mean(value: Any, expected: int) -> None:
    assert EventTime(timezone="Europe/Berlin").one(value) == expected


@pytest.mark.parametrize("value", [datetime.min, datetime.max])  # noqa: DTZ901
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
def test_the_ends_of_the_calendar_in_any_zone(value: datetime, zone: str) -> None:
    event_time = EventTime(timezone=zone)
    if (value == datetime.min and zone == "Asia/Tokyo") or (value == datetime.max and zone == "America/New_York"):  # noqa: DTZ901
        with pytest.raises(TimeError, match="outside the years"):
            event_time.one(value)
    else:
        assert EARLIEST <= event_time.one(value) <= LATEST


@pytest.mark.parametrize(
    "options",
    [
        {"unit": "minutes"},
        {"unit": "MS"},
        {"timezone": "Mars/Olympus"},
        {"timezone": ""},
        {"timezone": "../../etc/passwd"},
        {"timezone": "/etc/localtime"},
        {"timezone": "a\0b"},
        {"timezone": 5},
        {"timezone": "Europe"},  # a directory of the zone database
    ],
)
def test_unknown_units_and_zones_are_configuration_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"time_unit|timezone"):
        EventTime(**options)


# --- batches --------------------------------------------------------------------------------------------------------

BATCHES: list[tuple[list[Any], TimeUnit, list[int] | None]] = [
    ([], "ms", []),
    ([3, 1, 2], "ms", [3, 1, 2]),
    ([1, -1], "s", [1000, -1000]),
    ([1_999, -1], "us", [1, -1]),
    ([EARLIEST, LATEST], "ms", [EARLIEST, LATEST]),
    ([at(1970, 1, 1), at(2024, 1, 1, 2, offset=2)], "ms", [0, NEW_YEAR]),
    ([at(1969, 12, 31, 23, 59, 59, 999_999)], "ms", [-1]),
    # None: look at each
    ([1, None], "ms", None),
    ([None], "ms", None),
    ([1, True], "ms", None),
    ([True], "ms", None),
    ([1, 2.5], "ms", None),
    ([1, math.nan], "ms", None),
    ([1, math.nan], "s", None),
    ([1, "2"], "ms", None),
    ([1, "2"], "s", None),
    (["2024-01-01T00:00:00Z"], "ms", None),
    ([1.5], "ms", None),
    ([1, EARLIEST - 1], "ms", None),
    ([1, LATEST + 1], "ms", None),
    ([1, 10**400], "s", None),
    ([1, [2]], "s", None),
    ([at(2024, 1, 1), datetime(2024, 1, 1)], "ms", None),  # noqa: DTZ001
    ([datetime(2024, 1, 1)], "ms", None),  # noqa: DTZ001
    ([at(2024, 1, 1), 5], "ms", None),
    ([at(2024, 1, 1), at(1, 1, 1, offset=14)], "ms", None),
    ([datetime(2024, 1, 1, tzinfo=Nowhere())], "ms", None),
]


@pytest.mark.parametrize(("values", "unit", "expected"), BATCHES)
def test_a_batch_of_times(values: list[Any], unit: TimeUnit, expected: list[int] | None) -> None:
    assert EventTime(unit).many(values) == expected


@pytest.mark.parametrize(("value", "unit", "expected"), TIMES)
def test_a_batch_says_the_same_as_each_of_its_values(value: Any, unit: TimeUnit, expected: int) -> None:
    assert EventTime(unit).many([value, value]) in (None, [expected, expected])


@pytest.mark.parametrize(("value", "reason"), NO_TIMES, ids=lambda value: type(value).__name__)
def test_a_batch_with_no_time_is_looked_at_one_by_one(value: Any, reason: str) -> None:
    assert EventTime().many([0, value]) is None
    assert EventTime().many([value]) is None
    assert EventTime().many([at(2024, 1, 1).astimezone(UTC), value]) is None
