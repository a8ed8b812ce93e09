"""An sstable: sorted records on disk, never changed once written. One file holds one or more spaces, each in whole
blocks.

    file   := header  block*  index  footer                         header as in `records`, raw blocks as in `block`
    block  := the raw block, packed as the index says (0: not, 1: lz4, 2: zstd), then sealed if the file is encrypted
    index  := msgpack [spaces, first keys, offsets, numbers, sums, sizes, packings, low, high, bits], lz4, sealed too
    spaces := [[table, end | nil, first block, blocks, first key, last key, records, bytes] …]   in the order of blocks
    offsets:= u64 … little-endian: where each block begins, and where the last one ends
    numbers:= u32 …: the number (in the file) of each block's first record, and the count of all
    sums   := u32 …: crc32 of each block as it is stored;  sizes := u32 …: of each raw block;  packings := u8 …
    low, high := one byte a record: bits 0-7 and 8-15 of crc32(key)
    bits   := bit crc32(key) % count of bits is set for every key; eight bits a key
    footer := index offset:u64  stored size:u32  raw size:u32  crc32(index as stored):u32  crc32(of these four):u32
              magic "FLOWKITS"

`bits` is asked first: a bloom filter of one probe says "not here" to seven of eight keys that are not, for the price
of one look into memory. `low` and `high` are the rest of the filter, sixteen bits a key, searched by `bytes.find`
within the one block where the key would be: together they are wrong once in some thousand times (64 records a block /
2**16; a bloom filter of 10 bits a key: once in a hundred), and what they find is the record's place, so that no block
is searched or decoded for a single key.
"""

import os
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from operator import le
from pathlib import Path
from typing import Any

import cramjam
import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.block import (
    LZ4,
    MISSING,
    UNREADABLE,
    Columns,
    Value,
    columns,
    element_sizes,
    encode_block,
    pack,
    unpack,
    value_at,
)
from flowkit.store.cache import BlockCache
from flowkit.store.checksum import crc32
from flowkit.store.cipher import Cipher, StoreKey
from flowkit.store.files import Files
from flowkit.store.frame import Space
from flowkit.store.records import MAGIC, TABLE, UNDECODABLE, decode_header, encode_header

