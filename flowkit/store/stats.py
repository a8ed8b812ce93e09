"""What a store has done, and how large it is."""

import msgspec


class Stats(msgspec.Struct):
    """What a store has done since it was opened (bytes, seconds), and what it is."""

    commits: int = 0
    logged: int = 0
    flushes: int = 0
    flushed: int = 0
    compactions: int = 0
    compaction_read: int = 0
    compacted: int = 0
    compaction_seconds: float = 0.0
    background_seconds: float = 0.0
    waited_seconds: float = 0.0
    checkpoints: int = 0
    checkpoint_uploaded: int = 0
    checkpoint_seconds: float = 0.0
    memtable: int = 0
    tables: int = 0
    table_bytes: int = 0
    records: int = 0
    levels: dict[int, list[int]] = {}
    """By level: [files, bytes]; level 0 also counts its runs."""
    runs: int = 0
    block_misses: int = 0
