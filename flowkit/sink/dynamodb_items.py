"""JSON values as DynamoDB items: attribute values as they go over the wire, their sizes as DynamoDB counts them, keys.

    "text"          S       1, 1.5          N, the digits as they stand in the JSON (38 at most, none is rounded)
    true, false     BOOL    null            NULL
    {…}             M       […]             L (never a set: JSON has none)

Bytes are base64 in JSON, and stay that text; only where the table's key is of type B it is taken apart. Sizes are those
of the developer guide, "DynamoDB item sizes and formats".
"""

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal, InvalidOperation
from typing import Any, NamedTuple

import msgspec

from flowkit.sink.dispatch import Never

ITEM_BYTES = 400 << 10
HASH_BYTES, RANGE_BYTES = 2048, 1024
DIGITS, NESTED = 38, 32
_EXACT = Context(prec=DIGITS)
LARGEST, SMALLEST = Decimal("9.9999999999999999999999999999999999999E+125"), Decimal("1E-130")


class Unfit(Exception):
    """A value that no item can hold. `error` is a kind, for the dead letter."""

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.never = Never(error, reason)


class _Number(str):
    """A number that is no integer, by its digits: a float would change them."""

    __slots__ = ()


_decode = msgspec.json.Decoder(float_hook=_Number).decode


def decoded(value: bytes) -> dict[str, Any]:
    """The JSON object `value`. Raises Unfit if it is none."""
    try:
        found = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unfit("NoJson", f"the value is no JSON: {error}") from None
    if type(found) is not dict:
        raise Unfit("NoObject", f"an item needs a JSON object, and the value is a {type(found).__name__}")
    return found


