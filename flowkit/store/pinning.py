"""Pins: the store as of one commit, in sstables that stay where they are while it goes on. Snapshots and checkpoints
rest on them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from flowkit.store.background import Background
from flowkit.store.cipher import StoreKey
from flowkit.store.core import Core
from flowkit.store.journal import Journal
from flowkit.store.keys import NAME, KeyProvider, encode_keys
from flowkit.store.sstable_index import FileMeta
from flowkit.store.turns import Turns
from flowkit.store.upkeep import flush
from flowkit.store.version import Base, Edit, Hidden, Version, next_run

T = TypeVar("T")


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


class Pins:
    """Makes pins; several may be held at a time."""

    def __init__(self, core: Core, journal: Journal, background: Background, turns: Turns) -> None:
        self.core, self.journal, self.background, self.turns = core, journal, background, turns

    @asynccontextmanager
    async def pin(self) -> AsyncIterator[Pinned]:
        """The store as of a commit, as long as this context lasts. Raises StoreError."""
        # Twice: what is in memory now is flushed for good, so that what is written for the pin alone is little.
        await self._once_at_rest(self.journal.turn_now)
        await self.background.flushed(list(self.journal.set_aside))
        pinned, logs = await self._once_at_rest(self._seal)
        extra: list[FileMeta] = []
        try:
            if logs:
                extra = (await flush(self.core, logs, next_run(pinned.files.values()))).files
                pinned.files |= {meta.name: meta for meta in extra}
            yield pinned
        finally:
            gone = self.journal.release(logs)
            self.core.remove([*gone, *(self.core.path / meta.name for meta in extra)])

    async def _seal(self) -> tuple[Pinned, list[Path]]:
        """What makes up the store now, and the logs that no sstable has yet."""
        core, journal = self.core, self.journal
        await journal.turn_now()
        logs = [path for kept in journal.set_aside for path in kept.logs]
        journal.hold(logs)
        version = core.view.version
        session = core.catalog.session
        return Pinned(core.path, dict(version.files), version.hidden, core.now(), session, core.key, version), logs

    async def _once_at_rest(self, do: Callable[[], Awaitable[T]]) -> T:
        journal = self.journal
        journal.claims += 1
        try:
            if not journal.is_empty():
                # Beforehand, so that commits wait for no file to be made.
                journal.make_room()
                if journal.turning is not None:
                    await asyncio.wait([journal.turning])
            return await self.turns.once_at_rest(do)
        finally:
            journal.claims -= 1


async def pinned_keys(pinned: Pinned, keys: KeyProvider | None) -> bytes | None:
    """The `KEYS` file for a copy of a store. None if it is not encrypted. Raises StoreKeyError."""
    if pinned.key is None:
        return None
    if keys is not None:
        return await encode_keys(pinned.key.raw, keys, pinned.directory)
    return await anyio.Path(pinned.directory / NAME).read_bytes()
