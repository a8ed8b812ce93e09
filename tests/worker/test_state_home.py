"""Directories of tasks: one an ownership, its state copied from where the last commit that counts left it.

home/tasks/TASK/a    commits 1 2 3        owned first
home/tasks/TASK/b    FROM a: 3 | 4        … then
other/tasks/TASK/c   FROM b: 4 | 5 …      … then, by another worker
"""

import errno
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flowkit.errors import StoreCorrupt, StoreError, StoreLocked
from flowkit.source.rules import Claimed
from flowkit.store import Frame, SpaceChange, Store, claim_directory, open_directory, open_store
from flowkit.worker.state_home import StateHome

TASK = "app/group/0"


class Task:
    """One task through its owners: what a broker would know of it."""

    def __init__(self) -> None:
        self.claim = Claimed(0, 0, None, "")

    def claimed(self, place: Path) -> Claimed:
        """Claim it for an owner that keeps its state in `place`; the answer names the state before."""
        answer = Claimed(self.claim.epoch + 1, self.claim.number, self.claim.commit_id, self.claim.state)
        self.claim = Claimed(answer.epoch, answer.number, answer.commit_id, str(place))
        return answer

    async def commit(self, store: Store, value: str, *, counts: bool = True) -> None:
        """One commit: key "k" has a new value."""
        number = store.number + 1
        commit_id = f"commit {number} {value}".encode()
        changes = [SpaceChange("t", None, [b"k"], [value.encode()])]
        await store.prepare(Frame(number, commit_id, store.commit_id, self.claim.epoch, {}, changes))
        if counts:
            self.claim.number, self.claim.commit_id = number, commit_id
            await store.resolve(commit_id, applied=True)


@asynccontextmanager
async def owner(task: Task, home: StateHome) -> AsyncIterator[tuple[Path, Store]]:
    place = home.begin(TASK, task.claim.state)
    async with home.open(TASK, place, task.claimed(place)) as store:
        yield place, store


async def owners(task: Task, home: StateHome, values: Sequence[str]) -> list[Path]:
    """One owner after the other, each of which makes a commit."""
    places = []
    for value in values:
        async with owner(task, home) as (place, store):
            await task.commit(store, value)
            places.append(place)
    return places


def value_in(store: Store) -> bytes | None:
    return store.get(("t", None), b"k")


async def test_the_first_owner_begins_with_nothing(tmp_path: Path) -> None:
    async with owner(Task(), StateHome(tmp_path)) as (place, store):
        assert (store.number, value_in(store)) == (0, None)
        assert place.parent == tmp_path / "tasks" / "app%2Fgroup%2F0"


async def test_each_owner_goes_on_from_the_last_commit_in_a_directory_of_its_own(tmp_path: Path) -> None:
    task = Task()
    places = await owners(task, StateHome(tmp_path / "a"), ["x", "y"])
    async with owner(task, StateHome(tmp_path / "b")) as (place, store):
        await store.resolve(store.commit_id, applied=True) if store.undecided else None
        assert value_in(store) == b"y"
        assert len({*places, place}) == 3


