"""When something periodic is due: at whole multiples of a period since the epoch, or as a crontab says in a time zone.

Every(30_000)                          …:00, …:30
Crontab("30 2 * * *", "Europe/Berlin")  02:30 by the clocks there, whatever the season
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from flowkit.errors import ConfigError
from flowkit.record import EARLIEST, END_OF_TIME

_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  times by the clock on the wall have no zone


class Schedule(Protocol):
    """Times (ms) at which something is due."""

    @property
    def words(self) -> str:
        """For people; two schedules are the same if their words are."""

    def after(self, t: int) -> int:
        """The first that is later than `t`; later than all time if there is none."""

    def latest(self, t: int) -> int | None:
        """The last that is not later than `t`, if there is one."""


class Every:
    """Whole multiples of `period` (ms) since the epoch.

    >>> Every(30_000).after(30_000), Every(30_000).latest(59_999)
    (60000, 30000)
    """

    def __init__(self, period: int) -> None:
        if type(period) is not int or period < 1:
            raise ConfigError(f"timer({period!r}): give the period as whole ms, 1 or more (seconds(…), minutes(…))")
        self.period = period

    @property
    def words(self) -> str:
        return f"every {self.period} ms"

    def after(self, t: int) -> int:
        return (t // self.period + 1) * self.period

    def latest(self, t: int) -> int | None:
        return t // self.period * self.period


class Crontab:
    """The five fields of a crontab (minute, hour, day of month, month, day of week), by the clocks of a time zone.

    A time that the clocks skip in spring is skipped; one that they show twice in autumn counts once, the first time:
    what is due every five minutes rests for the hour that is repeated. (That is the plain reading of "at 02:30"; cron
    daemons differ from each other here.)

    >>> berlin = Crontab("30 2 * * *", "Europe/Berlin")
    >>> saturday = datetime(2024, 3, 30, 12, tzinfo=UTC)  # on Sunday the clocks go from 02:00 to 03:00
    >>> str(datetime.fromtimestamp(berlin.after(int(saturday.timestamp()) * 1000) / 1000, UTC))
    '2024-04-01 00:30:00+00:00'
    """

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        where = f"crontab({expression!r})"
        cure = '"MINUTE HOUR DAY MONTH WEEKDAY", such as "*/5 * * * *" or "30 2 * * MON-FRI"'
        given: object = expression
        if not isinstance(given, str) or len(given.split()) != 5:
            raise ConfigError(f"{where}: give five fields, {cure}")
        self.expression, self.timezone = expression, timezone
        try:
            self.zone = ZoneInfo(timezone)
        except (KeyError, OSError, TypeError, ValueError):
            raise ConfigError(f"{where}: {timezone!r} is no time zone: use a name such as 'Europe/Berlin'") from None
        try:
            self._iterator(_NAIVE_EPOCH + 40 * 365 * _DAY, reverse=False)
        except Exception as error:  # noqa: BLE001  the parser's own errors
            raise ConfigError(f"{where}: {error}: write {cure}") from None
        if self.after(0) > END_OF_TIME:
            raise ConfigError(f"{where}: no day of the calendar is like that: write {cure}")

    @property
    def words(self) -> str:
        return f"at {self.expression} {self.timezone}"

    def after(self, t: int) -> int:
        try:
            # In the hour that is repeated the clocks show earlier times again: those lie behind `t` already.
            for local in self._iterator(self._local(t), reverse=False):
                at = self._utc(local)
                if at is not None and at > t:
                    return at
        except OverflowError:  # the calendar ends with the year 9999
            pass
        return END_OF_TIME + 1

    def latest(self, t: int) -> int | None:
        try:
            for local in self._iterator(self._local(t) + _DAY, reverse=True):
                at = self._utc(local)
                if at is not None and at <= t:
                    return at
        except OverflowError:
            pass
        return None

    def _iterator(self, local: datetime, *, reverse: bool) -> Iterator[datetime]:
        found: Iterator[datetime] = _parser()(self.expression, local, reverse)
        return found

    def _local(self, t: int) -> datetime:
        """What the clocks show at `t`, down to the second."""
        at = _EPOCH + timedelta(seconds=max(t, EARLIEST + 2 * 86_400_000) // 1000)
        return at.astimezone(self.zone).replace(tzinfo=None)

    def _utc(self, local: datetime) -> int | None:
        """When (ms) the clocks show `local` for the first time; None if they skip it."""
        at = local.replace(tzinfo=self.zone).astimezone(UTC)
        if at.astimezone(self.zone).replace(tzinfo=None) != local:
            return None
        return round((at - _EPOCH).total_seconds()) * 1000


@lru_cache(1)
def _parser() -> Any:
    from cronsim import CronSim  # only those pay for it who use it

    return CronSim
