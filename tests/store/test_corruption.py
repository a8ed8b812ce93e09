"""Damaged files: whatever byte is flipped and wherever a file ends, it is told, or the state is right.

The one thing that cannot be told from a crash is damage to the very end of the newest log of a store that was not
closed: there an earlier commit, whole, may be found.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowkit.errors import StoreCorrupt, StoreError, StoreKeyError
from flowkit.store import Space
from flowkit.store.cipher import StoreKey
from flowkit.store.log import read_log
from tests.matrix import matrix
from tests.store.world import KEY, Model, everything, frame, kill, look_now, open_now, settle, tiny

FLIPS = [0x01, 0x80, 0xFF, 0x10]
ALL_FLIPS = "STORE_ALL_FLIPS" in os.environ
"""Each pattern at every byte, not one after the other in turn."""
STEPS = [1, 7]
"""Every byte is tried by the integration tests, at each change one in seven (of all patterns: seven is odd)."""


@pytest.fixture(autouse=True)
def nobody_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look tries again, in case an owner is at work; here is none."""
    monkeypatch.setattr("flowkit.store.opening.READ_TRIES", 1)


FEW: list[Space] = [("t", None), ("w", 10)]


async def small_store(path: Path, key: StoreKey | None, *, closed: bool) -> list[Model]:
    """Sstables in two levels, two logs with frames, a space hidden in a file. The states after each of its commits."""
    options = tiny(log_bytes=10**6, table_bytes=10**6)
    models = [Model()]
    store = open_now(path, options=options, key=key)

    async def commit(puts: dict[Space, dict[bytes, bytes | None]], drops: list[Space] = []) -> None:  # noqa: B006
        made = frame(store, puts, drops, number=len(models), decided=True)
        await store.prepare(made)
        await store.resolve(made.commit_id, applied=True)
        models.append(models[-1].copy().apply(made))

    await commit({("t", None): {b"k%d" % n: b"value %d" % n for n in range(6)}, ("w", 10): {b"x": b"y"}})
    await store.flush()
    await commit({("t", None): {b"k1": None, b"k2": b"2" * 30}, ("w", 10): {b"z": b"z"}})
    await store.compact()
    await commit({("t", None): {b"k3": b"new"}})
    await store.flush()
    await commit({("t", None): {b"a": b"last but one"}}, drops=[("w", 10)])
    await settle(store)
    await kill(store)
    store = open_now(path, options=options, key=key)
    await commit({("w", 10): {b"c": bytes(1100)}})  # a sector of zeros, as a crash leaves them
    await commit({("t", None): {b"b": b"last"}})
    await (store.close() if closed else kill(store))
    return models


def damages(data: bytes, step: int) -> Iterator[tuple[str, int, bytes]]:
    for size in range(0, len(data), step if ALL_FLIPS else 2 * step):
        yield "cut", size, data[:size]
    for at in range(0, len(data), step):
        for flip in FLIPS if ALL_FLIPS else [FLIPS[at % len(FLIPS)]]:
            yield f"xor {flip:#x}", at, data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]


@pytest.mark.parametrize("step", matrix(STEPS, quick=lambda step: step > 1))
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_flipped_byte_or_a_cut_file_is_told_or_harmless(
    key: StoreKey | None, closed: bool, step: int, tmp_path: Path
) -> None:
    """By a look, which reads all that an owner would."""
    path = tmp_path / "store"
    models = asyncio.run(small_store(path, key, closed=closed))
    right = models[-1].everything(FEW)
    earlier = [model.everything(FEW) for model in models]
    files = sorted(file for file in path.iterdir() if file.name != "LOCK")
    newest = max(file for file in files if file.name.startswith("log-"))
    assert {file.name.partition("-")[0] for file in files} == {"log", "manifest", "000001"}
    last_frame = max(logged.start for logged in read_log(newest, key))
    told = 0
    for file in files:
        data = file.read_bytes()
        for how, at, damaged in damages(data, step):
            file.write_bytes(damaged)
            try:
                found = everything(look_now(path, key), FEW)
            except (StoreCorrupt, StoreKeyError) as error:
                if not re.search(r"(log-|manifest-|\.sst)", str(error)):
                    raise AssertionError("no file is named") from error
                told += 1
            except BaseException as error:
                error.add_note(f"{file.name}: {how} at {at}")
                raise
            else:
                if file == newest and not closed and (how == "cut" or at >= last_frame):
                    assert found in earlier, f"{file.name}: {how} at {at}"
                else:
                    assert found == right, f"{file.name}: {how} at {at}"
        file.write_bytes(data)
    assert told > 1000 / step


