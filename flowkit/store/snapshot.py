"""A snapshot: another store, made of a pinned one by hard links."""

from pathlib import Path

import anyio

from flowkit.errors import StoreError
from flowkit.store.building import building
from flowkit.store.files import Files
from flowkit.store.keys import KeyProvider
from flowkit.store.pinning import Pinned, pinned_keys
from flowkit.store.progress import OnProgress, Step


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
