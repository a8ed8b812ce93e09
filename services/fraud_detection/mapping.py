"""Other people's files: any CSV or JSON lines of payments, by saying which column is what.

    --input tx.csv --map card=cc_num --map amount=amt --map at=trans_date+trans_time --map fraud=is_fraud

Columns that have our names need no mapping; only `card`, `at` and `amount` must be there. A column `fraud` (0 or 1,
yes or no) makes chargebacks: they come `report_after` the payment, so that the score learns what a bank would learn.
"""

import csv
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Any, NamedTuple

FIELDS = ("id", "card", "at", "amount", "merchant", "category", "country", "entry", "lat", "lon", "device", "fraud")
REQUIRED = ("card", "at", "amount")
EXAMPLES = 3
"""How many unusable lines are told one by one."""

TRUE = frozenset({"1", "true", "yes", "y", "t", "fraud", "1.0"})
FALSE = frozenset({"0", "false", "no", "n", "f", "", "0.0", "none", "genuine", "legit"})


class MappingError(Exception):
    """The file and the mapping do not fit; the text says what the file has."""


class TimeReading(NamedTuple):
    """How times are read: `form` is a strptime format, `s`, `ms` or `us` since the epoch, or "" to see for oneself.

    `zone` is meant where a time does not say its own.
    """

    form: str = ""
    zone: tzinfo = UTC


class Converted(NamedTuple):
    """A file in our terms. `labels` is None if the file does not tell which payments were fraudulent."""

    transactions: Path
    chargebacks: Path | None
    labels: Path | None
    payments: int
    first: datetime
    last: datetime
    refused: int
    examples: list[str]


Row = Mapping[str, Any]
Columns = Mapping[str, tuple[str, ...]]


def convert(
    source: str,
    directory: Path,
    given: Sequence[str] = (),
    *,
    times: TimeReading | None = None,
    report_after: timedelta = timedelta(days=1),
) -> Converted:
    """Write a source (a path, or `-` for standard input) into the directory as the app reads it, in order of time.

    `given` are mappings FIELD=COLUMN; COLUMN may be `a.b` for nested JSON, and `a+b` for two columns that belong
    together. Lines that cannot be used are left out and told. Raises MappingError.
    """
    wanted = _parse(given)
    times = times or TimeReading()
    payments: list[tuple[float, str, bool]] = []
    refused = 0
    examples: list[str] = []
    with _open(source) as file:
        rows = _rows(source, file)
        columns: Columns | None = None
        for number, row in rows:
            if columns is None:
                columns = _resolve(source, wanted, row)
            try:
                payments.append(_payment(columns, row, number, times))
            except ValueError as error:
                refused += 1
                if len(examples) < EXAMPLES:
                    examples.append(f"line {number}: {error}")
    if columns is None:
        raise MappingError(f"{source} has no rows")
    if not payments:
        raise MappingError("\n".join([f"no line of {source} can be used:", *examples]))
    payments.sort(key=lambda payment: payment[0])  # stable: payments of the same time stay in their order
    return _write(payments, directory, report_after, refused, examples, labelled="fraud" in columns)


def _parse(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    wanted: dict[str, tuple[str, ...]] = {}
    for text in given:
        field, equals, column = text.partition("=")
        if not equals or not column:
            raise MappingError(f"--map {text}: write FIELD=COLUMN, such as --map card=cc_num")
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
    """The rows with their line numbers; standard input and unknown suffixes are told apart by their first character."""
    name = source.removesuffix(".gz")
    first = file.readline()
    if not first.strip():
        raise MappingError(f"{source} is empty")
    if name.endswith((".jsonl", ".ndjson", ".json")) or (not name.endswith(".csv") and first.lstrip().startswith("{")):
        yield from _json_rows(source, first, file)
        return
    delimiter = max(",;\t|", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter))
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


