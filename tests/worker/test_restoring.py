"""Restoring a task: whatever there is of directories, checkpoints and frames, the end is the commit that counts."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flowkit.clock import VirtualClock
from flowkit.errors import StoreCorrupt, StoreError
from flowkit.store import Checkpoints, DirectoryBlobs, KeyProvider, StaticKey, Step, Store
from flowkit.worker.restoring import BrokenOff
from flowkit.worker.state_home import RESTORED_AT_ONCE, StateHome
from tests.worker.histories import TASK, History, checkpoints_of, publish

KEY = StaticKey(bytes(range(32)))


class World:
    """A history, made by one owner with a disk of its own; its checkpoints; and the disks of those who come after."""

    def __init__(self, path: Path, keys: KeyProvider | None = None) -> None:
        self.path, self.keys = path, keys
        self.history = History()
        self.blobs = path / "blobs"
        self.states: dict[int, dict[bytes, bytes]] = {0: {}}
        self.names: dict[int, str] = {}

    async def run(self, commits: int, *, checkpoints: tuple[int, ...] = (), disk: str = "first") -> None:
        """An owner that makes so many commits, and checkpoints after some of them."""
        home = StateHome(self.path / disk, keys=self.keys)
        place = home.begin(TASK, "")
        async with home.open(TASK, place, self.history.claim(), self.frames) as store:
            for _ in range(commits):
                await self.history.commit(store, f"v{store.number + 1}")
                self.states[store.number] = dict(store.scan(("t", None)))
                if store.number in checkpoints:
                    self.names[store.number] = await publish(store, self.blobs)

    @property
    def frames(self) -> Any:
        return partial(self.history.frames, TASK)

    @asynccontextmanager
    async def restored(
        self,
        disk: str = "other",
        *,
        frames: bool = True,
        place: Path | None = None,
        home: StateHome | None = None,
        blobs: DirectoryBlobs | None = None,
        **more: Any,
    ) -> AsyncIterator[Store]:
        """The state as an owner finds it that begins with what is on `disk`."""
        home = home or StateHome(self.path / disk, keys=self.keys)
        place = place or home.begin(TASK, "")
        made = Checkpoints(blobs or DirectoryBlobs(self.blobs), clock=VirtualClock())
        kept = checkpoints_of(self.history, self.blobs, epoch=99, frames=frames, made=made)
        kept.checkpoints.keys = self.keys
        given = self.frames if frames else None
        async with home.open(TASK, place, self.history.claim(99), given, kept, **more) as store:
            yield store

    async def check(self, disk: str = "other", **options: Any) -> str:
        """Restore, and see that it is exactly what counts; what it began with."""
        with capture_logs() as logs:
            async with self.restored(disk, **options) as store:
                assert (store.number, store.commit_id) == (self.history.number, self.history.commit_id)
                assert dict(store.scan(("t", None))) == self.states[self.history.number]
                await self.history.commit(store, "later")
        left = [path.name for path in (self.path / disk / "tasks").rglob("restored-*")]
        assert left == [], "what was fetched is not left beside the state"
        begun = [entry["began_with"] for entry in logs if entry["event"] == "state restored from frames"]
        fetched = [entry["checkpoint"] for entry in logs if entry["event"] == "checkpoint restored"]
        taken = [entry["path"] for entry in logs if entry["event"] == "state taken over"]
        return str((begun or fetched or taken)[0]).removeprefix("checkpoint ")


def found(path: Path, pattern: str) -> list[Path]:
    return list(path.rglob(pattern))


# What it begins with


@pytest.mark.parametrize("keys", [None, KEY])
async def test_an_empty_disk_has_the_state_from_a_checkpoint_and_the_frames_after_it(
    tmp_path: Path, keys: KeyProvider | None
) -> None:
    world = World(tmp_path, keys)
    await world.run(9, checkpoints=(3, 6))
    await world.history.trim(TASK, 3)
    assert await world.check() == world.names[6]


async def test_a_checkpoint_of_the_last_commit_needs_no_frames(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(4, checkpoints=(2, 4))
    await world.history.trim(TASK, 4)
    assert await world.check() == world.names[4]


async def test_without_a_checkpoint_the_frames_alone_will_do(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(5)
    assert await world.check() == "nothing"


async def test_a_newer_directory_comes_before_an_older_checkpoint(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(4, checkpoints=(2,))
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    await world.run(2)
    assert str(tmp_path / "other") in await world.check("other")


async def test_a_newer_checkpoint_comes_before_an_older_directory(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(2)
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    await world.run(3, checkpoints=(4,))
    assert await world.check("other") == world.names[4]


async def test_a_directory_that_has_the_commit_needs_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(3, checkpoints=(3,))
    (tmp_path / "blobs" / "CURRENT").write_bytes(b"damaged")
    assert str(tmp_path / "first") in await world.check("first")


async def test_a_directory_from_before_the_frames_that_are_left_is_passed_over(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(2)
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    await world.run(4, checkpoints=(5,))
    (only,) = found(world.blobs, "*.checkpoint")
    only.rename(tmp_path / "hidden")
    await world.history.trim(TASK, 5)
    with pytest.raises(StoreCorrupt, match="commit 2 is not there, the next one is 5"):
        await world.check("other")
    (tmp_path / "hidden").rename(only)
    assert await world.check("other") == world.names[5]


async def test_what_a_directory_prepared_and_never_counted_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    home = StateHome(tmp_path / "other")
    async with home.open(TASK, home.begin(TASK, ""), world.history.claim(), world.frames) as store:
        for value in ("v1", "v2"):
            await world.history.commit(store, value)
            world.states[store.number] = dict(store.scan(("t", None)))
        await world.history.commit(store, "never", counts=False)
    await world.run(3)
    assert str(tmp_path / "other") in await world.check("other")


async def test_a_checkpoint_of_another_history_is_no_beginning(tmp_path: Path) -> None:
    other = World(tmp_path)
    await other.run(3, checkpoints=(3,))
    world = World(tmp_path)
    home = StateHome(tmp_path / "second")
    async with home.open(TASK, home.begin(TASK, ""), world.history.claim(), world.frames) as store:
        for n in range(1, 6):
            await world.history.commit(store, f"w{n}")
            world.states[n] = dict(store.scan(("t", None)))
    assert await world.check("fresh") == "nothing"


# Without frames


async def test_without_frames_a_checkpoint_of_the_very_commit_will_do(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(4, checkpoints=(2, 4))
    assert await world.check(frames=False) == world.names[4]


async def test_without_frames_an_older_checkpoint_is_named_and_not_gone_on_from(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(5, checkpoints=(2, 4))
    told = (
        rf"^task {TASK}: its state at commit 5 was looked for in nowhere and is not there; checkpoint "
        rf"{world.names[4]} is of commit 4, and this broker keeps no frames to lead on: bring the directory back"
    )
    with pytest.raises(StoreCorrupt, match=told):
        await world.check(frames=False)


# What is damaged, or away


@pytest.mark.parametrize("suffix", [".checkpoint", ".sst"])
async def test_a_damaged_checkpoint_falls_back_to_the_one_before_it_loudly(tmp_path: Path, suffix: str) -> None:
    world = World(tmp_path)
    await world.run(7, checkpoints=(3, 5))
    await world.history.trim(TASK, 3)
    newest = max(found(world.blobs, f"*{suffix}"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with capture_logs() as logs:
        async with world.restored() as store:
            assert dict(store.scan(("t", None))) == world.states[7]
    loud = [entry for entry in logs if entry["log_level"] == "error"]
    assert newest.name in loud[0]["error"]


async def test_if_nothing_is_left_to_begin_with_all_that_was_looked_at_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(7, checkpoints=(3, 5))
    await world.history.trim(TASK, 3)
    for file in found(world.blobs, "*.sst"):
        file.unlink()
    with pytest.raises(StoreCorrupt, match=r"is not there; .*missing, though.*missing, though.*commit 1 is not there"):
        await world.check()


async def test_a_storage_that_is_away_is_asked_again_and_no_reason_to_give_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(5, checkpoints=(3, 4))
    await world.history.trim(TASK, 3)
    (tmp_path / "blobs").rename(tmp_path / "away")
    (tmp_path / "blobs").write_text("")
    with pytest.raises(StoreError, match="blob storage cannot be used: Not a directory") as caught:
        await world.check()
    assert not isinstance(caught.value, StoreCorrupt), "it would end the worker"
    assert "begin anew" not in str(caught.value), "whoever did that would lose what is only out of reach"
    (tmp_path / "blobs").unlink()
    (tmp_path / "away").rename(tmp_path / "blobs")
    assert await world.check() == world.names[4]


async def test_while_the_storage_is_away_frames_from_the_beginning_will_do(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(5, checkpoints=(3,))
    shutil.rmtree(tmp_path / "blobs")
    (tmp_path / "blobs").write_text("")
    assert await world.check() == "nothing"


# Broken off


async def test_a_restoring_that_was_broken_off_goes_on_where_it_was(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(9, checkpoints=(3, 4))
    place = StateHome(tmp_path / "other").begin(TASK, "")
    for _ in range(2):
        world.history.reads, world.history.fail_after = 0, 3  # one to see where it is, two to apply
        with pytest.raises(ConnectionError):
            async with world.restored(place=place):
                pass
    world.history.fail_after = None
    with capture_logs() as logs:
        async with world.restored(place=place) as store:
            assert dict(store.scan(("t", None))) == world.states[9]
    assert not [entry for entry in logs if entry["event"] == "restoring a checkpoint"]


async def test_a_commit_in_the_own_directory_that_never_counted_is_not_gone_on_from(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(2)
    home = StateHome(tmp_path / "other")
    place = home.begin(TASK, "")
    zombie = History()
    async with home.open(TASK, place, zombie.claim()) as store:
        await zombie.commit(store, "zombie")
        await zombie.commit(store, "zombie")  # or a new owner would only see one that was never decided
    with pytest.raises(StoreCorrupt, match=rf"commit 1 in {place} never counted: remove the directory"):
        async with world.restored(place=place):
            pass


async def test_an_undecided_frame_in_the_own_directory_is_decided_by_the_frames(tmp_path: Path) -> None:
    world = World(tmp_path)
    home = StateHome(tmp_path / "other")
    place = home.begin(TASK, "")
    async with home.open(TASK, place, world.history.claim(), world.frames) as store:
        await world.history.commit(store, "v1")
        frame = await world.history.commit(store, "v2", counts=False)
    world.history.kept.append(frame)  # it counts, but nobody could tell
    world.history.number, world.history.commit_id = 2, frame.commit_id
    async with world.restored(place=place) as store:
        assert store.undecided is not None  # what counts is here: the task resolves it
        await store.resolve(frame.commit_id, applied=True)
        await world.history.commit(store, "v3", counts=False)
    other = StateHome(tmp_path / "third")
    async with other.open(TASK, other.begin(TASK, ""), world.history.claim(), world.frames) as store:
        await world.history.commit(store, "v3 of another")
        expected = dict(store.scan(("t", None)))
    async with world.restored(place=place) as store:
        assert dict(store.scan(("t", None))) == expected


async def test_nobody_waits_for_the_state_of_a_task_that_is_to_be_handed_over(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.run(6, checkpoints=(2, 3))
    await world.history.trim(TASK, 2)
    for looks in range(3):
        left = [looks]

        def wanted(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] >= 0

        with pytest.raises(BrokenOff, match="bringing its state here was broken off"):
            await world.check(f"disk-{looks}", wanted=wanted)
        assert not found(tmp_path / f"disk-{looks}" / "tasks", "restored-*")
    assert await world.check() == world.names[3]


class Slow(DirectoryBlobs):
    """Sstables come when it is `open`; how many restorings have asked for any is `asked`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open, self.asked = asyncio.Event(), 0

    async def get(self, name: str) -> tuple[bytes, str] | None:
        if name.endswith(".sst"):
            self.asked += 1
            await self.open.wait()
        return await super().get(name)


