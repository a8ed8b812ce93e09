"""Writing an sstable. Its grammar stands at the head of `sstable`, where it is read."""

import struct
from array import array
from pathlib import Path
from typing import Any

import cramjam
import msgspec

from flowkit.store.block import LZ4, Value, element_sizes, encode_block, pack
from flowkit.store.checksum import crc32
from flowkit.store.cipher import Cipher
from flowkit.store.files import Files
from flowkit.store.frame import Space
from flowkit.store.records import MAGIC, TABLE, encode_header
from flowkit.store.sstable_index import FOOTER, FileMeta, Index, SpaceMeta, bits_of

BLOCK_RECORDS = 256
"""A block holds at most so many records, however small they are."""
WRITE_BYTES = 256 * 1024
"""So much is written at once."""

compress = cramjam.lz4.compress_block


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
        if self.size > WRITE_BYTES:
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
            Index(
                self._spaces,
                self._firsts,
                array("Q", [*self._offsets, self.size]).tobytes(),
                array("I", [*self._numbers, self.records]).tobytes(),
                array("I", self._sums).tobytes(),
                array("I", self._sizes).tobytes(),
                bytes(self._packings),
                sums[0::4],
                sums[1::4],
                bits_of(self._keys),
            )
        )
        stored = bytes(compress(index, store_size=False))
        if self.cipher is not None:
            stored = self.cipher.seal(self.size, stored)
        footer = struct.pack("<QIII", self.size, len(stored), len(index), crc32(stored))
        self._buffer += [stored, footer, struct.pack("<I", crc32(footer)), MAGIC + TABLE]
        self._write()
        self._file.sync()
        self._file.close()
        size = self.size + len(stored) + FOOTER.size
        return FileMeta(self.path.name, level, run, size, self.records, self.deletes, self._spaces)

    def abandon(self) -> None:
        """Close the file as it is: it was never part of the store."""
        self._file.close()