def _resolve(source: str, wanted: Mapping[str, tuple[str, ...]], row: Row) -> Columns:
    """Which columns each field is read from. Raises MappingError, with what the file has."""
    has = f"{source} has: {', '.join(row)}"
    columns: dict[str, tuple[str, ...]] = {field: (field,) for field in FIELDS if field in row}
    for field, names in wanted.items():
        for name in names:
            if name not in row and name.split(".")[0] not in row:
                raise MappingError(f"--map {field}={'+'.join(names)}: no column {name!r}. {has}")
        columns[field] = names
    missing = [field for field in REQUIRED if field not in columns]
    if missing:
        needs = " ".join(f"--map {field}=COLUMN" for field in missing)
        raise MappingError(f"which columns are {', '.join(missing)}? Give {needs}. {has}")
    return columns


def _cell(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(columns: Columns, row: Row, field: str) -> str:
    cells = [_cell(row, name) for name in columns.get(field, ())]
    return " ".join(str(cell).strip() for cell in cells if cell is not None)


def _payment(columns: Columns, row: Row, number: int, times: TimeReading) -> tuple[float, str, bool]:
    """Time (seconds since the epoch), record and truth of a row. Raises ValueError with what is wrong."""
    card = _text(columns, row, "card")
    if not card:
        raise ValueError("no card")
    amount = _number(columns, row, "amount")
    if amount is None:
        raise ValueError("no amount")
    at = read_time(_text(columns, row, "at"), times)
    id_ = _text(columns, row, "id") or f"{number}"
    record = {"id": id_, "card": card, "at": at.isoformat(), "amount": amount}
    for field in ("merchant", "category", "country", "entry", "device"):
        record[field] = _text(columns, row, field)
    lat, lon = _number(columns, row, "lat"), _number(columns, row, "lon")
    if lat is not None and lon is not None:
        if not (-90 <= lat <= 90 and -180 <= lon <= 180):
            raise ValueError(f"lat {lat}, lon {lon}: no place on earth")
        record |= {"lat": lat, "lon": lon}
    fraud = _truth(_text(columns, row, "fraud")) if "fraud" in columns else False
    return at.timestamp(), json.dumps(record, ensure_ascii=False, separators=(",", ":")), fraud


def _number(columns: Columns, row: Row, field: str) -> float | None:
    text = _text(columns, row, field)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{field} {text!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{field} {text!r} is no number")
    return number


def _truth(text: str) -> bool:
    word = text.lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError(f"fraud {text!r}: neither yes nor no")


def read_time(text: str, times: TimeReading) -> datetime:
    """A time with zone. Raises ValueError.

    >>> read_time("2020-06-21 12:14:25", TimeReading()).isoformat()
    '2020-06-21T12:14:25+00:00'
    >>> read_time("1592741665", TimeReading()).isoformat()
    '2020-06-21T12:14:25+00:00'
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
        raise ValueError(f"at {text!r} {how}") from None


def _guess(text: str) -> datetime:
    try:
        number = float(text)
    except ValueError:
        return datetime.fromisoformat(text)
    for unit in (1.0, 1e3, 1e6):  # seconds, milliseconds, microseconds: whichever lies before the year 5138
        if abs(number) < 1e11 * unit:
            return datetime.fromtimestamp(number / unit, UTC)
    raise ValueError(text)


def _write(
    payments: list[tuple[float, str, bool]],
    directory: Path,
    report_after: timedelta,
    refused: int,
    examples: list[str],
    *,
    labelled: bool,
) -> Converted:
    transactions = directory / "transactions.jsonl"
    with transactions.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for _, line, _ in payments)
    chargebacks = labels = None
    if labelled:
        chargebacks, labels = directory / "chargebacks.jsonl", directory / "labels.jsonl"
        end = payments[-1][0]
        with chargebacks.open("w", encoding="utf-8") as reports, labels.open("w", encoding="utf-8") as truth:
            for at, line, fraud in payments:
                if not fraud:
                    continue
                record = json.loads(line)
                truth.write(json.dumps({"id": record["id"], "at": record["at"]}) + "\n")
                heard = at + report_after.total_seconds()
                if heard <= end:
                    when = datetime.fromtimestamp(heard, UTC).isoformat()
                    reports.write(json.dumps({"id": record["id"], "card": record["card"], "at": when}) + "\n")
    first, last = (datetime.fromtimestamp(payments[n][0], UTC) for n in (0, -1))
    return Converted(transactions, chargebacks, labels, len(payments), first, last, refused, examples)
