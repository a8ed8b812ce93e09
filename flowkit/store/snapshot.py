"""A store as of one commit, and another store made of it by hard links."""

from pathlib import Path

import anyio
import msgspec

from flowkit.errors import StoreError
from flowkit.store.building import building
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.keys import NAME, KeyProvider, encode_keys
from flowkit.store.progress import OnProgress, Step
from flowkit.store.sstable import FileMeta
from flowkit.store.version import Base, Edit, Hidden, Version


class Pinned(msgspec.Struct):
    """What makes up a store as of one commit: sstables of `directory`, and `base` [number, commit id, meta, now]."""

    directory: Path
    files: dict[str, FileMeta]
    hidden: frozenset[Hidden]
    base: Base
    session: int
    key: StoreKey | None
    version: Version | None = None
    """Held on to, so that the files stay."""

    def state(self) -> Edit:
        """What a manifest of it says."""
        return Edit(list(self.files.values()), [], list(self.hidden), 0, self.base)

    def size(self) -> int:
        """Bytes of all files together."""
        return sum(meta.bytes for meta in self.files.values())


async def pinned_keys(pinned: Pinned, keys: KeyProvider | None) -> bytes | None:
    """The `KEYS` file for a copy of a store. None if it is not encrypted. Raises StoreKeyError."""
    if pinned.key is None:
        return None
    if keys is not None:
        return await encode_keys(pinned.key.raw, keys)
    return await anyio.Path(pinned.directory / NAME).read_bytes()


async def snapshot(
    files: Files, pinned: Pinned, path: Path, keys: KeyProvider | None, progress: OnProgress | None = None
) -> None:
    """Make a store of it in `path`. Raises StoreError."""
    wrapped = await pinned_keys(pinned, keys)
    try:
        await anyio.to_thread.run_sync(_link, files, pinned, path, wrapped, progress)
    except OSError as error:
        raise StoreError(f"{path}: the snapshot cannot be made: {error.strerror or error}") from error


def _link(files: Files, pinned: Pinned, path: Path, wrapped: bytes | None, progress: OnProgress | None) -> None:
    with building(files, path, f"a snapshot of {pinned.directory}") as made:
        done, total = 0, pinned.size()
        for name, meta in pinned.files.items():
            made.bring(pinned.directory / name)
            done += meta.bytes
            if progress is not None:
                progress(Step(name, done, total))
        made.finish(wrapped, pinned.session, pinned.state(), pinned.key)
