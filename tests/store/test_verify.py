"""verify reads every byte: whatever is changed in a store is found, all of it, with file and offset."""

import random
import shutil
from pathlib import Path

import pytest

from flowkit.errors import ConfigError, StoreCorrupt, StoreError, StoreKeyError
from flowkit.store import KeyProvider, Step, copy_store, inspect, read_store, stores_in, verify
from flowkit.store.recovery import readers, recover
from tests.matrix import matrix
from tests.store.making import KEY, OTHER, WINDOW, WORDS, contents, everything, opened, rows


async def filled(path: Path, keys: KeyProvider | None = None) -> None:
    """Two levels, a hidden space, logs."""
    async with opened(path, keys, block_bytes=1024) as store:
        await store.commit({WORDS: rows(0, 200), WINDOW: rows(0, 20), ("window", 7): rows(0, 9)})
        await store.compact()
        await store.commit({WORDS: {**rows(50, 80, "new"), b"secret-key-000001": None}}, drops=[WINDOW], expires=99)
        await store.flush()
        await store.commit({WORDS: rows(300, 310)}, meta={"m": 1})
        await store.commit({WORDS: rows(310, 320)})


@pytest.mark.parametrize("keys", [None, KEY])
async def test_a_sound_store_has_no_problems(tmp_path: Path, keys: KeyProvider | None) -> None:
    await filled(tmp_path, keys)
    steps: list[Step] = []
    report = verify(tmp_path, keys, steps.append)
    assert report.problems == []
    assert report.files == len(contents(tmp_path))
    assert report.records == 200 + 20 + 9 + 31
    assert report.commits == 2
    sizes = {name: len(data) for name, data in contents(tmp_path, "KEYS").items()}
    assert steps[-1].done == report.bytes == sum(sizes.values())


@pytest.mark.parametrize("most", matrix([40, 300], quick=lambda most: most == 40))
@pytest.mark.parametrize("keys", [None, KEY])
async def test_every_changed_byte_is_found_in_its_file(tmp_path: Path, keys: KeyProvider | None, most: int) -> None:
    await filled(tmp_path, keys)
    chosen = random.Random(7)
    for name, data in contents(tmp_path).items():
        path = tmp_path / name
        places = range(len(data)) if len(data) < most else sorted(chosen.sample(range(len(data)), most // 2))
        for at in places:
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << chosen.randrange(8))]) + data[at + 1 :])
            try:
                problems = verify(tmp_path, keys).problems
            except (StoreCorrupt, StoreKeyError) as error:
                assert name in str(error) or "KEYS" in str(error)  # noqa: PT017
                continue
            assert problems, (name, at)
            assert problems[0].file == name, (name, at, problems)
            assert name in str(problems[0])
        path.write_bytes(data)
    assert verify(tmp_path, keys).problems == []


