"""The file operations that durability hangs on, behind a seam: a test's file system records them and drops what POSIX
may.

Only writing goes through it. Reading opens paths directly, since what is read does not change.
"""

import os
from pathlib import Path
from typing import Protocol


class Writer(Protocol):
    """A file that grows at its end."""

    def append(self, data: bytes) -> None:
        """Write all of `data` at the end. Raises OSError; what was written of it then is unknown."""

    def sync(self) -> None:
        """Make everything appended durable. Raises OSError; what is durable then is unknown."""

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes; durable after `sync`."""

    def close(self) -> None: ...


class Files(Protocol):
    """What a store does to its directory. All may raise OSError."""

    def create(self, path: Path) -> Writer:
        """A new file; FileExistsError if the name is taken."""

    def open(self, path: Path) -> Writer:
        """An existing file, to be appended to or cut."""

    def rename(self, old: Path, new: Path) -> None: ...

    def link(self, old: Path, new: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def make_directory(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Make the directory's entries durable."""


class DiskWriter:
    """A file of the operating system."""

    __slots__ = ("_fd",)

    def __init__(self, path: Path, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        while written < len(data):  # a signal, or a disk that is nearly full
            written += os.write(self._fd, memoryview(data)[written:])

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Disk:
    """The operating system's files."""

    def create(self, path: Path) -> Writer:
        return DiskWriter(path, os.O_CREAT | os.O_EXCL)

    def open(self, path: Path) -> Writer:
        return DiskWriter(path, 0)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
