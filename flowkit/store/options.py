"""How a store works; the defaults are right for production."""

from typing import Literal

import msgspec

from flowkit.store.compaction import CompactionOptions

Durability = Literal["commit", "interval", "os"]


class StoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes are in bytes, times in ms.

    `durability` says what a power failure may take, by its true name (the end of the process alone, kill -9 included,
    never takes anything that was committed):

    - `"commit"`: every commit is synced before it is promised. Nothing that `commit` or `prepare` returned from is
      lost.
    - `"interval"`: synced each `sync_interval`: the commits of that last interval may be lost, the newest first.
    - `"os"`: when the operating system likes (Linux: 30 s and more): all commits since then may be lost, the newest
      first.

    In all three what is found afterwards is the state of one commit, whole.

    A log of `log_bytes` is flushed: reopening after kill -9 reads so much at most (twice, while a flush is under way).
    If what lives of it (the rest was dropped, or written again) takes less than a quarter of that in memory, it is
    carried over to the next log instead.
    Blocks have about `block_bytes`, packed by `packing`; by `cold_packing` in level 2 and below. `bytes_per_second`
    limits what compaction writes (None: as fast as it can). Commits wait once `max_runs` runs lie in level 0 (twice
    `l0_runs` if that is more), or two memtables have not been written yet. `idle` after the last commit the runs that
    are left in level 0 are merged.
    """

    durability: Durability = "commit"
    sync_interval: int = 100
    log_bytes: int = 64 * 2**20
    block_bytes: int = 4096
    table_bytes: int = 32 * 2**20
    packing: Literal["none", "lz4", "zstd"] = "lz4"
    cold_packing: Literal["none", "lz4", "zstd"] = "zstd"
    max_runs: int = 32
    idle: int = 5_000
    compaction: CompactionOptions = CompactionOptions()
