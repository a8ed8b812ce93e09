"""`flowkit store`: looking into stores, checking, copying, encrypting them."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from flowkit.store import FileKey, KeyProvider
from tests.cli.place import APP, Place, sale
from tests.store.making import WINDOW, WORDS, opened, rows


def made(path: Path, keys: KeyProvider | None = None) -> None:
    """A store with sstables and a log."""

    async def make() -> None:
        async with opened(path, keys) as store:
            await store.commit({WORDS: rows(0, 100), WINDOW: {b"k": b"\xff\x00"}})
            await store.compact()
            await store.commit({WORDS: rows(0, 5, "new")})

    asyncio.run(make())


def key(place: Place, name: str) -> KeyProvider:
    path = place.write(name, name.encode().ljust(32, b"-"))
    path.chmod(0o600)
    return FileKey(path)


def test_a_store_is_inspected(place: Place) -> None:
    made(place.path / "db")
    done = place.call("store", "inspect", "db")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "db: format 1, commit 2, not encrypted"
    assert lines[1].endswith("5 keys in them")
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["TABLE", "END", "RECORDS"],
        ["window", "1970-01-01T00:01:00Z", "1"],
        ["words-of-users", "-", "100"],
    ]
    found = json.loads(place.call("store", "inspect", "db", "--json").out)
    assert (found["commit"], found["path"], len(found["files"])) == (2, "db", 1)


def test_all_stores_of_a_state_directory_are_checked(place: Place) -> None:
    place.app(APP)
    place.lines("in.jsonl", sale("ann", 1.0, 60_000), sale("bob", 1.0, 200_000))
    assert place.call("run", "app.py", "--input", "sales=in.jsonl", "--state", "state").code == 0
    made(place.path / "state" / "tasks" / "shop%2Fadd-0" / "aa")
    done = place.call("store", "verify", "state")
    assert (done.code, done.out) == (0, "")
    assert [line.partition(" (")[0] for line in done.err.splitlines()] == [
        "state/run: sound",
        "state/tasks/shop%2Fadd-0/aa: sound",
    ]
    assert "ann" in place.call("store", "dump", "state/run").out
    assert place.call("store", "compact", "state").code == 0
    assert place.call("store", "verify", "state").code == 0
    before = place.call("store", "dump", "state/run").out
    for words in (["snapshot", "state/run", "new"], ["checkpoint", "state/run", "blobs"]):
        done = place.call("store", *words)
        assert done.code == 3
        assert "is undecided: its app knows whether it counts" in done.err
    assert place.call("store", "copy", "state/run", "copied").code == 0
    assert place.call("store", "snapshot", "copied", "new").code == 0
    assert place.call("store", "dump", "new").out == before


def test_damage_is_told_with_file_and_offset(place: Place) -> None:
    made(place.path / "db")
    (path,) = (place.path / "db").glob("*.sst")
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    done = place.call("store", "verify", "db")
    assert done.code == 1
    assert done.out.startswith(f"db/{path.name}: checksum mismatch at offset ")
    assert done.err.startswith("db: 1 problem (")
    (problem,) = json.loads(place.call("store", "verify", "db", "--json").out)["problems"]
    assert problem["file"] == path.name
    done = place.call("store", "dump", "db")
    assert done.code == 3
    assert path.name in done.err


def test_keys_and_values_are_dumped(place: Place) -> None:
    made(place.path / "db")
    lines = place.call("store", "dump", "db").out.splitlines()
    assert len(lines) == 101
    assert lines[0].split("\t") == ["window", "1970-01-01T00:01:00Z", "k", "\\xff\\u0000".replace("u0000", "x00")]
    found = [json.loads(line) for line in place.call("store", "dump", "db", "--json", "-n", "2").out.splitlines()]
    assert found[0] == {
        "store": "db",
        "table": "window",
        "end": 60_000,
        "key": "k",
        "value": {"base64": base64.b64encode(b"\xff\x00").decode()},
    }
    assert (found[1]["key"], len(found)) == ("secret-key-000000", 2)
    assert found[1]["value"].startswith("secret-new-000000")
    assert len(place.call("store", "dump", "db", "-t", "window").out.splitlines()) == 1


def test_a_store_is_compacted(place: Place) -> None:
    made(place.path / "db")
    done = place.call("store", "compact", "db")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("db: ")
    (found,) = json.loads(place.call("store", "inspect", "db", "--json").out)["files"]
    assert (found["level"], found["records"]) == (1, 101)


def test_a_store_in_use_is_only_looked_at(place: Place) -> None:
    async def use() -> None:
        async with opened(place.path / "db") as store:
            await store.commit({WORDS: rows(0, 10)})
            for words in (["compact", "db"], ["snapshot", "db", "new"], ["checkpoint", "db", "blobs"]):
                done = await asyncio.to_thread(place.call, "store", *words)
                assert done.code == 3, words
                assert "in use by process" in done.err
            for words in (["inspect", "db"], ["verify", "db"], ["dump", "db"], ["copy", "db", "copied"]):
                assert (await asyncio.to_thread(place.call, "store", *words)).code == 0, words

    asyncio.run(use())


def test_a_snapshot_is_a_store(place: Place) -> None:
    made(place.path / "db")
    done = place.call("store", "snapshot", "db", "new")
    assert (done.code, done.err) == (0, "new: a snapshot of db at commit 2\n")
    assert place.call("store", "dump", "new").out == place.call("store", "dump", "db").out
    done = place.call("store", "snapshot", "db", "new")
    assert done.code == 3
    assert "new: not empty" in done.err


def test_a_store_is_encrypted_by_a_copy_and_its_key_rotated(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made(place.path / "db")
    one, two = key(place, "one"), key(place, "two")
    plain = place.call("store", "dump", "db").out
    done = place.call("store", "copy", "db", "sealed", "--to-key-file", "one")
    assert (done.code, done.err) == (0, f"sealed: a copy of db, encrypted under {one.name}\n")
    done = place.call("store", "dump", "sealed")
    assert done.code == 3
    assert f"encrypted under {one.name}, but no key was given" in done.err
    assert place.call("store", "dump", "sealed", "--key-file", "one").out == plain
    assert place.call("store", "rotate", "sealed", "--to-key-file", "two").code == 2
    done = place.call("store", "rotate", "sealed", "--key-file", "one", "--to-key-file", "two")
    assert (done.code, done.err) == (0, f"sealed: now under {two.name}\n")
    assert place.call("store", "dump", "sealed", "--key-file", "one").code == 3
    monkeypatch.setenv("FLOWKIT_STORE_KEY_FILE", "two")
    assert place.call("store", "dump", "sealed").out == plain
    assert place.call("store", "verify", "sealed").code == 0
    done = place.call("store", "dump", "db")
    assert done.code == 3
    assert "not encrypted, but a key was given" in done.err
    assert place.call("store", "copy", "sealed", "opened").code == 0
    monkeypatch.delenv("FLOWKIT_STORE_KEY_FILE")
    assert place.call("store", "dump", "opened").out == plain


def test_checkpoints_are_made_listed_checked_and_restored(place: Place) -> None:
    made(place.path / "db")
    plain = place.call("store", "dump", "db").out
    done = place.call("store", "checkpoint", "db", "blobs")
    assert done.code == 0
    assert done.err.startswith("00000001-")
    done = place.call("store", "checkpoint", "db", "blobs")
    assert "of which 0 B are new" in done.err
    found = [json.loads(line) for line in place.call("store", "checkpoints", "blobs", "--json").out.splitlines()]
    assert [(row["epoch"], row["commit"]) for row in found] == [(2, 2), (1, 2)]
    assert len(place.call("store", "checkpoints", "blobs").out.splitlines()) == 3
    assert place.call("store", "restore", "blobs", "back").code == 0
    assert place.call("store", "dump", "back").out == plain
    assert place.call("store", "checkpoints", "blobs", "--verify").err == "blobs: sound\n"
    (path, *_) = (place.path / "blobs").glob("*.sst")
    path.write_bytes(path.read_bytes()[:-1])
    done = place.call("store", "checkpoints", "blobs", "--verify")
    assert done.code == 1
    assert done.out.startswith(path.name)
    assert place.call("store", "restore", "blobs", "again").code == 3


def test_an_encrypted_app_runs_and_is_looked_into(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.app(APP)
    key(place, "key")
    monkeypatch.setenv("FLOWKIT_STORE_KEY_FILE", "key")
    place.lines("in.jsonl", sale("ann-the-secret", 1.0, 60_000))
    assert place.call("run", "app.py", "--input", "sales=in.jsonl", "--state", "state").code == 0
    assert "ann-the-secret" in place.call("tables", "scan", "app.py", "seen", "--state", "state").out
    assert not [path for path in (place.path / "state" / "run").iterdir() if b"ann-the-secret" in path.read_bytes()]
    monkeypatch.delenv("FLOWKIT_STORE_KEY_FILE")
    for words in (["run", "app.py", "--input", "sales=in.jsonl"], ["tables", "scan", "app.py", "seen"]):
        done = place.call(*words, "--state", "state")
        assert done.code == 3
        assert "but no key was given: pass keys=, or set FLOWKIT_STORE_KEY_FILE" in done.err


def test_what_cannot_be_is_told(place: Place) -> None:
    made(place.path / "state" / "run")
    made(place.path / "state" / "tasks" / "t" / "a")
    place.write("bad", "hunter2").chmod(0o600)
    for words, code, told in [
        (["verify", "nowhere"], 2, "nowhere: there is no such directory"),
        (["verify", "."], 2, "is no store, and no state directory"),
        (["snapshot", "state", "new"], 2, "state: holds 2 stores: name one of them, such as state/run"),
        (["inspect", "state", "--key-file", "bad"], 3, "bad: holds no key"),
        (["inspect", "state", "--key-file", "none"], 3, "none: the key file cannot be read"),
        (["restore", "nowhere", "new"], 3, "there is no checkpoint yet"),
        (["verify"], 2, "Missing argument 'DIR'"),
    ]:
        done = place.call("store", *words)
        assert done.code == code, (words, done.err)
        assert told in done.err, words
