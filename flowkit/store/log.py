"""The write-ahead log: frames in the order of commits. A log is a file; a new one is begun at every opening and flush.

    log-NNNNNN := header record*               as in `records`; the payloads are frames, as in `frame`

The last frame of the newest log may be undecided. A frame that did not count is cut off before another follows.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowkit.errors import StoreCorrupt
from flowkit.store.cipher import StoreKey
from flowkit.store.files import Files
from flowkit.store.frame import Frame, decode_frame, encode_frame
from flowkit.store.records import LOG, decode_header, decode_records, encode_header, encode_record


class Logged(NamedTuple):
    """A frame, and where its record stands `[start, end)` in the log (bytes)."""

    frame: Frame
    start: int
    end: int


def log_path(directory: Path, number: int) -> Path:
    """The file of a log."""
    return directory / f"log-{number:06}"


def log_number(path: Path) -> int:
    """The number in a log's name."""
    return int(path.name.removeprefix("log-"))


def logs(directory: Path) -> list[Path]:
    """All logs in a directory, oldest first."""
    return sorted((path for path in directory.glob("log-*") if path.name[4:].isdecimal()), key=log_number)


def read_log(path: Path, key: StoreKey | None = None, *, promised: int = 0) -> Iterator[Logged]:
    """The frames of a log, but for a torn one at its end. Raises StoreCorrupt; FileNotFoundError if it is gone.

    `promised` bytes are known to have been durable: a log whose whole frames end before is damaged.
    """
    name, data = str(path), path.read_bytes()
    if len(data) < promised:
        raise StoreCorrupt(f"{name}: ends after {len(data)} bytes, but had {promised}: restore this file from a copy")
    header = decode_header(data, LOG, name, key)
    if header is None and promised:
        raise StoreCorrupt(f"{name}: damaged at offset 0: restore this file from a copy")
    if header is not None:
        for record in decode_records(data, header, name, promised):
            yield Logged(decode_frame(record.payload, name, record.start), record.start, record.end)


def cut_log(files: Files, path: Path, size: int) -> None:
    """Let a log that nobody has open end after `size` bytes; durable. Raises OSError."""
    with contextlib.closing(files.open(path)) as writer:
        if path.stat().st_size > size:
            writer.truncate(size)
        writer.sync()


class Log:
    """The owner's log, open for more frames."""

    def __init__(self, files: Files, directory: Path, number: int, key: StoreKey | None) -> None:
        """Begin a log; durable, with its directory entry. Raises OSError."""
        self.path, self.number = log_path(directory, number), number
        self._cipher = None if key is None else key.new_cipher()
        header = encode_header(LOG, self._cipher)
        self._turn = threading.Lock()
        self._writer = files.create(self.path)
        try:
            self._writer.append(header)
            self._writer.sync()
            files.sync_directory(directory)
        except OSError:
            self._writer.close()
            with contextlib.suppress(OSError):
                files.unlink(self.path)  # the next try takes the same name
            raise
        self.begins = self.size = self.synced = len(header)

    def append(self, frame: Frame) -> int:
        """Write a frame; the size of its record. Raises OSError."""
        record = encode_record(encode_frame(frame), self.size, self.synced, self._cipher)
        self._writer.append(record)
        self.size += len(record)
        return len(record)

    def append_and_sync(self, frame: Frame) -> None:
        """Write a frame, durable when this returns. Raises OSError."""
        self.append(frame)
        self.sync()

    def sync(self) -> None:
        """Make everything appended durable. Raises OSError."""
        with self._turn:  # two threads may: by the clock, and because the log ends
            if self.synced < self.size:
                size = self.size
                self._writer.sync()
                self.synced = size

    def cut(self, size: int) -> None:
        """Take back what was appended after `size`; durable. Raises OSError."""
        self._writer.truncate(size)
        self._writer.sync()
        self.size = self.synced = size

    def close(self) -> None:
        """Let go of the file."""
        with self._turn:
            self._writer.close()
