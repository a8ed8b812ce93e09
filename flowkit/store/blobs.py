"""Where checkpoints go: named blobs that are written once, and one that is replaced only by who knows what it replaces.

The protocol is what an object store can do today (conditional puts by If-None-Match and If-Match), and a directory too.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import anyio

from flowkit.errors import StoreError
from flowkit.store.state_dir import sync_directory

_T = TypeVar("_T")
_DRAFT = ".draft-"


class Blob(NamedTuple):
    """A blob in a listing: its size in bytes, and when it was written (ms since the epoch, by the storage's clock)."""

    name: str
    size: int
    modified: int


class Blobs(Protocol):
    """Blob storage. A blob is whole or not there. All raise StoreError if the storage cannot be used."""

    async def put(self, name: str, data: bytes, *, over: str | None = None) -> str | None:
        """Write a blob, durably: only if there is none of that name, or, with `over`, only over the one with that tag.

        The new one's tag; None if it was refused. After an error it may have been written or not.
        """

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """The newest content of a blob, and its tag; None if there is none."""

    async def find(self, prefix: str = "") -> list[Blob]:
        """The blobs whose names begin so, by name."""

    async def delete(self, name: str) -> None:
        """Remove a blob; that it is not there is no error."""


class DirectoryBlobs:
    """Blobs as files of a directory, which may be on a network file system with `flock` and hard links.

    A new blob is a hard link of a draft that is whole and durable; a replacement is a rename under a lock.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    async def put(self, name: str, data: bytes, *, over: str | None = None) -> str | None:
        """As the protocol says."""
        return await self._do(lambda: self._replace(name, data, over) if over is not None else self._create(name, data))

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """As the protocol says."""
        return await self._do(lambda: self._read(name))

    async def find(self, prefix: str = "") -> list[Blob]:
        """As the protocol says. Drafts that were left behind count as blobs of their own."""
        return await self._do(lambda: self._find(prefix))

    async def delete(self, name: str) -> None:
        """As the protocol says."""
        await self._do(lambda: (self.path / name).unlink(missing_ok=True))

    async def _do(self, work: Callable[[], _T]) -> _T:
        try:
            return await anyio.to_thread.run_sync(work)
        except OSError as error:
            raise StoreError(f"{self.path}: blob storage cannot be used: {error.strerror or error}") from error

    def _draft(self, name: str, data: bytes) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f"{_DRAFT}{name}-{os.urandom(6).hex()}"
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return draft

    def _create(self, name: str, data: bytes) -> str | None:
        if (self.path / name).exists():
            return None
        draft = self._draft(name, data)
        try:
            os.link(draft, self.path / name)
        except FileExistsError:
            return None
        finally:
            draft.unlink()
        sync_directory(self.path)
        return _tag(data)

    def _replace(self, name: str, data: bytes, over: str) -> str | None:
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            now = self._read(name)
            if now is None or now[1] != over:
                return None
            draft = self._draft(name, data)
            try:
                draft.rename(self.path / name)
            except OSError:
                draft.unlink()
                raise
            sync_directory(self.path)
        return _tag(data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self, name: str) -> tuple[bytes, str] | None:
        try:
            data = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        return data, _tag(data)

    def _find(self, prefix: str) -> list[Blob]:
        found = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.path):
                with suppress(FileNotFoundError):
                    if entry.name != ".lock" and entry.name.startswith(prefix) and entry.is_file():
                        status = entry.stat()
                        found.append(Blob(entry.name, status.st_size, status.st_mtime_ns // 1_000_000))
        return sorted(found)


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
