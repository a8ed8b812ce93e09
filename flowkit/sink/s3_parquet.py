"""Parquet by pyarrow (the extra `parquet`): the schema from the records' type, in row groups of a fixed size.

JSON has null for what is no number: a float that must be there is NaN then. What fits no column, as an integer of more
than 64 bits, is refused, record by record.
"""

import datetime as dt
import decimal
import enum
import math
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from flowkit.aws import need_pyarrow
from flowkit.errors import ConfigError

GROUP_BYTES = 16 << 20
"""So many bytes of JSON lines make a row group. Part of the format."""
GROUP_ROWS = 250_000

UNFIT = (ValueError, TypeError, OverflowError, msgspec.ValidationError)
"""What pyarrow, and who decodes for it, raise for a value that fits no column."""

CODECS = {"snappy": "snappy", "zst": "zstd", "gz": "gzip", "none": "none"}


class Parquet:
    """Parquet objects of records of the type `element`."""

    codec, suffix, content_type = "json", ".parquet", "application/vnd.apache.parquet"
    is_work = True

    def __init__(self, compression: str, element: Any) -> None:
        self.compression, self.element = CODECS[compression], element

    def check(self, where: str) -> None:
        """As the protocol says."""
        need_pyarrow(where)
        try:
            schema_of(self.element)
        except ConfigError as error:
            raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from None

    def begin(self) -> "ParquetEncoder":
        """As the protocol says."""
        return ParquetEncoder(self.element, self.compression)


class ParquetEncoder:
    """One object: JSON lines in, row groups out."""

    def __init__(self, element: Any, compression: str) -> None:
        from pyarrow import parquet

        self._schema = schema_of(element)
        self._names = self._schema.names
        self._element = element
        self._decode = msgspec.json.Decoder(element).decode
        self._with_nan = _with_nan(element)
        self.refused: list[tuple[bytes, str]] = []
        self._out = _Taken()
        self._writer = parquet.ParquetWriter(self._out, self._schema, compression=compression)
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, lines: bytes) -> bytes:
        """As the protocol says."""
        for line in lines.split(b"\n")[:-1]:
            self._lines.append(line)
            self._size += len(line)
            if self._size >= GROUP_BYTES or len(self._lines) == GROUP_ROWS:
                self._group()
        return self._out.take()

    def finish(self) -> bytes:
        """As the protocol says."""
        if self._lines:
            self._group()
        self._writer.close()
        return self._out.take()

    def _group(self) -> None:
        try:
            table = self._table(self._lines)
        except UNFIT:
            table = self._table([line for line in self._lines if self._fits(line)])
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
        self._lines, self._size = [], 0

    def _fits(self, line: bytes) -> bool:
        try:
            self._table([line])
        except UNFIT as error:
            self.refused.append((line, str(error)))
            return False
        return True

    def _table(self, lines: list[bytes]) -> Any:
        import pyarrow as pa

        rows = [_plain(self._record(line)) for line in lines]
        arrays = [pa.array([row.get(name) for row in rows], type=self._schema.field(name).type) for name in self._names]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _record(self, line: bytes) -> Any:
        try:
            return self._decode(line)
        except msgspec.ValidationError:
            if self._with_nan is None:
                raise
            return msgspec.convert(self._with_nan(msgspec.json.decode(line)), self._element)


