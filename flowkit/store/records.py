"""Files of records with checksums: what the log and the manifest are made of.

    file   := header record*
    header := magic "FLOWKIT" kind:u8  version:u16  length:u32  crc32(all that):u32  crc32(facts):u32  facts
    facts  := msgpack map; "key": the file's data key, wrapped, if the file is encrypted
    record := length:u32  safe:u64  crc32(length, safe):u32  crc32(payload):u32  payload      all little-endian

`safe` says how much of the file (bytes from its start) was known to be durable when the record was written. By it a
torn tail, which a crash may leave, is told from damage to what had been promised: damage below any later record's
`safe` is never a crash's doing.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.checksum import crc32
from flowkit.store.cipher import Cipher, StoreKey

VERSION = 1
MAGIC = b"FLOWKIT"
LOG, MANIFEST, TABLE = b"L", b"M", b"S"
KEYS, CHECKPOINT, POINTER = b"K", b"C", b"P"
KINDS = {
    LOG: "log",
    MANIFEST: "manifest",
    TABLE: "sstable",
    KEYS: "key file",
    CHECKPOINT: "checkpoint",
    POINTER: "checkpoint pointer",
}

_HEAD = struct.Struct("<8sHIII")
_HEAD_CHECKED = struct.Struct("<8sHI")
_RECORD = struct.Struct("<IQII")
_CHECKED = struct.Struct("<IQ")
RECORD_BYTES = _RECORD.size
SECTOR = 512
"""A disk writes so many bytes whole or not at all."""
UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for bytes that are not what it was asked for: text that is no UTF-8 is a ValueError."""
LIMIT = 2**32 - 1
"""The largest payload (bytes)."""


def encode_header(kind: bytes, cipher: Cipher | None = None, **more: Any) -> bytes:
    """The first bytes of a file of `kind`: with the key of `cipher`, and further facts."""
    facts = msgspec.msgpack.encode(more if cipher is None else {**more, "key": cipher.wrapped})
    checked = _HEAD_CHECKED.pack(MAGIC + kind, VERSION, len(facts))
    return checked + struct.pack("<II", crc32(checked), crc32(facts)) + facts


class Header(NamedTuple):
    """What a file's first bytes say: how long they are, and how its content is encrypted (None: it is not)."""

    size: int
    cipher: Cipher | None


def decode_header(data: bytes, kind: bytes, name: str, key: StoreKey | None = None) -> Header | None:
    """The header at the start of `data`; None if a crash left the file before it was whole.

    Raises StoreCorrupt, or StoreKeyError.
    """
    found = decode_facts(data, kind, name)
    if found is None:
        return None
    size, facts = found
    return Header(size, Cipher.of_file(facts.get("key"), key, name))


def decode_facts(data: bytes, kind: bytes, name: str) -> tuple[int, dict[str, Any]] | None:
    """The size and the facts of the header at the start of `data`; None if a crash left the file before it was whole.

    Raises StoreCorrupt.
    """
    if not any(data):
        return None  # empty, or written space whose bytes never reached the disk
    if not (MAGIC + kind).startswith(data[:8]) and data[:8] != MAGIC + kind:
        raise StoreCorrupt(f"{name}: not a flowkit {KINDS[kind]} (its first bytes are {data[:8]!r})")
    if len(data) < _HEAD.size:
        return None
    _, version, length, head_crc, crc = _HEAD.unpack_from(data)
    if crc32(memoryview(data)[: _HEAD_CHECKED.size]) != head_crc:
        raise StoreCorrupt(f"{name}: checksum mismatch in the header (offset 0): restore this file from a copy")
    if version != VERSION:
        raise StoreCorrupt(
            f"{name}: format {version}, but this flowkit reads format {VERSION}: use the one that wrote it"
        )
    facts = data[_HEAD.size : _HEAD.size + length]
    if len(facts) < length:
        return None
    if crc32(facts) != crc:
        raise StoreCorrupt(f"{name}: checksum mismatch in the header (offset {_HEAD.size}): restore it from a copy")
    try:
        return _HEAD.size + length, _decode_facts(facts)
    except UNDECODABLE as error:
        raise StoreCorrupt(f"{name}: unreadable header at offset {_HEAD.size}: {error}") from error


_decode_facts = msgspec.msgpack.Decoder(dict[str, Any]).decode


