"""Stores for tests: opened without a child process, filled, and read back whole."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flowkit.store import Host, Inline, KeyProvider, LsmStore, Reading, StaticKey, StoreOptions, open_store

KEY, OTHER = StaticKey(bytes(range(32))), StaticKey(bytes(32))
WORDS: tuple[str, int | None] = ("words-of-users", None)
WINDOW: tuple[str, int | None] = ("window", 60_000)

State = dict[tuple[str, int | None], dict[bytes, bytes]]


@asynccontextmanager
async def opened(path: Path, keys: KeyProvider | None = None, **options: Any) -> AsyncIterator[LsmStore]:
    """A store whose flushes and compactions run at once."""
    durability = options.pop("durability", "os")
    chosen = StoreOptions(durability=durability, **options)
    async with open_store(path, host=Host(runner=Inline()), options=chosen, keys=keys) as store:
        assert isinstance(store, LsmStore)
        yield store


def rows(start: int, stop: int, tag: str = "value") -> dict[bytes, bytes]:
    """Keys and values that are told from anything else in a file."""
    return {f"secret-key-{n:06}".encode(): f"secret-{tag}-{n:06}-".encode() * 4 for n in range(start, stop)}


def everything(store: Reading) -> State:
    """All that a store holds."""
    found: State = {}
    for table in store.tables():
        for end in [None, *store.ends(table)]:
            if content := dict(store.scan((table, end))):
                found[table, end] = content
    return found


def contents(path: Path, *but: str) -> dict[str, bytes]:
    """All files of a directory, those named in `but` and locks left out."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name not in ("LOCK", *but)}
