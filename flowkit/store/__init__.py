"""An embedded LSM tree: spaces of sorted keys, changed only by whole commits. Bytes in, bytes out; it knows no streams.

    async with open_store("state") as db:
        await db.commit({("users", None): {b"ada": b"1815", b"alan": b"1912"}})
        db.get(("users", None), b"ada")
        for key, value in db.scan(("users", None)): ...

A space is a table's name and the end of a window (None for tables whose keys are not dropped by window). FORMAT.md
beside this file says what lies on disk.

To read the code, begin with `lsm`, which names the parts of a store, and `reading`, which looks into them. Beneath:

    a commit      frame, memtable; commits, turns, journal; log, records, cipher
    sstables      block, sstable, sstable_index, sstable_writer, merge; cache; version, manifest, catalog
    background    background, upkeep, compaction, staleness; jobs, replay, runner, helper
    opening       opening, state_dir, keys, kms, recovery, adopt
    copies        pinning, snapshot, checkpoint, building; blobs, s3, storage; inspection, verifying
    others        memory, rocks: stores that are read and committed to alike
"""

import importlib
import typing

from flowkit.store.frame import Frame, Space, SpaceChange, decode_frame, encode_frame

if typing.TYPE_CHECKING:
    from flowkit.store.blobs import Blob, Blobs, DirectoryBlobs
    from flowkit.store.cache import Budget, block_cache
    from flowkit.store.checkpoint import CURRENT, Checkpoint, Checkpoints, Listing, Published
    from flowkit.store.compaction import CompactionOptions
    from flowkit.store.inspection import Inspection, copy_store, inspect, stores_in
    from flowkit.store.keys import FileKey, KeyProvider, StaticKey, keys_from_environment, rotate
    from flowkit.store.kms import KmsKey
    from flowkit.store.lsm import LsmStore
    from flowkit.store.memory import MemoryStore
    from flowkit.store.opening import Host, Look, Store, open_host, open_store, read_store
    from flowkit.store.options import StoreOptions
    from flowkit.store.progress import OnProgress, Step
    from flowkit.store.reading import Reading
    from flowkit.store.runner import Inline
    from flowkit.store.s3 import S3Place, open_s3
    from flowkit.store.sizes import Size, table_sizes
    from flowkit.store.state_dir import (
        app_of,
        check_directory,
        claim_directory,
        open_directory,
        parts_of,
        sync_directory,
    )
    from flowkit.store.stats import Stats
    from flowkit.store.storage import DirectoryStorage, Storage, folder_of, tasks_in
    from flowkit.store.verifying import Problem, Report, verify
    from flowkit.store.whole import in_thread

__all__ = [
    "CURRENT",
    "Blob",
    "Blobs",
    "Budget",
    "Checkpoint",
    "Checkpoints",
    "CompactionOptions",
    "DirectoryBlobs",
    "DirectoryStorage",
    "FileKey",
    "Frame",
    "Host",
    "Inline",
    "Inspection",
    "KeyProvider",
    "KmsKey",
    "Listing",
    "Look",
    "LsmStore",
    "MemoryStore",
    "OnProgress",
    "Problem",
    "Published",
    "Reading",
    "Report",
    "S3Place",
    "Size",
    "Space",
    "SpaceChange",
    "StaticKey",
    "Stats",
    "Step",
    "Storage",
    "Store",
    "StoreOptions",
    "app_of",
    "block_cache",
    "check_directory",
    "claim_directory",
    "copy_store",
    "decode_frame",
    "encode_frame",
    "folder_of",
    "in_thread",
    "inspect",
    "keys_from_environment",
    "open_directory",
    "open_host",
    "open_s3",
    "open_store",
    "parts_of",
    "read_store",
    "rotate",
    "stores_in",
    "sync_directory",
    "table_sizes",
    "tasks_in",
    "verify",
]

_WHERE = {
    "blobs": ["Blob", "Blobs", "DirectoryBlobs"],
    "cache": ["Budget", "block_cache"],
    "checkpoint": ["CURRENT", "Checkpoint", "Checkpoints", "Listing", "Published"],
    "compaction": ["CompactionOptions"],
    "inspection": ["Inspection", "copy_store", "inspect", "stores_in"],
    "keys": ["FileKey", "KeyProvider", "StaticKey", "keys_from_environment", "rotate"],
    "kms": ["KmsKey"],
    "lsm": ["LsmStore"],
    "memory": ["MemoryStore"],
    "opening": ["Host", "Look", "Store", "open_host", "open_store", "read_store"],
    "options": ["StoreOptions"],
    "progress": ["OnProgress", "Step"],
    "reading": ["Reading"],
    "runner": ["Inline"],
    "sizes": ["Size", "table_sizes"],
    "state_dir": ["app_of", "check_directory", "claim_directory", "open_directory", "parts_of", "sync_directory"],
    "stats": ["Stats"],
    "s3": ["S3Place", "open_s3"],
    "storage": ["DirectoryStorage", "Storage", "folder_of", "tasks_in"],
    "verifying": ["Problem", "Report", "verify"],
    "whole": ["in_thread"],
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> typing.Any:
    """What opens stores is loaded when it is first asked for: declaring a table must not cost asyncio."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"flowkit.store.{_HOME[name]}"), name)