_FOOTER = struct.Struct("<QIIII8s")
_CHECKED = struct.calcsize("<QIII")
BLOCK_RECORDS = 256
"""A block holds at most so many records, however small they are."""
LARGEST_QUICK = 2**20
READ_AHEAD = 256 * 1024
"""A scan reads so many bytes at once."""


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
        self._sums: list[int] = []
        self._sizes: list[int] = []
        self._packings = bytearray()
        self._keys = array("I")
        """crc32 of every key."""
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
        key_sizes, key_step = element_sizes(keys)
        value_sizes, value_step = element_sizes(values)
        total = (key_step + value_step) * len(keys) + sum(key_sizes) + sum(value_sizes)
        # Blocks of about equal size: cut by the mean record, which is exact where all are alike.
        per_block = max(1, min(BLOCK_RECORDS, self.block_bytes * len(keys) // max(1, total)))
        self._keys.extend(map(crc32, keys))
        for at in range(0, len(keys), per_block):
            some, theirs = keys[at : at + per_block], values[at : at + per_block]
            raw = encode_block(
                some, theirs, key_sizes[at : at + per_block], key_step, value_sizes[at : at + per_block], value_step
            )
            packing, stored = pack(raw, self.packing)
            if self.cipher is not None:
                stored = self.cipher.seal(self.size, stored)
            self._sums.append(crc32(stored))
            self._sizes.append(len(raw))
            self._packings.append(packing)
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
        sums = self._keys.tobytes()
        index = msgspec.msgpack.encode(
            _Index(
                self._spaces,
                self._firsts,
                array("Q", [*self._offsets, self.size]).tobytes(),
                array("I", [*self._numbers, self.records]).tobytes(),
                array("I", self._sums).tobytes(),
                array("I", self._sizes).tobytes(),
                bytes(self._packings),
                sums[0::4],
                sums[1::4],
                _bits_of(self._keys),
            )
        )
        stored = bytes(_lz4(index, store_size=False))
        if self.cipher is not None:
            stored = self.cipher.seal(self.size, stored)
        footer = struct.pack("<QIII", self.size, len(stored), len(index), crc32(stored))
        self._buffer += [stored, footer, struct.pack("<I", crc32(footer)), MAGIC + TABLE]
        self._write()
        self._file.sync()
        self._file.close()
        size = self.size + len(stored) + _FOOTER.size
        return FileMeta(self.path.name, level, run, size, self.records, self.deletes, self._spaces)

    def abandon(self) -> None:
        """Close the file as it is: it was never part of the store."""
        self._file.close()


def _bits_of(sums: "array[int]") -> bytes:
    """The bits of a file's keys.

    A byte is set for each, and then eight strides of bytes are put together in bulk: half the time of setting bits
    one by one (0.07 for 0.15 µs a key).
    """
    count = 8 * len(sums)
    slots = bytearray(count)
    for n in sums:
        slots[n % count] = 1
    packed = sum(int.from_bytes(slots[bit::8], "little") << bit for bit in range(8))
    return packed.to_bytes(len(sums), "little")


class _Index(msgspec.Struct, array_like=True):
    spaces: list[SpaceMeta]
    firsts: list[bytes]
    offsets: bytes
    numbers: bytes
    sums: bytes
    sizes: bytes
    packings: bytes
    low: bytes
    high: bytes
    bits: bytes


def _fits(index: _Index, stop: int) -> bool:
    """True if each part of an index has as much as the others say. Blocks end at `stop`."""
    blocks, records = len(index.firsts), len(index.low)
    sizes = [len(index.offsets), len(index.numbers), len(index.sums), len(index.sizes), len(index.packings)]
    if sizes != [8 * blocks + 8, 4 * blocks + 4, 4 * blocks, 4 * blocks, blocks]:
        return False
    if not records == len(index.high) == len(index.bits) > 0:
        return False
    offsets, numbers = array("Q", index.offsets), array("I", index.numbers)
    return (
        offsets[-1] == stop
        and numbers[-1] == records
        and all(map(le, offsets, offsets[1:]))
        and all(map(le, numbers, numbers[1:]))
        and all(0 <= part.first_block <= part.first_block + part.blocks <= blocks for part in index.spaces)
    )


_lz4, _unlz4 = cramjam.lz4.compress_block, cramjam.lz4.decompress_block
_index_decoder = msgspec.msgpack.Decoder(_Index)


_numbers = count()
"""So that a block's place in the cache is one integer, which is hashed in no time."""


class Sstable:
    """Reads one sstable. Opened when it is first needed; its index is kept until `forget`."""

    __slots__ = (
        "_base",
        "_cipher",
        "_fd",
        "_key",
        "_offsets",
        "_packings",
        "_sizes",
        "_spaces",
        "_sums",
        "bits",
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
        self._base = next(_numbers) << 32
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
            del self.firsts, self.low, self.high, self.bits, self.numbers
            del self._offsets, self._spaces, self._sums, self._sizes, self._packings

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
        offset, length, raw_length, crc, check, magic = _FOOTER.unpack(footer)
        whole = magic == MAGIC + TABLE and check == crc32(footer[:_CHECKED])
        if not whole or offset + length + _FOOTER.size != size:
            raise StoreCorrupt(f"{self.name}: damaged footer at offset {size - _FOOTER.size}")
        self._cipher = header.cipher
        raw = self._checked(os.pread(self._fd, length, offset), offset, crc, LZ4, raw_length)
        try:
            index = _index_decoder.decode(raw)
        except UNDECODABLE as error:
            raise StoreCorrupt(f"{self.name}: unreadable index at offset {offset}: {error}") from error
        if not _fits(index, offset):
            raise StoreCorrupt(f"{self.name}: the parts of the index at offset {offset} do not fit together")
        self._spaces = {meta.space: meta for meta in index.spaces}
        self.firsts, self.low, self.high, self.bits = index.firsts, index.low, index.high, index.bits
        self.numbers, self._offsets = array("I", index.numbers), array("Q", index.offsets)
        self._sums, self._sizes, self._packings = array("I", index.sums), array("I", index.sizes), index.packings
        self.bytes = len(raw) + 60 * len(index.firsts) + 1000

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreCorrupt(f"{self.name}: missing, though the manifest names it: restore it from a copy") from None
        except OSError as error:
            raise StoreCorrupt(f"{self.name}: cannot be read: {error.strerror}") from error

    def _raw(self, block: int) -> bytes:
        """A raw block, from disk."""
        offset, size = self._offsets[block], self._sizes[block]
        try:
            stored = os.pread(self._fd, self._offsets[block + 1] - offset, offset)
        except OSError as error:
            raise self._not_read(offset, error) from error
        # The common case without a further call (0.4 of 9 µs); all that is wrong, or encrypted, goes the long way.
        if (
            self._packings[block] == LZ4
            and self._cipher is None
            and size <= LARGEST_QUICK
            and crc32(stored) == self._sums[block]
        ):
            try:
                raw = bytes(_unlz4(stored, output_len=size))
            except cramjam.DecompressionError:
                raw = b""
            if len(raw) == size:
                return raw
        return self._checked(stored, offset, self._sums[block], self._packings[block], size)

    def _checked(self, stored: bytes, offset: int, crc: int, packing: int, size: int) -> bytes:
        """What is stored at `offset`, checked, decrypted and unpacked."""
        if crc32(stored) != crc:
            raise StoreCorrupt(f"{self.name}: checksum mismatch at offset {offset}: restore this file from a copy")
        if self._cipher is not None:
            stored = self._cipher.unseal(offset, stored, self.name)
        try:
            return unpack(stored, packing, size)
        except ValueError as error:
            raise StoreCorrupt(f"{self.name}: what stands at offset {offset} cannot be unpacked: {error}") from error

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._not_read(offset, error) from error

    def _not_read(self, offset: int, error: OSError) -> StoreCorrupt:
        return StoreCorrupt(f"{self.name}: cannot be read at offset {offset}: {error.strerror}")

    def _unreadable(self, offset: int, error: Exception) -> StoreCorrupt:
        return StoreCorrupt(f"{self.name}: unreadable block at offset {offset}: {error}")

    def spaces(self) -> list[SpaceMeta]:
        """What the file says it holds."""
        if not self.bytes:
            self.load()
        return list(self._spaces.values())

    def get(self, space: Space, key: bytes, crc: int, cache: BlockCache) -> Value:
        """The value of `key`, or MISSING. `crc` is crc32(key): its bit in `bits` is set, or the key is not here."""
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
                place = self._base | block
                raw = cache.young.get(place)
                if raw is not None:
                    cache.hits += 1
                elif (raw := cache.get(place)) is None:
                    raw = self._raw(block)
                    cache.offer(place, raw)
                try:
                    value = value_at(raw, at - first, key)
                except UNREADABLE as error:
                    raise self._unreadable(self._offsets[block], error) from error
                if value is not MISSING:
                    return value
            at = self.low.find(low, at + 1, stop)
        return MISSING

    def seems_to_have(self, space: Space, key: bytes, crc: int) -> bool:
        """True if the filter has the key, of which `crc` is the crc32; no block is read."""
        meta = self._spaces.get(space)
        if meta is None:
            return False
        block = bisect_right(self.firsts, key, meta.first_block, meta.first_block + meta.blocks) - 1
        if block < meta.first_block:
            return False
        stop, low, high = self.numbers[block + 1], crc & 255, crc >> 8 & 255
        at = self.low.find(low, self.numbers[block], stop)
        while at >= 0 and self.high[at] != high:
            at = self.low.find(low, at + 1, stop)
        return at >= 0

    def get_many(
        self, space: Space, keys: Sequence[bytes], left: Iterable[int], found: list[Any], cache: BlockCache
    ) -> list[int]:
        """Put the values of the keys at `left` into `found`; the places of those that are not here."""
        if not self.bytes:
            self.load()
        bits = self.bits
        count = 8 * len(bits)
        missing: list[int] = []
        for n in left:
            crc = crc32(keys[n])
            bit = crc % count
            if bits[bit >> 3] >> (bit & 7) & 1:
                value = self.get(space, keys[n], crc, cache)
                if value is not MISSING:
                    found[n] = value
                    continue
            missing.append(n)
        return missing

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
        data = memoryview(self._read(base, self._offsets[last] - base))
        all_keys: list[bytes] = []
        all_values: list[Value] = []
        for block in range(first, last):
            offset = self._offsets[block]
            stored: Any = data[offset - base : self._offsets[block + 1] - base]
            raw = self._checked(stored, offset, self._sums[block], self._packings[block], self._sizes[block])
            try:
                keys, values = columns(raw)
            except UNREADABLE as error:
                raise self._unreadable(offset, error) from error
            all_keys += keys
            all_values += values
        return all_keys, all_values

    # For who checks it

    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self._offsets) - 1

    def offset_of(self, block: int) -> int:
        """Where a block begins in the file."""
        return self._offsets[block]

    def read_block(self, block: int) -> Columns:
        """All records of a block, from disk. Raises StoreCorrupt."""
        raw = self._raw(block)
        try:
            keys, values = columns(raw)
        except (msgspec.MsgspecError, struct.error, ValueError, TypeError) as error:
            raise StoreCorrupt(f"{self.name}: unreadable block at offset {self._offsets[block]}: {error}") from error
        return keys, values

    def may_have(self, crc: int) -> bool:
        """What the first filter says of a key with that crc32."""
        bit = crc % (8 * len(self.bits))
        return bool(self.bits[bit >> 3] >> (bit & 7) & 1)
