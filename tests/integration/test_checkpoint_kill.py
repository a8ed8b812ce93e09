"""kill -9 of a process that commits and publishes checkpoints all the time: what was published is there, whole."""

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

from flowkit.store import Checkpoints, DirectoryBlobs, KeyProvider, open_store, read_store, verify
from tests.store.making import KEY, everything

ROOT = Path(__file__).parent.parent.parent
KILLS = 16

CHILD = """
import asyncio, sys
from pathlib import Path
import structlog
from flowkit.store import Checkpoints, DirectoryBlobs, StoreOptions, open_store
from tests.store.making import KEY

async def main(db, blobs, keys):
    checkpoints = Checkpoints(DirectoryBlobs(blobs), keys=keys, grace=0)
    print("claimed", await checkpoints.claim(), flush=True)
    async with open_store(db, keys=keys, options=StoreOptions(durability="os", log_bytes=3000)) as store:
        async def write():
            while True:
                n = store.number + 1
                drops = [("window", n // 10 - 2)] if n % 10 == 0 else []
                puts = {("all", None): {b"%06d" % n: b"x" * 50}, ("window", n // 10): {b"%d" % n: b"y"}}
                await store.commit(puts, drops)
                await asyncio.sleep(0)
        writing = asyncio.create_task(write())
        while True:
            done = await checkpoints.publish(store)
            print("published", done.commit, flush=True)

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), KEY if sys.argv[3] == "sealed" else None))
"""


def state_at(n: int) -> dict[tuple[str, int | None], dict[bytes, bytes]]:
    """What the child's store holds after commit `n`."""
    state: dict[tuple[str, int | None], dict[bytes, bytes]] = {}
    if n:
        state["all", None] = {b"%06d" % i: b"x" * 50 for i in range(1, n + 1)}
    for i in range(1, n + 1):
        if i % 10 == 0:
            state.pop(("window", i // 10 - 2), None)
        state.setdefault(("window", i // 10), {})[b"%d" % i] = b"y"
    return state


async def look(path: Path, keys: KeyProvider | None) -> int:
    """Check a new owner's copy; its commit."""
    found = read_store(path, keys)
    assert everything(found) == state_at(found.number)
    assert verify(path, keys).problems == []
    return found.number


def test_what_was_published_is_there_after_kill_9(tmp_path: Path) -> None:
    chosen, last, published = random.Random(11), 0, 0
    for kill in range(KILLS):
        sealed = kill >= KILLS // 2
        keys = KEY if sealed else None
        if kill == KILLS // 2:
            last = 0
        place = tmp_path / ("sealed" if sealed else "plain")
        words = [sys.executable, "-c", CHILD, str(place / "db"), str(place / "blobs"), place.name]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline().startswith("claimed")
            for _ in range(chosen.randrange(6)):
                last = int(child.stdout.readline().split()[1])
                published += 1
            try:
                child.wait(chosen.random() / 4)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().splitlines()
            last = max([last, *(int(line.split()[1]) for line in rest if line.startswith("published "))])
        checkpoints = Checkpoints(DirectoryBlobs(place / "blobs"), keys=keys)
        assert asyncio.run(checkpoints.verify()) == []
        if last:
            target = tmp_path / f"restored-{kill}"
            asyncio.run(checkpoints.restore(target))
            assert asyncio.run(look(target, keys)) >= last
        if (place / "db" / "LOCK").exists():
            assert asyncio.run(look(place / "db", keys)) >= last
        if kill % 5 == 4 and last:

            async def go_on(path: Path = tmp_path / f"restored-{kill}", keys: KeyProvider | None = keys) -> None:
                async with open_store(path, keys=keys) as store:
                    await store.commit({("more", None): {b"a": b"b"}})

            asyncio.run(go_on())
    assert published > KILLS
