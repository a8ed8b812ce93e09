"""An sstable: sorted records on disk, never changed once written. One file holds one or more spaces, each in whole
blocks.

    file   := header  block*  index  footer                      the header as in `records`, blocks as in `block`
    index  := stored as a block is: msgpack [spaces, first keys, offsets, numbers, low, high]
    spaces := [[table, end | nil, first block, blocks, first key, last key, records, bytes] …]   in the order of blocks
    offsets:= u64 … little-endian: where each block begins, and where the last one ends
    numbers:= u32 … the number (in the file) of each block's first record, and the count of all
    low, high := one byte a record: bits 0-7 and 8-15 of crc32(key)
    footer := index offset:u64  index size:u32  crc32(of both):u32  magic "FLOWKITS"

`low` and `high` are the filter. Sixteen bits a key, searched by `bytes.find` within the one block where the key would
be: it says "not here" wrongly once in some thousand times (64 records a block / 2**16; a bloom filter of 10 bits: once
in a hundred), and what it finds is the record's place, so that no block is searched or decoded for a single key.
"""

import os
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.block import (
    LZ4,
    MISSING,
    Value,
    columns,
    encode_block,
    pack_block,
    unpack_block,
    value_at,
)
from flowkit.store.cache import BlockCache
from flowkit.store.cipher import Cipher, StoreKey
from flowkit.store.files import Files
from flowkit.store.frame import Space
from flowkit.store.records import MAGIC, TABLE, decode_header, encode_header

_FOOTER = struct.Struct("<QII8s")
BLOCK_RECORDS = 256
"""A block holds at most so many records, however small they are."""
READ_AHEAD = 256 * 1024
"""A scan reads so many bytes at once."""

Columns = tuple[list[bytes], list[Value]]


class SpaceMeta(msgspec.Struct, array_like=True, frozen=True):
    """What a file holds of one space: `bytes` are those of keys and values."""

    table: str
    end: int | None
    first_block: int
    blocks: int
    first: bytes
    last: bytes
    records: int
    bytes: int

    @property
    def space(self) -> Space:
        """The space it is of."""
        return self.table, self.end


class FileMeta(msgspec.Struct, array_like=True, frozen=True):
    """An sstable as the manifest knows it. `run` tells the sorted runs of level 0 apart: a higher one is newer."""

    name: str
    level: int
    run: int
    bytes: int
    records: int
    deletes: int
    spaces: list[SpaceMeta]


