"""Mistakes that were once in the store, each by its name."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.errors import ConfigError, StoreError, StoreLocked
from flowkit.store import Budget, CompactionOptions, Host, Inline, LsmStore, Space, open_store, read_store
from flowkit.store.cipher import StoreKey
from flowkit.store.compaction import choose
from flowkit.store.files import Files
from flowkit.store.jobs import Done, Job
from flowkit.store.sstable_index import FileMeta, SpaceMeta
from tests.store.recording import Operation, PowerFailure, Recorder, lay
from tests.store.world import KEY, Hasty, Model, everything, frame, kill, look_now, open_now, settle, tiny

T: Space = ("t", None)
W: Space = ("w", 10)
QUIET = CompactionOptions(l0_runs=100)
"""Nothing is merged unless a test asks for it."""


class Held(Inline):
    """Does jobs at once, but what came of one is told only when `go` is set."""

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self.go = asyncio.Event()
        self.done = asyncio.Event()
        self.go.set()

    async def run(self, job: Job) -> Done:
        done = await super().run(job)
        self.done.set()
        await self.go.wait()
        return done


def held(path: Path, files: Any = None, **options: Any) -> tuple[LsmStore, Held]:
    files = files or Hasty()
    runner = Held(files)
    options = {"compaction": QUIET, "max_runs": 100, "log_bytes": 10**6, **options}
    store = LsmStore(path, files, Budget(2**20), runner, tiny(**options), None)
    store.recover()
    return store, runner


def part(first: bytes, last: bytes, table: str = "t") -> SpaceMeta:
    return SpaceMeta(table, None, 0, 1, first, last, 1, 1)


def meta(name: str, level: int, *parts: SpaceMeta, run: int = 0) -> FileMeta:
    return FileMeta(name, level, run, 100, 1, 0, list(parts))


def test_files_between_two_inputs_take_part_in_a_merge() -> None:
    """The output reached over them, and what lay beyond was not found any more."""
    files = [
        meta("new", 0, part(b"x", b"z"), run=2),
        meta("old", 0, part(b"a", b"b"), run=1),
        meta("between", 1, part(b"m", b"n")),
        meta("beyond", 1, part(b"zz", b"zzz")),
    ]
    choice = choose({m.name: m for m in files}, CompactionOptions(l0_runs=2))
    assert choice is not None
    assert [m.name for m in choice.inputs] == ["between", "old", "new"]


def test_files_between_two_files_of_the_level_below_take_part_too() -> None:
    """Two files overlap in one space with what is merged; between their parts of another space a third one lies."""
    files = [
        meta("one", 2, part(b"a", b"f"), part(b"a", b"c", "u")),
        meta("two", 2, part(b"g", b"m"), part(b"x", b"z", "u")),
        meta("between", 2, part(b"m", b"n", "u")),
        meta("merged", 1, part(b"a", b"z")),
    ]
    choice = choose({m.name: m for m in files}, CompactionOptions(l0_runs=2, l1_bytes=1))
    assert choice is not None
    assert {m.name for m in choice.inputs} == {"one", "two", "between", "merged"}
    assert choice.level == 2


async def test_a_file_that_was_dropped_while_it_was_merged_stays_dropped(tmp_path: Path) -> None:
    """The merge's output had what the file held, and nothing hid it once the file was gone."""
    store, runner = held(tmp_path)
    await store.commit({W: {b"a": b"1"}})
    await store.flush()
    await store.commit({T: {b"b": b"2"}})
    await store.flush()
    runner.go.clear()
    compaction = asyncio.ensure_future(store.compact())
    runner.done.clear()
    await runner.done.wait()
    await store.commit(drops=[W])
    runner.go.set()
    await compaction
    await store.commit({T: {b"c": b"3"}})
    await store.flush()
    assert everything(store) == {T: [(b"b", b"2"), (b"c", b"3")]}
    await store.close()
    assert everything(read_store(tmp_path)) == {T: [(b"b", b"2"), (b"c", b"3")]}


