"""Checkpoints of a running task: in time, tried again, ended by a later owner; and frames, trimmed after them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flowkit.clock import VirtualClock
from flowkit.errors import Fenced, StoreError
from flowkit.store import Checkpoints, DirectoryBlobs, LsmStore
from flowkit.worker.checkpointing import TaskCheckpoints
from tests.store.making import opened
from tests.worker.histories import TASK, History, checkpoints_of


class Paced(VirtualClock):
    """Who sleeps waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__(1_000_000)
        self.slept: list[float] = []
        self._asleep, self._go = asyncio.Event(), asyncio.Event()

    async def sleep(self, ms: float) -> None:
        self.slept.append(ms)
        self._asleep.set()
        await self._go.wait()
        self._go.clear()
        self.advance(int(ms))

    async def asleep(self) -> float:
        """Wait until the sleeper has done what it woke up for, and sleeps again; for how long (ms)."""
        async with asyncio.timeout(30):
            await self._asleep.wait()
        return self.slept[-1]

    async def pass_on(self) -> float:
        """Let the sleep be over, and wait for the next one; for how long that is (ms)."""
        await self.asleep()
        self._asleep.clear()
        self._go.set()
        return await self.asleep()


class Running:
    """A task whose checkpoints are published at the pace of the test."""

    def __init__(self, store: LsmStore, checkpoints: TaskCheckpoints, history: History, clock: Paced) -> None:
        self.store, self.checkpoints, self.history, self.clock = store, checkpoints, history, clock

    async def commit(self, *values: str) -> None:
        for value in values:
            await self.history.commit(self.store, value)

    async def commits(self) -> list[int]:
        """Those of the checkpoints that are kept."""
        return [kept.commit for kept in await self.checkpoints.checkpoints.kept()]


@asynccontextmanager
async def running(
    path: Path, history: History | None = None, *, epoch: int = 1, frames: bool = True, interval: int = 1_000
) -> AsyncIterator[Running]:
    clock, history = Paced(), history or History()
    checkpoints = checkpoints_of(history, path / "blobs", epoch=epoch, frames=frames, interval=interval, clock=clock)
    async with opened(path / f"db-{epoch}") as store:
        checkpoints.start(store)
        try:
            yield Running(store, checkpoints, history, clock)
        finally:
            await checkpoints.stop()


async def test_a_checkpoint_is_published_at_each_interval_if_there_was_a_commit(tmp_path: Path) -> None:
    async with running(tmp_path) as task:
        first = await task.clock.asleep()
        assert 0 <= first < 1_000  # a moment of the task's own
        assert await task.clock.pass_on() == 1_000
        assert await task.commits() == []  # nothing has been committed yet
        await task.commit("a", "b")
        await task.clock.pass_on()
        assert await task.commits() == [2]
        await task.clock.pass_on()
        assert await task.commits() == [2]
        await task.commit("c")
        await task.clock.pass_on()
        assert await task.commits() == [3, 2]
        assert task.store.counts.checkpoints == 2
        assert task.store.counts.checkpoint_uploaded > 0


async def test_tasks_have_moments_of_their_own(tmp_path: Path) -> None:
    firsts = set()
    for n in range(8):
        clock = Paced()
        checkpoints = checkpoints_of(History(), tmp_path, clock=clock, interval=60_000)
        checkpoints.task = f"app/group/{n}"
        async with opened(tmp_path / f"db{n}") as store:
            checkpoints.start(store)
            firsts.add(await clock.asleep())
            await checkpoints.stop()
    assert len(firsts) == 8
    assert max(firsts) - min(firsts) > 15_000


async def test_an_owner_that_finds_its_state_published_does_not_publish_it_again(tmp_path: Path) -> None:
    history = History()
    async with running(tmp_path, history) as task:
        await task.commit("a")
        await task.clock.pass_on()
    async with running(tmp_path, history, epoch=2) as again:
        await again.store.adopt(tmp_path / "db-1", history.commit_id or b"")
        await again.clock.pass_on()
        assert again.store.counts.checkpoints == 0
        assert again.checkpoints.meter.checkpointed_at is not None
        await again.commit("b")
        await again.clock.pass_on()
        assert await again.commits() == [2, 1]


