"""Records that the Kinesis Producer Library has packed into one: taken apart, its checksum checked.

    record    := F3 89 9A C2, message, MD5 of the message
    message   := protobuf: 1 partition keys (strings), 2 explicit hash keys (strings), 3 records
    a record  := 1 number of its partition key, 2 number of its explicit hash key, 3 data, 4 tags

(aws/kinesis-aggregation, KPL_AGGREGATION_FORMAT.md.) What begins with those bytes and is no such record is one of its
own, as other consumers take it.
"""

import hashlib
from collections.abc import Iterator

MAGIC = b"\xf3\x89\x9a\xc2"
_DIGEST = 16


def taken_apart(data: bytes, key: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) pairs in a record of a stream: one, unless it is an aggregated one.

    >>> taken_apart(b"{}", b"k")
    [(b'k', b'{}')]
    """
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + _DIGEST:
        return [(key, data)]
    message, digest = data[len(MAGIC) : -_DIGEST], data[-_DIGEST:]
    if hashlib.md5(message, usedforsecurity=False).digest() != digest:
        return [(key, data)]
    try:
        return _records(message)
    except (ValueError, IndexError):
        return [(key, data)]


def _records(message: bytes) -> list[tuple[bytes, bytes]]:
    keys: list[bytes] = []
    found: list[tuple[bytes, bytes]] = []
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            keys.append(value)
        elif field == 3 and isinstance(value, bytes):
            parts = dict(_fields(value))
            number, data = parts.get(1, 0), parts.get(3, b"")
            if not isinstance(number, int) or not isinstance(data, bytes):
                raise ValueError("a record's fields have other types")
            found.append((keys[number], data))
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, by number: bytes and texts, or integers. Raises ValueError if it breaks off."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield tag >> 3, number
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown kind of field {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