async def test_what_was_prepared_but_does_not_count_is_not_taken_over(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    async with owner(task, home) as (_, store):
        await task.commit(store, "counts")
        await task.commit(store, "does not", counts=False)
    async with owner(task, home) as (_, store):
        assert (store.number, value_in(store)) == (1, b"counts")


async def test_an_owner_that_never_committed_is_looked_through(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    await owners(task, home, ["x"])
    place = home.begin(TASK, task.claim.state)
    task.claimed(place)  # and dies before it has copied anything
    async with owner(task, home) as (_, store):
        assert value_in(store) == b"x"


async def test_the_same_owner_may_open_its_directory_again(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    await owners(task, home, ["x"])
    place = home.begin(TASK, task.claim.state)
    for value in ("y", "z"):
        async with home.open(TASK, place, task.claimed(place)) as store:
            if store.undecided is not None:
                await store.resolve(store.undecided.commit_id, applied=True)
            await task.commit(store, value)
    async with open_store(place) as store:
        assert value_in(store) == b"z"


async def test_state_that_is_nowhere_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    (lost,) = await owners(task, home, ["x"])
    shutil.rmtree(lost)
    with pytest.raises(StoreCorrupt, match=rf"{TASK}: its state at commit 1 was looked for in {lost} and is not there"):
        async with owner(task, home):
            pass


async def test_a_directory_that_lacks_the_commit_is_not_gone_on_from(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    place = home.begin(TASK, "")
    async with home.open(TASK, place, task.claimed(place)) as store:
        await task.commit(store, "x")
        await task.commit(store, "y")
    task.claim.number, task.claim.commit_id = 3, b"a commit that is not there"
    with pytest.raises(StoreCorrupt, match=r"commit 3 counts, but .* is at commit 1"):
        async with home.open(TASK, place, task.claimed(place)):
            pass


async def test_a_state_directory_that_was_moved_is_searched(tmp_path: Path) -> None:
    task = Task()
    await owners(task, StateHome(tmp_path / "before"), ["x"])
    (tmp_path / "before").rename(tmp_path / "after")
    async with owner(task, StateHome(tmp_path / "after")) as (_, store):
        assert value_in(store) == b"x"


async def test_sweeping_removes_what_the_state_came_from_and_strays(tmp_path: Path) -> None:
    task, home, other = Task(), StateHome(tmp_path / "a"), StateHome(tmp_path / "b")
    (first,) = await owners(task, home, ["x"])
    stray = other.begin(TASK, "")
    async with owner(task, other) as (place, store):
        await task.commit(store, "y")
        other.sweep(place)
        assert (place.exists(), first.exists(), stray.exists()) == (True, False, False)


async def test_sweeping_spares_a_directory_whose_owner_is_alive(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    (zombie,) = await owners(task, home, ["x"])
    with claim_directory(zombie):
        async with owner(task, home) as (place, store):
            await task.commit(store, "y")
            home.sweep(place)
            assert zombie.exists()


async def test_a_zombie_keeps_its_directory_from_nobody(tmp_path: Path) -> None:
    task, home = Task(), StateHome(tmp_path)
    async with owner(task, home) as (place, zombie):
        await task.commit(zombie, "x")
        async with owner(task, home) as (_, store):
            assert value_in(store) == b"x"
        with pytest.raises(StoreLocked):
            async with home.open(TASK, place, task.claimed(place)):
                pass


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StateHome(Path("state")).begin(TASK, "").is_relative_to(tmp_path / "state")


def test_a_directory_that_cannot_be_made_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written \(Not a directory\): make room or mend the disk"):
        StateHome(tmp_path).begin(TASK, "")


def test_a_worker_leaves_its_name_for_its_successor(tmp_path: Path) -> None:
    home = StateHome(tmp_path)
    assert home.predecessor() == ""
    home.sign("app/host-12-abc")
    assert StateHome(tmp_path).predecessor() == "app/host-12-abc"
    assert [path.name for path in tmp_path.iterdir()] == ["worker"]


# Whose it is, and what there is


def test_whose_a_directory_is_lasts_and_no_other_directory_has_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = StateHome(tmp_path / "a").instance()
    assert StateHome(tmp_path / "a").instance() == one != StateHome(tmp_path / "b").instance()
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    copy = StateHome(tmp_path / "copy")
    assert copy.instance() == one
    copy.other_instance()
    assert StateHome(tmp_path / "copy").instance() == copy.instance() != one


@pytest.mark.parametrize("text", ["", "\n", "no such thing", "\0"])
def test_a_damaged_name_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "instance").write_text(text)
    made = StateHome(tmp_path).instance()
    assert len(made) == 32
    assert StateHome(tmp_path).instance() == made


def test_without_a_place_to_keep_it_a_name_lasts_as_long_as_the_worker(tmp_path: Path) -> None:
    home = StateHome(tmp_path / "gone")
    assert home.instance() == home.instance()


async def test_how_far_tasks_are_is_known_to_the_next_worker(tmp_path: Path) -> None:
    home = StateHome(tmp_path)
    await owners(Task(), home, ["x", "y"])
    home.note({TASK: 2, "app/group/1": 9})
    home.note({TASK: 3})
    assert StateHome(tmp_path).newest() == {TASK: 3}, "the other one has no state here"
    for place in home.directory(TASK).iterdir():
        shutil.rmtree(place)
    assert home.newest() == {}


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', "{"])
def test_damaged_notes_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "commits.json").write_text(text)
    assert StateHome(tmp_path).newest() == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full_at_the_start_is_not_a_wrong_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whoever starts workers starts this one again, which it would not do for what every start would say again."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(StoreError, match="state: cannot be used as state directory"):
            open_directory(tmp_path / "state", "app")
    open_directory(tmp_path / "state", "app")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match=os.strerror(number)):
            claim_directory(tmp_path / "state").__enter__()
    with claim_directory(tmp_path / "state"):
        pass
