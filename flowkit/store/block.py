"""A block: up to some hundred records of one space, in key order, as two msgpack columns that can be read two ways.

    stored := crc32(rest):u32  packing:u8  raw size:u32  body             packing: 0 none, 1 lz4, 2 zstd
    raw    := count:u32  form:u8  keys at:u32  step:u32  values at:u32  step:u32
              [end of each key's element:u32 …]  [end of each value's element:u32 …]
              msgpack [[key …], [value …]]                                all little-endian
    value  := bin, nil (the key is deleted), or [expiry ms, bin]

A scan decodes both columns with one msgpack call. A look-up of one key decodes nothing: it takes the element by its
place. Where all elements of a column have the same size, that size (`step`) stands for their ends.
"""

import struct
import zlib
from array import array
from itertools import accumulate
from typing import Any, Final

import cramjam
import msgspec

from flowkit.errors import StoreCorrupt

Value = Any
"""bytes; None for a deleted key; or [expiry in ms, bytes]."""

PLAIN, LZ4, ZSTD = 0, 1, 2
PACKINGS = {"none": PLAIN, "lz4": LZ4, "zstd": ZSTD}
TIMED = 1
"""Bit of `form`: some values have an expiry."""

_STORED = struct.Struct("<IBI")
_RAW = struct.Struct("<IBIIII")
OVERHEAD = _STORED.size

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode
_lz4 = cramjam.lz4.compress_block
_unlz4 = cramjam.lz4.decompress_block
_zstd = cramjam.zstd.compress
_unzstd = cramjam.zstd.decompress

MISSING: Final[Any] = type("Missing", (), {"__repr__": lambda _self: "MISSING"})()
"""A look-up found nothing: not even that the key is deleted."""


def _bin_head(length: int) -> int:
    return 2 if length < 256 else 3 if length < 65536 else 5


def _array_head(count: int) -> int:
    return 1 if count < 16 else 3 if count < 65536 else 5


def _sizes(column: list[Any]) -> list[int]:
    """The size of each element's msgpack."""
    if list in set(map(type, column)):
        return [len(_encode(value)) for value in column]
    try:
        lengths = list(map(len, column))
    except TypeError:  # some are None
        return [1 if value is None else len(value) + _bin_head(len(value)) for value in column]
    if max(lengths) < 256:
        return list(map((2).__add__, lengths))
    return [length + _bin_head(length) for length in lengths]


def encode_block(keys: list[bytes], values: list[Value]) -> bytes:
    """The raw block of some records in key order. At least one."""
    count = len(keys)
    key_sizes, value_sizes = _sizes(keys), _sizes(values)
    key_step = key_sizes[0] if key_sizes.count(key_sizes[0]) == count else 0
    value_step = value_sizes[0] if value_sizes.count(value_sizes[0]) == count else 0
    directories = (0 if key_step else 4 * count) + (0 if value_step else 4 * count)
    keys_at = _RAW.size + directories + 1 + _array_head(count)
    values_at = keys_at + sum(key_sizes) + _array_head(count)
    timed = TIMED if list in set(map(type, values)) else 0
    parts = [_RAW.pack(count, timed, keys_at, key_step, values_at, value_step)]
    if not key_step:
        parts.append(_ends(key_sizes, keys_at))
    if not value_step:
        parts.append(_ends(value_sizes, values_at))
    parts.append(_encode((keys, values)))
    return b"".join(parts)


def _ends(sizes: list[int], start: int) -> bytes:
    ends = array("I", accumulate(sizes, initial=start))
    return ends.tobytes()[4:]


def pack_block(raw: bytes, packing: int) -> bytes:
    """The raw block as it is stored."""
    if packing == LZ4:
        body = bytes(_lz4(raw, store_size=False))
    elif packing == ZSTD:
        body = bytes(_zstd(raw, level=3))
    if packing == PLAIN or len(body) > len(raw) - len(raw) // 8:
        packing, body = PLAIN, raw  # what hardly shrinks is quicker read as it is
    rest = struct.pack("<BI", packing, len(raw)) + body
    return struct.pack("<I", zlib.crc32(rest)) + rest


def unpack_block(stored: bytes, name: str, offset: int) -> bytes:
    """The raw block. Raises StoreCorrupt, naming file and offset, if its bytes are not what was written."""
    if len(stored) < OVERHEAD:
        raise _corrupt(name, offset)
    crc, packing, size = _STORED.unpack_from(stored)
    if zlib.crc32(memoryview(stored)[4:]) != crc:
        raise _corrupt(name, offset)
    body = memoryview(stored)[OVERHEAD:]
    try:
        if packing == LZ4:
            return bytes(_unlz4(body, output_len=size))
        if packing == ZSTD:
            return bytes(_unzstd(body, output_len=size))
    except cramjam.DecompressionError as error:
        raise _corrupt(name, offset) from error
    return bytes(body)


def _corrupt(name: str, offset: int) -> StoreCorrupt:
    return StoreCorrupt(f"{name}: checksum mismatch in the block at offset {offset}: restore this file from a copy")


def columns(raw: bytes) -> tuple[list[bytes], list[Value]]:
    """All keys and values of a raw block."""
    count, _, keys_at, _, _, _ = _RAW.unpack_from(raw)
    keys, values = _decode(memoryview(raw)[keys_at - 1 - _array_head(count) :])
    return keys, values


def is_timed(raw: bytes) -> bool:
    """True if some values of a raw block have an expiry."""
    return raw[4] == TIMED


def value_at(raw: bytes, index: int, key: bytes) -> Value:
    """The value of record `index` of a raw block if its key is `key`, else MISSING."""
    count, _, keys_at, key_step, values_at, value_step = _RAW.unpack_from(raw)
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
