"""Checkpoints: incremental, owned by one epoch, usable whatever is broken off, deleted only when nobody needs them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from flowkit.clock import VirtualClock
from flowkit.errors import Fenced, StoreCorrupt, StoreError, StoreKeyError
from flowkit.store import (
    Blob,
    Blobs,
    Checkpoints,
    DirectoryBlobs,
    KeyProvider,
    LsmStore,
    Step,
    Storage,
    read_store,
    rotate,
)
from tests.matrix import matrix
from tests.store.making import KEY, OTHER, WINDOW, WORDS, State, contents, everything, opened, rows
from tests.store.s3_server import own_bucket


class Watched:
    """Blobs that note what is done, fail at a chosen moment, and let others have their turn."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.steps = 0
        self.fail_at: tuple[int, bool] | None = None
        """(step, whether it is done before it fails)"""
        self.written: dict[str, int] = {}
        self.before: Callable[[str, str], Awaitable[None]] | None = None

    @property
    def path(self) -> Path:
        """The directory that they are files of."""
        assert isinstance(self.blobs, DirectoryBlobs)
        return self.blobs.path

    async def _step(self, what: str, name: str) -> bool:
        """Told before a step; True if it is to fail after it."""
        if self.before is not None:
            await self.before(what, name)
        at, self.steps = self.steps, self.steps + 1
        if self.fail_at is not None and self.fail_at[0] == at:
            if not self.fail_at[1]:
                raise StoreError("the storage does not answer")
            return True
        return False

    async def put(self, name: str, data: bytes, *, over: str | None = None) -> str | None:
        fails = await self._step("put", name)
        tag = await self.blobs.put(name, data, over=over)
        if tag is not None:
            self.written[name] = len(data)
        if fails:
            raise StoreError("the answer was lost")
        return tag

    async def get(self, name: str) -> tuple[bytes, str] | None:
        if await self._step("get", name):
            raise StoreError("the answer was lost")
        return await self.blobs.get(name)

    async def find(self, prefix: str = "") -> list[Blob]:
        if await self._step("find", prefix):
            raise StoreError("the answer was lost")
        return await self.blobs.find(prefix)

    async def delete(self, name: str) -> None:
        fails = await self._step("delete", name)
        await self.blobs.delete(name)
        if fails:
            raise StoreError("the answer was lost")


class Home:
    """Where a test's checkpoints lie, and a `path` for all else."""

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        self.path, self.storage = path, storage

    def blobs(self) -> Blobs:
        return DirectoryBlobs(self.path / "blobs") if self.storage is None else self.storage.blobs("a", "b", "0")

    async def contents(self) -> dict[str, bytes]:
        """All blobs."""
        blobs = self.blobs()
        return {blob.name: (await blobs.get(blob.name) or (b"", ""))[0] for blob in await blobs.find()}

    async def write(self, name: str, data: bytes) -> None:
        """Let a blob have this content, whatever it was."""
        await self.blobs().delete(name)
        assert await self.blobs().put(name, data) is not None


@pytest.fixture
def directory(tmp_path: Path) -> Home:
    """Files of a directory."""
    return Home(tmp_path)


@pytest.fixture(params=["files", "s3"])
async def home(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Home]:
    """Files of a directory, or objects of a bucket."""
    if request.param == "files":
        yield Home(tmp_path)
        return
    request.getfixturevalue("s3")
    async with own_bucket() as storage:
        yield Home(tmp_path, storage)


def owner(
    home: Home, keys: KeyProvider | None = None, clock: VirtualClock | None = None
) -> tuple[Checkpoints, Watched]:
    blobs = Watched(home.blobs())
    return Checkpoints(blobs, keys=keys, clock=clock or VirtualClock()), blobs


async def restored(home: Home, keys: KeyProvider | None = None, name: str | None = None) -> tuple[State, int]:
    """What a new owner finds."""
    target = home.path / f"restored-{os.urandom(4).hex()}"
    await Checkpoints(home.blobs(), keys=keys).restore(target, name)
    look = read_store(target, keys)
    return everything(look), look.number


def as_of(store: LsmStore) -> tuple[State, int]:
    return everything(store), store.number


