"""Millions of damaged and forged files for all decoders of the store: `python -m tests.store.fuzz SECONDS [SEED]`.

Damage: valid files, with bytes flipped, cut out, doubled, or overwritten by extreme numbers; checksums must find nearly
all of it. Forgery: the same done to what checksums protect, which are then made anew, so that
the decoders behind them see it. Nothing but our own errors may come of either, soon, and without much memory.
"""

from __future__ import annotations

import contextlib
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from flowkit.errors import StoreError
from flowkit.store import Space, SpaceChange
from flowkit.store.block import UNREADABLE, columns, element_sizes, encode_block, unpack, value_at
from flowkit.store.cache import BlockCache
from flowkit.store.files import Disk
from flowkit.store.frame import Frame, decode_frame, encode_frame
from flowkit.store.log import read_log
from flowkit.store.manifest import read_manifest
from flowkit.store.memtable import Memtable
from flowkit.store.records import LOG, MANIFEST, encode_header, encode_record
from flowkit.store.sstable import Sstable
from flowkit.store.sstable_index import FOOTER, FileMeta, SpaceMeta
from flowkit.store.sstable_writer import SstableWriter
from flowkit.store.version import Edit

SPACE: Space = ("t", None)
MEMORY = 512 * 2**20
"""What a decoder may have taken at most, by the whole process's peak (bytes)."""
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def mangled(data: bytes, luck: random.Random) -> bytes:
    """Data with one to four things done to it."""
    for _ in range(luck.choice([1, 1, 1, 2, 4])):
        if not data:
            return luck.randbytes(luck.randint(0, 40))
        at = luck.randrange(len(data))
        size = luck.choice([1, 1, 2, 4, 8, 30])
        what = luck.randrange(6)
        if what == 0:
            data = data[:at] + bytes([data[at] ^ 1 << luck.randrange(8)]) + data[at + 1 :]
        elif what == 1:
            data = data[:at]
        elif what == 2:
            data = data[:at] + data[at + size :]
        elif what == 3:
            data = data[:at] + data[at : at + size] * luck.randint(2, 4) + data[at + size :]
        elif what == 4:
            data = data[:at] + luck.randbytes(size) + data[at + size :]
        else:
            width = luck.choice([1, 2, 4, 8])
            extreme = luck.choice(EXTREMES) & (1 << 8 * width) - 1
            data = data[:at] + extreme.to_bytes(width, luck.choice(["little", "big"])) + data[at + width :]
    return data