async def test_what_was_dropped_before_a_merge_and_written_again_is_kept_by_it(tmp_path: Path) -> None:
    store, runner = held(tmp_path)
    await store.commit({W: {b"a": b"old"}, T: {b"b": b"2"}})
    await store.flush()
    await store.commit({W: {b"a": b"new"}}, drops=[W])
    await store.flush()
    runner.go.clear()
    compaction = asyncio.ensure_future(store.compact())
    runner.done.clear()
    await runner.done.wait()
    await store.commit(drops=[T])  # now the whole of the first file is dropped
    runner.go.set()
    await compaction
    assert everything(store) == {W: [(b"a", b"new")]}
    await store.close()


class Slow(Recorder):
    """The next sync of a file whose name begins with `hold` waits until `release`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hold = "nothing"
        self.waits, self.release = threading.Event(), threading.Event()

    def note(self, operation: Operation) -> None:
        held = any(n == operation.file and name.startswith(self.hold) for name, n in self.names.items())
        if operation.kind == "sync" and held:
            self.hold = "nothing"
            self.waits.set()
            assert self.release.wait(10)
        super().note(operation)


async def test_a_file_is_removed_only_after_the_manifest_has_forgotten_it(tmp_path: Path) -> None:
    """The sweep after an edit also took what a later edit, still waiting for its turn, would remove."""
    files = Slow(tmp_path)
    store, _ = held(tmp_path, files)
    for n in range(2):
        await store.commit({("w", n): {b"a": b"%d" % n}})
        await store.flush()
    from flowkit.store.version import Edit

    first, second = (meta.name for meta in store.version.files.values())
    files.hold = "manifest"
    before = len(files.operations)
    one = asyncio.ensure_future(store._core.change(Edit(remove=[first])))
    await asyncio.to_thread(files.waits.wait, 10)
    two = asyncio.ensure_future(store._core.change(Edit(remove=[second])))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    files.release.set()
    await asyncio.gather(one, two)
    await store._core.catalog.settled()
    steps = [(o.kind, o.name) for o in files.operations[before:] if o.kind in {"append", "unlink"}]
    edits = [n for n, (kind, _) in enumerate(steps) if kind == "append"]
    assert len(edits) == 2
    assert steps.index(("unlink", first)) > edits[0]
    assert steps.index(("unlink", second)) > edits[1]
    await kill(store)


async def test_a_dropped_window_gives_its_file_back_at_once(tmp_path: Path) -> None:
    """Whoever held on to the version before kept the file until the next sweep."""
    store, _ = held(tmp_path)
    await store.commit({("w", 1): {b"a": b"1"}})
    await store.flush()
    (name,) = store.version.files
    await store.commit(drops=[("w", 1)])
    await store._core.catalog.settled()
    assert not (tmp_path / name).exists()
    await kill(store)


async def states(path: Path, recorder: Recorder, spaces: list[Space]) -> Iterator[Any]:
    """What is found after a power failure at each moment."""
    failure, found = PowerFailure({}), []
    for operation in recorder.operations:
        failure.feed(operation)
        for disk in failure.disks(random.Random(0), 2):
            lay(disk, path)
            store = open_now(path)
            found.append((store.number, everything(store, spaces)))
            await kill(store)
    return iter(found)


async def test_what_expires_by_a_clock_that_is_not_durable_stays_in_a_flush(tmp_path: Path) -> None:
    """A flush that followed the newest commit's clock lost values which, after a power failure, had not expired."""
    (tmp_path / "store").mkdir()
    recorder = Recorder(tmp_path / "store")
    store, runner = held(tmp_path / "store", recorder, durability="os")
    await store.commit({T: {b"a": b"1"}}, expires=100, now=1)
    store.make_room()
    assert store._journal.turning is not None
    await store._journal.turning
    runner.go.clear()
    runner.done.clear()
    await store.commit({T: {b"b": b"2"}}, now=200)  # turns, and moves the clock
    assert store.get(T, b"a") is None
    runner.go.set()
    await settle(store)
    expected = {0: {}, 1: {T: [(b"a", b"1")]}, 2: {T: [(b"b", b"2")]}}
    for number, rows in await states(tmp_path / "found", recorder, [T]):
        assert rows == expected[number]
    await kill(store)


