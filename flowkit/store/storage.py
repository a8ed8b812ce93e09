"""From a URL to the storage that holds the checkpoints of many tasks, each in a folder of its own.

    file:///DIR, or a path      a directory; on a network file system, if that has `flock` and hard links
    s3://BUCKET/PREFIX?OPTIONS  an object store that takes conditional puts; options: see `S3Place`

A task's checkpoints are those in `storage.blobs(*folder_of("shop/orders/0"))`.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

import anyio

from flowkit.aws import Right
from flowkit.errors import ConfigError, StoreError
from flowkit.store.blobs import Blobs, DirectoryBlobs
from flowkit.store.s3 import S3Place, Use, open_s3

SCHEMES = "file:///DIR, a path, or s3://BUCKET/PREFIX"


class Storage(Protocol):
    """Folders of blobs. All methods may raise StoreError."""

    url: str

    def blobs(self, *folder: str) -> Blobs:
        """The blobs of one folder, which need not be there yet."""

    async def folders(self, *folder: str) -> list[str]:
        """The names of the folders in one, in order."""

    async def check(self) -> None:
        """See whether it can be used. Raises ConfigError if that is for a person to mend, StoreError otherwise."""


class DirectoryStorage:
    """A directory, and its folders in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, path.absolute().as_uri()

    def blobs(self, *folder: str) -> DirectoryBlobs:
        """As the protocol says."""
        return DirectoryBlobs(self.path.joinpath(*folder))

    async def folders(self, *folder: str) -> list[str]:
        """As the protocol says."""
        path = self.path.joinpath(*folder)
        try:
            return await anyio.to_thread.run_sync(lambda: sorted(each.name for each in path.iterdir() if each.is_dir()))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error

    async def check(self) -> None:
        """As the protocol says; makes the directory."""
        try:
            await anyio.to_thread.run_sync(lambda: self.path.mkdir(parents=True, exist_ok=True))
        except OSError as error:
            raise ConfigError(f"checkpoints {self.path}: cannot be used: {error.strerror or error}") from error
        if not await anyio.to_thread.run_sync(os.access, self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"checkpoints {self.path}: cannot be written: Permission denied")


def check_storage_url(url: str) -> None:
    """Raise ConfigError, saying what there is, for a URL that cannot be."""
    _place(url)


def storage_rights(url: str, *folder: str, use: Use = "keep") -> Sequence[Right]:
    """What a role has to be allowed for blobs in one folder of the storage at `url`; () for a directory.

    Raises ConfigError for a URL that cannot be.
    """
    place = _place(url)
    return () if isinstance(place, Path) else place.rights(*folder, use=use)


def _place(url: str) -> Path | S3Place:
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise ConfigError(f"checkpoints: no place is named; use {SCHEMES}")
        return Path(url).expanduser()
    if scheme == "s3":
        return S3Place.parse(url)
    if scheme != "file":
        raise ConfigError(f"checkpoints {scheme}://…: unknown scheme {scheme!r}; use {SCHEMES}")
    if not rest.startswith("/"):
        raise ConfigError(f"checkpoints {url!r}: a file URL names no host: write file:///{rest.lstrip('/')}")
    return Path(unquote(rest))


@asynccontextmanager
async def open_storage(url: str) -> AsyncIterator[Storage]:
    """The storage at `url`. Raises ConfigError if that names none; nothing is asked or made before it is used."""
    place = _place(url)
    if isinstance(place, Path):
        yield DirectoryStorage(place)
        return
    async with open_s3(place) as storage:
        yield storage


def folder_of(task: str) -> tuple[str, ...]:
    """The folder of a task's checkpoints.

    >>> folder_of("shop/orders|é/0"), folder_of("../orders/0")
    (('shop', 'orders%7C%C3%A9', '0'), ('%2E%2E', 'orders', '0'))
    """
    # A name of dots alone would lead out of the place.
    return tuple(quote(name, safe="") if name.strip(".") else "%2E" * len(name) for name in task.split("/"))


async def tasks_in(storage: Storage, app: str | None = None) -> list[str]:
    """The tasks that have checkpoints there (of one `app`), by name; partitions in the order of their numbers."""
    found: list[str] = []
    for folder in await storage.folders():
        if app is None or unquote(folder) == app:
            for group in await storage.folders(folder):
                numbers = await storage.folders(folder, group)
                names = sorted((n for n in numbers if n.isdecimal()), key=int)
                found += [f"{unquote(folder)}/{unquote(group)}/{number}" for number in names]
    return found