async def test_all_damage_is_told_not_only_the_first(tmp_path: Path) -> None:
    await filled(tmp_path)
    names = [name for name in contents(tmp_path) if name.endswith(".sst")]
    look = read_store(tmp_path)
    expected = []
    for name in names:
        table = look.version.tables[name]
        data = bytearray((tmp_path / name).read_bytes())
        for block in {0, table.blocks() // 2, table.blocks() - 1}:
            data[table.offset_of(block) + 3] ^= 1
            expected.append((name, table.offset_of(block)))
        (tmp_path / name).write_bytes(data)
    (log,) = [name for name in contents(tmp_path) if name.startswith("log-")]
    data = bytearray((tmp_path / log).read_bytes())
    data[60] ^= 1
    (tmp_path / log).write_bytes(data)
    problems = verify(tmp_path).problems
    found = [(problem.file, problem.offset) for problem in problems]
    assert set(expected) < set(found)
    assert [file for file, _ in found if file == log]
    assert len(expected) >= 4


async def test_missing_and_cut_files_are_told(tmp_path: Path) -> None:
    await filled(tmp_path)
    for name, data in contents(tmp_path).items():
        path = tmp_path / name
        path.unlink()
        assert name.partition("-")[0] in str(verify(tmp_path).problems[0]), name
        # A manifest or log that ends within a record is what a crash leaves of what was not promised.
        sizes = [0, 1, 17] + [len(data) // 2, len(data) - 1] * name.endswith(".sst")
        for size in sizes if not name.startswith("log-") else [0, 1, 17, len(data) - 1]:
            path.write_bytes(data[:size])
            assert verify(tmp_path).problems[0].file == name, (name, size)
        path.write_bytes(data)
    assert verify(tmp_path).problems == []


async def test_a_manifest_that_lost_its_end_is_no_older_state(tmp_path: Path) -> None:
    """Cut before its last flush it would name no files, and the opening would remove them all as leftovers."""
    async with opened(tmp_path, block_bytes=1024) as store:
        await store.commit({WORDS: rows(0, 20), WINDOW: rows(0, 20)})
        await store.flush()
        await store.commit({WORDS: rows(5, 9, "new")})
        await store.compact()
        await store.commit({WORDS: rows(7, 8, "newer")}, drops=[WINDOW])
        await store.flush()
        expected = everything(store)
    (name,) = [name for name in contents(tmp_path) if name.startswith("manifest-")]
    data = (tmp_path / name).read_bytes()
    harmless = 0
    for size in range(0, len(data), 3):
        (tmp_path / name).write_bytes(data[:size])
        try:
            readers(tmp_path, recover(tmp_path), None)
        except StoreCorrupt:
            assert verify(tmp_path).problems
            continue
        assert everything(read_store(tmp_path)) == expected
        harmless += 1
    assert harmless < 20  # only the edit of the close may be missing


async def test_files_that_were_exchanged_are_told(tmp_path: Path) -> None:
    await filled(tmp_path)
    one, two = [name for name in contents(tmp_path) if name.endswith(".sst")][:2]
    shutil.copyfile(tmp_path / one, tmp_path / two)
    (problem,) = verify(tmp_path).problems
    assert problem.file == two
    assert "is not the file that the manifest names" in str(problem)


async def test_the_owner_may_go_on_meanwhile(tmp_path: Path) -> None:
    async with opened(tmp_path, log_bytes=5_000) as store:
        for n in range(60):
            await store.commit({WORDS: rows(n, n + 20, f"n{n}")})
            await store.compact()
            if n % 10 == 0:
                assert verify(tmp_path).problems == []


async def test_where_there_is_no_store_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt, match="is no store"):
        verify(tmp_path)
    with pytest.raises(ConfigError, match="is no store, and no state directory with stores in it: name what --state"):
        stores_in(tmp_path)
    with pytest.raises(ConfigError, match="there is no such directory"):
        stores_in(tmp_path / "none")
    with pytest.raises(StoreError, match="is no store"):
        inspect(tmp_path)


async def test_stores_are_found_in_a_state_directory(tmp_path: Path) -> None:
    for place in ("run", "tasks/app%2Fg-0/aa", "tasks/app%2Fg-1/bb"):
        await filled(tmp_path / place)
    (tmp_path / "tasks" / "app%2Fg-1" / "empty").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in stores_in(tmp_path)]
    assert found == ["run", "tasks/app%2Fg-0/aa", "tasks/app%2Fg-1/bb"]
    assert stores_in(tmp_path / "run") == [tmp_path / "run"]


async def test_a_store_is_inspected(tmp_path: Path) -> None:
    await filled(tmp_path, KEY)
    found = inspect(tmp_path, KEY)
    assert (found.commit, found.encrypted_under, found.meta) == (4, KEY.name, ["m"])
    assert [(f.level, f.records, f.deletes) for f in found.files] == [(0, 31, 1), (1, 229, 0)]
    assert [(space.table, space.end, space.records) for space in found.spaces] == [
        ("window", 7, 9),
        (WORDS[0], None, 231),
    ]
    assert found.in_logs == 20


@pytest.mark.parametrize("keys", [None, KEY])
@pytest.mark.parametrize("to", [None, OTHER])
async def test_a_copy_is_encrypted_as_it_is_wanted(
    tmp_path: Path, keys: KeyProvider | None, to: KeyProvider | None
) -> None:
    await filled(tmp_path / "db", keys)
    steps: list[Step] = []
    await copy_store(tmp_path / "db", tmp_path / "copy", keys=keys, to=to, progress=steps.append)
    assert steps[-1].done == steps[-1].total > 0
    before, after = read_store(tmp_path / "db", keys), read_store(tmp_path / "copy", to)
    assert everything(after) == everything(before)
    assert (after.number, after.commit_id, after.meta, after.now) == (
        before.number,
        before.commit_id,
        before.meta,
        before.now,
    )
    assert verify(tmp_path / "copy", to).problems == []
    async with opened(tmp_path / "copy", to) as store:
        await store.commit({WORDS: rows(0, 5, "copied")})
        await store.compact()
        assert everything(store)[WORDS] == {**everything(before)[WORDS], **rows(0, 5, "copied")}
    plain = any(b"secret" in data for data in contents(tmp_path / "copy").values())
    assert plain == (to is None)