async def test_tasks_of_one_worker_are_restored_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.worker.restoring.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("flowkit.worker.restoring.TELL_SECONDS", 0.0)
    world = World(tmp_path)
    await world.run(3, checkpoints=(3,))
    await world.history.trim(TASK, 3)
    home, slow = StateHome(tmp_path / "other"), [Slow(world.blobs) for _ in range(RESTORED_AT_ONCE + 2)]
    given_up: list[int] = []

    async def restore(n: int) -> None:
        async with world.restored(home=home, blobs=slow[n], wanted=lambda: n not in given_up) as store:
            assert dict(store.scan(("t", None))) == world.states[3]

    async def give_up(n: int) -> None:
        with pytest.raises(BrokenOff):
            await restore(n)

    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(restore(n)) for n in range(RESTORED_AT_ONCE)]
            while not all(each.asked for each in slow[:RESTORED_AT_ONCE]):  # noqa: ASYNC110  it is threads that they wait for
                await asyncio.sleep(0.001)
            unwanted = group.create_task(give_up(RESTORED_AT_ONCE))
            last = group.create_task(restore(RESTORED_AT_ONCE + 1))
            waits = {"event": "others are restored before", "log_level": "info"}
            while sum(waits.items() <= entry.items() for entry in logs) < 4 and not slow[-1].asked:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            given_up.append(RESTORED_AT_ONCE)
            await unwanted
            assert [each.asked > 0 for each in slow] == [True] * RESTORED_AT_ONCE + [False, False]
            slow[0].open.set()
            await jobs[0]
            slow[-1].open.set()
            await last
            assert not jobs[1].done()
            slow[1].open.set()


async def test_how_far_it_is_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.worker.restoring.TELL_SECONDS", 0.0)
    world = World(tmp_path)
    await world.run(6, checkpoints=(3,))
    steps: list[Step] = []
    with capture_logs() as logs:
        async with world.restored(progress=steps.append):
            pass
    assert steps[-1].done == steps[-1].total > 0
    told = [entry for entry in logs if entry["event"] in ("restoring", "applying frames")]
    assert [(entry.get("bytes"), entry.get("commit")) for entry in told] == [
        *((step.done, None) for step in steps),
        (None, 4),
        (None, 5),
        (None, 6),
    ]
