"""Which object a record belongs in: the path of its partition, from its time (UTC) and from its fields.

    events/dt={dt}/hour={hour}          dt=2026-03-01/hour=05
    {year}/{month}/{day}/{hour}         as Amazon Data Firehose has it
    country={country}/dt={dt}           a field of the record; null and "" as Hive has it; a value too long for a key
                                        of S3 is its beginning and a digest

Beside these there is {minute}; {app}, {group} and {partition} are the task's.
"""

import csv
import io
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from typing import Any
from urllib.parse import quote

import msgspec

from flowkit.errors import ConfigError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
TASK = ("app", "group", "partition")
LONGEST, START = 200, 15
"""A field's characters in a path, at most: S3 refuses a key of more than 1024 bytes, and its record would never leave.

So many stand before the digest of one that has more, each of at most twelve when quoted.
"""

_SAFE = " @+-_,"
_DAY, _HOUR, _MINUTE = 86_400_000, 3_600_000, 60_000
_TIMES = {"dt": _DAY, "year": _DAY, "month": _DAY, "day": _DAY, "hour": _HOUR, "minute": _MINUTE}
_FORMATS = {"dt": "%Y-%m-%d", "year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M"}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Layout:
    """The partitions of one outlet. `fields` are those of its records, which `codec` encodes.

    Raises ConfigError for a placeholder that stands for nothing.
    """

    def __init__(self, template: str, fields: Sequence[str] | None, codec: str, where: str) -> None:
        self.template = template
        names = list(dict.fromkeys(_PLACEHOLDER.findall(template)))
        self.by_field = [name for name in names if name not in _TIMES and name not in TASK]
        unknown = [name for name in self.by_field if fields is not None and name not in fields]
        if unknown or re.search(r"[{}]", _PLACEHOLDER.sub("", template)):
            known = ", ".join(f"{{{name}}}" for name in (*_TIMES, *TASK, *(fields or ())))
            found = ", ".join(f"{{{name}}}" for name in unknown) or "a lone brace"
            raise ConfigError(f"{where}: {found}: there are {known}")
        steps = [_TIMES[name] for name in names if name in _TIMES]
        self.step = min(steps, default=0)
        """How long a partition is (ms); 0: it has no end. A path that names hours but no day never ends either."""
        self._ends = self.step and ({"dt"} <= set(names) or {"year", "month", "day"} <= set(names))
        self._values = _values_of(self.by_field, fields, codec)

    @property
    def stem(self) -> str:
        """What all paths begin with."""
        return self.template.partition("{")[0]

    def runs(self, times: Sequence[int], values: Sequence[bytes]) -> Iterator[tuple[Hashable, int, int, int]]:
        """A partition's key, records `[start, stop)` that follow each other in it, and the latest of their times."""
        keys: Sequence[Hashable]
        step = self.step
        if not self.by_field:
            latest = max(times)
            if not step or min(times) // step == latest // step:
                yield (latest // step if step else 0, ()), 0, len(times), latest
                return
            keys = [(time // step, ()) for time in times]
        else:
            parts = map(self._values, values)
            keys = [(time // step if step else 0, part) for time, part in zip(times, parts, strict=True)]
        for key, rows in groupby(enumerate(keys), itemgetter(1)):
            indices = [index for index, _ in rows]
            yield key, indices[0], indices[-1] + 1, max(times[indices[0] : indices[-1] + 1])

    def end(self, key: Any) -> int | None:
        """When (ms) a partition is over; None: never."""
        return (key[0] + 1) * self.step if self._ends else None

    def path(self, key: Any, task: dict[str, str]) -> str:
        """A partition's path, for one task."""
        bucket, parts = key
        at = _EPOCH + timedelta(milliseconds=bucket * self.step)
        found: dict[str, str] = {**task, **dict(zip(self.by_field, parts, strict=True))}

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            if name not in _FORMATS:
                return found[name]
            return f"{at.year:04}" if name == "year" else at.strftime(_FORMATS[name])

        return _PLACEHOLDER.sub(fill, self.template)


def _values_of(names: Sequence[str], fields: Sequence[str] | None, codec: str) -> Callable[[bytes], tuple[str, ...]]:
    if codec == "csv":
        at = [list(fields or names).index(name) for name in names]

        def of_line(value: bytes) -> tuple[str, ...]:
            row = next(csv.reader(io.StringIO(value.decode(), newline=""), strict=True))
            return tuple(_safe(row[index]) for index in at)

        return of_line
    # Under names of their own: a field may be called what Python does not take for one.
    plain = msgspec.defstruct(
        "Partition", [(f"f{n}", Any, None) for n in range(len(names))], rename={f"f{n}": x for n, x in enumerate(names)}
    )
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(plain).decode

    def of_object(value: bytes) -> tuple[str, ...]:
        if value[:1] != b"{":
            return (NO_VALUE,) * len(names)  # no object has no fields
        return tuple(map(_safe, msgspec.structs.astuple(decode(value))))

    return of_object


def _safe(value: Any) -> str:
    if value is None or value == "":
        return NO_VALUE
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    # A name of dots alone would be taken for a way up by those who copy to directories.
    safe = quote(text, safe=_SAFE) if text.strip(".") else "%2E" * len(text)
    if len(safe) <= LONGEST:
        return safe
    return f"{quote(text[:START], safe=_SAFE)}~{blake2b(text.encode(), digest_size=8).hexdigest()}"
