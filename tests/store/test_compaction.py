"""What is merged, and when: by size among new keys, into level 1 once what is below is stale."""

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flowkit.store import CompactionOptions, LsmStore, SpaceChange, StoreOptions, open_host, open_store
from flowkit.store.compaction import choose
from flowkit.store.frame import Frame
from flowkit.store.memtable import Memtable
from flowkit.store.merge import merge
from flowkit.store.replay import Replay
from flowkit.store.sstable_index import FileMeta, SpaceMeta

OPTIONS = CompactionOptions(l0_runs=4, l1_bytes=10_000)
T = ("t", None)


def run(number: int, size: int = 100, first: bytes = b"a", last: bytes = b"z") -> FileMeta:
    """A file that is a run of level 0."""
    return FileMeta(f"run-{number}", 0, number, size, 1, 0, [SpaceMeta("t", None, 0, 1, first, last, 1, 1)])


def below(size: int, first: bytes = b"a", last: bytes = b"z") -> FileMeta:
    """The one file of level 1."""
    return FileMeta("below", 1, 0, size, 1, 0, [SpaceMeta("t", None, 0, 1, first, last, 1, 1)])


def chosen(files: list[FileMeta], stale: dict[str, int] | None = None) -> tuple[int, list[str]] | None:
    """The level and the inputs of the next merge."""
    choice = choose({meta.name: meta for meta in files}, OPTIONS, stale or {})
    return None if choice is None else (choice.level, [meta.name for meta in choice.inputs])


def fresh(files: list[FileMeta]) -> dict[str, int]:
    return {meta.name: 0 for meta in files}


def test_runs_of_new_keys_are_merged_among_themselves() -> None:
    files = [run(n) for n in range(1, 5)]
    assert chosen([below(1000), *files], fresh(files)) == (0, ["run-1", "run-2", "run-3", "run-4"])


def test_fewer_runs_than_that_are_left_alone() -> None:
    files = [run(n) for n in range(1, 4)]
    assert chosen([below(1000), *files], fresh(files)) is None


def test_a_run_that_is_larger_waits_for_others_like_it() -> None:
    files = [run(1, 400), *(run(n) for n in range(2, 5))]
    assert chosen(files, fresh(files)) is None
    files.append(run(5))
    assert chosen(files, fresh(files)) == (0, ["run-2", "run-3", "run-4", "run-5"])
    large = [run(n, 400) for n in range(1, 5)]
    files = [*large, run(5), run(6)]
    assert chosen(files, fresh(files)) == (0, ["run-1", "run-2", "run-3", "run-4"])


def test_runs_that_hide_a_fifth_of_what_is_below_are_merged_with_it() -> None:
    files = [run(n) for n in range(1, 5)]
    names = ["below", "run-1", "run-2", "run-3", "run-4"]
    assert chosen([below(1000), *files], {meta.name: 65 for meta in files}) == (1, names)
    assert chosen([below(1000), *files], {meta.name: 45 for meta in files}) == (0, names[1:])


def test_what_is_not_known_is_stale() -> None:
    files = [run(n) for n in range(1, 5)]
    assert chosen([below(1000), *files]) == (1, ["below", "run-1", "run-2", "run-3", "run-4"])


def test_runs_as_large_as_level_1_may_be_are_merged_into_it() -> None:
    files = [run(n, 2500) for n in range(1, 5)]
    assert chosen(files, fresh(files)) == (1, ["run-1", "run-2", "run-3", "run-4"])


def test_runs_that_lie_apart_only_change_their_level() -> None:
    files = [run(n, 100, b"%d" % n, b"%dz" % n) for n in range(1, 5)]
    choice = choose({meta.name: meta for meta in files}, OPTIONS, fresh(files))
    assert choice is not None
    assert (choice.level, choice.moves) == (1, True)