class _Taken:
    """A file to be written to, whose bytes are taken as they come."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._length += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._length

    def flush(self) -> None: ...
    def close(self) -> None: ...

    def take(self) -> bytes:
        data, self._pieces = b"".join(self._pieces), []
        return data


def _plain(record: Any) -> dict[str, Any]:
    """As pyarrow takes it: times stay times, what has no column type of its own is text."""
    plain: dict[str, Any] = msgspec.to_builtins(
        record, builtin_types=(dt.datetime, dt.date, dt.time, bytes), enc_hook=str
    )
    return plain


def _with_nan(hint: Any) -> Callable[[Any], Any] | None:
    """What puts NaN in place of null into a JSON value of this type, where that needs a float; None: nowhere."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return lambda value: math.nan if value is None else value
    if hasattr(hint, "__struct_fields__"):
        return _fields_with_nan(hint)
    if origin in (typing.Union, types.UnionType):
        inner = _with_nan(float if float in args else next(arm for arm in args if arm is not type(None)))
    elif origin in (typing.Annotated, list, set, frozenset, tuple, dict):
        inner = _with_nan(args[1] if origin is dict else args[0])
    else:
        return None
    if inner is None or origin is typing.Annotated:
        return inner
    if origin is dict:
        return lambda value: {name: inner(each) for name, each in value.items()}
    if origin in (typing.Union, types.UnionType):
        may_be_none = type(None) in args
        return lambda value: None if value is None and may_be_none else inner(value)
    return lambda values: [inner(value) for value in values]


def _fields_with_nan(record: Any) -> Callable[[Any], Any] | None:
    hints = typing.get_type_hints(record)
    names = zip(record.__struct_encode_fields__, record.__struct_fields__, strict=True)
    inners = {shown: inner for shown, name in names if (inner := _with_nan(hints[name])) is not None}
    if not inners:
        return None
    return lambda value: {name: inners[name](each) if name in inners else each for name, each in value.items()}


def schema_of(element: Any) -> Any:
    """The Arrow schema of a record type. Raises ConfigError naming each field that has none."""
    import pyarrow as pa

    try:
        info = msgspec.inspect.type_info(element)
    except (TypeError, RuntimeError):
        info = None
    fields = getattr(info, "fields", None)
    if not fields:
        name = getattr(element, "__name__", element)
        raise ConfigError(f"Parquet needs columns, and the type of the records, {name}, names none: use a Record")
    hints = typing.get_type_hints(element)
    columns, problems = [], []
    for field in fields:
        try:
            kind, nullable = _arrow(hints[field.name])
        except ConfigError as error:
            problems += [f"field {field.name!r}: {problem}" for problem in error.problems]
            continue
        columns.append(pa.field(field.encode_name, kind, nullable=nullable))
    if problems:
        raise ConfigError(*problems)
    return pa.schema(columns)


def _arrow(hint: Any) -> tuple[Any, bool]:
    """An Arrow type, and whether there may be none."""
    import pyarrow as pa

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _arrow(args[0])
    if origin in (typing.Union, types.UnionType):
        arms = [arm for arm in args if arm is not type(None)]
        if len(arms) == 1:
            return _arrow(arms[0])[0], len(arms) < len(args)
        if set(arms) == {int, float}:
            return pa.float64(), len(arms) < len(args)
        raise ConfigError(f"{hint}: a column has one type")
    if origin is typing.Literal:
        kinds = {type(arg) for arg in args}
        return _arrow(kinds.pop()) if len(kinds) == 1 else _no(hint)
    if origin in (list, set, frozenset) or (origin is tuple and len(args) == 2 and args[1] is ...):
        return pa.list_(_arrow(args[0])[0]), False
    if origin is dict and args[0] is str:
        return pa.map_(pa.string(), _arrow(args[1])[0]), False
    simple = {
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
        bytes: pa.binary(),
        uuid.UUID: pa.string(),
        decimal.Decimal: pa.string(),
        dt.datetime: pa.timestamp("us", tz="UTC"),
        dt.date: pa.date32(),
        dt.time: pa.time64("us"),
    }
    if hint in simple:
        return simple[hint], False
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        kinds = {type(member.value) for member in hint}
        return _arrow(kinds.pop()) if len(kinds) == 1 else _no(hint)
    if isinstance(hint, type) and getattr(msgspec.inspect.type_info(hint), "fields", None):
        return pa.struct(list(schema_of(hint))), False
    return _no(hint)


def _no(hint: Any) -> tuple[Any, bool]:
    raise ConfigError(f"{hint} has no column type: use a Record with fields of their own")
