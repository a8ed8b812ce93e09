"""A server that forks owners of one store, each of which commits as fast as it can until it is killed.

    stdin   PATH RUNNER DURABILITY PROMISED     one owner; the last number is the least that it must find
    stdout  owner PID, opened N, N …, end STATUS

It imports the store alone, so that an owner is at work within milliseconds of its fork. What commit n changes follows
from n, so that anyone can tell what must be there after it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

KEYS = 64
WINDOW = 32
OPEN = 3
SPACES = [("t", None), ("d", None)]


def changes(n: int) -> tuple[dict[Any, dict[bytes, bytes | None]], list[Any]]:
    """Puts and drops of commit n."""
    window = n // WINDOW
    puts: dict[Any, dict[bytes, bytes | None]] = {
        ("t", None): {b"key %d" % (n % KEYS): b"%d" % n * 10},
        ("d", None): {b"%d" % (n % 16): b"%d" % n if n // 16 % 2 else None},
        ("w", window): {b"%d" % n: b"w" * (n % 50)},
    }
    return puts, [("w", window - OPEN)] if n % WINDOW == 0 else []


def expected(n: int) -> dict[Any, list[tuple[bytes, bytes]]]:
    """What a store holds after commit n."""
    last = range(max(1, n - KEYS + 1), n + 1)
    found: dict[Any, list[tuple[bytes, bytes]]] = {
        ("t", None): [(b"key %d" % (m % KEYS), b"%d" % m * 10) for m in last],
        ("d", None): [(b"%d" % (m % 16), b"%d" % m) for m in range(max(1, n - 15), n + 1) if m // 16 % 2],
    }
    for window in range(max(0, n // WINDOW - OPEN + 1), n // WINDOW + 1):
        members = range(max(1, window * WINDOW), min(n, window * WINDOW + WINDOW - 1) + 1)
        found["w", window] = [(b"%d" % m, b"w" * (m % 50)) for m in members]
    return {space: sorted(rows) for space, rows in found.items() if rows}


def everything(store: Any) -> dict[Any, list[tuple[bytes, bytes]]]:
    """What a store does hold."""
    spaces = [*SPACES, *(("w", end) for end in store.ends("w"))]
    return {space: rows for space in spaces if (rows := list(store.scan(space)))}


def options(durability: Any) -> Any:
    from flowkit.store import CompactionOptions, StoreOptions

    return StoreOptions(
        durability=durability, log_bytes=4000, block_bytes=256, table_bytes=4000, sync_interval=5,
        compaction=CompactionOptions(l0_runs=2, l1_bytes=8000, multiplier=2),
    )  # fmt: skip


async def own(path: Path, runner: str, durability: str, promised: int) -> None:
    """Open, check, and commit for ever."""
    from flowkit.store import Host, Inline, open_store

    host = Host(runner=Inline()) if runner == "inline" else None
    async with open_store(path, host=host, options=options(durability)) as store:
        if store.undecided is not None:
            await store.resolve(store.undecided.commit_id, applied=True)
        if store.number < promised:
            raise SystemExit(f"commit {store.number} was found, but {promised} had been promised")
        if everything(store) != expected(store.number):
            raise SystemExit(f"what was found is not the state of commit {store.number}")
        say(f"opened {store.number}")
        while True:
            puts, drops = changes(store.number + 1)
            say(str(await store.commit(puts, drops)))
            await asyncio.sleep(0)


_out = os.dup(1)


def say(line: str) -> None:
    os.write(_out, line.encode() + b"\n")


def main() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the store's log messages
    package = types.ModuleType("flowkit")
    package.__path__ = [sys.argv[1]]
    sys.modules["flowkit"] = package
    import anyio._backends._asyncio  # noqa: F401 - else every owner would

    import flowkit.store  # noqa: F401

    for line in sys.stdin:
        path, runner, durability, promised = line.split()
        pid = os.fork()
        if pid == 0:
            say(f"owner {os.getpid()}")
            try:
                asyncio.run(own(Path(path), runner, durability, int(promised)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        say(f"end {status}")


if __name__ == "__main__":
    main()
