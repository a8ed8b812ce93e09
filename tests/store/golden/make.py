"""Makes the golden directories of the current format, and the grammar and examples in FORMAT.md.

`python -m tests.store.golden.make` is to be run when the format changes, never otherwise: what was made for a version
that was released is not made anew, since later code must go on opening exactly those files. `content.json` says what
each directory holds, or how it is refused.
"""

import asyncio
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

from flowkit.store import Frame, KeyProvider, SpaceChange, rotate
from flowkit.store.records import VERSION
from tests.store.golden.document import FORMAT, filled
from tests.store.making import KEY, OTHER, opened

HERE = Path(__file__).parent
BIG: tuple[str, int | None] = ("big", None)


def frame(number: int, parent: int, puts: dict[tuple[str, int | None], dict[bytes, Any]], **more: Any) -> Frame:
    """A frame whose identity is its number."""
    changes = [SpaceChange(table, end, [*keys], [*keys.values()]) for (table, end), keys in puts.items()]
    return Frame(number, number.to_bytes(16), parent.to_bytes(16) if parent else b"", 7, {"n": number}, changes, **more)


async def fill(path: Path, keys: KeyProvider | None = None, **options: Any) -> None:
    """Two levels, a hidden space, expiry, deletes, drops, a log, and a frame that is undecided."""
    async with opened(path, keys, durability="commit", block_bytes=512, **options) as store:

        async def commit(made: Frame) -> None:
            await store.prepare(made)
            await store.resolve(made.commit_id, applied=True)

        users = {f"user-{n:03}".encode(): f"value of user {n}, ".encode() * 3 for n in range(40)}
        windows: dict[tuple[str, int | None], dict[bytes, Any]] = {
            ("window", end): {b"a": b"%d" % end, b"b": bytes(100)} for end in (1000, 2000, 3000)
        }
        await commit(frame(1, 0, {("users", None): users, **windows}))
        await store.compact()
        timed = {b"lasts": [9_000, b"until 9000"], b"gone": [5_000, b"until 5000"]}
        changed = {b"user-001": b"changed", b"user-002": None, b"user-9": b""}
        await commit(frame(2, 1, {("users", None): changed, ("timed", None): timed}, now=4_000))
        await store.flush()
        await commit(frame(3, 2, {("users", None): {b"user-003": None}}, drops=[("window", 2000)], now=5_000))
        await commit(frame(4, 3, {BIG: {b"big": bytes(range(256)) * 8}}))
        await store.prepare(frame(5, 4, {("users", None): {b"user-000": b"undecided"}}))


