"""What a store consists of, told without opening it as its owner; and a copy of it under another key, or under none."""

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec

from flowkit.errors import ConfigError, StoreError
from flowkit.store.block import LZ4
from flowkit.store.building import Building, building
from flowkit.store.cipher import KEY_BYTES, StoreKey
from flowkit.store.files import Disk
from flowkit.store.frame import Space
from flowkit.store.keys import KeyProvider, encode_keys, read_keys, unlock_here
from flowkit.store.log import logs
from flowkit.store.manifest import manifests
from flowkit.store.memtable import Memtable, order_of
from flowkit.store.opening import Look, read_store
from flowkit.store.progress import OnProgress, Step
from flowkit.store.records import VERSION
from flowkit.store.sstable import Sstable
from flowkit.store.sstable_index import FileMeta
from flowkit.store.sstable_writer import SstableWriter
from flowkit.store.state_dir import parts_of
from flowkit.store.version import Edit


class SpaceFacts(msgspec.Struct):
    """What sstables hold of a space: records (deletes and older values included), and bytes of keys and values."""

    table: str
    end: int | None
    records: int = 0
    bytes: int = 0


class FileFacts(msgspec.Struct):
    """An sstable. `hidden` of its `spaces` were dropped."""

    name: str
    level: int
    run: int
    bytes: int
    records: int
    deletes: int
    spaces: int
    hidden: int


class LogFacts(msgspec.Struct):
    """A log, in bytes."""

    name: str
    bytes: int


class Inspection(msgspec.Struct):
    """A store's parts. `now` is the application's time (ms) that expiries are compared with."""

    path: str
    format: int
    commit: int
    commit_id: str
    now: int
    encrypted_under: str | None
    files: list[FileFacts]
    logs: list[LogFacts]
    spaces: list[SpaceFacts]
    in_logs: int
    """Keys that are in logs only, about: what the next flush writes."""
    meta: list[str]
    """The names of what is kept beside the data."""


def inspect(path: Path, keys: KeyProvider | None = None) -> Inspection:
    """What the store in `path` consists of; its owner may be running. Raises StoreCorrupt, StoreKeyError."""
    if not is_store(path):
        raise StoreError(f"{path}: is no store (there is no manifest in it)")
    look = read_store(path, keys)
    wrapped = read_keys(path)
    version = look.version
    spaces: dict[Space, SpaceFacts] = {}
    files = []
    for meta in sorted(version.files.values(), key=_place):
        hidden = [part for part in meta.spaces if (meta.name, part.table, part.end) in version.hidden]
        files.append(
            FileFacts(
                meta.name, meta.level, meta.run, meta.bytes, meta.records, meta.deletes, len(meta.spaces), len(hidden)
            )
        )
        for part in meta.spaces:
            if part not in hidden:
                facts = spaces.setdefault(part.space, SpaceFacts(*part.space))
                facts.records += part.records
                facts.bytes += part.bytes
    found = []
    for log in logs(path):
        try:
            found.append(LogFacts(log.name, log.stat().st_size))
        except FileNotFoundError:  # its owner has just flushed it
            continue
    return Inspection(
        path=str(path),
        format=VERSION,
        commit=look.number,
        commit_id=look.commit_id.hex(),
        now=look.now,
        encrypted_under=None if wrapped is None else wrapped.provider,
        files=files,
        logs=found,
        spaces=[spaces[space] for space in sorted(spaces, key=order_of)],
        in_logs=sum(len(held.merged()) for held in look.memtable.spaces.values()),
        meta=sorted(look.meta),
    )


def _place(meta: FileMeta) -> tuple[int, int, str]:
    return (meta.level, -meta.run, meta.name)


def is_store(path: Path) -> bool:
    """True if a store was begun in `path`."""
    return bool(manifests(path) or logs(path))


def stores_in(path: Path) -> list[Path]:
    """The stores in `path`: itself, or those of the tasks whose state directory it is.

    Raises ConfigError if there are none.
    """
    if is_store(path):
        return [path]
    tasks = [task for part in parts_of(path) for task in sorted((part / "tasks").glob("*"))]
    found = [path / "run", *(place for task in tasks for place in sorted(task.iterdir()))]
    if stores := [place for place in found if is_store(place)]:
        return stores
    what = "is no store, and no state directory with stores in it" if path.is_dir() else "there is no such directory"
    raise ConfigError(f"{path}: {what}: name what --state names, or a directory beneath it")


# A copy


async def copy_store(
    path: Path,
    target: Path,
    *,
    keys: KeyProvider | None = None,
    to: KeyProvider | None = None,
    progress: OnProgress | None = None,
) -> None:
    """Write a store anew in `target`, which must be empty or not there: encrypted under `to`, or plain without.

    As of its last commit; its owner may be running. Raises StoreError.
    """
    raw = None if to is None else os.urandom(KEY_BYTES)
    wrapped = None if to is None or raw is None else await encode_keys(raw, to, target)
    key = None if raw is None else StoreKey(raw)
    try:
        await anyio.to_thread.run_sync(_copy, path, target, keys, key, wrapped, progress)
    except OSError as error:
        raise StoreError(f"{target}: the copy cannot be made: {error.strerror or error}") from error


def _copy(
    path: Path,
    target: Path,
    keys: KeyProvider | None,
    key: StoreKey | None,
    wrapped: bytes | None,
    progress: OnProgress | None,
) -> None:
    if not is_store(path):
        raise StoreError(f"{path}: is no store (there is no manifest in it)")
    unlock_here(path, keys)
    look = read_store(path, keys)
    version = look.version
    done, total = 0, sum(meta.bytes for meta in version.files.values())
    with building(Disk(), target, f"a copy of {path}") as made:
        metas = []
        for name, meta in version.files.items():
            metas.append(_rewritten(made, version.tables[name], meta, key))
            done += meta.bytes
            if progress is not None:
                progress(Step(name, done, total))
        session = int(manifests(path)[-1].name.removeprefix("manifest-"))
        metas += _from_memory(made, look, session, 1 + max((meta.run for meta in metas), default=0), key)
        base = (look.number, look.commit_id, look.meta, look.now)
        made.finish(wrapped, session, Edit(metas, [], list(version.hidden), 0, base), key)


def _rewritten(made: Building, table: Sstable, meta: FileMeta, key: StoreKey | None) -> FileMeta:
    writer = _writer(made, meta.name, key)
    for part in table.spaces():
        for some, values in table.scan(part.space):
            writer.add(part.space, some, values)
    return writer.finish(meta.level, meta.run)


def _from_memory(made: Building, look: Look, session: int, run: int, key: StoreKey | None) -> Iterator[FileMeta]:
    memtable: Memtable = look.memtable
    if any(held.merged() for held in memtable.spaces.values()):
        writer = _writer(made, f"{session:06}-{10**9}.sst", key)
        for space in sorted(memtable.spaces, key=order_of):
            for some, values in memtable.spaces[space].scan(None, None):
                writer.add(space, some, values)
        yield writer.finish(0, run)


def _writer(made: Building, name: str, key: StoreKey | None) -> SstableWriter:
    cipher = None if key is None else key.new_cipher()
    return SstableWriter(made.files, made.directory / name, packing=LZ4, cipher=cipher)
