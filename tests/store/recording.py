"""A file system that records what is done to it, and then tells which disks a power failure could have left.

What POSIX promises, and no more: bytes of a file up to its last completed sync; entries of a directory as of its last
completed sync. Anything later may be there or not: any part of the bytes appended since, by whole sectors, with zeros
for those in between that were lost; each creation, rename and removal on its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

SECTOR = 512

Kind = Literal["create", "append", "sync", "truncate", "rename", "link", "unlink", "sync directory", "mark"]


class Operation(NamedTuple):
    """One step. Files are numbered by creation: names come and go."""

    kind: Kind
    file: int = -1
    name: str = ""
    other: str = ""
    data: bytes = b""
    size: int = 0
    mark: object = None


class Recorder:
    """`Files` over a real directory, so that the store can read what it wrote, with a record of every operation.

    `fail`, if given, is asked before each operation, and raises OSError to make it fail; of an append it may say how
    many bytes are written before that.
    """

    def __init__(self, root: Path, fail: Callable[[Operation], int | None] | None = None) -> None:
        self.root, self.fail = root, fail
        self.operations: list[Operation] = []
        self.names: dict[str, int] = {}
        self.files = 0
        self.begun: dict[str, bytes] = {}
        """What was there when the recording began, all of it durable."""
        for path in sorted(root.iterdir()) if root.exists() else []:
            if path.name != "LOCK":
                self.begun[path.name] = path.read_bytes()
                self.names[path.name] = self._number()

    def _number(self) -> int:
        self.files += 1
        return self.files - 1

    def note(self, operation: Operation) -> None:
        """Record; fail first, if that is what is wanted."""
        if self.fail is not None:
            self.fail(operation)
        self.operations.append(operation)

    def mark(self, fact: object) -> None:
        """Something that the test wants to know later: it had happened when the next operation began."""
        self.operations.append(Operation("mark", mark=fact))

    def create(self, path: Path) -> RecordingWriter:
        number = self._number()
        self.note(Operation("create", number, path.name))
        writer = RecordingWriter(self, path, number, os.O_CREAT | os.O_EXCL)
        self.names[path.name] = number
        return writer

    def open(self, path: Path) -> RecordingWriter:
        return RecordingWriter(self, path, self.names[path.name], 0)

    def rename(self, old: Path, new: Path) -> None:
        self.note(Operation("rename", self.names[old.name], old.name, new.name))
        old.rename(new)
        self.names[new.name] = self.names.pop(old.name)

    def link(self, old: Path, new: Path) -> None:
        self.note(Operation("link", self.names[old.name], old.name, new.name))
        os.link(old, new)
        self.names[new.name] = self.names[old.name]

    def unlink(self, path: Path) -> None:
        if path.name in self.names:
            self.note(Operation("unlink", self.names[path.name], path.name))
            path.unlink()
            del self.names[path.name]

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        if path == self.root:
            self.note(Operation("sync directory"))


class RecordingWriter:
    """A file of a recorder's."""

    def __init__(self, recorder: Recorder, path: Path, number: int, flags: int) -> None:
        self.recorder, self.number = recorder, number
        self.fd = os.open(path, flags | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, data: bytes) -> None:
        operation = Operation("append", self.number, data=data)
        if self.recorder.fail is not None:
            written = self.recorder.fail(operation)
            if written is not None:
                part = data[:written]
                os.write(self.fd, part)
                self.recorder.operations.append(operation._replace(data=part))
                raise OSError(28, os.strerror(28))
        self.recorder.operations.append(operation)
        os.write(self.fd, data)

    def sync(self) -> None:
        self.recorder.note(Operation("sync", self.number))

    def truncate(self, size: int) -> None:
        self.recorder.note(Operation("truncate", self.number, size=size))
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class _Content:
    """A file's bytes: what is durable, and what was done since."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = self.now = durable
        self.cuts: list[int] = []
        """Sizes that it was cut to since the last sync."""

    def append(self, data: bytes) -> None:
        self.now += data

    def truncate(self, size: int) -> None:
        self.now = self.now[:size]
        self.cuts.append(size)

    def sync(self) -> None:
        self.durable, self.cuts = self.now, []


class Disk(NamedTuple):
    """One directory that a power failure could have left: `how` says which."""

    how: str
    files: dict[str, bytes]


class PowerFailure:
    """The state after some operations, as POSIX has it: feed it one by one, and ask for disks in between."""

    def __init__(self, begun: dict[str, bytes]) -> None:
        self.contents = {number: _Content(data) for number, data in enumerate(begun.values())}
        self.entries: dict[str, int] = dict(zip(begun, self.contents, strict=True))
        self.durable_entries = dict(self.entries)
        self.waiting: list[Operation] = []
        """Operations on the directory since its last sync."""

    def feed(self, operation: Operation) -> None:
        kind = operation.kind
        if kind == "append":
            self.contents[operation.file].append(operation.data)
        elif kind == "sync":
            self.contents[operation.file].sync()
        elif kind == "truncate":
            self.contents[operation.file].truncate(operation.size)
        elif kind == "sync directory":
            self.durable_entries, self.waiting = dict(self.entries), []
        elif kind != "mark":
            if kind == "create":
                self.contents[operation.file] = _Content()
            _enter(self.entries, operation)
            self.waiting.append(operation)

    def disks(self, luck: random.Random, draws: int) -> Iterator[Disk]:
        """Disks that are possible now: those at the ends (all kept, all lost, each kind alone), and some drawn."""
        yield Disk("all kept", self._disk(self.entries, lambda content: content.now))
        yield Disk("all lost", self._disk(self.durable_entries, lambda content: content.durable))
        if self._unsynced():
            yield Disk("bytes lost, names kept", self._disk(self.entries, lambda content: content.durable))
            yield Disk("bytes zeroed", self._disk(self.entries, _zeroed))
            yield Disk("bytes kept, names lost", self._disk(self.durable_entries, lambda content: content.now))
        elif not self.waiting:
            return
        for n in range(draws):
            entries = dict(self.durable_entries)
            for operation in self.waiting:
                if luck.random() < 0.5:
                    _enter(entries, operation)
            yield Disk(f"draw {n}", self._disk(entries, lambda content: _drawn(content, luck)))

    def _unsynced(self) -> bool:
        return any(content.now != content.durable for content in self.contents.values())

    def _disk(self, entries: dict[str, int], bytes_of: Callable[[_Content], bytes]) -> dict[str, bytes]:
        return {name: bytes_of(self.contents[number]) for name, number in entries.items()}


def _enter(entries: dict[str, int], operation: Operation) -> None:
    """A change of names: one that lacks what came before it (another that was lost) still does its own part."""
    if operation.kind == "create":
        entries[operation.name] = operation.file
    elif operation.kind == "unlink":
        entries.pop(operation.name, None)
    elif operation.kind == "rename":
        entries.pop(operation.name, None)
        entries[operation.other] = operation.file
    elif operation.kind == "link":
        entries[operation.other] = operation.file


def _zeroed(content: _Content) -> bytes:
    if content.cuts or len(content.now) <= len(content.durable):
        return content.now
    return content.durable + bytes(len(content.now) - len(content.durable))


def _drawn(content: _Content, luck: random.Random) -> bytes:
    """The bytes of one file: of each sector written since the last sync, the new, zeros, or nothing from there on."""
    durable, now = content.durable, content.now
    if now == durable or luck.random() < 0.2:
        return durable
    if content.cuts or luck.random() < 0.2:
        return now
    kept = bytearray(durable)
    end = luck.choice([len(now), luck.randint(len(durable), len(now))])
    at = len(durable)
    while at < end:
        edge = min(end, (at // SECTOR + 1) * SECTOR)
        kept += now[at:edge] if luck.random() < 0.6 else bytes(edge - at)
        at = edge
    return bytes(kept)


def lay(disk: Disk, root: Path) -> None:
    """Make `root` a directory with that content."""
    root.mkdir(exist_ok=True)
    for path in root.iterdir():
        path.unlink()
    for name, data in disk.files.items():
        (root / name).write_bytes(data)
