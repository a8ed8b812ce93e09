"""A disk without room, or with errors: what was promised stays, the error is clear, and with room it goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from flowkit.errors import StoreError, StorePoisoned
from flowkit.store import Space
from flowkit.store.options import Durability
from flowkit.store.version import Edit
from tests.matrix import matrix
from tests.store.recording import Operation, Recorder
from tests.store.world import Model, everything, frame, in_the_background, kill, open_now, settle, tiny

EVERY = int(os.environ.get("STORE_FULL_EVERY", "5"))
"""One of so many operations fails in turn."""


class Trouble:
    """Makes the n-th operation of some kinds fail, and all that follow until there is room."""

    def __init__(self, kinds: set[str], number: int, partly: random.Random | None = None, *, only: str = "") -> None:
        self.kinds, self.left, self.partly, self.only = kinds, number, partly, only
        self.over = False
        self.names: dict[int, str] = {}
        self.failed = 0

    def __call__(self, operation: Operation) -> int | None:
        if operation.kind == "create":
            self.names[operation.file] = operation.name
        if self.over or operation.kind not in self.kinds or self.only not in self.names.get(operation.file, ""):
            return None
        self.left -= 1
        if self.left > 0:
            return None
        self.failed += 1
        if operation.kind == "append" and self.partly is not None:
            return self.partly.randint(0, len(operation.data) - 1)
        code = errno.EIO if "sync" in operation.kind else errno.ENOSPC
        raise OSError(code, os.strerror(code))


async def write_until_it_fails(path: Path, trouble: Trouble, durability: Durability) -> list[Model]:
    """Commits until one fails, or forty are done; the states that may be found, the first being the last promised."""
    models = [Model()]
    recorder = Recorder(path, trouble)
    options = tiny(durability, log_bytes=400)
    try:
        store = open_now(path, files=recorder, options=options)
    except OSError:
        return models  # opening it reports this as an error of the directory
    try:
        for n in range(1, 41):
            puts: dict[Space, dict[bytes, Any]] = {
                ("t", None): {b"k%d" % (n % 7): b"%d" % n * 20},
                ("w", 10): {b"x": b"%d" % n},
            }
            made = frame(store, puts, [("w", 10)] if n % 5 == 0 else [], number=n, decided=True)
            after = models[-1].copy().apply(made)
            try:
                await store.prepare(made)
                models.append(after)
                await store.resolve(made.commit_id, applied=True)
                await settle_a_little(store)
                if n % 9 == 0:
                    await store.flush()
            except StorePoisoned as error:
                names_it(error, path)
                with pytest.raises(StorePoisoned):
                    await store.commit({("t", None): {b"later": b"no"}})
                return [models[-1], after]
            except StoreError as error:
                names_it(error, path)
                assert everything(store) == models[-1].everything()
                return [models[-1], after]
        return [models[-1]]
    finally:
        await kill(store)


def names_it(error: StoreError, path: Path) -> None:
    assert str(path) in str(error)


async def settle_a_little(store: Any) -> None:
    """Let the background begin: what fails there is tried again later, which nobody waits for here."""
    for _ in range(3):
        await asyncio.sleep(0)
    tasks = in_the_background(store)
    if tasks and store._core.trouble is None:
        await asyncio.wait(tasks, timeout=0.01)


@pytest.mark.parametrize("durability", matrix(["commit", "os"], quick=lambda durability: durability == "commit"))
@pytest.mark.parametrize(
    "kinds, partly",
    [
        ({"append", "create"}, False),
        ({"append"}, True),
        ({"sync", "sync directory"}, False),
        ({"rename", "unlink"}, False),
    ],
    ids=["no room", "room for a part", "sync fails", "names fail"],
)
async def test_nothing_promised_is_lost_and_with_room_it_goes_on(
    kinds: set[str], partly: bool, durability: Durability, tmp_path: Path
) -> None:
    failures = 0
    for number in range(1, 1000, EVERY):
        path = tmp_path / f"store {number}"
        path.mkdir()
        trouble = Trouble(kinds, number, random.Random(number) if partly else None)
        async with asyncio.timeout(20):
            expected = await write_until_it_fails(path, trouble, durability)
        if not trouble.failed:
            break
        failures += 1
        store = open_now(path, options=tiny(durability))
        # The failed commit itself may be found: an error of a commit says that its outcome is not known.
        assert everything(store) in [model.everything() for model in expected]
        await store.commit({("t", None): {b"room": b"again"}})
        await store.flush()
        await store.compact()
        assert store.get(("t", None), b"room") == b"again"
        await store.close()
        again = open_now(path)
        assert again.get(("t", None), b"room") == b"again"
        await kill(again)
    assert failures > 3


async def test_commits_go_on_while_sstables_cannot_be_written_and_wait_no_longer_than_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.store.background.RETRY_SECONDS", 0.001)
    trouble = Trouble({"create", "append"}, 1, only=".sst")
    trouble.over = True
    store = open_now(tmp_path, files=Recorder(tmp_path, trouble), options=tiny(log_bytes=400))
    model = Model()

    async def commit(n: int) -> None:
        made = frame(store, {("t", None): {b"%d" % n: b"x" * 100}}, number=n, decided=True)
        await store.prepare(made)
        model.apply(made)
        await store.resolve(made.commit_id, applied=True)
        await settle_a_little(store)

    trouble.over = False
    done = 0
    with pytest.raises(StoreError, match=r"no room for more commits: .*flush failed: No space left") as caught:  # noqa: PT012
        while done < 100:
            await commit(done + 1)
            done += 1
    assert not isinstance(caught.value, StorePoisoned)
    assert done >= 6  # two logs full, and a third begun
    assert everything(store) == model.everything()
    trouble.over = True  # room again
    async with asyncio.timeout(20):
        while store._core.trouble is not None:
            store._core.moved.clear()
            await store._core.moved.wait()
        for n in range(done + 1, done + 20):
            await commit(n)
        await store.flush()
    assert everything(store) == model.everything()
    await store.close()
    again = open_now(tmp_path)
    assert everything(again) == model.everything()
    await kill(again)


async def test_a_log_that_could_not_be_begun_is_begun_once_there_is_room(tmp_path: Path) -> None:
    """Its file stood in the way of the next try; a flush that had no log to turn to returned as if it had been done."""
    trouble = Trouble({"append"}, 3, only="log-")  # the first log's header, a frame, the second log's header
    store = open_now(tmp_path, files=Recorder(tmp_path, trouble))
    await store.commit({("t", None): {b"k": b"v"}})
    with pytest.raises(StoreError, match="new log cannot be begun: No space left"):
        await store.flush()
    trouble.over = True
    await store.flush()
    assert store.stats().tables == 1
    await settle(store)
    await store.close()


async def test_nothing_follows_an_edit_that_was_half_written(tmp_path: Path) -> None:
    """A later edit after the torn one made the manifest unreadable."""
    trouble = Trouble({"append"}, 1, random.Random(1), only=".manifest-")
    trouble.over = True
    store = open_now(tmp_path, files=Recorder(tmp_path, trouble))
    await store.commit({("t", None): {b"k": b"v"}})
    trouble.over = False
    with pytest.raises(StorePoisoned):
        await store.flush()
    trouble.over = True
    with pytest.raises(StorePoisoned):
        await store.flush()
    with pytest.raises(StorePoisoned):
        await store.commit({("t", None): {b"k": b"w"}})
    await store.close()
    again = open_now(tmp_path)
    assert everything(again) == {("t", None): [(b"k", b"v")]}
    await kill(again)


async def test_an_edit_that_waited_behind_one_that_failed_is_not_written(tmp_path: Path) -> None:
    """It stood behind the torn one, and said that all before it was durable: the manifest was taken for damaged."""
    trouble = Trouble({"append"}, 1, random.Random(1), only=".manifest-")
    trouble.over = True
    store = open_now(tmp_path, files=Recorder(tmp_path, trouble))
    await store.commit({("t", None): {b"k": b"v"}})
    trouble.over = False
    first = asyncio.ensure_future(store._core.change(Edit(logs_from=1)))
    second = asyncio.ensure_future(store._core.change(Edit(logs_from=1)))
    await asyncio.wait([first])
    trouble.over = True
    for edit in (first, second):
        with pytest.raises(StorePoisoned):
            await edit
    await store.close()
    again = open_now(tmp_path)
    assert everything(again) == {("t", None): [(b"k", b"v")]}
    await kill(again)