@pytest.mark.parametrize("keys", [None, KEY])
async def test_a_checkpoint_is_restored_as_the_store_was(home: Home, keys: KeyProvider | None) -> None:
    checkpoints, _ = owner(home, keys)
    assert await checkpoints.claim() == 1
    async with opened(home.path / "db", keys) as store:
        await store.commit({WORDS: rows(0, 500), WINDOW: rows(0, 50)})
        await store.compact()
        await store.commit({WORDS: rows(100, 200, "new"), ("window", 9): rows(0, 5)}, drops=[WINDOW], meta={"m": 2})
        expected = as_of(store)
        done = await checkpoints.publish(store)
        await store.commit({WORDS: rows(0, 500, "later")})
    assert await restored(home, keys) == expected
    (kept,) = await checkpoints.kept()
    assert (kept.name, kept.commit, kept.epoch, kept.encrypted) == (done.name, 2, 1, keys is not None)
    steps: list[Step] = []
    await checkpoints.restore(home.path / "new", None, steps.append)
    assert steps[-1].done == steps[-1].total == done.bytes
    async with opened(home.path / "new", keys) as store:
        assert store.meta == {"m": 2}
        assert store.undecided is None
        await store.commit({WORDS: rows(0, 1, "after")})
        await store.compact()
        assert store.get(WORDS, b"secret-key-000000") == rows(0, 1, "after")[b"secret-key-000000"]


async def test_an_empty_store_has_an_empty_checkpoint(home: Home) -> None:
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    assert await checkpoints.kept() == []
    with pytest.raises(StoreError, match="no checkpoint yet"):
        await checkpoints.restore(home.path / "new")
    async with opened(home.path / "db") as store:
        await checkpoints.publish(store)
    assert await restored(home) == ({}, 0)


async def test_only_what_is_new_is_uploaded(home: Home) -> None:
    checkpoints, blobs = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({("t", None): {os.urandom(16): os.urandom(400) for _ in range(5000)}})
        first = await checkpoints.publish(store)
        await store.commit({WORDS: rows(0, 3)})
        blobs.written.clear()
        second = await checkpoints.publish(store)
        expected = as_of(store)
        third = await checkpoints.publish(store)
    assert first.uploaded_bytes == first.bytes > 2_000_000
    assert second.uploaded_files == 1
    assert sum(blobs.written.values()) < first.uploaded_bytes / 500
    assert (third.uploaded_files, third.uploaded_bytes) == (0, 0)
    assert await restored(home) == expected


async def test_what_moved_to_another_level_or_owner_is_not_uploaded_again(home: Home) -> None:
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 500)})
        await checkpoints.publish(store)
        await store.commit({WORDS: rows(500, 600)})
        await store.compact()
        await checkpoints.publish(store)
    successor, _ = owner(home)
    assert await successor.claim() == 2
    await successor.restore(home.path / "new")
    async with opened(home.path / "new") as store:
        assert (await successor.publish(store)).uploaded_files == 0
        await store.commit({WORDS: rows(0, 2, "new")})
        assert (await successor.publish(store)).uploaded_files == 1
        assert await restored(home) == as_of(store)


async def test_files_of_one_name_but_other_content_are_told_apart(home: Home) -> None:
    """Two directories restored from one checkpoint give their next files the same names."""
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 10)})
        await checkpoints.publish(store)
    first = (await checkpoints.kept())[0].name
    states: list[tuple[State, int]] = []
    for name in ("one", "two"):
        await checkpoints.claim()
        await checkpoints.restore(home.path / name, first)
        async with opened(home.path / name) as store:
            await store.commit({WORDS: rows(20, 30, name)})
            assert (await checkpoints.publish(store)).uploaded_files == 1
            states.append(as_of(store))
            assert await restored(home) == states[-1]
    one, two = contents(home.path / "one"), contents(home.path / "two")
    assert any(name.endswith(".sst") and one[name] != two[name] for name in one.keys() & two.keys())


async def test_commits_go_on_while_files_are_uploaded(home: Home) -> None:
    checkpoints, blobs = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 500)})
        before = as_of(store)

        async def write(what: str, name: str) -> None:
            if what == "put":
                await store.commit({WORDS: rows(0, 500, f"n{store.number}")})
                await store.compact()

        blobs.before = write
        done = await checkpoints.publish(store)
        assert store.number >= 3
    assert done.commit == 1
    assert await restored(home) == before


# Owners


async def test_each_owner_has_a_higher_epoch(home: Home) -> None:
    first, _ = owner(home)
    second, _ = owner(home)
    assert [await first.claim(), await second.claim(), await first.claim(7), await second.claim()] == [1, 2, 7, 8]
    with pytest.raises(Fenced, match="epoch 8 was asked for, but 8 has been claimed already"):
        await first.claim(8)


async def test_owners_that_claim_at_once_get_epochs_of_their_own(home: Home) -> None:
    owners = [owner(home)[0] for _ in range(12)]
    epochs = await asyncio.gather(*(each.claim() for each in owners))
    assert sorted(epochs) == list(range(1, 13))


