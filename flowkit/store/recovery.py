"""What a store's directory says: manifest, sstables, and the frames of the logs that are in none of them yet."""

from pathlib import Path
from typing import Any

import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.frame import BEGINNING, Frame, Space
from flowkit.store.log import Logged, cut_log, log_number, log_path, logs, read_log
from flowkit.store.manifest import Recovered, manifests, read_manifest
from flowkit.store.memtable import Memtable
from flowkit.store.sstable import Sstable
from flowkit.store.version import Hidden


class Found(msgspec.Struct):
    """The state that a directory holds. `undecided` is a frame that may or may not count; where it stands is said."""

    manifest: Recovered
    memtable: Memtable
    number: int = 0
    commit_id: bytes = b""
    meta: dict[str, Any] = {}
    now: int = BEGINNING
    drops: set[Space] = set()
    """Spaces that the logs drop: what files have of them is gone."""
    logs: list[Path] = []
    undecided: Frame | None = None
    undecided_log: Path | None = None
    undecided_at: int = 0
    ends: dict[Path, int] = {}
    """Where the frames of each log end (bytes): what follows was torn. A log without frames is not in it."""


def recover(directory: Path, key: StoreKey | None = None, *, until: bytes | None = None) -> Found:
    """Read the manifest and replay the logs; with `until`, no further than the commit of that id.

    Raises StoreCorrupt, StoreKeyError, or FileNotFoundError if an owner has just replaced what was to be read.
    """
    newest = manifests(directory)
    manifest = read_manifest(newest[-1], key) if newest else Recovered()
    found = Found(manifest, Memtable())
    if manifest.base is not None:
        number, commit_id, meta, now = manifest.base
        found.number, found.commit_id, found.meta, found.now = number, commit_id, meta, now
    found.logs = [path for path in logs(directory) if log_number(path) >= manifest.logs_from]
    _check_none_missing(directory, found, is_new=not newest)
    last: Logged | None = None
    for path in found.logs:
        for logged in read_log(path, key, promised=_promised(manifest, path)):
            if until is not None and found.commit_id == until and last is None:
                break
            found.ends[path] = logged.end
            if last is not None and logged.frame.commit_id == last.frame.commit_id:
                # What lived in the logs before, carried over to this one; a crash came before they were removed.
                _take(found, last)
                last = None
                continue
            last = _follow(found, last, logged, path)
            found.undecided_log, found.undecided_at = path, logged.start
            if logged.frame.commit_id == until:
                _take(found, logged)
                last = None
                break
    if until is None and manifest.closed is not None:
        commit_id = found.commit_id if last is None else last.frame.commit_id
        if commit_id != manifest.closed[2]:
            raise StoreCorrupt(f"{found.logs[-1]}: ends before the last commit: restore the logs from a copy")
    if not newest and found.ends:
        raise StoreCorrupt(f"{directory}: has logs, but no manifest: restore it from a copy")
    if last is not None:
        if last.frame.decided:
            _take(found, last)
        else:
            found.undecided = last.frame
    return found


def _check_none_missing(directory: Path, found: Found, *, is_new: bool) -> None:
    """A manifest names the first log, and once closed the last one; those between are held together by their frames."""
    if is_new:
        stranger = next(directory.glob("*.sst"), None)
        if stranger is not None:
            raise StoreCorrupt(f"{directory}: has {stranger.name}, but no manifest: restore it from a copy")
        return
    there = set(map(log_number, found.logs))
    named = (
        [found.manifest.logs_from]
        if found.manifest.closed is None
        else [found.manifest.logs_from, found.manifest.closed[0]]
    )
    for number in named:
        if number not in there:
            raise StoreCorrupt(f"{log_path(directory, number)}: missing, though the manifest names it")


def _promised(manifest: Recovered, path: Path) -> int:
    """How many bytes of a log are known to have been durable: all, if the store was closed in good order."""
    if manifest.closed is None or log_number(path) > manifest.closed[0]:
        return 0
    return manifest.closed[1] if log_number(path) == manifest.closed[0] else path.stat().st_size


def _follow(found: Found, last: Logged | None, logged: Logged, path: Path) -> Logged:
    """A frame came after `last`: so that one counts, or was taken back."""
    frame = logged.frame
    if last is not None and frame.parent == last.frame.commit_id:
        _take(found, last)
    elif frame.parent != found.commit_id:
        number = found.number if last is None else last.frame.number
        raise StoreCorrupt(
            f"{path}: commit {frame.number} at offset {logged.start} does not follow commit {number}: a log before it "
            "is missing or of another store"
        )
    return logged


def _take(found: Found, logged: Logged) -> None:
    frame = logged.frame
    found.memtable.apply(frame, logged.end - logged.start)
    found.drops.update((table, end) for table, end in frame.drops)
    found.number, found.commit_id, found.meta = frame.number, frame.commit_id, frame.meta
    found.now = max(found.now, frame.now)


def hidden_by_logs(found: Found) -> list[Hidden]:
    """The parts of files that frames in the logs have dropped. All files are older than all logs."""
    return [
        (name, part.table, part.end)
        for name, meta in found.manifest.files.items()
        for part in meta.spaces
        if part.space in found.drops
    ]


def readers(directory: Path, found: Found, key: StoreKey | None) -> dict[str, Sstable]:
    """A reader for each sstable. Raises StoreCorrupt for those that are not there, or shorter than they were."""
    tables = {}
    for name, meta in found.manifest.files.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise StoreCorrupt(f"{path}: missing, though the manifest names it: restore it from a copy") from None
        if size != meta.bytes:
            raise StoreCorrupt(f"{path}: has {size} bytes, but had {meta.bytes}: restore this file from a copy")
        tables[name] = Sstable(path, key)
    return tables


def make_durable(files: Files, found: Found) -> None:
    """What a killed owner left may be in the page cache only: nothing may be built on it before. Raises OSError."""
    for path, end in found.ends.items():
        cut_log(files, path, end)
