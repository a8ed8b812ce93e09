"""Snapshots: a store of one commit beside the first, made while that goes on; and pins, on which they rest."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from flowkit.errors import StoreCorrupt, StoreError
from flowkit.store import LsmStore, Space, Step, read_store
from flowkit.store.files import Disk
from flowkit.store.frame import Frame, SpaceChange
from tests.store.making import KEY, WINDOW, WORDS, State, contents, everything, opened, rows


def frame(number: int, parent: bytes, keys: dict[bytes, bytes]) -> Frame:
    return Frame(
        number, number.to_bytes(16), parent, 0, {"n": number}, [SpaceChange("t", None, [*keys], [*keys.values()])]
    )


async def until_it_waits(store: LsmStore) -> None:
    while not store._turns.at_rest:  # noqa: ASYNC110  there is nothing that tells
        await asyncio.sleep(0)


async def check(path: Path, expected: State, number: int, keys: object = None) -> None:
    """The snapshot is a store of its own: it opens, says the same, and takes commits."""
    async with opened(path, keys) as store:  # type: ignore[arg-type]
        assert store.undecided is None
        assert (everything(store), store.number) == (expected, number)
        assert await store.commit({("added", None): {b"a": b"b"}}) == number + 1
        assert everything(store) == {**expected, ("added", None): {b"a": b"b"}}


@pytest.mark.parametrize("keys", [None, KEY])
async def test_a_snapshot_is_a_store_of_its_own(tmp_path: Path, keys: object) -> None:
    async with opened(tmp_path / "db", keys) as store:  # type: ignore[arg-type]
        await store.commit({WORDS: rows(0, 300), WINDOW: rows(0, 40), ("window", 7): rows(0, 3)})
        await store.compact()
        await store.commit(
            {WORDS: {**rows(100, 120, "new"), b"secret-key-000001": None}}, drops=[WINDOW], meta={"m": 1}
        )
        expected, number = everything(store), store.number
        await store.snapshot(tmp_path / "snap")
        await store.commit({WORDS: rows(0, 300, "later")}, drops=[("window", 7)])
        await store.compact()
        assert everything(read_store(tmp_path / "snap", keys)) == expected  # type: ignore[arg-type]
        assert read_store(tmp_path / "snap", keys).meta == {"m": 1}  # type: ignore[arg-type]
        await check(tmp_path / "snap", expected, number, keys)
        assert everything(store)[WORDS] == rows(0, 300, "later")
    assert WINDOW not in expected


async def test_a_snapshot_of_nothing_is_an_empty_store(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.snapshot(tmp_path / "snap")
    await check(tmp_path / "snap", {}, 0)


async def test_files_are_shared_not_copied(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.commit({WORDS: rows(0, 3000)})
        steps: list[Step] = []
        await store.snapshot(tmp_path / "snap", steps.append)
        names = [name for name in contents(tmp_path / "snap") if name.endswith(".sst")]
        assert names
        assert all((tmp_path / "snap" / name).samefile(tmp_path / "db" / name) for name in names)
        assert steps[-1].done == steps[-1].total == store.stats().table_bytes


class Elsewhere(Disk):
    """The snapshot lies on another file system."""

    def link(self, old: Path, new: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")


async def test_across_file_systems_files_are_copied(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.commit({WORDS: rows(0, 3000)})
        expected = everything(store)
        store._core.files = Elsewhere()
        await store.snapshot(tmp_path / "snap")
    await check(tmp_path / "snap", expected, 1)


async def test_nothing_undecided_is_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        first = frame(1, b"", {b"a": b"1"})
        await store.prepare(first)
        await store.resolve(first.commit_id, applied=True)
        second = frame(2, first.commit_id, {b"a": b"2"})
        await store.prepare(second)
        waiting = asyncio.create_task(store.snapshot(tmp_path / "taken back"))
        await until_it_waits(store)
        await store.resolve(second.commit_id, applied=False)
        await waiting
        await store.prepare(second)
        waiting = asyncio.create_task(store.snapshot(tmp_path / "applied"))
        await until_it_waits(store)
        await store.resolve(second.commit_id, applied=True)
        await waiting
    await check(tmp_path / "taken back", {("t", None): {b"a": b"1"}}, 1)
    await check(tmp_path / "applied", {("t", None): {b"a": b"2"}}, 2)


async def test_it_is_exactly_one_commit_while_others_are_made_without_a_pause(tmp_path: Path) -> None:
    """Commits that put, delete and drop go on without a gap between two frames: a snapshot must find its moment."""
    states: dict[int, State] = {}
    async with opened(tmp_path / "db", log_bytes=20_000) as store:
        stop = asyncio.Event()

        async def write() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                some: dict[bytes, bytes | None] = {**rows(n * 7 % 50, n * 7 % 50 + 20, f"n{n}")}
                puts: dict[Space, dict[bytes, bytes | None]] = {WORDS: {**some, b"secret-key-%06d" % (n % 60): None}}
                puts[("window", n // 10)] = {**rows(0, 5, f"n{n}")}
                drops: list[tuple[str, int | None]] = [("window", n // 10 - 1)] if n % 10 == 3 else []
                changes = [SpaceChange(*space, [*keys], [*keys.values()]) for space, keys in puts.items()]
                made = Frame(n, os.urandom(16), store.commit_id, 0, {}, changes, drops)
                await store.prepare(made)
                await asyncio.sleep(0)  # others have their turn while a frame is undecided, and only then
                await store.resolve(made.commit_id, applied=True)
                states[store.number] = everything(store)

        writing = asyncio.create_task(write())
        for number in range(12):
            await store.snapshot(tmp_path / str(number))
        stop.set()
        await writing
        assert store.stats().flushes > 12
        assert not store._journal.held.total()
    seen = []
    for number in range(12):
        look = read_store(tmp_path / str(number))
        seen.append(look.number)
        assert everything(look) == states.get(look.number, {})
    assert seen == sorted(seen)
    assert seen[-1] > 12


async def test_a_pin_keeps_its_files_and_leaves_none_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.commit({WORDS: rows(0, 100)})
        await store.flush()
        async with store.pin() as pinned:
            await store.commit({WORDS: rows(0, 100, "new")})
            await store.compact()
            await store.commit({WORDS: rows(0, 1)}, drops=[WORDS])
            await store.flush()
            assert all((tmp_path / name).stat().st_size == meta.bytes for name, meta in pinned.files.items())
        del pinned
        await store.commit({WORDS: rows(0, 1)})
        await store.compact()
        left = {name for name in contents(tmp_path) if name.endswith(".sst")}
        assert left == set(store.version.files)


async def test_logs_that_a_pin_reads_are_removed_after_it(tmp_path: Path) -> None:
    """The moment at which a log is both pinned and flushed: a commit comes between the flush and the pin."""
    async with opened(tmp_path) as store:
        flushed = store._background.flushed

        async def then_commit(those: object) -> None:
            await flushed(those)  # type: ignore[arg-type]
            store._background.flushed = flushed  # type: ignore[method-assign]
            await store.commit({WORDS: rows(50, 60)})

        await store.commit({WORDS: rows(0, 50)})
        store._background.flushed = then_commit  # type: ignore[method-assign]
        async with store.pin() as pinned:
            assert pinned.base[0] == 2
            await store.flush()
            await store.commit({WORDS: rows(0, 1)})
        await store.flush()
        logs = [name for name in contents(tmp_path) if name.startswith("log-")]
        assert logs == [store._journal.log.path.name]
        assert {name for name in contents(tmp_path) if name.endswith(".sst")} == set(store.version.files)


async def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "mine").write_text("mine")
    async with opened(tmp_path / "db") as store:
        await store.commit({WORDS: rows(0, 10)})
        with pytest.raises(StoreError, match=r"not empty .it holds 'mine'.: name an empty one"):
            await store.snapshot(tmp_path / "snap")
        (tmp_path / "snap" / "mine").unlink()
        await store.snapshot(tmp_path / "snap")
        with pytest.raises(StoreError, match="not empty"):
            await store.snapshot(tmp_path / "snap")


class Breaks(Disk):
    """Fails at the n-th thing that is done in the snapshot's directory."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def create(self, path: Path):  # type: ignore[no-untyped-def]
        self._count()
        return super().create(path)

    def link(self, old: Path, new: Path) -> None:
        self._count()
        super().link(old, new)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


