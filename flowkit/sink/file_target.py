"""Where a file sink's bytes go: a file on disk, written at offsets, or standard output. All of it blocks."""

import errno
import os
import stat
import sys
from pathlib import Path

from flowkit.errors import ConfigError, FlowkitError, StoreError, StorePoisoned

CURES = {
    errno.ENOSPC: "the disk is full: make room and start again",
    errno.EDQUOT: "the disk quota is used up: make room and start again",
    errno.EFBIG: "the file is as large as this system lets it be: raise the limit (ulimit -f) and start again",
}

sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class OutputClosed(FlowkitError):
    """Nobody reads standard output any more (`flowkit run … | head`): a reason to stop, not a failure."""


class DiskFile:
    """A regular file; what is written at an offset ends it."""

    guarantee = "exactly once: the file equals that of an unbroken run"
    repeats = False

    def __init__(self, path: str, *, sync: bool) -> None:
        self._path = path
        self._sync = sync
        self._fd = -1
        self._poisoned: OSError | None = None
        self._length = 0
        """How long the file is as far as we know: it is longer if a successor has written to it."""
        self.rest = False
        """True if the file goes on behind what it was opened with, until the first write."""

    def open(self, known: tuple[int, int] | None) -> None:
        """Begin anew (`known` None), or go on: (bytes that must be there, bytes that may be there).

        What lies behind them is cut off by the first write only. Who stood still while he opened does not know yet
        that it may be his successor's; what he writes comes after a commit, which he is refused.
        """
        self.close()
        self.check()
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
        if known is None or known[0] == 0:
            flags |= os.O_CREAT
        try:
            self._fd = os.open(self._path, flags, 0o666)
            length = os.fstat(self._fd).st_size
            if known is not None and length < known[0]:
                raise self._cut_off(length, known[0])
            keep = 0 if known is None else known[1]
            self._length, self.rest = length, length > keep
            if self._sync:
                self._sync_directory()
        except FileNotFoundError:
            assert known is not None
            raise self._cut_off(None, known[0]) from None
        except OSError as error:
            self.close()
            raise self._refused(error) from error
        except StoreError:
            self.close()
            raise

    def write(self, offset: int, data: bytes, *, last: bool = True) -> None:
        """Put `data` at `offset`, and make the file end with it if it is the `last`.

        Does nothing if a successor has gone on from there, who had that too.
        """
        if self._poisoned is not None:
            raise self._poison() from self._poisoned
        try:
            length = os.fstat(self._fd).st_size
            if length < offset:
                raise self._cut_off(length, offset)
            if length > self._length:
                return
            left, at = memoryview(data), offset
            while left:
                written = os.pwrite(self._fd, left, at)
                left, at = left[written:], at + written
                self._length = max(self._length, at)
            if last:
                if length > at:
                    os.ftruncate(self._fd, at)
                self._length, self.rest = at, False
        except OSError as error:
            raise self._failed(error) from error
        if self._sync:
            try:
                sync_data(self._fd)
            except OSError as error:
                # The kernel may have dropped the pages and will report success the next time: believe nothing more.
                self._poisoned = error
                raise self._poison() from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check(self) -> None:
        """Raise ConfigError if no regular file can be at the path; changes nothing."""
        path = Path(self._path)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if not path.parent.exists():
                raise ConfigError(
                    f"{path}: the directory {path.parent} does not exist. Make it: mkdir -p {path.parent}"
                ) from None
            return
        except (OSError, ValueError) as error:
            raise self._refused(error) from error
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: is a directory. Name a file in it, such as {path / 'out.jsonl'}")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: is no regular file. Write to standard output instead: -")

    def _sync_directory(self) -> None:
        directory = os.open(Path(self._path).parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _refused(self, error: Exception) -> FlowkitError:
        if isinstance(error, PermissionError) or getattr(error, "errno", 0) == errno.EROFS:
            return ConfigError(
                f"{self._path}: cannot be written by this user ({error.args[-1]}). "
                f"Give the right to it and to {Path(self._path).parent}, or write elsewhere"
            )
        if getattr(error, "errno", 0) in CURES:
            assert isinstance(error, OSError)
            return self._failed(error)
        return ConfigError(f"{self._path}: cannot be opened for writing: {error}")

    def _failed(self, error: OSError) -> StoreError:
        cure = CURES.get(error.errno or 0, "see to the disk and start again")
        return StoreError(f"{self._path}: cannot be written: {error.strerror}. Nothing committed is lost; {cure}")

    def _cut_off(self, length: int | None, needed: int) -> StoreError:
        found = "is gone" if length is None else f"has {length} bytes"
        return StoreError(
            f"{self._path}: {found}, but {needed} bytes of it are committed: somebody cut the output. "
            "Put the file back, or start anew without the stored state"
        )

    def _poison(self) -> StorePoisoned:
        return StorePoisoned(
            f"{self._path}: could not be synced to disk: {self._poisoned}. Check the disk, start again"
        )


class Stdout:
    """Standard output. What went out cannot be taken back, so a crash may show records twice."""

    guarantee = "at least once: after a crash the records of the last commit may be printed again"
    repeats = True
    rest = False

    def __init__(self) -> None:
        self._written = 0
        """Up to which offset this process has written: a hand-off delivered twice is printed once."""

    def check(self) -> None:
        """Raise ConfigError if there is no standard output."""
        if sys.stdout is None or sys.stdout.closed:
            raise ConfigError("standard output is closed: name a file instead of -")

    def open(self, known: tuple[int, int] | None) -> None:
        self.check()
        self._written = 0

    def write(self, offset: int, data: bytes, *, last: bool = True) -> None:
        """Print `data`, unless this process has."""
        if offset + len(data) <= self._written:
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            self._divert()
            raise OutputClosed("nobody reads standard output any more") from error
        except OSError as error:
            cure = CURES.get(error.errno or 0, "see to where it leads and start again")
            raise StoreError(f"standard output cannot be written: {error.strerror}; {cure}") from error
        self._written = offset + len(data)

    def close(self) -> None:
        """Leaves standard output open: it belongs to the process."""

    def _divert(self) -> None:
        # The interpreter flushes what the buffer still holds when it exits, and would complain of the same pipe.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
