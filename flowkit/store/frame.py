r"""One commit as bytes.

    log    := header record*
    header := magic "flowkit log\n"  u16 format version
    record := u32 length  u32 crc32(payload)  payload           all little-endian
    payload:= msgpack [number, commit id, parent id, epoch, meta, changes, drops]
    changes:= [[table, end | nil, [key …], [value | nil …]] …]   columns; nil deletes
    drops  := [[table, end] …]                                   whole spaces

A frame is whole or it does not exist: what ends before its length is the torn tail of a writer that was killed.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec

from flowkit.errors import StoreCorrupt

Space = tuple[str, int | None]
"""Where keys live: a table, and the window end (ms) for tables whose windows are dropped whole."""

MAGIC = b"flowkit log\n"
VERSION = 1
HEADER = MAGIC + struct.pack("<H", VERSION)
RECORD = struct.Struct("<II")


class SpaceChange(msgspec.Struct, array_like=True):
    """Changed keys of one space, as columns. A value of None deletes the key."""

    table: str
    end: int | None
    keys: list[bytes]
    values: list[bytes | None]


class Frame(msgspec.Struct, array_like=True):
    """One commit. Its identity is number *and* id: a zombie may prepare another frame of the same number."""

    number: int
    commit_id: bytes
    parent: bytes
    epoch: int
    meta: dict[str, Any]
    changes: list[SpaceChange] = []
    drops: list[tuple[str, int | None]] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """The frame as a log record."""
    payload = _encoder.encode(frame)
    return RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def decode_log(data: bytes, name: str) -> Iterator[tuple[int, Frame]]:
    """The frames of a log with the offset at which each ends. Stops before a torn tail.

    Raises StoreCorrupt for anything else that is wrong, naming file and offset.
    """
    if len(data) < len(HEADER):
        if HEADER.startswith(data):
            return
        raise StoreCorrupt(f"{name}: not a flowkit log")
    if not data.startswith(MAGIC):
        raise StoreCorrupt(f"{name}: not a flowkit log (its first bytes are {data[:12]!r})")
    (version,) = struct.unpack_from("<H", data, len(MAGIC))
    if version != VERSION:
        raise StoreCorrupt(
            f"{name}: format {version}, but this flowkit reads format {VERSION}: use the one that wrote it"
        )
    view = memoryview(data)
    at = len(HEADER)
    while at + RECORD.size <= len(data):
        length, crc = RECORD.unpack_from(data, at)
        start, end = at + RECORD.size, at + RECORD.size + length
        if end > len(data):
            return
        payload = view[start:end]
        if zlib.crc32(payload) != crc:
            if end == len(data) and not any(payload[-8:]):
                return  # a file grown by a write whose bytes never reached the disk before the power went
            raise StoreCorrupt(f"{name}: checksum mismatch in the frame at offset {at}: restore this file from a copy")
        try:
            frame = _decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{name}: unreadable frame at offset {at}: {error}") from error
        yield end, frame
        at = end
