"""A store put together from files in an empty directory, for snapshots, copies and restores: complete, or refused.

`DIR/INCOMPLETE` is there until everything else is; its text says what was being done.
"""

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flowkit.errors import StoreCorrupt, StoreError
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.keys import write_keys
from flowkit.store.log import Log
from flowkit.store.manifest import Manifest
from flowkit.store.state_dir import claim_directory
from flowkit.store.version import Edit

MARK = "INCOMPLETE"
_ELSEWHERE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


def check_complete(directory: Path) -> None:
    """Raise StoreCorrupt if the making of this store was broken off."""
    if (directory / MARK).exists():
        try:
            what = (directory / MARK).read_text().strip()
        except OSError:
            what = "making it"
        raise StoreCorrupt(f"{directory}: incomplete: {what} was broken off: remove the directory and do it again")


@contextmanager
def building(files: Files, directory: Path, what: str) -> Iterator["Building"]:
    """Make a store in `directory`, or in what is left there of an attempt that was broken off.

    Raises StoreError if other things are there, StoreLocked if someone else is at it, OSError.
    """
    files.make_directory(directory)
    with claim_directory(directory):
        yield Building(files, directory, what)


class Building:
    """A store that is being made in `directory`. All methods may raise OSError; what is there then is refused later."""

    def __init__(self, files: Files, directory: Path, what: str) -> None:
        self.files, self.directory = files, directory
        found = [path for path in directory.iterdir() if path.name not in ("lost+found", "LOCK")]
        if found and not (directory / MARK).exists():
            raise StoreError(f"{directory}: not empty (it holds {found[0].name!r}): name an empty one, or a new one")
        for path in found:
            if path.name != MARK:
                files.unlink(path)
        files.unlink(directory / MARK)
        self.add(MARK, f"{what}\n".encode())
        files.sync_directory(directory)
        files.sync_directory(directory.parent)

    def add(self, name: str, data: bytes) -> None:
        """A file with this content; durable, but for its directory entry."""
        with closing(self.files.create(self.directory / name)) as writer:
            writer.append(data)
            writer.sync()

    def bring(self, source: Path) -> None:
        """A file of another store, under the same name: by hard link, or copied if that is on another file system."""
        bring(self.files, source, self.directory / source.name)

    def finish(self, keys: bytes | None, session: int, state: Edit, key: StoreKey | None) -> None:
        """Write `KEYS`, then the manifest: from here on it is a store, durable when this returns."""
        if keys is not None:
            write_keys(self.files, self.directory, keys)
        Log(self.files, self.directory, 1, key).close()  # the first log that a manifest names is always there
        state.logs_from = 1
        Manifest.begin(self.files, self.directory, session, state, key).close()
        self.files.unlink(self.directory / MARK)
        self.files.sync_directory(self.directory)


def bring(files: Files, old: Path, new: Path) -> None:
    """Hard link `old` as `new`, or copy it if that cannot be. Raises OSError."""
    try:
        files.link(old, new)
    except OSError as error:
        if error.errno not in _ELSEWHERE:
            raise
        with closing(files.create(new)) as writer, old.open("rb") as file:
            while data := file.read(2**20):
                writer.append(data)
            writer.sync()
