"""The power fails after any operation on the disk: one commit is found, whole, and none that was promised is lost.

`tests/store/recording.py` says what POSIX lets a failure take. The figures of the default run are small; set
STORE_CRASH_SEEDS and STORE_CRASH_DRAWS for more lives and more disks of each moment.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from flowkit.store import LsmStore
from flowkit.store.options import Durability
from tests.matrix import matrix
from tests.store.histories import Life, strangers
from tests.store.recording import PowerFailure, Recorder, lay
from tests.store.world import KEY, Model, everything, frame, kill, open_now

SEEDS = int(os.environ.get("STORE_CRASH_SEEDS", "1"))
DRAWS = int(os.environ.get("STORE_CRASH_DRAWS", "1"))
STEPS = matrix([10, 24], quick=lambda steps: steps == 10)
"""A life of few commits at each change, of more in the integration tests."""
LIVES = [
    *[("commit", True, 10), ("os", False, 10)],
    *[
        pytest.param(durability, encrypted, 24, marks=pytest.mark.integration)
        for durability in ("commit", "interval", "os")
        for encrypted in (False, True)
        # The cipher knows nothing of durability.
        if not encrypted or durability == "commit" or SEEDS > 1
    ],
]


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("durability, encrypted, steps", LIVES)
async def test_after_a_power_failure_at_any_moment_one_commit_is_found_whole(
    durability: Durability, encrypted: bool, steps: int, seed: int, tmp_path: Path
) -> None:
    key = KEY if encrypted else None
    life = Life(tmp_path / "life", durability, key, seed)
    life.root.mkdir()
    await life.live(steps)
    failure, oracle, luck = PowerFailure({}), life.oracle(), random.Random(seed)
    seen: set[int] = set()
    root = tmp_path / "found"
    found = set()
    for at, operation in enumerate(life.recorder.operations):
        failure.feed(operation)
        oracle.feed(operation)
        for disk in failure.disks(luck, DRAWS):
            known = hash((frozenset(disk.files.items()), frozenset(oracle.possible()), frozenset(oracle.applied)))
            if known in seen:
                continue
            seen.add(known)
            try:
                lay(disk, root)
                store = open_now(root, key=key)
                number = oracle.check(store, everything(store))
                found.add(number)
                assert list(strangers(store)) == []
                await goes_on(store, oracle.models[number], flush=luck.random() < 0.3, close=luck.random() < 0.3)
            except Exception as error:
                error.add_note(f"{disk.how} after operation {at}, {operation.kind} {operation.name or operation.file}")
                raise
    # A life in which nothing could be lost, or nothing was kept, has proved little.
    assert len(found) > steps // 2


async def goes_on(store: LsmStore, model: Model, *, flush: bool, close: bool) -> None:
    """What was found is good for more commits, and stays what it is when it goes to sstables or is closed."""
    if store.undecided is not None:
        await store.resolve(store.undecided.commit_id, applied=True)
    made = frame(store, {("t", None): {b"after": b"all"}}, number=10**6, decided=True)
    await store.prepare(made)
    await store.resolve(made.commit_id, applied=True)
    expected = model.copy().apply(made)
    if flush:
        await store.flush()
        assert everything(store) == expected.everything()
    if close:
        await store.close()
        store = open_now(store.path, key=store.key)
        assert everything(store) == expected.everything()
    await kill(store)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("steps", STEPS)
async def test_after_a_power_failure_in_the_midst_of_a_recovery_the_same_is_found(
    steps: int, seed: int, tmp_path: Path
) -> None:
    life = Life(tmp_path / "life", "os", None, seed + 100)
    life.root.mkdir()
    await life.live(steps)
    failure, oracle, luck = PowerFailure({}), life.oracle(), random.Random(seed)
    root, again = tmp_path / "found", tmp_path / "again"
    recoveries = 0
    for operation in life.recorder.operations:
        failure.feed(operation)
        oracle.feed(operation)
        for disk in failure.disks(luck, 1):
            if luck.random() < 0.985:
                continue
            recoveries += 1
            lay(disk, root)
            recorder = Recorder(root)
            store = open_now(root, files=recorder)
            first = oracle.check(store, everything(store))
            await kill(store)
            second = PowerFailure(recorder.begun)
            for step in recorder.operations:
                second.feed(step)
                for other in second.disks(luck, DRAWS):
                    lay(other, again)
                    store = open_now(again)
                    assert oracle.check(store, everything(store)) == first
                    assert list(strangers(store)) == []
                    await kill(store)
    assert recoveries