@pytest.mark.parametrize("step", matrix(STEPS, quick=lambda step: step > 1))
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_after_a_clean_close_every_cut_of_any_log_is_told(key: StoreKey | None, step: int, tmp_path: Path) -> None:
    path = tmp_path / "store"
    asyncio.run(small_store(path, key, closed=True))
    for file in path.glob("log-*"):
        data = file.read_bytes()
        for size in range(0, len(data), step):
            file.write_bytes(data[:size])
            with pytest.raises(StoreCorrupt, match="log-"):
                look_now(path, key)
        file.write_bytes(data)


def test_cuts_of_a_log_of_an_earlier_owner_are_told_after_a_clean_close_without_commits(tmp_path: Path) -> None:
    """The log that was closed had no frame, so none of its own showed that one before it was missing."""

    async def owners() -> None:
        store = open_now(tmp_path)
        await store.commit({("t", None): {b"a": b"1"}})
        await store.commit({("t", None): {b"a": b"2"}})
        await kill(store)
        await open_now(tmp_path).close()

    asyncio.run(owners())
    log = tmp_path / "log-000001"
    data = log.read_bytes()
    for size in range(len(data)):
        log.write_bytes(data[:size])
        with pytest.raises(StoreCorrupt, match="log-"):
            look_now(tmp_path)


def test_a_missing_first_log_is_told_though_nothing_follows_it(tmp_path: Path) -> None:
    """An owner that had just flushed and removed it would not matter; but a look read an empty store then."""

    async def owner() -> None:
        store = open_now(tmp_path)
        await store.commit({("t", None): {b"a": b"1"}})
        await kill(store)

    asyncio.run(owner())
    (tmp_path / "log-000001").unlink()
    with pytest.raises(StoreCorrupt, match="log-000001: missing"):
        look_now(tmp_path)


@pytest.mark.parametrize("missing", ["log-*", "manifest-*", "*.sst"])
def test_a_missing_file_is_told_and_nothing_is_removed(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    asyncio.run(small_store(path, None, closed=True))
    for file in path.glob(missing):
        kept = file.read_bytes()
        file.unlink()
        left = sorted(path.iterdir())

        async def open_it() -> None:
            open_now(path)

        with pytest.raises(StoreCorrupt):
            asyncio.run(open_it())
        assert sorted(path.iterdir()) == left
        file.write_bytes(kept)


def test_a_damaged_store_is_not_changed_by_opening_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    asyncio.run(small_store(path, None, closed=False))
    for file in list(path.glob("log-*"))[:1] + list(path.glob("manifest-*")):
        shutil.copytree(path, tmp_path / "copy")
        data = bytearray((tmp_path / "copy" / file.name).read_bytes())
        data[len(data) // 3] ^= 0x10
        (tmp_path / "copy" / file.name).write_bytes(data)
        before = {entry.name: entry.read_bytes() for entry in (tmp_path / "copy").iterdir()}

        async def open_it() -> None:
            open_now(tmp_path / "copy")

        with pytest.raises(StoreError):
            asyncio.run(open_it())
        assert {entry.name: entry.read_bytes() for entry in (tmp_path / "copy").iterdir()} == before
        shutil.rmtree(tmp_path / "copy")


def test_the_wrong_key_and_no_key_are_told(tmp_path: Path) -> None:
    path = tmp_path / "store"
    asyncio.run(small_store(path, KEY, closed=True))
    for key in (None, StoreKey(bytes(32))):
        with pytest.raises(StoreKeyError, match="manifest-"):
            look_now(path, key)