def damaged(directory: Path) -> dict[str, dict[str, str]]:
    """Copies of the sound stores, each damaged in the way it is named for; the errors that tell of it."""
    plain, sealed = directory / "plain", directory / "encrypted"
    (sst, other), (log,), (manifest,) = (
        sorted(path.name for path in plain.glob("*.sst")),
        [path.name for path in plain.glob("log-*")],
        [path.name for path in plain.glob("manifest-*")],
    )
    found: dict[str, dict[str, str]] = {}

    def copy(name: str, source: Path, error: str, message: str, keys: str = "none") -> Path:
        shutil.copytree(source, directory / name)
        found[name] = {"error": error, "message": message, "keys": keys}
        return directory / name

    def flip(name: str, file: str, at: int, message: str, source: Path = plain, keys: str = "none") -> None:
        path = copy(name, source, "StoreCorrupt", message, keys) / file
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    def newer(name: str, file: str) -> None:
        path = copy(name, plain, "StoreCorrupt", f"{file}: format 17, but this flowkit reads format 1") / file
        data = bytearray(path.read_bytes())
        data[8] = 17
        data[14:18] = zlib.crc32(data[:14]).to_bytes(4, "little")
        path.write_bytes(data)

    def cut(name: str, file: str, size: int, message: str) -> None:
        path = copy(name, plain, "StoreCorrupt", message) / file
        path.write_bytes(path.read_bytes()[:size])

    flip("sstable-block-flipped", sst, 100, f"{sst}: checksum mismatch at offset ")
    flip("sstable-index-flipped", sst, -60, f"{sst}: checksum mismatch at offset ")
    flip("sstable-footer-flipped", sst, -10, f"{sst}: damaged footer at offset ")
    newer("sstable-of-format-17", sst)
    flip("sstable-of-another-kind", sst, 7, f"{sst}: not a flowkit sstable")
    cut("sstable-cut", sst, 300, f"{sst}: has 300 bytes, but had ")
    flip("log-frame-flipped", log, 70, f"{log}: checksum mismatch in the record at offset ")
    newer("log-of-format-17", log)
    cut("log-cut", log, 60, f"{log}: ends after 60 bytes, but had ")
    flip("manifest-header-flipped", manifest, 16, f"{manifest}: checksum mismatch in the header")
    newer("manifest-of-format-17", manifest)
    cut("manifest-empty", manifest, 0, f"{manifest}: ends after 0 bytes")
    (copy("sstable-missing", plain, "StoreCorrupt", f"{sst}: missing, though the manifest names it") / sst).unlink()
    (copy("log-missing", plain, "StoreCorrupt", f"{log}: missing, though the manifest names it") / log).unlink()
    path = copy("sstable-exchanged", plain, "StoreCorrupt", " bytes, but had ")
    shutil.copyfile(path / other, path / sst)
    path = copy("incomplete", plain, "StoreCorrupt", "incomplete: a snapshot of somewhere was broken off")
    (path / "INCOMPLETE").write_text("a snapshot of somewhere\n")
    sealed_sst = min(path.name for path in sealed.glob("*.sst"))
    flip("encrypted-block-flipped", sealed_sst, 200, f"{sealed_sst}: checksum mismatch", sealed, "static")
    flip("encrypted-keys-flipped", "KEYS", 40, "KEYS: checksum mismatch in the header", sealed, "static")
    copy("encrypted-no-key", sealed, "StoreKeyError", f"encrypted under {KEY.name}, but no key was given")
    copy("encrypted-wrong-key", sealed, "StoreKeyError", f"encrypted under {KEY.name}, and not to be opened", "other")
    path = copy(
        "encrypted-keys-missing", sealed, "StoreCorrupt", "KEYS: missing, though the store is encrypted", "static"
    )
    (path / "KEYS").unlink()
    path = copy("encrypted-by-another-store", sealed, "StoreKeyError", "under another store's key", "static")
    shutil.copyfile(directory / "rotated" / "KEYS", path / "KEYS")
    asyncio.run(rotate(path, OTHER, KEY))
    copy("plain-with-a-key", plain, "StoreKeyError", "not encrypted, but a key was given", "static")
    return found


SOUND: dict[str, Any] = {
    "number": 4,
    "commit_id": (4).to_bytes(16).hex(),
    "meta": {"n": 4},
    "now": 5_000,
    "undecided": 5,
    "spaces": {
        "users": {
            **{f"user-{n:03}": f"value of user {n}, " * 3 for n in range(40) if n not in (2, 3)},
            "user-001": "changed",
            "user-9": "",
        },
        "window 1000": {"a": "1000", "b": "\0" * 100},
        "window 3000": {"a": "3000", "b": "\0" * 100},
        "timed": {"lasts": "until 9000"},
        "big": {"big": (bytes(range(256)) * 8).decode("latin-1")},
    },
}
"""What every sound directory holds; text is latin-1."""


def make(directory: Path) -> None:
    """Make all golden directories of the current format in `directory`, which must not be there."""
    for name, keys, options in (
        ("plain", None, {}),
        ("encrypted", KEY, {}),
        ("rotated", KEY, {}),
        ("zstd", None, {"packing": "zstd"}),
        ("unpacked", None, {"packing": "none"}),
    ):
        asyncio.run(fill(directory / name, keys, **options))
    asyncio.run(rotate(directory / "rotated", KEY, OTHER))
    shutil.copytree(directory / "plain", directory / "torn")
    for log in (directory / "torn").glob("log-*"):
        # What a crash leaves after the last whole frame, in a store that was never closed in good order.
        log.write_bytes(log.read_bytes() + bytes(40))
    content: dict[str, Any] = {
        name: {**SOUND, "keys": keys}
        for name, keys in [
            ("plain", "none"),
            ("zstd", "none"),
            ("unpacked", "none"),
            ("torn", "none"),
            ("encrypted", "static"),
            ("rotated", "other"),
        ]
    }
    content |= damaged(directory)
    for lock in directory.glob("*/LOCK"):
        lock.unlink()
    (directory / "content.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Make the directories of this version anew, and fill in FORMAT.md."""
    with tempfile.TemporaryDirectory() as made:
        make(Path(made) / "new")
        target = HERE / f"v{VERSION}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(made) / "new", target)
    FORMAT.write_text(filled(FORMAT.read_text()))


if __name__ == "__main__":
    main()
