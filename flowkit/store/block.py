"""A block: up to some hundred records of one space, in key order, as two msgpack columns that can be read two ways.

    raw    := count:u32  keys at:u32  step:u32  values at:u32  step:u32
              [end of each key's element:u32 …]  [end of each value's element:u32 …]
              msgpack [[key …], [value …]]                                all little-endian
    value  := bin, nil (the key is deleted), or [expiry ms, bin]

A scan decodes both columns with one msgpack call. A look-up of one key decodes nothing: it takes the element by its
place. Where all elements of a column have the same size, that size (`step`) stands for their ends.
"""

import struct
from array import array
from itertools import accumulate
from typing import Any, Final

import cramjam
import msgspec

Value = Any
"""bytes; None for a deleted key; or [expiry in ms, bytes]."""

Columns = tuple[list[bytes], list[Value]]
"""Keys in order, and their values: records as they are read, merged and written."""

PLAIN, LZ4, ZSTD = 0, 1, 2
PACKINGS = {"none": PLAIN, "lz4": LZ4, "zstd": ZSTD}
_MOST = (1, 255, 2**15)
"""So many bytes can be made of one: what the formats of lz4 (a length grows by 255 a byte) and zstd (four bytes stand
for 128 KiB) permit."""

_RAW = struct.Struct("<IIIII")

LARGEST = 2**32 - 1
"""The most that a raw block may have (bytes)."""

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(bytes | list[int | bytes] | None).decode
_decode_columns = msgspec.msgpack.Decoder(tuple[list[bytes], list[bytes | list[int | bytes] | None]]).decode
_lz4 = cramjam.lz4.compress_block
_unlz4 = cramjam.lz4.decompress_block
_zstd = cramjam.zstd.compress
_unzstd = cramjam.zstd.decompress

MISSING: Final[Any] = type("Missing", (), {"__repr__": lambda _self: "MISSING"})()
"""A look-up found nothing: not even that the key is deleted."""


def size_of(value: Value) -> int:
    """The bytes of a value itself."""
    return 0 if value is None else len(value) if type(value) is bytes else len(value[1])


def _bin_head(length: int) -> int:
    return 2 if length < 256 else 3 if length < 65536 else 5


def _array_head(count: int) -> int:
    return 1 if count < 16 else 3 if count < 65536 else 5


def element_sizes(column: list[Any]) -> tuple[list[int], int]:
    """The size of each element's msgpack, or the one size that all have: then there is no list."""
    kinds = set(map(type, column))
    if list in kinds:
        sizes = [len(_encode(value)) for value in column]
    elif type(None) in kinds:
        sizes = [1 if value is None else len(value) + _bin_head(len(value)) for value in column]
    else:
        lengths = set(map(len, column))
        if len(lengths) == 1:
            (length,) = lengths
            return [], length + _bin_head(length)
        if max(lengths) < 256:
            return list(map((2).__add__, map(len, column))), 0
        return [length + _bin_head(length) for length in map(len, column)], 0
    return ([], sizes[0]) if sizes.count(sizes[0]) == len(sizes) else (sizes, 0)


def encode_block(
    keys: list[bytes], values: list[Value], key_sizes: list[int], key_step: int, value_sizes: list[int], value_step: int
) -> bytes:
    """The raw block of some records in key order, at least one. Sizes and steps as `element_sizes` gives them."""
    count = len(keys)
    directories = (0 if key_step else 4 * count) + (0 if value_step else 4 * count)
    keys_at = _RAW.size + directories + 1 + _array_head(count)
    values_at = keys_at + (key_step * count or sum(key_sizes)) + _array_head(count)
    parts = [_RAW.pack(count, keys_at, key_step, values_at, value_step)]
    if not key_step:
        parts.append(_ends(key_sizes, keys_at))
    if not value_step:
        parts.append(_ends(value_sizes, values_at))
    parts.append(_encode((keys, values)))
    return b"".join(parts)


def _ends(sizes: list[int], start: int) -> bytes:
    ends = array("I", accumulate(sizes, initial=start))
    return ends.tobytes()[4:]


def pack(raw: bytes, packing: int) -> tuple[int, bytes]:
    """Bytes as they are stored, and how they were packed: what hardly shrinks is quicker read as it is."""
    if packing == LZ4:
        body = bytes(_lz4(raw, store_size=False))
    elif packing == ZSTD:
        body = bytes(_zstd(raw, level=3))
    if packing == PLAIN or len(body) > len(raw) - len(raw) // 8:
        return PLAIN, raw
    return packing, body


def unpack(stored: bytes, packing: int, size: int) -> bytes:
    """What was packed to `stored`; `size` bytes. Raises ValueError if that is not so."""
    if packing == PLAIN:
        raw = stored
    elif packing > ZSTD or size > min(LARGEST, len(stored) * _MOST[packing]):  # before so much memory is asked for
        raise ValueError(f"{size} bytes in a block")
    else:
        try:
            raw = bytes(_unlz4(stored, output_len=size) if packing == LZ4 else _unzstd(stored, output_len=size))
        except cramjam.DecompressionError as error:
            raise ValueError(str(error)) from error
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes, not {size}")
    return raw


UNREADABLE = (struct.error, IndexError, ValueError, RecursionError, msgspec.MsgspecError)
"""What `columns` and `value_at` raise for bytes that no block has."""


def columns(raw: bytes) -> tuple[list[bytes], list[Value]]:
    """All keys and values of a raw block."""
    count, keys_at, _, _, _ = _RAW.unpack_from(raw)
    keys, values = _decode_columns(memoryview(raw)[max(0, keys_at - 1 - _array_head(count)) :])
    if not len(keys) == len(values) == count:
        raise ValueError("columns of different lengths")
    return keys, values


def value_at(raw: bytes, index: int, key: bytes) -> Value:
    """The value of record `index` of a raw block if its key is `key`, else MISSING."""
    count, keys_at, key_step, values_at, value_step = _RAW.unpack_from(raw)
    ends_at = _RAW.size
    if key_step:
        end = keys_at + (index + 1) * key_step
        start = end - key_step
    else:
        start, end = _element(raw, ends_at, index, keys_at)
        ends_at += 4 * count
    # The element of a key is its bin head and the key: equal in size and in bytes means equal.
    length = len(key)
    if end - start != length + (2 if length < 256 else _bin_head(length)) or raw[end - length : end] != key:
        return MISSING
    if value_step:
        end = values_at + (index + 1) * value_step
        start = end - value_step
    else:
        start, end = _element(raw, ends_at, index, values_at)
    kind = raw[start]
    if kind == 0xC4:  # bin 8
        return raw[start + 2 : end]
    if kind == 0xC5:  # bin 16
        return raw[start + 3 : end]
    return _decode(raw[start:end])


_u32 = struct.Struct("<I").unpack_from
_u32_pair = struct.Struct("<II").unpack_from


def _element(raw: bytes, ends_at: int, index: int, first: int) -> tuple[int, int]:
    if index == 0:
        return first, _u32(raw, ends_at)[0]
    start, end = _u32_pair(raw, ends_at + 4 * index - 4)
    return start, end
