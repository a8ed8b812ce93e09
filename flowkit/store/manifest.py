"""The manifest: which files make up the store, as a log of edits; a new one is begun at every opening.

    manifest-NNNNNN := header record*                          as in `records`
    record          := msgpack Edit; the first one is the whole state

The newest manifest counts: it gets its name only once it is whole and durable. Its number is part of the names of the
sstables written under it, so that what a killed owner's helper still writes has another name than anything of its
successor.
"""

from pathlib import Path

import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.cipher import Cipher, StoreKey
from flowkit.store.files import Files, Writer
from flowkit.store.records import MANIFEST, UNDECODABLE, decode_header, decode_records, encode_header, encode_record
from flowkit.store.sstable_index import FileMeta
from flowkit.store.version import Base, Edit, Hidden

_decoder = msgspec.msgpack.Decoder(Edit)


class Recovered(msgspec.Struct):
    """What a manifest says."""

    session: int = 0
    files: dict[str, FileMeta] = {}
    hidden: frozenset[Hidden] = frozenset()
    logs_from: int = 0
    base: Base | None = None
    closed: tuple[int, int, bytes] | None = None


def manifests(directory: Path) -> list[Path]:
    """All manifests in a directory, oldest first."""
    return sorted((path for path in directory.glob("manifest-*") if path.name[9:].isdecimal()), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("manifest-"))


def read_manifest(path: Path, key: StoreKey | None = None) -> Recovered:
    """Raises StoreCorrupt, or FileNotFoundError if the owner has just replaced it."""
    name, data = str(path), path.read_bytes()
    header = decode_header(data, MANIFEST, name, key)
    found = Recovered(session=_number(path))
    edits = 0
    if header is not None:
        for record in decode_records(data, header, name):
            try:
                _apply(found, _decoder.decode(record.payload))
            except UNDECODABLE as error:
                raise StoreCorrupt(f"{name}: unreadable edit at offset {record.start}: {error}") from error
            edits += 1
    if not edits:
        raise StoreCorrupt(f"{name}: ends after {len(data)} bytes: restore this file from a copy")
    return found


def _apply(found: Recovered, edit: Edit) -> None:
    for name in edit.remove:
        found.files.pop(name, None)
    found.files |= {meta.name: meta for meta in edit.add}
    hidden = found.hidden.union(edit.hide)
    found.hidden = frozenset(row for row in hidden if row[0] in found.files)
    if edit.logs_from is not None:
        found.logs_from = edit.logs_from
    if edit.base is not None:
        found.base = edit.base
    found.closed = edit.closed


class Manifest:
    """The owner's manifest, open for more edits."""

    def __init__(self, files: Files, path: Path, writer: Writer, size: int, cipher: Cipher | None) -> None:
        self.files, self.path, self.writer, self.size, self._cipher = files, path, writer, size, cipher

    @classmethod
    def begin(cls, files: Files, directory: Path, session: int, state: Edit, key: StoreKey | None) -> "Manifest":
        """A new manifest that begins with `state`; durable, with its directory entry. Raises OSError."""
        path = directory / f"manifest-{session:06}"
        draft = directory / f".{path.name}"
        files.unlink(draft)
        writer = files.create(draft)
        cipher = None if key is None else key.new_cipher()
        data = encode_header(MANIFEST, cipher)
        data += encode_record(msgspec.msgpack.encode(state), len(data), 0, cipher)
        try:
            writer.append(data)
            writer.sync()
            files.rename(draft, path)
            files.sync_directory(directory)
        except OSError:
            writer.close()
            raise
        return cls(files, path, writer, len(data), cipher)

    def append(self, edit: Edit) -> None:
        """Make one more edit durable. Raises OSError."""
        record = encode_record(msgspec.msgpack.encode(edit), self.size, self.size, self._cipher)
        self.writer.append(record)
        self.writer.sync()
        self.size += len(record)

    def close(self) -> None:
        """Let go of the file."""
        self.writer.close()