class Fuzz:
    """Valid inputs, and what is done with bad ones. Everything is written to one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        values = [b"v" * (n % 50) if n % 5 else None if n % 3 else [n, b"timed"] for n in range(60)]
        keys = [b"key %04d" % n + b"x" * (n % 3) for n in range(60)]
        self.frame = Frame(
            7, b"i" * 16, b"p" * 16, 1, {"a": [1, {"b": "c"}]}, [SpaceChange("t", None, keys, values)], [("w", 5)], 3
        )
        part = SpaceMeta("t", None, 0, 2, b"a", b"z", 9, 90)
        self.edit = Edit(
            [FileMeta("000001-000001.sst", 0, 3, 700, 9, 1, [part])], ["x.sst"], [("x.sst", "t", 5)], 4,
            (7, b"i" * 16, {"a": 1}, 99), (3, 400, b"i" * 16),
        )  # fmt: skip
        self.block = encode_block(keys, values, *element_sizes(keys), *element_sizes(values))
        writer = SstableWriter(Disk(), root / "valid.sst", block_bytes=200)
        writer.add(SPACE, keys, values)
        writer.add(("w", 5), [b"k"], [b"v"])
        writer.finish(0, 1)
        self.table = (root / "valid.sst").read_bytes()
        self.log = self._records(LOG, [encode_frame(self.frame)] * 2)
        self.manifest = self._records(MANIFEST, [msgspec.msgpack.encode(self.edit)] * 2)
        self.targets: list[Callable[[random.Random], None]] = [
            self.damaged_log, self.forged_log, self.damaged_manifest, self.forged_manifest, self.forged_frame,
            self.forged_block, self.packed_block, self.damaged_table, self.forged_table,
        ]  # fmt: skip

    @staticmethod
    def _records(kind: bytes, payloads: list[bytes]) -> bytes:
        data = encode_header(kind)
        for payload in payloads:
            data += encode_record(payload, len(data), len(data))
        return data

    def damaged_log(self, luck: random.Random) -> None:
        self._read_log(mangled(self.log, luck))

    def forged_log(self, luck: random.Random) -> None:
        self._read_log(self._records(LOG, [mangled(encode_frame(self.frame), luck), encode_frame(self.frame)]))

    def _read_log(self, data: bytes) -> None:
        path = self.root / "log-000001"
        path.write_bytes(data)
        memtable = Memtable()
        for logged in read_log(path):
            memtable.apply(logged.frame, logged.end - logged.start)
        for keys in memtable.spaces.values():
            for _ in keys.scan(None, None):
                pass

    def damaged_manifest(self, luck: random.Random) -> None:
        self._read_manifest(mangled(self.manifest, luck))

    def forged_manifest(self, luck: random.Random) -> None:
        self._read_manifest(self._records(MANIFEST, [mangled(msgspec.msgpack.encode(self.edit), luck)] * 2))

    def _read_manifest(self, data: bytes) -> None:
        path = self.root / "manifest-000001"
        path.write_bytes(data)
        read_manifest(path)

    def forged_frame(self, luck: random.Random) -> None:
        decode_frame(mangled(encode_frame(self.frame), luck), "a log", 0)

    def forged_block(self, luck: random.Random) -> None:
        raw = mangled(self.block, luck)
        for read in (columns, lambda raw: value_at(raw, luck.randrange(80), b"key 0001x")):
            with contextlib.suppress(*UNREADABLE):
                read(raw)

    def packed_block(self, luck: random.Random) -> None:
        with contextlib.suppress(ValueError):
            unpack(luck.randbytes(luck.randint(0, 200)), luck.randrange(4), luck.choice([*EXTREMES[:10], 500]))

    def damaged_table(self, luck: random.Random) -> None:
        self._read_table(mangled(self.table, luck))

    def forged_table(self, luck: random.Random) -> None:
        """Its index or its first block mangled, and every checksum right."""
        offset, length, size, _, _, magic = FOOTER.unpack(self.table[-FOOTER.size :])
        blocks, index = self.table[:offset], unpack(self.table[offset : offset + length], 1, size)
        if luck.random() < 0.7:
            index = mangled(index, luck)
        stored = index  # not packed: what lz4 makes of it is the packed block's matter
        packed = _as_literals(stored)
        footer = struct.pack("<QIII", offset, len(packed), len(index), zlib.crc32(packed))
        footer += struct.pack("<I", zlib.crc32(footer)) + magic
        self._read_table(blocks + packed + footer)

    def _read_table(self, data: bytes) -> None:
        path = self.root / "bad.sst"
        path.write_bytes(data)
        table = Sstable(path)
        try:
            for space in (SPACE, ("w", 5)):
                for reverse in (False, True):
                    for _ in table.scan(space, b"key 0003", reverse=reverse):
                        pass
                for key in (b"key 0000", b"key 0031x", b"k", b"none"):
                    table.get(space, key, zlib.crc32(key), BlockCache(0))
        finally:
            table.close()


def _as_literals(data: bytes) -> bytes:
    """An lz4 block that holds `data` as it is."""
    head = bytes([min(len(data), 15) << 4])
    left = len(data) - 15
    while left >= 255:
        head, left = head + b"\xff", left - 255
    return head + (bytes([left]) if left >= 0 else b"") + data


def once(fuzz: Fuzz, seed: int) -> bool:
    """One input; True if it was refused. Anything but our errors comes out, with the seed that makes it again."""
    luck = random.Random(seed)
    target = fuzz.targets[seed % len(fuzz.targets)]
    started = time.monotonic()
    try:
        target(luck)
    except StoreError:
        return True
    except BaseException as error:
        error.add_note(f"{target.__name__}, seed {seed}")
        raise
    assert time.monotonic() - started < 5, f"{target.__name__}, seed {seed}: too slow"
    return False


def main(seconds: float, seed: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        fuzz = Fuzz(Path(root))
        started, count, refused = time.monotonic(), 0, 0
        while time.monotonic() - started < seconds:
            for _ in range(1000):
                refused += once(fuzz, seed + count)
                count += 1
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY
        print(f"{count} inputs, {refused} refused, seeds {seed} to {seed + count - 1}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**40))
