"""How much of what lies in older files a new one hides: an estimate, by which compaction tells a store that is being
filled from one that is being written again.

Some keys of a memtable are looked for in the filters of the files beneath. The indexes that this loads are those which
any reader would: some four bytes a key.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice

from flowkit.errors import StoreError
from flowkit.store.checksum import crc32
from flowkit.store.core import Core
from flowkit.store.frame import Space
from flowkit.store.memtable import Memtable
from flowkit.store.sstable_index import FileMeta
from flowkit.store.version import Run

ASKED = 256
"""So many keys of a memtable are looked for."""


async def stale_beneath(core: Core, memtable: Memtable) -> float:
    """Which part of a memtable's keys is in files already, about."""
    total, stale = max(1, memtable.bytes()), 0.0
    for space, keys in list(memtable.spaces.items()):
        if space in core.view.version.runs and keys.merged():
            asked = list(islice(keys.merged(), 0, None, max(1, len(keys.merged()) * total // (ASKED * keys.bytes))))
            found = 0
            for n, key in enumerate(asked):
                if n % 32 == 0:
                    await asyncio.sleep(0)
                # No version is held meanwhile: that would keep files which have been dropped.
                found += await _is_in_any(core.view.version.runs.get(space, ()), space, key)
            stale += keys.bytes / total * found / len(asked)
    return min(1.0, stale)


async def _is_in_any(runs: Sequence[Run], space: Space, key: bytes) -> bool:
    crc = crc32(key)
    for run in runs:
        table = run.only or run.table_of(key)
        if table is None:
            continue
        if not table.bytes:
            try:
                table.load()
            except StoreError:
                return True  # who reads it is told; until then it is taken as it was before it was damaged
            await asyncio.sleep(0)  # some ms for a large file
        if table.may_have(crc) and table.seems_to_have(space, key, crc):
            return True
    return False


def note_flush(core: Core, added: Sequence[FileMeta], part: float) -> None:
    """Remember that `part` of what new files hold is in older ones too."""
    _note(core, {meta.name: int(part * meta.bytes) for meta in added})


def note_merge(core: Core, inputs: Sequence[FileMeta], outputs: Sequence[FileMeta]) -> None:
    """Remember of runs that became one: what they hid of each other is gone."""
    before, after = (sum(meta.bytes for meta in metas) for metas in (inputs, outputs))
    hidden = sum(core.stale.get(meta.name, meta.bytes) for meta in inputs)
    left = min(after, max(0, hidden - max(0, before - after)))
    _note(core, {meta.name: left * meta.bytes // max(1, after) for meta in outputs})


def _note(core: Core, more: dict[str, int]) -> None:
    files = core.view.version.files
    core.stale = {name: stale for name, stale in core.stale.items() if name in files} | more
