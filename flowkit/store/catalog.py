"""The owner's files: the current version, the manifest that makes it durable, and the removal of what is no longer
needed.
"""

import asyncio
import weakref
from collections.abc import Callable
from pathlib import Path

import anyio

from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.log import log_number, logs
from flowkit.store.manifest import Manifest, manifests
from flowkit.store.sstable import FileMeta, Sstable
from flowkit.store.version import Edit, Version

MANIFEST_BYTES = 4 * 2**20
"""A manifest that has grown by so much is begun anew."""


class Catalog:
    """Changes go through `change`: what readers see turns at once, what a crash leaves turns when it returns."""

    def __init__(
        self, files: Files, directory: Path, key: StoreKey | None, version: Version, manifest: Manifest, session: int
    ) -> None:
        self.files, self.directory, self.key = files, directory, key
        self.version, self.manifest, self.session = version, manifest, session
        self.opening = session
        """The session at the opening: part of the names of new files."""
        self._versions: weakref.WeakSet[Version] = weakref.WeakSet([version])
        self._doomed: set[str] = set()
        self._turn = asyncio.Lock()
        self._next_file = 1
        self._begun_with = manifest.size
        self.state: Callable[[], Edit]
        """The whole of what the manifest must say, for a new one."""

    @property
    def prefix(self) -> str:
        """What the names of this session's sstables begin with."""
        return f"{self.opening:06}-"

    def reserve(self, count: int) -> int:
        """The first of `count` numbers for new files."""
        first, self._next_file = self._next_file, self._next_file + count
        return first

    async def change(self, edit: Edit) -> None:
        """Make the next version, durable when this returns. Raises OSError: what is durable then is unknown."""
        tables = {meta.name: Sstable(self.directory / meta.name, self.key) for meta in edit.add}
        self.version = self.version.after(edit, tables)
        self._versions.add(self.version)
        self._doomed.update(name for name in edit.remove if name not in self.version.files)
        async with self._turn:  # in order: nothing is awaited between the new version and this
            await anyio.to_thread.run_sync(self._write, edit)
            await self.sweep()

    def _write(self, edit: Edit) -> None:
        if edit.add:
            self.files.sync_directory(self.directory)
        if self.manifest.size > self._begun_with + MANIFEST_BYTES:
            self._begin_anew()
        else:
            self.manifest.append(edit)

    def _begin_anew(self) -> None:
        before = self.manifest
        self.session += 1
        self.manifest = Manifest.begin(self.files, self.directory, self.session, self.state(), self.key)
        self._begun_with = self.manifest.size
        before.close()
        self.files.unlink(before.path)

    async def sweep(self) -> None:
        """Remove the files that no version has any more: those that someone still reads stay until the next sweep."""
        if not self._doomed:
            return
        read = {name for version in list(self._versions) for name in version.files}
        gone = self._doomed - read
        self._doomed -= gone
        if gone:
            await anyio.to_thread.run_sync(self._remove, gone)

    def _remove(self, names: set[str]) -> None:
        for name in names:
            self.files.unlink(self.directory / name)

    def close(self) -> None:
        """Let go of the manifest."""
        self.manifest.close()


def remove_strangers(files: Files, directory: Path, version: Version, session: int, logs_from: int) -> None:
    """Remove what jobs that were broken off, and owners that were killed, have left."""
    for path in directory.glob("*.sst"):
        if path.name not in version.files:
            files.unlink(path)
    for path in [*manifests(directory), *directory.glob(".manifest-*")]:
        if path.name != f"manifest-{session:06}":
            files.unlink(path)
    for path in logs(directory):
        if log_number(path) < logs_from:
            files.unlink(path)


def fresh_state(files: dict[str, FileMeta], hidden: object, logs_from: int, base: list[object] | None) -> Edit:
    """An edit that says everything."""
    return Edit(list(files.values()), [], list(hidden), logs_from, base)  # type: ignore[call-overload]