async def test_what_expires_by_a_clock_that_is_not_durable_stays_in_a_flush_that_had_to_wait(tmp_path: Path) -> None:
    """The clock has moved on before its job begins: as of when it was set aside, nothing had expired."""
    (tmp_path / "store").mkdir()
    recorder = Recorder(tmp_path / "store")
    store, runner = held(tmp_path / "store", recorder, durability="os")
    runner.go.clear()
    await store.commit({T: {b"z": b"0"}})
    store.make_room()
    assert store._journal.turning is not None
    await store._journal.turning
    await store.commit({T: {b"a": b"1"}}, expires=100, now=1)  # turns: the flush before it is held up
    store.make_room()
    await store._journal.turning
    await store.commit({T: {b"b": b"2"}}, now=200)  # turns, and moves the clock
    runner.go.set()
    await settle(store)
    a, b, z = (b"a", b"1"), (b"b", b"2"), (b"z", b"0")
    expected = {0: {}, 1: {T: [z]}, 2: {T: [a, z]}, 3: {T: [b, z]}}
    for number, rows in await states(tmp_path / "found", recorder, [T]):
        assert rows == expected[number]
    await kill(store)


async def test_what_expires_by_a_clock_that_is_not_durable_stays_in_a_merge(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    recorder = Recorder(tmp_path / "store")
    merged = CompactionOptions(l0_runs=2)
    store, runner = held(tmp_path / "store", recorder, durability="os", compaction=merged)
    await store.commit({T: {b"a": b"1"}}, expires=100, now=1)
    await store.flush()
    await store.commit({T: {b"A": b"0", b"b": b"2"}})  # on both sides of "a": else nothing would be merged
    store.make_room()
    assert store._journal.turning is not None
    await store._journal.turning
    runner.go.clear()
    runner.done.clear()
    await store.commit({T: {b"c": b"3"}}, now=200)
    await runner.done.wait()
    runner.go.set()
    await settle(store)
    assert store.stats().compactions == 1
    a, rows = (b"a", b"1"), [(b"A", b"0"), (b"b", b"2"), (b"c", b"3")]
    expected = {0: {}, 1: {T: [a]}, 2: {T: sorted([a, *rows[:2]])}, 3: {T: rows}}
    for number, found in await states(tmp_path / "found", recorder, [T]):
        assert found == expected[number]
    await kill(store)


async def test_a_drop_that_is_not_durable_takes_nothing_from_a_flush(tmp_path: Path) -> None:
    """The flush left out what was dropped meanwhile; a power failure then took the drop, and left a mix."""
    (tmp_path / "store").mkdir()
    recorder = Recorder(tmp_path / "store")
    store, runner = held(tmp_path / "store", recorder, durability="os")
    await store.commit({W: {b"a": b"1"}, T: {b"b": b"2"}})
    store.make_room()
    assert store._journal.turning is not None
    await store._journal.turning
    runner.go.clear()
    await store.commit({T: {b"c": b"3"}})
    await runner.done.wait()
    await store.commit(drops=[W])
    runner.go.set()
    await settle(store)
    both = [(b"b", b"2"), (b"c", b"3")]
    await store.flush()  # until now the memtable remembered the drop
    assert everything(store) == {T: both}
    expected = {0: {}, 1: {W: [(b"a", b"1")], T: both[:1]}, 2: {W: [(b"a", b"1")], T: both}, 3: {T: both}}
    for number, rows in await states(tmp_path / "found", recorder, [T, W]):
        assert rows == expected[number]
    await kill(store)


async def test_no_offset_of_an_encrypted_log_is_written_twice(tmp_path: Path) -> None:
    """It is the nonce: under one key, two plaintexts of one nonce give both away. A frame taken back left its place."""
    recorder = Recorder(tmp_path)
    store = open_now(tmp_path, files=recorder, key=KEY)
    model = Model()
    for n in range(1, 13):
        made = frame(store, {T: {b"k": b"%d" % n}}, number=n)
        await store.prepare(made)
        await store.resolve(made.commit_id, applied=n % 3 != 0)
        if n % 3:
            model.apply(made)
    written: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for step in recorder.operations:
        if step.kind == "append":
            assert sizes.get(step.file, 0) >= written.get(step.file, 0)
            sizes[step.file] = written[step.file] = sizes.get(step.file, 0) + len(step.data)
        elif step.kind == "truncate":
            sizes[step.file] = step.size
    assert everything(store) == model.everything()
    await kill(store)
    assert everything(look_now(tmp_path, KEY)) != {}


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_a_commit_that_was_cancelled_leaves_no_trace(key: StoreKey | None, tmp_path: Path) -> None:
    """Its thread wrote on, beside the next commit; and a flush took both."""
    files = Slow(tmp_path)
    store = LsmStore(tmp_path, files, Budget(2**20), Inline(Hasty()), tiny(log_bytes=10**6), key)
    store.recover()
    await store.commit({T: {b"a": b"1"}})
    files.hold = "log"
    commit = asyncio.ensure_future(store.commit({T: {b"a": b"cancelled"}}))
    await asyncio.to_thread(files.waits.wait, 10)
    commit.cancel()
    done, _ = await asyncio.wait([commit], timeout=0.2)
    assert not done
    files.release.set()
    with pytest.raises(asyncio.CancelledError):
        await commit
    assert everything(store) == {T: [(b"a", b"1")]}
    assert everything(look_now(tmp_path, key)) == {T: [(b"a", b"1")]}
    await store.commit({T: {b"b": b"2"}})
    await store.flush()
    assert everything(store) == {T: [(b"a", b"1"), (b"b", b"2")]}
    await store.close()
    assert everything(look_now(tmp_path, key)) == {T: [(b"a", b"1"), (b"b", b"2")]}


async def test_closing_waits_for_an_edit_that_is_being_written(tmp_path: Path) -> None:
    """It was cancelled, but its thread went on, and wrote beside the edit that says the store was closed."""
    files = Slow(tmp_path)
    store, _ = held(tmp_path, files)
    await store.commit({T: {b"a": b"1"}})
    store.make_room()
    assert store._journal.turning is not None
    await store._journal.turning
    await store._journal.turn()
    files.hold = "manifest"
    flush = asyncio.ensure_future(store.flush())
    await asyncio.to_thread(files.waits.wait, 10)
    closing = asyncio.ensure_future(store.close())
    done, _ = await asyncio.wait([closing], timeout=0.2)
    assert not done
    files.release.set()
    await asyncio.gather(flush, closing, return_exceptions=True)
    look = read_store(tmp_path)
    assert everything(look) == {T: [(b"a", b"1")]}


async def test_a_file_that_a_killed_process_left_is_written_over_by_the_next_try(tmp_path: Path) -> None:
    """The same job, done again, failed: its file was there."""
    store, _ = held(tmp_path)
    (tmp_path / f"{store._core.catalog.prefix}{store._core.catalog._next_file:06}.sst").write_bytes(b"half of")
    await store.commit({T: {b"a": b"1"}})
    await store.flush()
    assert store.get(T, b"a") == b"1"
    await store.close()


async def test_fewer_runs_than_are_worth_a_merge_do_not_stop_commits(tmp_path: Path) -> None:
    """`max_runs` below `l0_runs`: commits waited for a merge that no one would begin."""
    store, _ = held(tmp_path, max_runs=2, compaction=CompactionOptions(l0_runs=4))
    async with asyncio.timeout(10):
        for n in range(6):
            await store.commit({T: {b"%d" % n: b""}})
            await store.flush()
    await store.close()


@pytest.mark.parametrize("options", [{"l0_runs": 1}, {"multiplier": 1}])
def test_options_that_would_merge_for_ever_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="l0_runs and multiplier must be 2 or more"):
        CompactionOptions(**options)