class SstableWriter:
    """Writes one sstable. Spaces come in order, each one's records in key order."""

    def __init__(
        self,
        files: Files,
        path: Path,
        *,
        packing: int = LZ4,
        block_bytes: int = 8192,
        cipher: Cipher | None = None,
    ) -> None:
        self.path, self.packing, self.block_bytes, self.cipher = path, packing, block_bytes, cipher
        self._file = files.create(path)
        self._spaces: list[SpaceMeta] = []
        self._firsts: list[bytes] = []
        self._offsets: list[int] = []
        self._numbers: list[int] = []
        self._low: list[bytes] = []
        self._high: list[bytes] = []
        self._space: Space | None = None
        self._open: list[Any] = []
        header = encode_header(TABLE, cipher)
        self._buffer = [header]
        self.size = len(header)
        self.records = self.deletes = 0

    def add(self, space: Space, keys: list[bytes], values: list[Value]) -> None:
        """Add records, which follow all that were added before. At least one."""
        if space != self._space:
            self._close_space()
            self._space = space
            self._open = [len(self._firsts), keys[0], 0, 0]
        sizes = list(accumulate(map(len, keys)))
        total = sizes[-1] + _bytes_of(values)
        # Blocks of about equal size: cut by the mean record, which is exact where all are alike.
        per_block = max(1, min(BLOCK_RECORDS, self.block_bytes * len(keys) // max(1, total)))
        sums = array("I", map(zlib.crc32, keys)).tobytes()
        self._low.append(sums[0::4])
        self._high.append(sums[1::4])
        for at in range(0, len(keys), per_block):
            some, theirs = keys[at : at + per_block], values[at : at + per_block]
            stored = pack_block(encode_block(some, theirs), self.packing)
            if self.cipher is not None:
                stored = self.cipher.seal(self.size, stored)
            self._firsts.append(some[0])
            self._offsets.append(self.size)
            self._numbers.append(self.records + at)
            self._buffer.append(stored)
            self.size += len(stored)
        self._open[2] += len(keys)
        self._open[3] += total
        self._last = keys[-1]
        self.records += len(keys)
        self.deletes += values.count(None)
        if self.size > READ_AHEAD:
            self._write()

    def _write(self) -> None:
        data = b"".join(self._buffer)
        self._buffer.clear()
        if data:
            self._file.append(data)

    def _close_space(self) -> None:
        if self._space is not None:
            first_block, first, records, total = self._open
            blocks = len(self._firsts) - first_block
            self._spaces.append(SpaceMeta(*self._space, first_block, blocks, first, self._last, records, total))

    def finish(self, level: int, run: int) -> FileMeta:
        """Write index and footer and make the file durable (its directory entry is the caller's to sync)."""
        self._close_space()
        index = msgspec.msgpack.encode(
            [
                self._spaces,
                self._firsts,
                array("Q", [*self._offsets, self.size]).tobytes(),
                array("I", [*self._numbers, self.records]).tobytes(),
                b"".join(self._low),
                b"".join(self._high),
            ]
        )
        stored = pack_block(index, LZ4)
        if self.cipher is not None:
            stored = self.cipher.seal(self.size, stored)
        footer = struct.pack("<QI", self.size, len(stored))
        self._buffer += [stored, footer, struct.pack("<I", zlib.crc32(footer)), MAGIC + TABLE]
        self._write()
        self._file.sync()
        self._file.close()
        size = self.size + len(stored) + _FOOTER.size
        return FileMeta(self.path.name, level, run, size, self.records, self.deletes, self._spaces)

    def abandon(self) -> None:
        """Close the file as it is: it was never part of the store."""
        self._file.close()


def _bytes_of(values: list[Value]) -> int:
    try:
        return sum(map(len, values))
    except TypeError:
        return sum(0 if v is None else len(v) if type(v) is bytes else 8 + len(v[1]) for v in values)


class _Index(msgspec.Struct, array_like=True):
    spaces: list[SpaceMeta]
    firsts: list[bytes]
    offsets: bytes
    numbers: bytes
    low: bytes
    high: bytes


_index_decoder = msgspec.msgpack.Decoder(_Index)


class Sstable:
    """Reads one sstable. Opened when it is first needed; its index is kept until `forget`."""

    __slots__ = (
        "_blocks",
        "_cipher",
        "_fd",
        "_key",
        "_offsets",
        "_spaces",
        "bytes",
        "firsts",
        "high",
        "low",
        "name",
        "numbers",
        "path",
    )

    def __init__(self, path: Path, key: StoreKey | None = None) -> None:
        self.path, self.name, self._key = path, str(path), key
        self._fd = -1
        self._blocks: dict[int, bytes] | None = None
        self.bytes = 0
        """What the index takes in memory, about; 0 while it is not loaded."""

    def __del__(self) -> None:
        # The last version that has this file is gone, and with it the last reader.
        self.close()

    def close(self) -> None:
        """Let go of the file and the index; they are opened again when needed, if the file is still there."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self.forget()

    def forget(self) -> None:
        """Drop the index from memory."""
        if self.bytes:
            self.bytes = 0
            del self.firsts, self.low, self.high, self.numbers, self._offsets, self._spaces

    def load(self) -> None:
        """Read header and index. Raises StoreCorrupt, StoreKeyError, or StoreError if the file cannot be read."""
        if self._fd < 0:
            self._fd = self._open()
        size = os.fstat(self._fd).st_size
        head = os.pread(self._fd, 4096, 0)
        header = decode_header(head, TABLE, self.name, self._key)
        footer = os.pread(self._fd, _FOOTER.size, max(0, size - _FOOTER.size))
        if header is None or len(footer) < _FOOTER.size or size < header.size + _FOOTER.size:
            raise StoreCorrupt(f"{self.name}: ends after {size} bytes: restore this file from a copy")
        offset, length, crc, magic = _FOOTER.unpack(footer)
        if magic != MAGIC + TABLE or crc != zlib.crc32(footer[:12]) or offset + length + _FOOTER.size != size:
            raise StoreCorrupt(f"{self.name}: damaged footer at offset {size - _FOOTER.size}")
        self._cipher = header.cipher
        raw = self._raw(offset, length)
        try:
            index = _index_decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self.name}: unreadable index at offset {offset}: {error}") from error
        self._spaces = {meta.space: meta for meta in index.spaces}
        self.firsts, self.low, self.high = index.firsts, index.low, index.high
        self.numbers = memoryview(index.numbers).cast("I")
        self._offsets = memoryview(index.offsets).cast("Q")
        self.bytes = len(raw) + 60 * len(index.firsts) + 1000

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreCorrupt(f"{self.name}: missing, though the manifest names it: restore it from a copy") from None
        except OSError as error:
            raise StoreCorrupt(f"{self.name}: cannot be read: {error.strerror}") from error

    def _raw(self, offset: int, length: int) -> bytes:
        try:
            stored = os.pread(self._fd, length, offset)
        except OSError as error:
            raise StoreCorrupt(f"{self.name}: cannot be read at offset {offset}: {error.strerror}") from error
        if self._cipher is not None:
            stored = self._cipher.unseal(offset, stored, self.name)
        return unpack_block(stored, self.name, offset)

    def spaces(self) -> list[SpaceMeta]:
        """What the file says it holds."""
        if not self.bytes:
            self.load()
        return list(self._spaces.values())

    def get(self, space: Space, key: bytes, crc: int, cache: BlockCache) -> Value:
        """The value of `key`, or MISSING. `crc` is crc32(key): the same for every file that is asked."""
        if not self.bytes:
            self.load()
        meta = self._spaces.get(space)
        if meta is None:
            return MISSING
        block = bisect_right(self.firsts, key, meta.first_block, meta.first_block + meta.blocks) - 1
        if block < meta.first_block:
            return MISSING
        first, stop = self.numbers[block], self.numbers[block + 1]
        low, high = crc & 255, crc >> 8 & 255
        at = self.low.find(low, first, stop)
        while at >= 0:
            if self.high[at] == high:
                raw = cache.get((self, block))
                if raw is None:
                    offset = self._offsets[block]
                    raw = self._raw(offset, self._offsets[block + 1] - offset)
                    cache.put((self, block), raw)
                value = value_at(raw, at - first, key)
                if value is not MISSING:
                    return value
            at = self.low.find(low, at + 1, stop)
        return MISSING

    def scan(
        self, space: Space, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[Columns]:
        """Keys in `[start, stop)` with their values, in chunks of some blocks, each ascending; the last chunk first if
        `reverse`.
        """
        if not self.bytes:
            self.load()
        meta = self._spaces.get(space)
        if meta is None:
            return
        lo, hi = meta.first_block, meta.first_block + meta.blocks
        if start is not None:
            lo = max(lo, bisect_right(self.firsts, start, lo, hi) - 1)
        if stop is not None:
            hi = bisect_left(self.firsts, stop, lo, hi)
        for keys, values in self._chunks(lo, hi, reverse):
            a = 0 if start is None else bisect_left(keys, start)
            b = len(keys) if stop is None else bisect_left(keys, stop)
            if a or b < len(keys):
                keys, values = keys[a:b], values[a:b]
            if keys:
                yield keys, values

    def _chunks(self, lo: int, hi: int, reverse: bool) -> Iterator[Columns]:
        """The blocks `[lo, hi)`, some at a time, so that one read and few list operations serve them."""
        while lo < hi:
            if reverse:
                first = max(lo, bisect_left(self._offsets, self._offsets[hi] - READ_AHEAD, lo, hi))
                first, last = min(first, hi - 1), hi
                hi = first
            else:
                last = bisect_right(self._offsets, self._offsets[lo] + READ_AHEAD, lo, hi)
                first, last = lo, max(last, lo + 1)
                lo = last
            yield self._several(first, last)

    def _several(self, first: int, last: int) -> Columns:
        base = self._offsets[first]
        data = memoryview(os.pread(self._fd, self._offsets[last] - base, base))
        all_keys: list[bytes] = []
        all_values: list[Value] = []
        for block in range(first, last):
            offset = self._offsets[block]
            stored: Any = data[offset - base : self._offsets[block + 1] - base]
            if self._cipher is not None:
                stored = self._cipher.unseal(offset, stored, self.name)
            keys, values = columns(unpack_block(stored, self.name, offset))
            all_keys += keys
            all_values += values
        return all_keys, all_values
