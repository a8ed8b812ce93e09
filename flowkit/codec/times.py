"""Event times: from what a record says to milliseconds since the epoch. What says none is a `TimeError`."""

import math
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flowkit.errors import ConfigError, TimeError
from flowkit.record import EARLIEST, LATEST

TimeUnit = Literal["s", "ms", "us", "ns"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ONE_MS = timedelta(milliseconds=1)
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
UNITS: dict[str, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


class EventTime:
    """Takes a record's event time: an aware datetime, ISO 8601 text, or a number of `unit`s since the epoch.

    Fractions of a millisecond are cut off, always towards the past; those of a float count to the microsecond, so that
    1.001 s are 1001 ms. Text that is digits alone is a number, as a CSV cell of a plain dict has it.

    `timezone` (an IANA name) says what a datetime without an offset means; without it such a time is not usable, since
    a guess would silently shift every window.
    """

    def __init__(self, unit: str = "ms", timezone: str | None = None) -> None:
        if unit not in UNITS:
            raise ConfigError(f"time_unit={unit!r}: use one of {', '.join(UNITS)}")
        self.multiply, self.divide = UNITS[unit]
        self.zone: tzinfo | None = None
        if timezone is not None:
            try:
                self.zone = ZoneInfo(timezone)
            except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
                raise ConfigError(f"timezone={timezone!r} is not a known time zone") from error

    def many(self, values: list[Any], *, alike: bool = False) -> list[int] | None:
        """All of `values` in ms, or None if they must be looked at one by one (mixed, or one is unusable).

        `alike`: they are known to be of one type (a decoder has checked it).
        """
        if not values:
            return []
        first = type(values[0])
        try:
            if first is int and self.multiply == 1 == self.divide:
                times = values
            elif first is int:
                times = [value * self.multiply // self.divide for value in values]
            elif first is datetime:
                times = [(value - EPOCH) // ONE_MS for value in values]
            else:
                return None
            # In C over the batch: a bool, a None or a text among the numbers, or an absurd one, shows here.
            # Not looking at the types where they are known: 0.02 µs a record.
            if min(times) >= EARLIEST and max(times) <= LATEST and (alike or set(map(type, values)) == {first}):
                return times
        except (TypeError, ValueError, OverflowError):
            pass
        return None

    def one(self, value: Any) -> int:
        """The time of one value in ms. Raises TimeError with the reason."""
        found = self._parse(value) if isinstance(value, str) else value
        if isinstance(found, datetime):
            if found.utcoffset() is None:
                if self.zone is None:
                    raise TimeError(f"{found.isoformat()} has no UTC offset: give one, or topic(timezone=…)")
                found = found.replace(tzinfo=self.zone)
            at: int = (found - EPOCH) // ONE_MS
        elif isinstance(found, bool) or not isinstance(found, int | float):
            raise TimeError("no time" if value is None else f"{_shown(value)} is not a time")
        elif isinstance(found, int):
            at = found * self.multiply // self.divide
        elif math.isfinite(found * self.multiply):
            at = math.floor(round(found * self.multiply / self.divide, 3))
        else:
            raise TimeError(f"{found} is not a time")
        if not EARLIEST <= at <= LATEST:
            raise TimeError(f"{_shown(value)} lies outside the years 1 to 9999")
        return at

    def _parse(self, text: str) -> datetime | int | float:
        if NUMBER.fullmatch(text):
            if len(text) > 40:
                raise TimeError(f"{_shown(text)} lies outside the years 1 to 9999")
            return float(text) if "." in text else int(text)
        try:
            if "\0" not in text:  # which fromisoformat takes for some of its separators
                return datetime.fromisoformat(text)
        except ValueError:
            pass
        raise TimeError(f"{_shown(text)} is not ISO 8601")


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print those of thousands of digits
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:90] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:80]}…"