async def test_a_mistake_in_the_background_is_told_and_nobody_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mistaken(Inline):
        async def run(self, job: Job) -> Done:
            raise KeyError("a mistake")

    store = LsmStore(tmp_path, Hasty(), Budget(2**20), Mistaken(), tiny(), None)
    store.recover()
    await store.commit({T: {b"a": b"1"}})
    async with asyncio.timeout(10):
        with pytest.raises(StoreError, match="a mistake"):
            await store.flush()
    await kill(store)


async def test_a_second_open_in_the_same_process_is_refused(tmp_path: Path) -> None:
    import os

    async with open_store(tmp_path, host=Host(runner=Inline())) as store:
        await store.commit({T: {b"a": b"1"}})
        with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}:"):
            async with open_store(tmp_path, host=Host(runner=Inline())):
                pass
        assert read_store(tmp_path).get(T, b"a") == b"1"
    async with open_store(tmp_path, host=Host(runner=Inline())) as store:
        assert store.get(T, b"a") == b"1"


async def test_a_value_that_was_read_from_disk_is_forgotten_once_a_newer_one_is_there(tmp_path: Path) -> None:
    store, _ = held(tmp_path)
    for n in range(3):
        await store.commit({T: {b"a": b"%d" % n, b"b": None if n else b"b"}})
        await store.flush()
        for _ in range(2):
            assert store.get(T, b"a") == b"%d" % n
            assert store.get_many(T, [b"a", b"b"]) == [b"%d" % n, None if n else b"b"]
    await store.close()