def item_of(value: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The item with the fields of `value`, and its size in bytes. Raises Unfit."""
    return _members(value, "", 1)


def _members(value: Mapping[str, Any], path: str, depth: int) -> tuple[dict[str, Any], int]:
    members, size = {}, 0
    for name, field in value.items():
        if not name:
            raise Unfit("EmptyName", f"{path or 'the value'} has a field without a name: attributes need one")
        members[name], more = attribute(field, f"{path}.{name}" if path else name, depth)
        size += (len(name) if name.isascii() else len(name.encode())) + more
    return members, size


def attribute(value: Any, path: str, depth: int = 1) -> tuple[dict[str, Any], int]:
    """One attribute value and its size; `path` names it in errors. Raises Unfit."""
    kind = type(value)
    if kind is str:
        return {"S": value}, len(value) if value.isascii() else len(value.encode())
    if kind is int or kind is _Number:
        text = _digits(value, path)
        return {"N": text}, len(text) // 2 + 2
    if kind is bool:
        return {"BOOL": value}, 1
    if value is None:
        return {"NULL": True}, 1
    if depth > NESTED:
        raise Unfit("NestedTooDeeply", f"{path}: is nested deeper than {NESTED} levels")
    if kind is dict:
        members, size = _members(value, path, depth + 1)
        return {"M": members}, size + 3 + len(members)
    entries = [attribute(entry, f"{path}[{n}]", depth + 1) for n, entry in enumerate(value)]
    return {"L": [entry for entry, _ in entries]}, sum(size for _, size in entries) + 3 + len(entries)


def _digits(value: Any, path: str) -> str:
    text = str(value)
    if len(text) > DIGITS or "e" in text or "E" in text:
        try:
            number = Decimal(text)
        except InvalidOperation:
            raise Unfit("NumberOutOfRange", f"{path}: {text} is no number that a table can hold") from None
        if len("".join(map(str, number.as_tuple().digits)).strip("0")) > DIGITS:
            raise Unfit("NumberTooLong", f"{path}: {text} has more than {DIGITS} digits")
        if number and not SMALLEST <= number.copy_abs() <= LARGEST:
            raise Unfit("NumberOutOfRange", f"{path}: {text} is outside {SMALLEST} to 9.99E+125")
    return text


class KeyPart(NamedTuple):
    """One attribute of a table's key: its type is S, N or B."""

    name: str
    type: str
    most: int
    """Bytes of its value."""


class KeySchema(NamedTuple):
    """What a table's items are told apart by."""

    parts: tuple[KeyPart, ...]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "KeySchema":
        """As DescribeTable says; the hash key comes first."""
        types = {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]}
        keys = sorted(table["KeySchema"], key=lambda part: part["KeyType"] != "HASH")
        limits = (HASH_BYTES, RANGE_BYTES)
        return cls(
            tuple(KeyPart(k["AttributeName"], types[k["AttributeName"]], n) for k, n in zip(keys, limits, strict=False))
        )

    @property
    def names(self) -> list[str]:
        """Of the attributes."""
        return [part.name for part in self.parts]

    def of_value(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The key of the item with the fields of `value`. Raises Unfit."""
        return {part.name: _key_part(part, value.get(part.name)) for part in self.parts}

    def of_record_key(self, key: bytes | None) -> dict[str, Any]:
        """The item that a record without a value means: by its key, as a JSON object or list if the key has two parts.

        Raises Unfit.
        """
        if key is None:
            raise Unfit("NoKey", "a tombstone without a key: nobody can tell which item is meant")
        if len(self.parts) == 1:
            part = self.parts[0]
            return {part.name: _wire_part(part, key)}
        try:
            found = _decode(key)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found = None
        if isinstance(found, list) and len(found) == len(self.parts):
            found = dict(zip(self.names, found, strict=True))
        if not isinstance(found, dict):
            names = " and ".join(self.names)
            raise Unfit("KeyMismatch", f"a tombstone's key has to hold {names}, as a JSON object or list of both")
        return self.of_value(found)


def _wire_part(part: KeyPart, key: bytes) -> dict[str, Any]:
    """A record's key as the table's only one: text as it is, a number as its digits, bytes as they are."""
    if part.type == "B":
        return _fits(part, {"B": key}, len(key))
    try:
        return _key_part(part, key.decode() if part.type == "S" else _decode(key))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unfit("KeyMismatch", f"{part.name}: the record's key {key[:80]!r} is of no type {part.type}") from None


def _key_part(part: KeyPart, value: Any) -> dict[str, Any]:
    kind = type(value)
    if value is None:
        raise Unfit("NoKey", f"{part.name}: is a key of the table, and the record has none")
    if part.type == "N" and (kind is int or kind is _Number):
        return {"N": _digits(value, part.name)}
    if kind is not str or part.type == "N":
        shown = "a number" if kind is _Number else f"a {kind.__name__}"
        raise Unfit("KeyMismatch", f"{part.name}: the table's key is of type {part.type}, and the record has {shown}")
    if part.type == "S":
        return _fits(part, {"S": value}, len(value.encode()))
    try:
        data = b64decode(value, validate=True)
    except binascii.Error:
        raise Unfit("KeyMismatch", f"{part.name}: the table's key is of type B, and this is no base64") from None
    return _fits(part, {"B": data}, len(data))


def _fits(part: KeyPart, attribute: dict[str, Any], size: int) -> dict[str, Any]:
    if not size:
        raise Unfit("EmptyKey", f"{part.name}: is empty, and a key of a table must not be")
    if size > part.most:
        raise Unfit("KeyTooLong", f"{part.name}: has {size} bytes, and a key of its kind may have {part.most}")
    return attribute


def key_bytes(key: Mapping[str, Any]) -> bytes:
    """An item's key as bytes that no other item's has. The same number in other digits counts as the same."""
    return b"\0".join(_unambiguous(key))


def _unambiguous(key: Mapping[str, Any]) -> Iterator[bytes]:
    for attribute in key.values():
        for kind, value in attribute.items():
            data = value if kind == "B" else (value if kind == "S" else _plain(value)).encode()
            yield b"%b%d:%b" % (kind.encode(), len(data), data)


def _plain(digits: str) -> str:
    if digits.lstrip("-").isdecimal():
        return digits
    number = Decimal(digits)
    return format(number.normalize(_EXACT), "f") if number else "0"
