"""CSV, by RFC 4180: one record of columns to a typed value and back."""

import contextlib
import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from flowkit.codec.hints import type_name
from flowkit.codec.hooks import dec_hook, enc_hook
from flowkit.errors import ConfigError, DecodeError

_ABSENT: Any = object()


class Rows:
    """CSV records of one type, by RFC 4180.

    An empty cell is a missing value: the field's default stands for it, else None where the type allows it, else empty
    text; and an error for any other type. Cells of lists, dicts and records hold JSON.
    """

    def __init__(self, type_: Any, fields: tuple[str, ...]) -> None:
        self.type, self.fields = type_, fields
        self.blank: dict[str, Any] = {}
        """What an empty cell stands for, by column."""
        self.nested: set[str] = set()
        info = msgspec.inspect.type_info(type_)
        if isinstance(info, msgspec.inspect.StructType) and info.array_like:
            raise ConfigError(f"codec 'csv' needs named columns: {type_name(type_)} is array_like")
        typed = {field.encode_name: field for field in getattr(info, "fields", ())}
        value = getattr(info, "value_type", msgspec.inspect.AnyType())  # of a dict
        for name in fields:
            part = typed[name].type if name in typed else value
            arms = getattr(part, "types", (part,))
            if name in typed and not typed[name].required:
                self.blank[name] = _ABSENT
            elif any(isinstance(arm, msgspec.inspect.NoneType) for arm in arms):
                self.blank[name] = None
            elif any(isinstance(arm, msgspec.inspect.StrType | msgspec.inspect.AnyType) for arm in arms):
                self.blank[name] = ""
            else:
                self.blank[name] = _ABSENT
            if any(isinstance(arm, _nested_types()) for arm in arms):
                self.nested.add(name)

    def decode(self, data: bytes) -> Any:
        try:
            text = data.decode()
            rows = list(csv.reader([text] if "\n" not in text else io.StringIO(text, newline=""), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DecodeError(str(error)) from error
        if len(rows) != 1:
            raise DecodeError(f"{len(rows)} records where one was expected")
        cells = rows[0] or [""]
        if len(cells) != len(self.fields):
            raise DecodeError(f"{len(cells)} cells where the header has {len(self.fields)}")
        row: dict[str, Any] = dict(zip(self.fields, cells, strict=True))
        if "" in cells:
            row = {name: cell or self.blank[name] for name, cell in row.items()}
            row = {name: cell for name, cell in row.items() if cell is not _ABSENT}
        for name in self.nested & row.keys():
            if row[name]:
                with contextlib.suppress(msgspec.DecodeError):  # text then, and the type says whether that will do
                    row[name] = msgspec.json.decode(row[name])
        return msgspec.convert(row, self.type, strict=False, dec_hook=dec_hook)

    def encode(self, value: Any) -> bytes:
        row = msgspec.to_builtins(value, enc_hook=enc_hook, str_keys=True)
        return csv_line([_cell(row.get(name)) for name in self.fields])


def _nested_types() -> tuple[type, ...]:
    kinds = msgspec.inspect
    return (kinds.CollectionType, kinds.TupleType, kinds.DictType, kinds.TypedDictType, kinds.NamedTupleType,
            kinds.StructType, kinds.DataclassType, kinds.CustomType)  # fmt: skip


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return msgspec.json.encode(value).decode()
    return value


def csv_line(cells: Sequence[Any]) -> bytes:
    """One CSV record without its line end, quoted as RFC 4180 says."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)  # the writer quotes what its own line end is made of
    return out.getvalue()[:-2].encode()
