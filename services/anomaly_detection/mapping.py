"""Other people's files: any CSV or JSON lines of metrics, or directories of them, by saying which column is what.

    --input data/ --map timestamp=time --map value=cpu --map name=host

Columns that have our names need no mapping. Without a column `name` each file is a series, called like the file.
"""

import csv
import gzip
import heapq
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import IO, Any, NamedTuple

FIELDS = ("timestamp", "value", "name")
SUFFIXES = (".csv", ".jsonl", ".ndjson")
"""What is read of a directory, `.gz` of these too. A file that is named itself may be called anything."""

EXAMPLES = 3
"""How many unusable lines are told one by one."""


class MappingError(Exception):
    """The files and the mapping do not fit; the text says what there is."""


class TimeReading(NamedTuple):
    """How times are read: `form` is a strptime format, `s`, `ms` or `us` since the epoch, or "" to see for oneself.

    `zone` is meant where a time does not say its own.
    """

    form: str = ""
    zone: tzinfo = UTC


class Converted(NamedTuple):
    """Files in our terms: the topic's records, the number of values of each series, and what was left out."""

    metrics: Path
    series: Mapping[str, int]
    first: datetime
    last: datetime
    refused: int
    examples: list[str]


Row = Mapping[str, Any]
Columns = Mapping[str, tuple[str, ...]]
Value = tuple[float, str]
"""Its place in time (seconds since the epoch) among all values, and the record as JSON."""


def convert(
    sources: Sequence[str], directory: Path, given: Sequence[str] = (), *, times: TimeReading | None = None
) -> Converted:
    """Write the sources (files, directories, or `-` for standard input) into the directory as the app reads them.

    All series are merged by time, as they would come live; within a series the order is that of its file. `given` are
    mappings FIELD=COLUMN; COLUMN may be `a.b` for nested JSON, and `a+b` for two columns that belong together. Lines
    that cannot be used are left out and told. Raises MappingError.
    """
    reader = _Reader(_parse(given), times or TimeReading())
    for source, name in _files(sources):
        reader.read(source, name)
    if not reader.series:
        raise MappingError("\n".join([f"no line of {', '.join(sources)} can be used:", *reader.examples]))
    path = directory / "metrics.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for _, line in heapq.merge(*reader.values, key=lambda value: value[0]))
    first = min(values[0][0] for values in reader.values)
    last = max(values[-1][0] for values in reader.values)
    span = (datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC))
    return Converted(path, reader.series, *span, reader.refused, reader.examples)


class _Reader:
    """Gathers the values of files, each file's in its own order."""

    def __init__(self, wanted: Columns, times: TimeReading) -> None:
        self._wanted = wanted
        self._times = times
        self.values: list[list[Value]] = []
        self.series: dict[str, int] = {}
        self.refused = 0
        self.examples: list[str] = []

    def read(self, source: str, name: str) -> None:
        """Take the values of one file."""
        values: list[Value] = []
        columns: Columns | None = None
        latest = -math.inf
        with _open(source) as file:
            for number, row in _rows(source, file):
                if columns is None:
                    columns = _resolve(source, self._wanted, row)
                try:
                    at, series, line = _value(columns, row, name, self._times)
                except ValueError as error:
                    self.refused += 1
                    if len(self.examples) < EXAMPLES:
                        self.examples.append(f"{source}, line {number}: {error}")
                    continue
                latest = max(latest, at)
                values.append((latest, line))
                self.series[series] = self.series.get(series, 0) + 1
        if columns is None:
            raise MappingError(f"{source} has no rows")
        if values:
            self.values.append(values)


