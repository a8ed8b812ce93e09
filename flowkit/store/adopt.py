"""Beginning with the state that another store had: its sstables by hard link, what was in its logs as one more sstable.

The other store's owner may be alive, or wake up: what it does after the commit that is asked for is left out.
"""

import time
from pathlib import Path

import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.building import bring
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.jobs import Job, work
from flowkit.store.manifest import manifests
from flowkit.store.recovery import Found, hidden_by_logs, recover
from flowkit.store.version import Edit

TRIES = 20


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
    run = 1 + max((meta.run for meta in metas), default=0)
    steps = work(msgspec.structs.replace(job, first_number=number, run=run), files, found.memtable)
    try:
        while True:
            next(steps)
    except StopIteration as stopped:
        metas += stopped.value.files
    return Edit(metas, [], hidden, None, (found.number, found.commit_id, found.meta, found.now)), found