async def test_nothing_is_published_without_a_claim(home: Home) -> None:
    checkpoints, _ = owner(home)
    async with opened(home.path / "db") as store:
        with pytest.raises(StoreError, match="claim them first"):
            await checkpoints.publish(store)


async def test_a_zombie_is_fenced_and_changes_nothing(home: Home) -> None:
    old, _ = owner(home)
    new, _ = owner(home)
    await old.claim()
    async with opened(home.path / "old") as zombie:
        await zombie.commit({WORDS: rows(0, 10)})
        await old.publish(zombie)
        await new.claim()
        before = await home.contents()
        await zombie.commit({WORDS: rows(0, 10, "zombie")})
        for act in (lambda: old.publish(zombie), old.sweep):
            with pytest.raises(Fenced, match="owned by epoch 2 now, this is 1"):
                await act()
        assert await home.contents() == before


@pytest.mark.parametrize("published", matrix([False, True], quick=bool))
async def test_an_owner_that_is_overtaken_while_it_uploads_is_fenced(home: Home, published: bool) -> None:
    old, blobs = owner(home)
    new, _ = owner(home)
    await old.claim()
    async with opened(home.path / "old") as zombie, opened(home.path / "new") as store:
        await zombie.commit({WORDS: rows(0, 10)})
        await old.publish(zombie)
        expected = as_of(zombie)
        for step in range(1, 10):
            await old.claim()
            await zombie.commit({WORDS: rows(0, 10, f"z{step}")})
            blobs.steps = 0

            async def overtake(what: str, name: str, step: int = step) -> None:
                nonlocal expected
                if blobs.steps == step and what == "put":
                    await new.claim()
                    if published:
                        await store.commit({WORDS: rows(0, 10, f"n{step}")})
                        await new.publish(store)
                        expected = as_of(store)

            blobs.before = overtake
            try:
                await old.publish(zombie)
                expected = as_of(zombie)
            except Fenced:
                pass
            assert await restored(home) == expected
            assert await new.verify() == []
    assert expected[0][WORDS] != rows(0, 10)


# Whatever is broken off


@pytest.mark.parametrize(
    "done, keys", matrix([False, True], [None, KEY], quick=lambda done, keys: done == (keys is None))
)
async def test_a_publishing_broken_off_at_any_step_leaves_a_whole_checkpoint(
    home: Home, done: bool, keys: KeyProvider | None
) -> None:
    checkpoints, blobs = owner(home, keys)
    await checkpoints.claim()
    async with opened(home.path / "db", keys) as store:
        await store.commit({WORDS: rows(0, 200)})
        await checkpoints.publish(store)
        last, step, failed = as_of(store), 0, 0
        while True:
            await store.commit({WORDS: rows(step * 3, step * 3 + 20, f"n{step}"), ("window", step): rows(0, 3)})
            blobs.steps, blobs.fail_at = 0, (step, done)
            try:
                await checkpoints.publish(store)
                reached = blobs.steps > step  # only the sweep failed, which is not needed
            except StoreError:
                failed += 1
                assert await restored(home, keys) in (last, as_of(store))
                blobs.fail_at = None
                if step % 2:
                    await checkpoints.claim()  # it may start again as another owner, or go on
                await checkpoints.publish(store)
                reached = True
            last = as_of(store)
            assert await restored(home, keys) == last
            blobs.fail_at = None
            assert await checkpoints.verify() == []
            await checkpoints.sweep()
            if not reached:
                break
            step += 1
        assert failed >= 6


@pytest.mark.parametrize("done", [False, True])
async def test_a_claim_broken_off_at_any_step_leaves_the_checkpoint(home: Home, done: bool) -> None:
    checkpoints, blobs = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 20)})
        await checkpoints.publish(store)
        for step in range(2):
            blobs.steps, blobs.fail_at = 0, (step, done)
            with pytest.raises(StoreError):
                await checkpoints.claim()
            assert await restored(home) == as_of(store)
            blobs.fail_at = None
            epoch = await checkpoints.claim()
            await store.commit({WORDS: rows(0, 20, f"n{step}")})
            await checkpoints.publish(store)
            assert (await checkpoints.kept())[0].epoch == epoch
            assert await restored(home) == as_of(store)


