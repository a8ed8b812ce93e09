"""What every storage of blobs does alike. The tests on Kafka take these in, with a topic as the `storage`."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowkit.source import open_storage
from flowkit.store import Storage, tasks_in
from tests.store.s3_server import own_bucket

SIZES = [0, 1, 16 * 1024, 16 * 1024 + 1, 900_000, 900_001, 3_000_000]
"""About the limits by which storages treat blobs differently."""


@pytest.fixture(params=["files", "s3"])
async def storage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    """An empty one."""
    if request.param == "files":
        async with open_storage(str(tmp_path / "blobs")) as directory:
            yield directory
        return
    request.getfixturevalue("s3")
    async with own_bucket() as bucket:
        yield bucket


async def test_of_many_who_write_one_name_one_wins(storage: Storage) -> None:
    blobs = storage.blobs("app", "group", "0")
    tags = await asyncio.gather(*(blobs.put("x", b"%d" % n) for n in range(20)))
    (winner,) = [n for n, tag in enumerate(tags) if tag is not None]
    assert await blobs.get("x") == (b"%d" % winner, tags[winner])
    tag = tags[winner]
    seconds = await asyncio.gather(*(blobs.put("x", b"second %d" % n, over=tag) for n in range(20)))
    assert len([tag for tag in seconds if tag is not None]) == 1
    assert await blobs.put("y", b"", over=tag) is None
    assert [blob.name for blob in await blobs.find()] == ["x"]
    await blobs.delete("x")
    await blobs.delete("x")
    assert await blobs.get("x") is None
    assert await storage.blobs("none").find() == []
    assert await storage.blobs("none").get("x") is None


async def test_a_blob_is_read_as_it_was_written_whatever_its_size(storage: Storage) -> None:
    blobs, before = storage.blobs("a", "b", "1"), time.time() * 1000
    written = {f"{size:08}": os.urandom(size) for size in SIZES}
    tags = await asyncio.gather(*(blobs.put(name, data) for name, data in written.items()))
    assert await asyncio.gather(*(blobs.get(name) for name in written)) == list(
        zip(written.values(), tags, strict=True)
    )
    found = await blobs.find()
    assert [(blob.name, blob.size) for blob in found] == [(name, len(data)) for name, data in written.items()]
    assert all(before - 5_000 < blob.modified < time.time() * 1000 + 5_000 for blob in found)


@pytest.mark.parametrize("first, second", [(5, 2_000_000), (2_000_000, 5), (2_000_000, 2_000_001)])
async def test_what_is_replaced_is_gone_whole(storage: Storage, first: int, second: int) -> None:
    blobs, old, new = storage.blobs("a"), os.urandom(first), os.urandom(second)
    tag = await blobs.put("x", old)
    assert await blobs.put("x", new) is None
    assert (await blobs.get("x") or (b"",))[0] == old
    again = await blobs.put("x", new, over=tag)
    assert again not in (tag, None)
    assert await blobs.put("x", old, over=tag) is None
    assert await blobs.get("x") == (new, again)
    assert [(blob.name, blob.size) for blob in await blobs.find()] == [("x", second)]
    await blobs.delete("x")
    assert await blobs.get("x") is None
    assert await blobs.find() == []
    assert await blobs.put("x", old, over=again) is None
    assert await blobs.put("x", old) is not None


async def test_names_are_found_by_how_they_begin_and_not_in_other_folders(storage: Storage) -> None:
    blobs = storage.blobs("app", "group", "1")
    names = [f"{n:08}" for n in range(25)]
    await asyncio.gather(*(blobs.put(name, name.encode()) for name in names))
    await storage.blobs("app", "group", "10").put("other", b"")
    await storage.blobs("app", "group", "1", "beneath").put("other", b"")
    await storage.blobs().put("at the top", b"")
    assert [blob.name for blob in await blobs.find()] == names
    assert [blob.name for blob in await blobs.find("0000001")] == names[10:20]
    assert await blobs.find("1") == []
    assert await storage.folders("app", "group") == ["1", "10"]
    assert await storage.folders("nothing") == []
    assert [blob.name for blob in await storage.blobs().find()] == ["at the top"]


async def test_tasks_are_found_by_their_names(storage: Storage) -> None:
    for folder in (("b%C3%BCro", "g", "2"), ("b%C3%BCro", "g", "10"), ("other", "g", "0")):
        await storage.blobs(*folder).put("CURRENT", b"")
    assert await tasks_in(storage) == ["büro/g/2", "büro/g/10", "other/g/0"]
    assert await tasks_in(storage, "other") == ["other/g/0"]


async def test_a_counter_that_many_raise_by_replacing_it_misses_none(storage: Storage) -> None:
    """What an owner relies on when it claims."""
    blobs = storage.blobs("a", "b", "0")
    assert await blobs.put("n", b"0") is not None

    async def count(times: int) -> None:
        while times:
            data, tag = await blobs.get("n") or (b"", "")
            if await blobs.put("n", b"%d" % (int(data) + 1), over=tag) is not None:
                times -= 1

    await asyncio.gather(*(count(5) for _ in range(4)))
    assert (await blobs.get("n") or (b"",))[0] == b"20"
