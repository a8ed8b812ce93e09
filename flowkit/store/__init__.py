"""The durable state of a task: spaces of sorted keys, changed only by whole frames. Bytes in, bytes out, no streams.

`async with open_store(path) as store` opens it. Today the tables lie in memory over a log of frames that is read in
full at the start; the interface is that of the LSM tree which takes its place.
"""

from flowkit.store.frame import Frame, Space, SpaceChange
from flowkit.store.state_dir import check_directory, claim_directory, open_directory, sync_directory
from flowkit.store.store import Store, open_store, read_store

__all__ = [
    "Frame",
    "Space",
    "SpaceChange",
    "Store",
    "check_directory",
    "claim_directory",
    "open_directory",
    "open_store",
    "read_store",
    "sync_directory",
]