@given(st.lists(st.integers(1, 5000), min_size=2 * OPTIONS.l0_runs, max_size=40))
def test_of_twice_as_many_runs_some_are_always_merged(sizes: list[int]) -> None:
    """Commits wait for that: there must be something to wait for."""
    files = [run(n, size) for n, size in enumerate(sizes, 1)]
    choice = choose({meta.name: meta for meta in files}, OPTIONS, fresh(files))
    assert choice is not None
    assert len(choice.inputs) >= OPTIONS.l0_runs
    numbers = [meta.run for meta in choice.inputs]
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "what lies between two runs is newer than one of them"


async def fill(store: LsmStore, numbers: list[int]) -> None:
    for start in range(0, len(numbers), 100):
        keys = [b"%08d" % n for n in numbers[start : start + 100]]
        await store.commit([SpaceChange(*T, keys, [b"v" * 20] * len(keys))])
        if start % 500 == 400:
            await store.flush()
    while store._background.choice() is not None or store._background.is_compacting():
        await store._background._come_on()


async def test_a_store_that_is_filled_is_merged_by_size_and_one_that_is_written_again_stays_small(
    tmp_path: Path,
) -> None:
    options = StoreOptions(durability="os", idle=10**6, compaction=CompactionOptions(l0_runs=4))
    numbers = random.Random(1).sample(range(10**6), 6000)
    async with open_host() as host, open_store(tmp_path / "s", host=host, options=options) as store:
        assert isinstance(store, LsmStore)
        await fill(store, numbers)
        assert set(store.stats().levels) == {0}, "nothing is stale"
        assert store.stats().records == len(numbers)
        assert store.stats().compacted < 3 * store.stats().flushed
        random.Random(2).shuffle(numbers)
        await fill(store, numbers)
        assert store.stats().records < 1.3 * len(numbers) + 500 * 3
        assert dict(store.scan(T)) == {b"%08d" % n: b"v" * 20 for n in numbers}


CHANGES = st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=3)), max_size=40)


@given(st.lists(st.tuples(st.booleans(), CHANGES), max_size=30), st.integers(1, 30), st.integers(1, 60))
def test_a_flush_writes_what_a_memtable_would_have(frames: list, group: int, held: int) -> None:  # type: ignore[type-arg]
    from flowkit.store import replay as module

    before = module.SORTED, module.PIECE, module.HELD
    module.SORTED, module.PIECE, module.HELD = group, group, held
    try:
        replay, memtable = Replay(), Memtable()
        for n, (drop, rows) in enumerate(frames):
            change = SpaceChange(*T, [key for key, _ in rows], [value for _, value in rows])
            frame = Frame(n, b"", b"", 0, {}, [change], [T] if drop else [])
            replay.apply(frame)
            memtable.apply(frame)
        assert replay.spaces.keys() == memtable.spaces.keys()
        for space, changes in replay.spaces.items():
            found = [row for chunk in changes.chunks() for row in zip(*chunk, strict=True)]
            assert found == sorted(memtable.spaces[space].merged().items())
    finally:
        module.SORTED, module.PIECE, module.HELD = before


@given(st.lists(st.lists(st.sets(st.integers(0, 99), min_size=1), max_size=4), max_size=5), st.booleans())
def test_a_merge_gives_each_key_once_with_its_newest_value(runs: list, reverse: bool) -> None:  # type: ignore[type-arg]
    expected: dict[bytes, bytes] = {}
    sources = []
    for n, chunks in enumerate(runs):
        keys = sorted({b"%04d" % (100 * m + key) for m, chunk in enumerate(chunks) for key in chunk})
        expected |= dict.fromkeys(keys, b"%d" % n)
        cut = [[key for key in keys if key[:2] == b"%02d" % m] for m in range(len(chunks))]
        columns = [(some, [b"%d" % n] * len(some)) for some in cut]
        sources.append(iter(columns[::-1] if reverse else columns))
    merged = list(merge(sources, reverse=reverse))
    found = [row for chunk in (merged[::-1] if reverse else merged) for row in zip(*chunk, strict=True)]
    assert found == sorted(expected.items())
