"""The owner's files: the current version, the manifest that makes it durable, and the removal of what is no longer
needed.
"""

import asyncio
import contextlib
import errno
import weakref
from collections.abc import Callable, Collection
from pathlib import Path

from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.log import logs
from flowkit.store.manifest import Manifest, manifests
from flowkit.store.sstable import Sstable
from flowkit.store.sstable_index import FileMeta
from flowkit.store.version import Base, Edit, Version
from flowkit.store.whole import in_thread, whole

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
        self._sweeping: asyncio.Task[None] | None = None
        self._failed = self._closed = False
        self._next_file = 1
        self._begun_with = manifest.size
        self.show: Callable[[Version], None]
        """Is told of every new version."""
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
        # Whoever reads on holds the version before: what it alone has goes when that is let go.
        weakref.finalize(self.version, self._let_go, asyncio.get_running_loop()).atexit = False
        self.version = self.version.after(edit, tables)
        self.show(self.version)
        self._versions.add(self.version)
        await whole(self._make_durable(edit))

    async def _make_durable(self, edit: Edit) -> None:
        async with self._turn:  # in the order of the versions: nothing was awaited since that was made
            if self._failed:
                # What was written of another edit may stand there: nothing must follow it.
                raise OSError(errno.EIO, "the manifest could not be written before", str(self.manifest.path))
            # Here, not in the thread: versions turn on the event loop.
            state = self.state() if self.manifest.size > self._begun_with + MANIFEST_BYTES else None
            try:
                await in_thread(self._write, edit, state)
            except OSError:
                self._failed = True
                raise
            # Not before: what the durable manifest names must be there. And not what it moves to another level: the
            # version may be one edit ahead, which drops that, but is not durable yet.
            self._doomed.update({*edit.remove} - {meta.name for meta in edit.add})
        self.sweep_soon()

    def _let_go(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._doomed and not self._closed and not loop.is_closed():
            loop.call_soon_threadsafe(self.sweep_soon)

    def sweep_soon(self) -> None:
        """Remove what is doomed, beside everything else: a large file takes some ms, and no commit need wait for it."""
        if self._doomed and not self._closed and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = asyncio.create_task(self.sweep(), name=f"sweep {self.directory.name}")

    def _write(self, edit: Edit, state: Edit | None) -> None:
        if edit.add or state is not None:
            self.files.sync_directory(self.directory)
        if state is not None:
            self._begin_anew(state)
        else:
            self.manifest.append(edit)

    def _begin_anew(self, state: Edit) -> None:
        before = self.manifest
        self.session += 1
        self.manifest = Manifest.begin(self.files, self.directory, self.session, state, self.key)
        self._begun_with = self.manifest.size
        before.close()
        self.files.unlink(before.path)

    async def sweep(self) -> None:
        """Remove the files that no version has any more: those that someone still reads stay until the next sweep."""
        while True:
            read = {name for version in list(self._versions) for name in version.files}
            gone = self._doomed - read
            if not gone:
                return
            self._doomed -= gone
            await in_thread(self._remove, gone)

    async def settled(self) -> None:
        """Wait for a removal that is under way."""
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping])

    def _remove(self, names: set[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):  # the next opening does
                self.files.unlink(self.directory / name)

    def close(self) -> None:
        """Let go of the manifest."""
        self._closed = True
        self.manifest.close()


def remove_strangers(files: Files, directory: Path, version: Version, session: int, kept: Collection[Path]) -> None:
    """Remove what jobs that were broken off, and owners that were killed, have left."""
    for path in directory.glob("*.sst"):
        if path.name not in version.files:
            files.unlink(path)
    for path in [*manifests(directory), *directory.glob(".manifest-*")]:
        if path.name != f"manifest-{session:06}":
            files.unlink(path)
    for path in logs(directory):
        if path not in kept:
            files.unlink(path)


def fresh_state(files: dict[str, FileMeta], hidden: object, logs_from: int, base: Base | None) -> Edit:
    """An edit that says everything."""
    return Edit(list(files.values()), [], list(hidden), logs_from, base)  # type: ignore[call-overload]