def _files(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The files to read, with what their series are called."""
    for source in sources:
        path = Path(source)
        if source == "-" or not path.is_dir():
            yield source, "metric" if source == "-" else _bare(path.name)
            continue
        found = [file for file in sorted(path.rglob("*")) if file.name.removesuffix(".gz").endswith(SUFFIXES)]
        if not found:
            raise MappingError(f"{source} has no {', '.join(SUFFIXES)} files (nor .gz of these)")
        for file in found:
            yield str(file), _bare(file.relative_to(path).as_posix())


def _bare(name: str) -> str:
    name = name.removesuffix(".gz")
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _parse(given: Sequence[str]) -> Columns:
    wanted: dict[str, tuple[str, ...]] = {}
    for text in given:
        field, equals, column = text.partition("=")
        if not equals or not column:
            raise MappingError(f"--map {text}: write FIELD=COLUMN, such as --map value=cpu")
        if field not in FIELDS:
            raise MappingError(f"--map {text}: there is no field {field!r}; the fields are {', '.join(FIELDS)}")
        wanted[field] = tuple(column.split("+"))
    return wanted


@contextmanager
def _open(source: str) -> Iterator[IO[str]]:
    if source == "-":
        yield sys.stdin
        return
    try:
        with (
            gzip.open(source, "rt", encoding="utf-8-sig", newline="")
            if source.endswith(".gz")
            else Path(source).open(encoding="utf-8-sig", newline="")
        ) as file:
            yield file
    except (OSError, EOFError) as error:
        raise MappingError(f"{source} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise MappingError(f"{source} is no UTF-8 text: {error}") from None


def _rows(source: str, file: IO[str]) -> Iterator[tuple[int, Row]]:
    """The rows with their line numbers; JSON lines are told from CSV by their first character."""
    first = file.readline()
    if not first.strip():
        raise MappingError(f"{source} is empty")
    if first.lstrip().startswith("{"):
        yield from _json_rows(source, first, file)
        return
    delimiter = max(",;\t|", key=first.count)
    header = [column.strip() for column in next(csv.reader([first], delimiter=delimiter))]
    try:
        reader = csv.reader(file, delimiter=delimiter)
        for cells in reader:
            if cells:
                yield reader.line_num + 1, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise MappingError(f"{source}, line {reader.line_num + 1}: {error}") from None


def _json_rows(source: str, first: str, file: IO[str]) -> Iterator[tuple[int, Row]]:
    number, line = 1, first
    while line:
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MappingError(f"{source}, line {number}: no JSON: {error}") from None
            if not isinstance(row, dict):
                raise MappingError(f"{source}, line {number}: an object is expected, not {line.strip()[:40]}")
            yield number, row
        number, line = number + 1, file.readline()


def _resolve(source: str, wanted: Columns, row: Row) -> Columns:
    """Which columns each field is read from. Raises MappingError, with what the file has."""
    has = f"{source} has: {', '.join(row)}"
    columns: dict[str, tuple[str, ...]] = {field: (field,) for field in FIELDS if field in row}
    for field, names in wanted.items():
        for name in names:
            if name not in row and name.split(".")[0] not in row:
                raise MappingError(f"--map {field}={'+'.join(names)}: no column {name!r}. {has}")
        columns[field] = names
    missing = [field for field in ("timestamp", "value") if field not in columns]
    if missing:
        needs = " ".join(f"--map {field}=COLUMN" for field in missing)
        raise MappingError(f"which columns are {', '.join(missing)}? Give {needs}. {has}")
    return columns


def _text(columns: Columns, row: Row, field: str) -> str:
    cells = [_cell(row, name) for name in columns.get(field, ())]
    return " ".join(str(cell).strip() for cell in cells if cell is not None)


def _cell(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _value(columns: Columns, row: Row, name: str, times: TimeReading) -> tuple[float, str, str]:
    """Time (seconds since the epoch), series and record of a row. Raises ValueError with what is wrong."""
    text = _text(columns, row, "value")
    if not text:
        raise ValueError("no value")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"value {text!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"value {text!r} is no finite number")
    at = read_time(_text(columns, row, "timestamp"), times)
    series = _text(columns, row, "name") or name
    record = {"timestamp": at.isoformat(), "value": value, "name": series}
    return at.timestamp(), series, json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def read_time(text: str, times: TimeReading) -> datetime:
    """A time with zone. Raises ValueError.

    >>> read_time("2014-04-10 00:04:00", TimeReading()).isoformat()
    '2014-04-10T00:04:00+00:00'
    >>> read_time("1397088240", TimeReading()).isoformat()
    '2014-04-10T00:04:00+00:00'
    """
    readers: dict[str, Callable[[], datetime]] = {
        "": lambda: _guess(text),
        "s": lambda: datetime.fromtimestamp(float(text), UTC),
        "ms": lambda: datetime.fromtimestamp(float(text) / 1e3, UTC),
        "us": lambda: datetime.fromtimestamp(float(text) / 1e6, UTC),
    }
    try:
        at = readers.get(times.form, lambda: datetime.strptime(text, times.form))()  # noqa: DTZ007  # see below
        at = at if at.tzinfo else at.replace(tzinfo=times.zone)
        return at.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        how = f"does not fit --time-format {times.form!r}" if times.form else "is no time; try --time-format"
        raise ValueError(f"timestamp {text!r} {how}") from None


def _guess(text: str) -> datetime:
    try:
        number = float(text)
    except ValueError:
        return datetime.fromisoformat(text)
    for unit in (1.0, 1e3, 1e6):  # seconds, milliseconds, microseconds: whichever lies before the year 5138
        if abs(number) < 1e11 * unit:
            return datetime.fromtimestamp(number / unit, UTC)
    raise ValueError(text)
