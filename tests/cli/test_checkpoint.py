"""`flowkit checkpoint`: what workers have published is listed, looked into, checked and got back."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from flowkit.store import Checkpoints, DirectoryBlobs, FileKey, folder_of, read_store
from tests.cli.place import Place
from tests.store.making import WORDS, opened, rows

TASKS = ("shop/orders/0", "shop/orders/10", "shop/orders/2", "büro/orders/0")


def publish(directory: Path, task: str, commits: int = 2, keys: FileKey | None = None) -> None:
    """A task's checkpoints, one a commit."""

    async def work() -> None:
        made = Checkpoints(DirectoryBlobs(directory.joinpath("kept", *folder_of(task))), keys=keys)
        await made.claim()
        async with opened(directory / "dbs" / task.replace("/", "-"), keys) as store:
            for n in range(commits):
                await store.commit({WORDS: rows(0, 10 + n)}, meta={"positions": {"orders[0]": 40 + n}})
                await made.publish(store)

    asyncio.run(work())


def test_checkpoints_are_listed_by_task_the_newest_first(place: Place) -> None:
    for task in TASKS:
        publish(place.path, task)
    done = place.call("checkpoint", "list", "--checkpoints", "kept", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(entry["task"], entry["commit"]) for entry in found] == [
        (task, commit) for task in (TASKS[3], TASKS[0], TASKS[2], TASKS[1]) for commit in (2, 1)
    ]
    table = place.call("checkpoint", "list", "--checkpoints", f"file://{place.path}/kept", "--app", "shop")
    assert len(table.out.splitlines()) == 1 + 6
    assert table.out.splitlines()[0].split() == ["TASK", "NAME", "MADE", "COMMIT", "FILES", "BYTES", "ENCRYPTED"]
    one = place.call("checkpoint", "list", "--checkpoints", "kept", "--task", TASKS[0])
    assert len(one.out.splitlines()) == 1 + 2


def test_the_place_may_be_named_by_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(place.path, TASKS[0])
    monkeypatch.setenv("FLOWKIT_CHECKPOINTS", "kept")
    assert TASKS[0] in place.call("checkpoint", "list").out


def test_a_checkpoint_is_looked_into(place: Place) -> None:
    publish(place.path, TASKS[0])
    done = place.call("checkpoint", "inspect", TASKS[0], "--checkpoints", "kept")
    assert done.code == 0
    assert "commit 2 (" in done.out
    assert "orders[0]  41" in done.out
    assert WORDS[0] in done.out
    first = json.loads(place.call("checkpoint", "list", "--checkpoints", "kept", "--json").out.splitlines()[1])
    shown = place.call("checkpoint", "inspect", TASKS[0], "--checkpoints", "kept", "--name", first["name"], "--json")
    older = json.loads(shown.out)
    assert (older["commit"], older["positions"]) == (1, {"orders[0]": 40})
    assert older["records"] == {WORDS[0]: 10}
    assert [file["records"] for file in older["files"]] == [10]


def test_damage_is_found_with_exit_code_1(place: Place) -> None:
    for task in TASKS[:2]:
        publish(place.path, task)
    sound = place.call("checkpoint", "verify", "--checkpoints", "kept")
    assert (sound.code, sound.out) == (0, "")
    assert sound.err == "".join(f"{task}: sound\n" for task in TASKS[:2])
    folder = place.path / "kept" / "shop" / "orders" / "0"
    spoilt = min(folder.glob("*.sst"))
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    (folder.parent / "10" / "CURRENT").write_bytes(b"")
    done = place.call("checkpoint", "verify", "--checkpoints", "kept")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{TASKS[0]}: {spoilt.name}: has ")
    assert lines[1].startswith(f"{TASKS[1]}: CURRENT: ")
    assert done.err == f"{TASKS[0]}: 1 problem\n{TASKS[1]}: 1 problem\n"
    told = [
        json.loads(line)
        for line in place.call("checkpoint", "verify", "--checkpoints", "kept", "--json").out.splitlines()
    ]
    assert [(entry["task"], entry["problems"][0]["file"]) for entry in told] == [
        (TASKS[0], spoilt.name),
        (TASKS[1], "CURRENT"),
    ]


def test_state_is_got_back_as_a_store(place: Place) -> None:
    publish(place.path, TASKS[3])
    done = place.call("checkpoint", "restore", TASKS[3], "new", "--checkpoints", "kept")
    assert done.code == 0
    assert "new: restored from " in done.err
    assert len(dict(read_store(place.path / "new").scan(WORDS))) == 11
    again = place.call("checkpoint", "restore", TASKS[3], "new", "--checkpoints", "kept")
    assert (again.code, "not empty" in again.err) == (3, True)


def test_an_encrypted_one_needs_its_key(place: Place) -> None:
    path = place.write("key", base64.b64encode(bytes(range(32))))
    path.chmod(0o600)
    publish(place.path, TASKS[0], keys=FileKey(path))
    refused = place.call("checkpoint", "list", "--checkpoints", "kept")
    assert (refused.code, "no key was given" in refused.err) == (3, True)
    done = place.call("checkpoint", "list", "--checkpoints", "kept", "--key-file", "key")
    assert done.out.splitlines()[1].split()[-1] == "yes"
    assert place.call("checkpoint", "restore", TASKS[0], "new", "--checkpoints", "kept", "--key-file", "key").code == 0


WRONG: list[tuple[list[str], str]] = [
    (
        ["list", "--checkpoints", "kept", "--app", "none"],
        "no checkpoints of app 'none'; there are",
    ),
    (
        ["verify", "--checkpoints", "kept", "--task", "x"],
        "no checkpoints of task 'x'; there are those of shop/",
    ),
    (["restore", "x", "new", "--checkpoints", "kept"], "no checkpoints of task 'x'; there are those of shop/"),
    (["list", "--checkpoints", "nowhere"], "no checkpoints of any task\n"),
    (
        ["list", "--checkpoints", "ftp://x"],
        "unknown scheme 'ftp'; use file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC",
    ),
    (["list"], "Missing option '--checkpoints'"),
]


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_what_cannot_be_is_told(place: Place, words: list[str], told: str) -> None:
    publish(place.path, TASKS[0])
    done = place.call("checkpoint", *words)
    assert done.code == 2
    assert told in done.err


def test_a_name_that_is_none_is_told(place: Place) -> None:
    publish(place.path, TASKS[0])
    done = place.call("checkpoint", "restore", TASKS[0], "new", "--name", "x", "--checkpoints", "kept")
    assert (done.code, "x: the checkpoint is not there" in done.err) == (3, True)


def test_a_worker_refuses_a_place_that_cannot_be(place: Place) -> None:
    place.app()
    (place.path / "file").write_text("")
    words = ["worker", "app.py", "--broker", "embedded://topics", "--state", "state", "--bind", "reports=r.jsonl"]
    for url, told in (
        ("ftp://x", "unknown scheme 'ftp'"),
        ("s3://x?colour=red", "unknown option 'colour'"),
        ("file", "checkpoints file: cannot be used: File exists"),
    ):
        done = place.call(*words, "--checkpoints", url)
        assert (done.code, told in done.err) == (2, True), done.err
    done = place.call(*words, "--checkpoints", "kept", "--checkpoint-interval", "0")
    assert (done.code, "checkpoint_interval=0 must be at least 1" in done.err) == (2, True)