async def test_a_restore_that_is_broken_off_is_refused_and_can_be_done_again(home: Home) -> None:
    checkpoints, blobs = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        for end in range(4):
            await store.commit({("window", end): {os.urandom(8): os.urandom(1000) for _ in range(2000)}})
            await store.flush()
        await checkpoints.publish(store)
        expected = as_of(store)
    blobs.steps, blobs.fail_at = 0, (3, False)
    with pytest.raises(StoreError, match="does not answer"):
        await checkpoints.restore(home.path / "new")
    for act in (
        lambda: opened(home.path / "new").__aenter__(),
        lambda: asyncio.to_thread(read_store, home.path / "new"),
    ):
        with pytest.raises(StoreCorrupt, match=r"incomplete: restoring checkpoint .* was broken off"):
            await act()
    blobs.fail_at = None
    await checkpoints.restore(home.path / "new")
    look = read_store(home.path / "new")
    assert (everything(look), look.number) == expected
    with pytest.raises(StoreError, match="not empty"):
        await checkpoints.restore(home.path / "new")


# Deleting


def age(path: Path, ms: int) -> None:
    """Let the files look as if they had been written at `ms`."""
    for file in path.iterdir():
        os.utime(file, (ms / 1000, ms / 1000))


async def test_what_nobody_needs_is_deleted_after_a_grace(directory: Home) -> None:
    clock = VirtualClock(10_000_000)
    checkpoints, blobs = owner(directory, clock=clock)
    await checkpoints.claim()
    async with opened(directory.path / "db") as store:
        names = []
        for n in range(4):
            await store.commit({WORDS: rows(0, 20, f"n{n}")})
            await store.compact()
            names.append((await checkpoints.publish(store)).name)
            age(blobs.path, clock.now_ms())
        assert [kept.name for kept in await checkpoints.kept()] == [names[3], names[2]]
        for name in names:
            await restored(directory, name=name)  # who reads an old one has `grace` to do so
        clock.advance(checkpoints.grace - 1)
        assert await checkpoints.sweep() == 0
        clock.advance(1)
        assert await checkpoints.sweep() == 4
        assert await checkpoints.verify() == []
        assert {name for name in contents(blobs.path, ".lock") if name.endswith(".checkpoint")} == set(names[2:])
        assert await restored(directory) == as_of(store)
        with pytest.raises(StoreCorrupt, match="the checkpoint is not there"):
            await restored(directory, name=names[0])


async def test_what_was_left_half_done_is_deleted_but_not_what_a_later_owner_uploads(directory: Home) -> None:
    clock = VirtualClock(10_000_000)
    checkpoints, blobs = owner(directory, clock=clock)
    await checkpoints.claim(5)
    async with opened(directory.path / "db") as store:
        await store.commit({WORDS: rows(0, 20)})
        await checkpoints.publish(store)
    left = ["00000004-000001.sst", "00000005-000099.checkpoint", ".draft-00000005-000003.sst-0123456789ab"]
    kept = ["00000006-000001.sst", "00000012-000001.checkpoint", "README", "00000001-000001.sst.txt"]
    for name in left + kept:
        (blobs.path / name).write_bytes(b"x")
    age(blobs.path, clock.now_ms())
    assert await checkpoints.sweep() == 0
    clock.advance(checkpoints.grace)
    (blobs.path / left[0]).write_bytes(b"still being written")  # now: in 2026, by the file system's clock
    assert await checkpoints.sweep() == 2
    assert not {*left[1:]} & contents(blobs.path).keys()
    assert {*kept, left[0]} <= contents(blobs.path).keys()


async def test_a_zombie_that_wakes_up_while_it_deletes_deletes_nothing_live(directory: Home) -> None:
    clock = VirtualClock(10_000_000)
    old, blobs = owner(directory, clock=clock)
    new, _ = owner(directory, clock=clock)
    await old.claim()
    async with opened(directory.path / "old") as zombie:
        for n in range(4):
            await zombie.commit({WORDS: rows(0, 20, f"n{n}"), ("kept", None): rows(0, 9)})
            await zombie.compact()
            await old.publish(zombie)
        age(blobs.path, clock.now_ms())
        clock.advance(old.grace)
        asleep, woken = asyncio.Event(), asyncio.Event()

        async def sleep(what: str, name: str) -> None:
            if what == "delete":
                asleep.set()
                await woken.wait()

        blobs.before = sleep
        sweeping = asyncio.create_task(old.sweep())
        await asleep.wait()
        await new.claim()
        await new.restore(directory.path / "new")
        async with opened(directory.path / "new") as store:
            for n in range(3):
                await store.commit({WORDS: rows(0, 20, f"new{n}")})
                await store.compact()
                await new.publish(store)
                age(blobs.path, clock.now_ms() - 2 * old.grace)
            woken.set()
            await sweeping
            assert await new.verify() == []
            assert await restored(directory) == as_of(store)