async def test_a_checkpoint_that_fails_is_told_and_tried_again_ever_later(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("no directory")
    async with running(tmp_path, interval=60_000) as task:
        await task.commit("a")
        await task.clock.asleep()
        assert task.checkpoints.meter.checkpoint_failures == 1  # they could not be claimed
        with capture_logs() as logs:
            waits = [await task.clock.pass_on() for _ in range(8)]
        assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
        assert [entry["event"] for entry in logs] == ["checkpoint not published; trying again"] * 8
        assert "blob storage cannot be used" in logs[0]["error"]
        assert task.checkpoints.meter.checkpoint_failures == 9
        assert task.checkpoints.meter.checkpointed_at is None
        (tmp_path / "blobs").unlink()
        await task.commit("b")
        assert await task.clock.pass_on() == 60_000
        assert await task.commits() == [2]
        assert task.checkpoints.meter.checkpointed_at is not None
        task.checkpoints.check()


# Owners


async def test_a_later_owner_ends_the_task(tmp_path: Path) -> None:
    async with running(tmp_path, epoch=7) as task:
        await task.commit("a")
        await task.clock.pass_on()
        await Checkpoints(DirectoryBlobs(tmp_path / "blobs")).claim(8)
        await task.commit("b")
        task.clock._go.set()
        assert task.checkpoints._job is not None
        await asyncio.wait([task.checkpoints._job], timeout=30)
        with pytest.raises(Fenced, match="owned by epoch 8 now, this is 7"):
            task.checkpoints.check()
        assert await task.commits() == [1]


async def test_they_are_claimed_at_once_so_that_an_earlier_owner_publishes_no_more(tmp_path: Path) -> None:
    async with running(tmp_path, epoch=1) as zombie:
        await zombie.commit("a")
        await zombie.clock.pass_on()
        async with running(tmp_path, epoch=2, interval=3_600_000) as owner:
            await owner.clock.asleep()
            await zombie.commit("b")
            with pytest.raises(Fenced):
                await zombie.checkpoints.checkpoints.publish(zombie.store)


async def test_one_that_comes_too_late_to_claim_is_fenced_if_the_broker_says_so(tmp_path: Path) -> None:
    await Checkpoints(DirectoryBlobs(tmp_path / "blobs")).claim(8)
    late = checkpoints_of(History(given_to_another=8), tmp_path / "blobs", epoch=7)
    with pytest.raises(Fenced, match="epoch 7 was asked for, but 8 has been claimed already"):
        await late.claim()


async def test_epochs_of_a_broker_that_was_made_anew_do_not_end_its_tasks(tmp_path: Path) -> None:
    await Checkpoints(DirectoryBlobs(tmp_path / "blobs")).claim(5000)
    async with running(tmp_path, epoch=1) as task:
        await task.commit("a")
        await task.clock.pass_on()
        assert await task.commits() == [1]
        assert task.checkpoints.checkpoints.epoch == 5001


# Frames


async def test_frames_go_up_to_the_oldest_checkpoint_that_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as task:
        kept: list[tuple[list[int], list[int]]] = []
        for values in ("ab", "cd", "e", "fgh"):
            await task.commit(*values)
            await task.clock.pass_on()
            kept.append((await task.commits(), [frame.number for frame in task.history.kept]))
        # With one checkpoint, frames from the beginning are what stands in for it.
        assert kept == [
            ([2], [1, 2]),
            ([4, 2], [2, 3, 4]),
            ([5, 4], [4, 5]),
            ([8, 5], [5, 6, 7, 8]),
        ]
        await task.clock.pass_on()
        assert task.history.trimmed == [2, 4, 5]  # nothing new, nothing to trim


async def test_trimming_that_fails_holds_up_no_checkpoint_and_is_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as task:
        trim = task.history.trim
        broken = [True]

        async def fails(name: str, number: int) -> None:
            if broken[0]:
                raise StoreError("the broker is away")
            await trim(name, number)

        monkeypatch.setattr(task.history, "trim", fails)
        with capture_logs() as logs:
            for value in "abc":
                await task.commit(value)
                assert await task.clock.pass_on() == 1_000
        assert await task.commits() == [3, 2]
        assert [entry["error"] for entry in logs if entry["log_level"] == "warning"] == ["the broker is away"] * 2
        broken[0] = False
        await task.clock.pass_on()
        assert task.history.trimmed == [2]


async def test_a_broker_without_frames_is_not_asked_to_trim(tmp_path: Path) -> None:
    async with running(tmp_path, frames=False) as task:
        for value in "abc":
            await task.commit(value)
            await task.clock.pass_on()
        assert await task.commits() == [3, 2]
        assert task.history.trimmed == []
        assert task.checkpoints.task == TASK
