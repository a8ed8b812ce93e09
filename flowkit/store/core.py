"""What the parts of an `LsmStore` share: the state that is read, where its files are, and what has gone wrong.

Two things can be wrong. Poison is for ever: a write failed, so nothing later can be promised, and every call raises it.
Trouble passes: the background cannot go on, only commits that would have to wait for it raise it, and it tries again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flowkit.errors import StoreError, StorePoisoned
from flowkit.store.catalog import Catalog, fresh_state
from flowkit.store.cipher import StoreKey
from flowkit.store.events import tell
from flowkit.store.files import Files
from flowkit.store.jobs import Job
from flowkit.store.options import StoreOptions
from flowkit.store.reading import Reading
from flowkit.store.runner import Runner
from flowkit.store.stats import Stats
from flowkit.store.version import Base, Edit, Version
from flowkit.store.whole import in_thread

T = TypeVar("T")

FILES_A_JOB = 10_000
"""So many names are set aside for the outputs of one job."""


class Core:
    """`view` is the store itself, as its readers know it: the parts change what it shows."""

    def __init__(
        self, view: Reading, path: Path, files: Files, runner: Runner, options: StoreOptions, key: StoreKey | None
    ) -> None:
        self.view, self.path, self.files, self.runner, self.options, self.key = (
            view, path, files, runner, options, key,
        )  # fmt: skip
        self.counts = Stats()
        self.poison: str | None = None
        self.trouble: StoreError | None = None
        self.moved = asyncio.Event()
        """Set when the background has come on, or cannot."""
        self.catalog: Catalog
        self.base: Base | None
        """The commit that the sstables are as of."""
        self.preparing = False
        """A commit is on its way into the log, or waits for room."""
        self.letting_go = False
        """True while a flush is through, but what it has written is still removed from the logs and from memory."""
        self.stale: dict[str, int] = {}
        """How many bytes of older files a file of level 0 hides, about: known of those that were made by this owner."""
        self.logs_from: int
        """The first log that is not in them."""

    def begin(self, catalog: Catalog) -> None:
        """Show what the catalog has, from now on."""
        self.catalog = catalog
        catalog.show = self._show_version
        catalog.state = self.state
        self._show_version(catalog.version)

    def _show_version(self, version: Version) -> None:
        self.view.version = version

    def state(self) -> Edit:
        """The whole of what a manifest must say now."""
        version = self.view.version
        return fresh_state(version.files, version.hidden, self.logs_from, self.base)

    def now(self) -> Base:
        """The last commit that counts."""
        view = self.view
        return (view.number, view.commit_id, view.meta, view.now)

    # What can go wrong

    def check(self) -> None:
        """Raises StorePoisoned if the store is."""
        if self.poison is not None:
            raise StorePoisoned(self.poison)

    def poisoned(self, path: Path, error: OSError) -> StorePoisoned:
        """Let nothing follow a write that failed; what to raise."""
        self.poison = (
            f"{path}: write failed ({error.strerror or error}); everything up to commit {self.view.number} is safe: "
            "make room or mend the disk, then start again"
        )
        return StorePoisoned(self.poison)

    def fail(self, error: StoreError) -> None:
        """The background cannot go on, for now."""
        tell("error", "the store's background cannot go on; trying again", path=str(self.path), error=str(error))
        self.trouble = error
        self.moved.set()

    # Files

    async def guarded(self, path: Path, write: Callable[..., T], *args: Any) -> T:
        """Write to `path` in a thread; a failure poisons the store."""
        self.check()
        try:
            return await in_thread(write, *args)
        except OSError as error:
            raise self.poisoned(path, error) from error

    async def change(self, edit: Edit) -> None:
        """Show and keep other sstables; a failure poisons the store."""
        try:
            await self.catalog.change(edit)
        except OSError as error:
            raise self.poisoned(self.catalog.manifest.path, error) from error

    def remove(self, paths: Sequence[Path]) -> None:
        """Remove files that nothing names any more; what cannot be removed, the next opening will."""
        for path in paths:
            with contextlib.suppress(OSError):
                self.files.unlink(path)

    def job(self, **fields: Any) -> Job:
        """A job for this store, with names for its outputs."""
        return Job(
            directory=str(self.path),
            prefix=self.catalog.prefix,
            first_number=self.catalog.reserve(FILES_A_JOB),
            key=None if self.key is None else self.key.raw,
            block_bytes=self.options.block_bytes,
            table_bytes=self.options.table_bytes,
            **fields,
        )