def encode_record(payload: bytes, offset: int, safe: int, cipher: Cipher | None = None) -> bytes:
    """A record that will stand at `offset` of its file."""
    if cipher is not None:
        payload = cipher.seal(offset, payload)
    if len(payload) > LIMIT:
        raise ValueError(f"a record of {len(payload)} bytes: more than {LIMIT} are not possible")
    checked = _CHECKED.pack(len(payload), safe)
    return checked + struct.pack("<II", crc32(checked), crc32(payload)) + payload


class Record(NamedTuple):
    """A record: its payload, and where it stands `[start, end)` in the file."""

    payload: bytes
    start: int
    end: int
    safe: int


def decode_records(data: bytes, header: Header, name: str, promised: int = 0) -> Iterator[Record]:
    """The records of a file. Ends before a torn tail, which begins at `promised` or later.

    Raises StoreCorrupt, naming file and offset, for damage that no crash explains.
    """
    view = memoryview(data)
    at = header.size
    while at < len(data):
        found = _record(view, at)
        if found is None:
            _check_tear(data, view, at, name, promised)
            return
        length, safe = found
        start, end = at + RECORD_BYTES, at + RECORD_BYTES + length
        payload = bytes(view[start:end])
        if header.cipher is not None:
            payload = header.cipher.unseal(at, payload, name)
        yield Record(payload, at, end, safe)
        at = end


def all_records(data: bytes, header: Header, name: str, promised: int = 0) -> Iterator[Record | StoreCorrupt]:
    """As `decode_records`, but goes on after damage: in its place the error comes that tells of it."""
    view = memoryview(data)
    at = header.size
    while at < len(data):
        found = _record(view, at)
        try:
            if found is None:
                _check_tear(data, view, at, name, promised)
                return
            end = at + RECORD_BYTES + found[0]
            payload = bytes(view[at + RECORD_BYTES : end])
            if header.cipher is not None:
                payload = header.cipher.unseal(at, payload, name)
            yield Record(payload, at, end, found[1])
            at = end
        except StoreCorrupt as error:
            yield error
            at = _next_record(data, view, at)


def _next_record(data: bytes, view: memoryview, at: int) -> int:
    """Where the next whole record after `at` begins, or the end."""
    for match in _CANDIDATE.finditer(data, at + 1):
        if _record(view, match.start()) is not None:
            return match.start()
    return len(data)


def _record(view: memoryview, at: int) -> tuple[int, int] | None:
    """(length, safe) of the record at `at`, or None if there is no whole one."""
    if at + RECORD_BYTES > len(view):
        return None
    length, safe, head_crc, crc = _RECORD.unpack_from(view, at)
    if crc32(view[at : at + _CHECKED.size]) != head_crc or not length:
        return None
    end = at + RECORD_BYTES + length
    if end > len(view) or crc32(view[at + RECORD_BYTES : end]) != crc:
        return None
    return length, safe


def _check_tear(data: bytes, view: memoryview, at: int, name: str, promised: int) -> None:
    """Raise StoreCorrupt unless what stands at `at` may be what a crash leaves of a record that was never promised."""
    end = len(data)
    corrupt = StoreCorrupt(f"{name}: checksum mismatch in the record at offset {at}: restore this file from a copy")
    if at < promised:
        raise corrupt
    if at + RECORD_BYTES > end:
        return
    length, _, head_crc, _ = _RECORD.unpack_from(view, at)
    whole_head = crc32(view[at : at + _CHECKED.size]) == head_crc and length > 0
    if whole_head and at + RECORD_BYTES + length > end:
        return  # the writing of the last record was broken off
    if _promised_later(data, view, at):
        raise corrupt
    stop = at + RECORD_BYTES + length if whole_head else end
    if not _has_hole(view, at, stop):
        raise corrupt


_CANDIDATE = re.compile(rb"(?!\0{4})(?=[\s\S]{9}\0{3})")
"""What may be the head of a record: offsets in a file are below 2**40, so their highest bytes are zero."""


def _promised_later(data: bytes, view: memoryview, at: int) -> bool:
    """True if a whole record after `at` was written when what stands at `at` was known to be durable."""
    for match in _CANDIDATE.finditer(data, at + 1):
        found = _record(view, match.start())
        if found is not None and found[1] > at:
            return True
    return False


def _has_hole(view: memoryview, start: int, stop: int) -> bool:
    """True if a sector's part of `[start, stop)` is all zeros: written space whose bytes never reached the disk."""
    at = start
    while at < stop:
        edge = min(stop, (at // SECTOR + 1) * SECTOR)
        if not any(view[at:edge]):
            return True
        at = edge
    return False
