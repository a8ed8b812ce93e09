"""The bytes of a file or of standard input, decompressed, as they come. All of it blocks: it runs in a reader's thread.

A read gives at most as many bytes as asked for, b"" at the end, None when there is nothing for now (standard input
only). What cannot be read is an InputError that names the file and the byte.
"""

import io
import os
import select
import stat
import sys
from pathlib import Path
from typing import Protocol

from flowkit.errors import InputError
from flowkit.source.file_archive import GzipBytes, ZstdBytes

BOM = b"\xef\xbb\xbf"

POLL_MS = 100
"""How long a read of standard input waits before it says that there is nothing for now."""


class RawBytes(Protocol):
    """A stream of bytes with a beginning and, but for standard input, an end."""

    size: int | None
    """The length of the file on disk in bytes, None where `taken` cannot be told or there is no file."""

    @property
    def taken(self) -> int:
        """How many bytes of the file on disk were used so far."""

    def read(self, limit: int) -> bytes | None: ...

    def ended(self) -> bool:
        """True if it is known, without a read, that nothing is left."""

    def close(self) -> None: ...


def open_bytes(path: str, compression: str, offset: int) -> RawBytes:
    """The bytes of `path` from the (decompressed) `offset`, which must be the start of a line.

    Raises InputError if there is no such readable file, or if it is not the one that was read up to `offset`.
    """
    if path == "-":
        return StdinBytes()
    file = _open(path)
    try:
        if compression == "":
            return PlainBytes(path, file, offset)
        raw: RawBytes = (
            GzipBytes(path, file, os.fstat(file.fileno()).st_size) if compression == ".gz" else ZstdBytes(path, file)
        )
    except BaseException:
        file.close()
        raise
    try:
        skip(path, raw, offset)
    except BaseException:
        raw.close()
        raise
    return raw


def _open(path: str) -> io.FileIO:
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a directory. Name a file in it, such as {Path(path, 'data.jsonl')}")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is no regular file. Feed pipes and devices through standard input: -")
        return io.FileIO(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (looked from {Path.cwd()}). Check the path") from None
    except PermissionError:
        raise InputError(f"{path}: not readable by this user. Give it the right: chmod +r {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be opened: {error}") from error


def _changed(path: str, offset: int, found: str) -> InputError:
    return InputError(
        f"{path}: was read up to byte {offset}, but now {found}. It is not the same file: put that one back, "
        "or start anew without the stored state"
    )


def skip(path: str, raw: RawBytes, offset: int) -> None:
    """Read over what lies before `offset`. Raises InputError if that is no start of a line."""
    left, last = offset, b"\n"
    while left:
        piece = raw.read(min(left, 1 << 20))
        if not piece:
            raise _changed(path, offset, f"has {offset - left} bytes (decompressed)")
        left -= len(piece)
        last = piece[-1:]
    if _no_line_start(offset, last) and raw.read(1):
        raise _changed(path, offset, "no line begins there")


def _no_line_start(offset: int, last: bytes) -> bool:
    """True if what follows `last` at `offset` must not pass for a record: a last line without an end that has grown."""
    return offset > len(BOM) and last != b"\n"


class PlainBytes:
    """A regular file as it is."""

    def __init__(self, path: str, file: io.FileIO, offset: int) -> None:
        self._path = path
        self._file = file
        self.taken = offset
        self.size: int | None = self._length()
        if self.size < offset:
            raise _changed(path, offset, f"has {self.size} bytes")
        if self.size > offset > 0 and _no_line_start(offset, os.pread(file.fileno(), 1, offset - 1)):
            raise _changed(path, offset, "no line begins there")
        file.seek(offset)

    def read(self, limit: int) -> bytes:
        try:
            piece = self._file.read(limit)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read at byte {self.taken}: {error}") from error
        if not piece and self._length() < self.taken:
            raise _changed(self._path, self.taken, f"has {self._length()} bytes")
        self.taken += len(piece)
        return piece

    def ended(self) -> bool:
        return self._length() == self.taken

    def close(self) -> None:
        self._file.close()

    def _length(self) -> int:
        return os.fstat(self._file.fileno()).st_size


class StdinBytes:
    """Standard input: gives what is there, and does not wait long for more."""

    def __init__(self) -> None:
        if sys.stdin is None or sys.stdin.closed:
            raise InputError("standard input is closed: name a file instead of -")
        self.size: int | None = None
        self.taken = 0
        self._poll: select.poll | None = None
        try:
            self._fd = sys.stdin.fileno()
        except (OSError, ValueError):  # replaced by an object in memory (a test runner's): its reads never wait
            return
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def read(self, limit: int) -> bytes | None:
        try:
            if self._poll is None:
                piece: bytes = sys.stdin.buffer.read(limit)
            else:
                if not self._poll.poll(POLL_MS):
                    return None
                piece = os.read(self._fd, limit)
        except OSError as error:
            raise InputError(f"standard input cannot be read after byte {self.taken}: {error}") from error
        self.taken += len(piece)
        return piece

    def ended(self) -> bool:
        return False

    def close(self) -> None:
        """Leaves standard input open: it belongs to the process."""
