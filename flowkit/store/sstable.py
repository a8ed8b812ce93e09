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
from pathlib import Path
from typing import Any

import cramjam
import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.block import LZ4, MISSING, UNREADABLE, Columns, Value, columns, unpack, value_at
from flowkit.store.cache import BlockCache
from flowkit.store.checksum import crc32
from flowkit.store.cipher import StoreKey
from flowkit.store.frame import Space
from flowkit.store.records import MAGIC, TABLE, UNDECODABLE, decode_header
from flowkit.store.sstable_index import CHECKED, FOOTER, PLACE, Index, SpaceMeta, fits, places_of

LARGEST_QUICK = 2**20
READ_AHEAD = 256 * 1024
"""A scan reads so many bytes at once."""

_unlz4 = cramjam.lz4.decompress_block
_decode_index = msgspec.msgpack.Decoder(Index)
_place = struct.Struct(f"{PLACE.format}Q").unpack_from
_place_and_next = struct.Struct(f"{PLACE.format}QI").unpack_from
"""A place, and the offset (and the number) of the next one."""

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
        "_places",
        "_spaces",
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
            del self._offsets, self._spaces, self._places

    def load(self) -> None:
        """Read header and index. Raises StoreCorrupt, StoreKeyError, or StoreError if the file cannot be read."""
        if self._fd < 0:
            self._fd = self._open()
        size = os.fstat(self._fd).st_size
        head = os.pread(self._fd, 4096, 0)
        header = decode_header(head, TABLE, self.name, self._key)
        footer = os.pread(self._fd, FOOTER.size, max(0, size - FOOTER.size))
        if header is None or len(footer) < FOOTER.size or size < header.size + FOOTER.size:
            raise StoreCorrupt(f"{self.name}: ends after {size} bytes: restore this file from a copy")
        offset, length, raw_length, crc, check, magic = FOOTER.unpack(footer)
        whole = magic == MAGIC + TABLE and check == crc32(footer[:CHECKED])
        if not whole or offset + length + FOOTER.size != size:
            raise StoreCorrupt(f"{self.name}: damaged footer at offset {size - FOOTER.size}")
        self._cipher = header.cipher
        raw = self._checked(os.pread(self._fd, length, offset), offset, crc, LZ4, raw_length)
        try:
            index = _decode_index.decode(raw)
        except UNDECODABLE as error:
            raise StoreCorrupt(f"{self.name}: unreadable index at offset {offset}: {error}") from error
        if not fits(index, offset):
            raise StoreCorrupt(f"{self.name}: the parts of the index at offset {offset} do not fit together")
        self._spaces = {meta.space: meta for meta in index.spaces}
        self.firsts, self.low, self.high, self.bits = index.firsts, index.low, index.high, index.bits
        self.numbers, self._offsets = array("I", index.numbers), array("Q", index.offsets)
        self._places = places_of(index)
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
        offset, _, crc, size, packing, end = _place(self._places, PLACE.size * block)
        return self._unpacked(offset, end - offset, crc, size, packing)

    def _unpacked(self, offset: int, length: int, crc: int, size: int, packing: int) -> bytes:
        try:
            stored = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._not_read(offset, error) from error
        # The common case without a further call (0.4 of 9 µs); all that is wrong, or encrypted, goes the long way.
        if packing == LZ4 and self._cipher is None and size <= LARGEST_QUICK and crc32(stored) == crc:
            try:
                raw = bytes(_unlz4(stored, output_len=size))
            except cramjam.DecompressionError:
                raw = b""
            if len(raw) == size:
                return raw
        return self._checked(stored, offset, crc, packing, size)

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
        offset, first, sum_, size, packing, end, stop = _place_and_next(self._places, PLACE.size * block)
        low, high = crc & 255, crc >> 8 & 255
        at = self.low.find(low, first, stop)
        while at >= 0:
            if self.high[at] == high:
                place = self._base | block
                raw = cache.young.get(place)
                if raw is not None:
                    cache.hits += 1
                elif (raw := cache.get(place)) is None:
                    raw = self._unpacked(offset, end - offset, sum_, size, packing)
                    cache.offer(place, raw)
                try:
                    value = value_at(raw, at - first, key)
                except UNREADABLE as error:
                    raise self._unreadable(offset, error) from error
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
            offset, _, crc, size, packing, end = _place(self._places, PLACE.size * block)
            stored: Any = data[offset - base : end - base]
            raw = self._checked(stored, offset, crc, packing, size)
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