# Damage, and keys


async def test_damage_is_found_and_not_restored(home: Home) -> None:
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 200)})
        done = await checkpoints.publish(store)
    assert await checkpoints.verify() == []
    for name, data in (await home.contents()).items():
        for at in {0, 7, 9, 20, len(data) // 2, len(data) - 1}:
            await home.write(name, data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
            if name == "CURRENT":
                with pytest.raises(StoreCorrupt, match="CURRENT: "):
                    await checkpoints.verify()
            else:
                (problem,) = await checkpoints.verify()
                assert problem.file == name
                assert str(problem).startswith(f"{name}: ")
            with pytest.raises(StoreCorrupt):
                await restored(home)
            await home.write(name, data)
        await home.blobs().delete(name)
        if name != "CURRENT":
            (problem,) = await checkpoints.verify()
            assert problem.file == name
        await home.write(name, data)
    assert await checkpoints.verify(done.name) == []


async def test_a_damaged_file_does_not_become_part_of_a_checkpoint(home: Home) -> None:
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 200)})
        await checkpoints.publish(store)
        before = as_of(store)
        await store.commit({WORDS: rows(0, 200, "new")})
        await store.flush()
        path = home.path / "db" / max(store.version.files)
        data = path.read_bytes()
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        with pytest.raises(StoreCorrupt, match=f"{path.name}: checksum mismatch at offset"):
            await checkpoints.publish(store)
    assert await restored(home) == before


async def test_what_cannot_be_read_is_left_out_of_what_is_kept_if_so_asked(home: Home) -> None:
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        for n in range(2):
            await store.commit({WORDS: rows(0, 20, f"n{n}")})
            await checkpoints.publish(store)
        newest, before = await checkpoints.kept()
        assert newest.commit_id == store.commit_id.hex()
        await home.write(newest.name, b"")
        with pytest.raises(StoreCorrupt, match=newest.name):
            await checkpoints.kept()
        assert await checkpoints.kept(skip_damaged=True) == [before]


async def test_an_unreadable_last_checkpoint_is_not_in_the_way_of_the_next(home: Home) -> None:
    checkpoints, _ = owner(home)
    await checkpoints.claim()
    async with opened(home.path / "db") as store:
        await store.commit({WORDS: rows(0, 200)})
        first = await checkpoints.publish(store)
        await home.write(first.name, b"")
        again = await checkpoints.publish(store)
        assert again.uploaded_bytes == again.bytes
        assert await restored(home) == as_of(store)


async def test_nothing_is_to_be_read_in_an_encrypted_checkpoint(home: Home) -> None:
    checkpoints, _ = owner(home, KEY)
    await checkpoints.claim()
    async with opened(home.path / "db", KEY) as store:
        await store.commit({WORDS: rows(0, 50), WINDOW: rows(0, 50)}, meta={"secret-meta": 1})
        await checkpoints.publish(store)
    for name, data in (await home.contents()).items():
        assert not [word for word in (b"secret", WORDS[0].encode(), WINDOW[0].encode()) if word in data], name
    with pytest.raises(StoreKeyError, match=r"checkpoint: encrypted under static key .*, but no key was given"):
        await restored(home)
    with pytest.raises(StoreKeyError, match="is not the key"):
        await restored(home, OTHER)


async def test_checkpoints_go_on_under_a_new_key(directory: Home) -> None:
    clock = VirtualClock(10_000_000)
    checkpoints, blobs = owner(directory, KEY, clock)
    await checkpoints.claim()
    async with opened(directory.path / "db", KEY) as store:
        await store.commit({WORDS: rows(0, 500)})
        await checkpoints.publish(store)
    await rotate(directory.path / "db", KEY, OTHER)
    checkpoints, blobs = owner(directory, OTHER, clock)
    await checkpoints.claim()
    async with opened(directory.path / "db", OTHER) as store:
        await store.commit({WORDS: rows(0, 5, "new")})
        assert (await checkpoints.publish(store)).uploaded_files == 1  # no data was written anew
        assert await restored(directory, OTHER) == as_of(store)
        age(blobs.path, clock.now_ms())
        await checkpoints.publish(store)
        clock.advance(checkpoints.grace)
        assert await checkpoints.sweep() == 1  # the listing under the old key is gone


# The directory


async def test_a_storage_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: blob storage cannot be used: Not a directory"):
        await DirectoryBlobs(tmp_path / "file").get("x")
