"""Lookups in a file of JSON lines or CSV, read once, and again when it has changed."""

import csv
import io
import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from flowkit.codec import Codec, field_getter, has_field, type_name
from flowkit.errors import ConfigError, DecodeError, LookupFailed

U = TypeVar("U")


def file(path: str | Path, type_: type[U], *, key: str) -> "FileLookup[U]":
    """Find records of a file (.jsonl, .csv) by their field `key`; of several with one key the last counts.

    It is read again when its time of change or its size has changed; while a new one cannot be read, lookups fail, and
    are tried again as `retry` says. Raises ConfigError for another kind of file or an unknown field.
    """
    return FileLookup(path, type_, key)


class FileLookup(Generic[U]):
    """Made by `file`."""

    def __init__(self, path: str | Path, type_: type[U], key: str) -> None:
        self.path, self.type, self.key = Path(path), type_, key
        if self.path.suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"lookup.file({str(path)!r}): give a .jsonl or .csv file")
        if not has_field(type_, key):
            raise ConfigError(f"lookup.file({str(path)!r}): key={key!r} is no field of {type_name(type_)}")
        self._seen: tuple[int, int] | None = None
        self._rows: dict[Any, U] = {}
        self._lock: Any = None

    def __repr__(self) -> str:
        return f"file({str(self.path)!r})"

    def begin(self) -> "FileLookup[U]":
        return FileLookup(self.path, self.type, self.key)

    async def __call__(self, key: Any, /) -> U | None:
        if self._look() != self._seen:
            import anyio
            import anyio.to_thread

            if self._lock is None:
                self._lock = anyio.Lock()
            async with self._lock:
                seen = self._look()
                if seen != self._seen:
                    self._rows = await anyio.to_thread.run_sync(self._read)
                    self._seen = seen
        return self._rows.get(key)

    def _look(self) -> tuple[int, int]:
        try:
            now = os.stat(self.path)  # noqa: PTH116  a third of the time of Path.stat
        except OSError as error:
            raise LookupFailed(f"{self.path}: cannot be read: {error.strerror}") from error
        return now.st_mtime_ns, now.st_size

    def _read(self) -> dict[Any, U]:
        get = field_getter(self.type, self.key)
        try:
            data = self.path.read_bytes()
            if self.path.suffix == ".csv":
                table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
                records: list[U] = [msgspec.convert(row, self.type, strict=False) for row in table]
            else:
                decode = Codec("json", self.type).decode
                records = [decode(line) for line in data.split(b"\n") if line.strip()]
        except (OSError, ValueError, csv.Error, DecodeError) as error:
            raise LookupFailed(f"{self.path}: cannot be read: {error}") from error
        return {get(record): record for record in records}
