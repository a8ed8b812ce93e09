"""Beginning with the state that another store had: its sstables by hard link, what was in its logs as one more sstable.

The other store's owner may be alive, or wake up: what it does after the commit that is asked for is left out.
"""

import time
from pathlib import Path

import msgspec

from flowkit.errors import StoreCorrupt, StoreError
from flowkit.store.block import PACKINGS
from flowkit.store.building import bring
from flowkit.store.cipher import KEY_BYTES, StoreKey
from flowkit.store.core import Core
from flowkit.store.files import Files
from flowkit.store.jobs import Job, finished, work
from flowkit.store.keys import NAME, KeyProvider, encode_keys, keys_of, unlock, write_keys
from flowkit.store.manifest import manifests
from flowkit.store.recovery import Found, hidden_by_logs, recover
from flowkit.store.version import Edit, next_run
from flowkit.store.whole import in_thread

TRIES = 20


async def begin_with(core: Core, keys: KeyProvider | None, other: Path, commit_id: bytes) -> bool:
    """Make an empty store what `other` was at `commit_id`; False if it never was. Raises StoreCorrupt, StoreError."""
    view = core.view
    key = await unlock(other, keys)
    if key is not None:
        await _trust(core, keys, key.raw)  # before its files come; those of its keys that none is under go after
    job = core.job(level=0, run=0, packing=PACKINGS[core.options.packing])
    try:
        adopted = await in_thread(adopt, job, core.files, other, commit_id)
    except OSError as error:
        raise StoreError(f"{other}: cannot be copied to {core.path}: {error.strerror}") from error
    if adopted is None:
        return False
    edit, found = adopted
    core.base = edit.base
    await core.change(edit)
    view.number, view.commit_id, view.meta, view.now = found.number, found.commit_id, found.meta, found.now
    if core.key is not None:
        await _trust(core, keys, await in_thread(keys_of, core.path, list(view.version.files), core.key))
    return True


async def _trust(core: Core, keys: KeyProvider | None, raw: bytes) -> None:
    """Be able to read files under the keys in `raw` (32 bytes each), and under our own; durable when it returns."""
    assert core.key is not None
    assert keys is not None
    ring = StoreKey(core.key.raw[:KEY_BYTES] + raw)
    data = await encode_keys(ring.raw, keys, core.path)
    await core.guarded(core.path / NAME, write_keys, core.files, core.path, data)
    core.key = core.catalog.key = ring


def adopt(job: Job, files: Files, other: Path, commit_id: bytes) -> tuple[Edit, Found] | None:
    """Bring the files of `other`, as of a commit, under names of our own; the edit that makes them a store's state.

    None if it never had that commit. `job` says where to and under which names. Raises StoreCorrupt, OSError.
    """
    if not manifests(other):
        return None
    key = None if job.key is None else StoreKey(job.key)
    for tries_left in reversed(range(TRIES)):
        try:
            return _adopt(job, files, other, commit_id, key)
        except (StoreCorrupt, FileNotFoundError):
            # A living owner has just put other files in their place; real damage is still there the next time.
            if not tries_left:
                raise
            time.sleep(0.01)
    return None


def _adopt(job: Job, files: Files, other: Path, commit_id: bytes, key: StoreKey | None) -> tuple[Edit, Found] | None:
    found = recover(other, key, until=commit_id)
    if found.commit_id != commit_id:
        return None
    directory, number = Path(job.directory), job.first_number
    names: dict[str, str] = {}
    for name in found.manifest.files:
        names[name] = f"{job.prefix}{number:06}.sst"
        files.unlink(directory / names[name])  # from a try before this one
        bring(files, other / name, directory / names[name])
        number += 1
    metas = [msgspec.structs.replace(meta, name=names[meta.name]) for meta in found.manifest.files.values()]
    hidden = [(names[name], table, end) for name, table, end in {*found.manifest.hidden, *hidden_by_logs(found)}]
    job = msgspec.structs.replace(job, first_number=number, run=next_run(metas))
    metas += finished(work(job, files, found.memtable)).files
    return Edit(metas, [], hidden, None, (found.number, found.commit_id, found.meta, found.now)), found