async def test_a_snapshot_that_was_broken_off_is_refused_and_can_be_made_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "db", KEY) as store:
        await store.commit({WORDS: rows(0, 10)})
        await store.flush()
        files, done, steps = store._core.files, False, 0
        while not done:
            # Nothing is in the memtable: all that is done is done to the snapshot.
            path, store._core.files = tmp_path / f"snap{steps}", Breaks(steps)
            try:
                await store.snapshot(path)
                done = True
            except StoreError as error:
                assert "the snapshot cannot be made: No space left on device" in str(error)  # noqa: PT017
                try:
                    assert everything(read_store(path, KEY)) in ({}, everything(store))
                    assert not (path / "INCOMPLETE").exists()
                    whole = everything(read_store(path, KEY)) != {}
                except StoreCorrupt as refused:
                    assert "incomplete: a snapshot of" in str(refused)  # noqa: PT017
                    whole = False
                except StoreError as empty:
                    assert "but a key was given" not in str(empty)  # noqa: PT017
                    whole = False
                if not whole:
                    store._core.files = files
                    await store.snapshot(path)
                    assert everything(read_store(path, KEY)) == everything(store)
            steps += 1
        assert steps > 10
        store._core.files = files


async def test_a_pin_that_waits_is_told_when_the_store_closes(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        await store.prepare(frame(1, b"", {b"a": b"1"}))
        waiting = asyncio.create_task(store.snapshot(tmp_path / "snap"))
        await until_it_waits(store)
    with pytest.raises(StoreError, match="closed meanwhile"):
        await waiting
