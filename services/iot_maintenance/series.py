"""A file of one's own: a CSV of readings becomes the service's inputs; labelled windows become its truth."""

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from services.iot_maintenance.measure import Label

FIELDS = ("at", "device", "temperature", "vibration", "current")
GUESSES = {"at": ("at", "timestamp", "time", "date"), "temperature": ("temperature", "value")}


class BadInput(Exception):
    """A file that cannot be used as it is; the text says what to do."""


class Series(NamedTuple):
    """What was found in a file."""

    rows: int
    refused: int
    example: str
    devices: list[str]
    first: datetime
    last: datetime

    @property
    def days(self) -> float:
        """How long it is."""
        return (self.last - self.first) / timedelta(days=1)


def convert(source: Path, directory: Path, given: Sequence[str]) -> Series:
    """Write `readings.jsonl` and `registry.jsonl` of a CSV file. `given` says where fields stand: FIELD=COLUMN.

    A file without a column for devices is about one, named after the file. Lines keep their order; those that cannot be
    used are counted. The registry has one entry a device, of which nothing is known but how often it reports.
    Raises BadInput.
    """
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = _columns(source, rows.fieldnames or [], given)
            found, refused, example = _readings(rows, columns, source.stem)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{source} cannot be read: {error}") from None
    if not found:
        raise BadInput(f"{source}: no line could be used" + (f": {example}" if example else ": it has none"))
    with (directory / "readings.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({**reading, "at": at.isoformat()}) + "\n" for at, reading in found)
    times: dict[str, list[datetime]] = {}
    for at, reading in found:
        times.setdefault(str(reading["device"]), []).append(at)
    with (directory / "registry.jsonl").open("w", encoding="utf-8") as file:
        first = min(at for at, _ in found)
        for device, known in times.items():
            entry = {"id": device, "at": (first - timedelta(hours=1)).isoformat(), "every": _every(known)}
            file.write(json.dumps(entry) + "\n")
    last = max(at for at, _ in found)
    return Series(len(found), refused, example, list(times), first, last)


def windows_of(path: Path, source: Path, device: str) -> list[Label]:
    """The labelled windows of `source` in a JSON file {PATH: [[start, end], …]}: the key that ends like its name.

    Raises BadInput.
    """
    try:
        known = json.loads(path.read_bytes())
        (windows,) = [spans for name, spans in known.items() if Path(name).name == source.name]
        spans = [(_time(start), _time(end)) for start, end in windows]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{path}: no windows of {source.name} as {{FILE: [[start, end], …]}}: {error}") from None
    return [Label(device, "window", start, end, end, foreseeable=True) for start, end in spans]


def _columns(source: Path, names: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    columns = {}
    for item in given:
        field, equals, column = item.partition("=")
        if not equals or field not in FIELDS:
            raise BadInput(f"--map {item}: write FIELD=COLUMN; the fields are {', '.join(FIELDS)}")
        if column not in names:
            raise BadInput(f"--map {item}: {source} has no column {column!r}; it has {', '.join(names) or 'none'}")
        columns[field] = column
    for field in FIELDS:
        guess = next((name for name in GUESSES.get(field, (field,)) if name in names), None)
        if field not in columns and guess is not None and guess not in columns.values():
            columns[field] = guess
    if "at" not in columns:
        raise BadInput(f"{source}: which column is the time? Say --map at=COLUMN; it has {', '.join(names) or 'none'}")
    if not columns.keys() & {"temperature", "vibration", "current"}:
        raise BadInput(f"{source}: which column is measured? Say --map temperature=COLUMN (or vibration, current)")
    return columns


def _readings(
    rows: "csv.DictReader[str]", columns: dict[str, str], name: str
) -> tuple[list[tuple[datetime, dict[str, object]]], int, str]:
    found: list[tuple[datetime, dict[str, object]]] = []
    refused, example = 0, ""
    for row in rows:
        try:
            found.append((_time(row[columns["at"]]), dict(_values(row, columns, name))))
        except (ValueError, TypeError) as error:
            refused += 1
            example = example or f"line {rows.line_num}: {error}"
    return found, refused, example


def _values(row: dict[str, str], columns: dict[str, str], name: str) -> Iterator[tuple[str, object]]:
    yield "device", row[columns["device"]] if "device" in columns else name
    for field in ("temperature", "vibration", "current"):
        if field in columns and row[columns[field]] not in ("", None):
            value = float(row[columns[field]])
            if value - value != 0:
                raise ValueError(f"{field} {value} is no measurement")
            yield field, value


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _every(times: list[datetime]) -> float:
    """Seconds between two readings, mostly."""
    gaps = [(b - a).total_seconds() for a, b in pairwise(times) if b > a]
    return median(gaps) if gaps else 600.0
