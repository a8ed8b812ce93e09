"""Bytes to values and back: JSON, msgpack, CSV, text and bytes, checked against the declared type; and event times.

msgspec does the work in C. A decoder never lets a foreign exception out: what cannot be decoded is a `DecodeError`,
what has no usable time a `TimeError`.
"""

import csv
import dataclasses
import io
import math
import types
import typing
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from flowkit.errors import ConfigError, DecodeError, TimeError
from flowkit.record import EARLIEST, LATEST

CodecName = Literal["json", "msgpack", "bytes", "text", "csv"]
TimeUnit = Literal["s", "ms", "us", "ns"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ONE_MS = timedelta(milliseconds=1)


def fields_of(type_: Any) -> tuple[str, ...] | None:
    """The field names of a record type as they are in the outside, or None where the type fixes none (dict, Any)."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return type_.__struct_encode_fields__
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return tuple(field.name for field in dataclasses.fields(type_))
    if typing.is_typeddict(type_):
        return tuple(type_.__annotations__)
    return None


def type_name(type_: Any) -> str:
    """A type as its user wrote it, more or less, for messages."""
    return type_.__name__ if isinstance(type_, type) and not typing.get_args(type_) else str(type_)


def is_mapping(type_: Any) -> bool:
    """True if values of `type_` are dicts: fields are taken by `[]`, not by attribute."""
    return typing.is_typeddict(type_) or type_ is dict or typing.get_origin(type_) is dict


def has_field(type_: Any, name: str) -> bool:
    """True if values of `type_` may have the field `name` (Any and plain dicts may have any)."""
    origin = typing.get_origin(type_)
    if origin in (typing.Union, types.UnionType):
        return all(has_field(arm, name) for arm in typing.get_args(type_) if arm is not type(None))
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return name in type_.__struct_fields__
    fields = fields_of(type_)
    if fields is not None:
        return name in fields
    return type_ is Any or is_mapping(type_)


def field_getter(type_: Any, name: str) -> Callable[[Any], Any]:
    """A function that takes field `name` out of a value of `type_`; a missing one gives None."""
    if is_mapping(type_):
        return lambda value: value.get(name)
    if type_ is Any:
        return lambda value: value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return lambda value: getattr(value, name)


def _enc_hook(value: Any) -> Any:
    if hasattr(value, "to_state"):
        return value.to_state()
    raise NotImplementedError(f"a {type(value).__name__} cannot be encoded: give it to_state() and from_state()")


def _dec_hook(type_: Any, state: Any) -> Any:
    if hasattr(type_, "from_state"):
        return type_.from_state(state)
    raise NotImplementedError(f"a {type_} cannot be decoded: give it to_state() and from_state()")


class Codec:
    """Encodes and decodes values of one type in one format.

    `decode` raises DecodeError, `encode` TypeError or ValueError. `fields` are the columns of CSV.
    """

    def __init__(self, name: str, type_: Any, fields: Sequence[str] | None = None) -> None:
        self.name = name
        self.type = type_
        self.fields = tuple(fields) if fields is not None else fields_of(type_)
        self.decode_fast: Callable[[bytes], Any]
        """The C decoder (or `decode`): raises whatever it raises. For batches; on an error use `decode` for the reason."""
        self.encode: Callable[[Any], bytes]
        try:
            self._choose(name, type_)
        except TypeError as error:
            raise ConfigError(f"type {type_!r} cannot be used with codec {name!r}: {error}") from error

    def _choose(self, name: str, type_: Any) -> None:
        if name == "json":
            decoder = msgspec.json.Decoder(type_, dec_hook=_dec_hook)
            self.decode_fast = decoder.decode
            self.encode = msgspec.json.Encoder(enc_hook=_enc_hook).encode
        elif name == "msgpack":
            self.decode_fast = msgspec.msgpack.Decoder(type_, dec_hook=_dec_hook).decode
            self.encode = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode
        elif name == "text":
            if type_ not in (str, Any):
                raise ConfigError(f"codec 'text' needs the type str, not {type_!r}")
            self.decode_fast, self.encode = _decode_text, str.encode
        elif name == "bytes":
            if type_ not in (bytes, Any):
                raise ConfigError(f"codec 'bytes' needs the type bytes, not {type_!r}")
            self.decode_fast, self.encode = bytes, bytes
        elif name == "csv":
            if self.fields is None:
                raise ConfigError(f"codec 'csv' needs columns: a Record, dataclass or TypedDict, not {type_!r}")
            self.decode_fast, self.encode = self._decode_csv, self._encode_csv
        else:
            raise ConfigError(f"unknown codec {name!r}: use json, msgpack, csv, text or bytes")

    def decode(self, data: bytes) -> Any:
        """One value. Raises DecodeError with the reason."""
        try:
            return self.decode_fast(data)
        except DecodeError:
            raise
        except RecursionError as error:
            raise DecodeError("nested too deeply") from error
        except Exception as error:
            raise DecodeError(str(error) or type(error).__name__) from error

    def _decode_csv(self, data: bytes) -> Any:
        assert self.fields is not None
        try:
            rows = list(csv.reader([data.decode()], strict=True)) if b"\n" not in data else _csv_rows(data)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DecodeError(str(error)) from error
        if len(rows) != 1 or len(rows[0]) != len(self.fields):
            found = len(rows[0]) if rows else 0
            raise DecodeError(f"{found} cells where the header has {len(self.fields)}")
        if is_mapping(self.type) or self.type is Any:
            row: dict[str, str] = dict(zip(self.fields, rows[0], strict=True))
        else:
            # An empty cell is a missing value, so that a default or an error stands for it; for text "" is a value,
            # which the second try keeps.
            row = {name: cell for name, cell in zip(self.fields, rows[0], strict=True) if cell != ""}
            try:
                return msgspec.convert(row, self.type, strict=False)
            except msgspec.ValidationError:
                row = dict(zip(self.fields, rows[0], strict=True))
        return msgspec.convert(row, self.type, strict=False)

    def _encode_csv(self, value: Any) -> bytes:
        assert self.fields is not None
        row = msgspec.to_builtins(value, enc_hook=_enc_hook, builtin_types=())
        return csv_line(["" if row.get(name) is None else row[name] for name in self.fields])


def csv_line(cells: Sequence[Any]) -> bytes:
    """One CSV record without its line end, quoted as RFC 4180 says."""
    out = io.StringIO()
    # With an empty lineterminator Python's csv would not quote a cell that holds a line end.
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue()[:-2].encode()


def _csv_rows(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))


def _decode_text(data: bytes) -> str:
    return data.decode()


class KeyCodec:
    """Table and topic keys to their wire bytes and back: text as UTF-8, bytes as they are, anything else as JSON.

    The wire bytes decide the partition and the order in which windows fire.
    """

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self.encode: Callable[[Any], bytes]
        self.decode: Callable[[bytes], Any]
        if type_ is str:
            self.encode, self.decode = str.encode, _decode_text
        elif type_ is bytes:
            self.encode, self.decode = bytes, bytes
        else:
            self.encode = (
                encode_key if type_ is Any else msgspec.json.Encoder(enc_hook=_enc_hook, order="sorted").encode
            )
            self.decode = msgspec.json.Decoder(type_, dec_hook=_dec_hook).decode


def encode_key(key: Any) -> bytes:
    """The wire bytes of a key of whatever type."""
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    return msgspec.json.encode(key, enc_hook=_enc_hook, order="sorted")


UNITS: dict[str, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


class EventTime:
    """Takes a record's event time: an aware datetime, ISO 8601 text, or a number of `unit`s since the epoch.

    `timezone` (an IANA name) says what a datetime without an offset means; without it such a time is not usable,
    since a guess would silently shift every window.
    """

    def __init__(self, unit: str = "ms", timezone: str | None = None) -> None:
        if unit not in UNITS:
            raise ConfigError(f"time_unit={unit!r}: use one of {', '.join(UNITS)}")
        self.multiply, self.divide = UNITS[unit]
        self.zone: tzinfo | None = None
        if timezone is not None:
            try:
                self.zone = ZoneInfo(timezone)
            except (ZoneInfoNotFoundError, ValueError) as error:
                raise ConfigError(f"timezone={timezone!r} is not a known time zone") from error

    def many(self, values: list[Any]) -> list[int] | None:
        """All of `values` in ms, or None if they must be looked at one by one (mixed, or one is unusable)."""
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
            # One pass in C over the batch: a bool, a None or a text among the numbers, or an absurd one, shows here.
            if min(times) >= EARLIEST and max(times) <= LATEST and set(map(type, values)) == {first}:
                return times
        except (TypeError, OverflowError):
            pass
        return None

    def one(self, value: Any) -> int:
        """The time of one value in ms. Raises TimeError with the reason."""
        if isinstance(value, str):
            value = self._parse(value)
        if isinstance(value, datetime):
            if value.tzinfo is None:
                if self.zone is None:
                    raise TimeError(f"{value.isoformat()} has no UTC offset: give one, or topic(timezone=…)")
                value = value.replace(tzinfo=self.zone)
            at = (value - EPOCH) // ONE_MS
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise TimeError("no time" if value is None else f"{value!r} is not a time")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise TimeError(f"{value} is not a time")
            at = math.floor(value * self.multiply / self.divide)
        else:
            at = int(value) * self.multiply // self.divide
        if not EARLIEST <= at <= LATEST:
            raise TimeError(f"{value!r} lies outside the years 1 to 9999")
        return at

    def _parse(self, text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise TimeError(f"{text[:80]!r} is not ISO 8601") from None
