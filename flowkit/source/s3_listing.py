"""Which objects under a prefix are read, in which order, and several at once: its *lanes*.

    dt=2026-03-01/hour=05/…   date=…   year=2026/month=03/day=01/hour=05/…   2026/03/01/05/…     times that a key tells

Objects are in order of the time in their key, then of their names, whose numbers count as numbers. Those of one time
may hold records of the same minutes: their writers worked side by side. So they are dealt out to lanes, of which each
is a split: the run merges them by the records' times. Object n is in lane n modulo their number: what is read at any
moment lies close together, in names that go on with time too.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from flowkit.errors import InputError

MOST_LANES = 16
"""So many there are at most if nobody says how many."""

_HIVE = re.compile(r"(?:^|/)(dt|date|year|month|day|hour|minute)=([^/]*)(?=/)")
_PLAIN = re.compile(r"(?:^|/)(\d{4})/(\d{2})/(\d{2})(?:/(\d{2}))?/")
_DIGITS = re.compile(r"(\d+)")


class Entry(NamedTuple):
    """One object, as it was listed. `modified` in ms."""

    key: str
    size: int
    etag: str
    modified: int


class Listing(NamedTuple):
    """The objects of a run, and what a later look has to give again: those not newer than `until` have `digest`."""

    lanes: list[list[Entry]]
    total: int
    until: int
    digest: str

    @property
    def stamp(self) -> list[Any]:
        """What a position remembers of it."""
        return [self.until, self.total, self.digest]


class Period(NamedTuple):
    """The time (ms) that a key tells, and how long it lasts."""

    start: int
    length: int


def period_of(key: str) -> Period | None:
    """What a key tells of its records' times.

    >>> period_of("a/dt=1970-01-02/hour=01/x.jsonl"), period_of("orders/1970/01/01/02/stream-1-x")
    (Period(start=90000000, length=3600000), Period(start=7200000, length=3600000))
    """
    parts = dict(_HIVE.findall(key))
    day = parts.get("dt") or parts.get("date")
    try:
        if day is not None:
            at = datetime.strptime(day, "%Y-%m-%d" if "-" in day else "%Y%m%d")  # noqa: DTZ007  UTC follows
            numbers = [at.year, at.month, at.day]
        elif {"year", "month", "day"} <= parts.keys():
            numbers = [int(parts[name]) for name in ("year", "month", "day")]
        elif match := _PLAIN.search(key):
            numbers = [int(number) for number in match.groups()[:3]]
            parts = {} if match[4] is None else {"hour": match[4]}
        else:
            return None
        numbers += [int(parts[name]) for name in ("hour", "minute") if name in parts]
        start = datetime(*numbers, tzinfo=UTC)  # type: ignore[arg-type,misc]
    except (ValueError, TypeError):
        return None
    return Period(round(start.timestamp() * 1000), {3: 86_400_000, 4: 3_600_000}.get(len(numbers), 60_000))


def is_data(key: str) -> bool:
    """False for folders, and for what begins with `_` or `.`: markers, as Hive and Spark take them."""
    name = key.rpartition("/")[2]
    return bool(name) and name[0] not in "_."


def arranged(
    entries: Iterable[Entry], *, by_time: bool, lanes: int | None, since: int | None = None, until: int | None = None
) -> Listing:
    """The listing of what is to be read: objects whose period lies in `[since, until)` (ms), at least in part."""
    found = []
    for entry in entries:
        if not entry.size or not is_data(entry.key):
            continue
        period = period_of(entry.key)
        if period is not None and (
            (since is not None and period.start + period.length <= since)
            or (until is not None and period.start >= until)
        ):
            continue
        found.append((period.start if by_time and period is not None else 0, _natural(entry.key), entry))
    found.sort(key=lambda row: row[:2])
    if lanes is None:
        lanes = min(MOST_LANES, max(Counter(start for start, _, _ in found).values(), default=1))
    lanes = max(1, min(lanes, len(found)))
    digest = blake2b(f"{lanes}".encode(), digest_size=12)
    for _, _, entry in found:
        digest.update(f"\n{entry.key}\0{entry.etag}\0{entry.size}".encode())
    inside = [entry for _, _, entry in found]
    return Listing(
        [inside[lane::lanes] for lane in range(lanes)],
        len(inside),
        max((entry.modified for entry in inside), default=0),
        digest.hexdigest(),
    )


def check_same(now: Listing, stamp: Sequence[Any], where: str, at: Sequence[tuple[str, str]]) -> None:
    """Raise InputError if it is not what a run has begun with; `at` are objects (key, ETag) that it was in."""
    if now.stamp[1:] == list(stamp[1:]):
        return
    tags = {entry.key: entry.etag for lane in now.lanes for entry in lane}
    for key, etag in at:
        if tags.get(key) != etag:
            found = f"its ETag was {etag}, and is {tags[key]}" if key in tags else "it is gone"
            raise InputError(f"s3://{where.split('/')[2]}/{key}: has changed since the run began: {found}. {CURE}")
    raise InputError(
        f"{where}: is not what the run has begun with: {stamp[1]} objects then, {now.total} now (newer ones left out), "
        f"or others, or other options. {CURE}"
    )


CURE = "Put back what was there, or start anew without the stored state"


def _natural(key: str) -> list[tuple[int, str]]:
    """Numbers as numbers: hour=9 comes before hour=10."""
    return [(int(part), "") if n % 2 else (-1, part) for n, part in enumerate(_DIGITS.split(key))]