async def test_what_a_scan_still_read_goes_when_the_scan_is_let_go(tmp_path: Path) -> None:
    """Files that were merged while someone read them stayed until the next edit, which may be long in coming."""
    store = open_now(tmp_path)
    # More than a scan reads ahead, or it would be done with the files at once.
    await store.commit({T: {b"%05d" % k: random.Random(k).randbytes(400) for k in range(3000)}})
    await store.flush()
    before = set(store.version.files)
    reading = store.scan(T)
    next(reading)
    await store.commit({T: {b"00001": b"", b"02000": b""}})
    await store.compact()
    assert all((tmp_path / name).exists() for name in before)
    del reading
    for _ in range(3):  # the sweep is asked for by the end of the version, and begins in the next turn of the loop
        await asyncio.sleep(0)
    await store._core.catalog.settled()
    assert {name for name in os.listdir(tmp_path) if name.endswith(".sst")} == set(store.version.files)  # noqa: PTH208
    await kill(store)


async def test_a_commit_that_waits_for_the_disk_is_no_quiet_time(tmp_path: Path) -> None:
    """A merge that is meant for idle times began amid a fill, since a sync took longer than `idle`."""
    files = Slow(tmp_path)
    store, _ = held(tmp_path, files, idle=5, durability="commit")
    for n in range(2):
        await store.commit({T: {b"%d" % n: b""}})
        await store.flush()
    files.hold = "log"
    commit = asyncio.ensure_future(store.commit({T: {b"a": b"1"}}))
    await asyncio.to_thread(files.waits.wait, 10)
    done, _ = await asyncio.wait([commit], timeout=0.1)
    assert not done
    assert store.version.level_0_runs == 2
    files.release.set()
    await commit
    async with asyncio.timeout(10):
        while store.version.level_0_runs:  # noqa: ASYNC110  now it is quiet
            await asyncio.sleep(0.005)
    await store.close()


async def test_a_file_that_moves_while_it_is_dropped_stays_until_the_drop_is_durable(tmp_path: Path) -> None:
    """The move took it for one that it had removed, since the version was a drop ahead; the manifest still named it."""
    files = Slow(tmp_path)
    store, _ = held(tmp_path, files)
    for n in range(2):
        await store.commit({("w", n): {b"a": b"%d" % n}})
        await store.flush()
    choice = choose(store.version.files, QUIET, idle=True)
    assert choice is not None
    assert choice.moves
    first = next(meta.name for meta in store.version.files.values() if meta.spaces[0].end == 0)
    files.hold = "manifest"
    moving = store._background.begin(choice)
    await asyncio.to_thread(files.waits.wait, 10)
    dropping = asyncio.ensure_future(store.commit(drops=[("w", 0)]))
    while first in store.version.files:  # noqa: ASYNC110  the drop is shown, and waits for its turn at the manifest
        await asyncio.sleep(0.001)
    moved, files.release = files.release, threading.Event()
    files.waits.clear()
    files.hold = "manifest"
    moved.set()
    await moving
    await asyncio.to_thread(files.waits.wait, 10)
    await store._core.catalog.settled()
    assert (tmp_path / first).exists()
    files.release.set()
    await dropping
    await store._core.catalog.settled()
    assert not (tmp_path / first).exists()
    await store.close()
