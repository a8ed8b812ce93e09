"""Compressed files as streams of bytes: gzip and Zstandard, of any size, any number of members or frames.

A read gives at most as many bytes as asked for, b"" at the end; what is cut off or damaged is an InputError that
names the file and the byte, once everything before it was given.
"""

import io
import mmap
import os
import threading
import zlib
from typing import Any, Protocol

from flowkit.errors import InputError

COMPRESSED_BYTES = 1 << 17


class Bytes(Protocol):
    """What an archive is read from."""

    def read(self, limit: int, /) -> bytes: ...
    def close(self) -> None: ...


class GzipBytes:
    """A gzip file of any number of members (RFC 1952, section 2.2), zero bytes between and after them ignored."""

    def __init__(self, path: str, file: "Bytes", size: int) -> None:
        self._path = path
        self._file = file
        self._input = b""
        self._member: Any = None
        self._given = 0
        self.taken = 0
        self.size: int | None = size

    def read(self, limit: int) -> bytes:
        while True:
            if self._member is None and not self._next_member():
                return b""
            try:
                piece: bytes = self._member.decompress(self._input, limit)
            except zlib.error as error:
                raise self._bad(f"is damaged near byte {self.taken}: {error}") from error
            rest = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self.taken += len(self._input) - len(rest)
            self._input = rest
            if self._member.eof:
                self._member = None
            if piece:
                self._given += len(piece)
                return piece
            if self._member is not None and not self._input and not self._fill():
                raise self._bad(f"is cut off: it ends at byte {self.taken} in the middle of a gzip member")

    def ended(self) -> bool:
        return False

    def close(self) -> None:
        self._file.close()

    def _next_member(self) -> bool:
        while self._input or self._fill():
            padding = len(self._input) - len(self._input.lstrip(b"\0"))
            self.taken += padding
            self._input = self._input[padding:]
            if self._input:
                self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
                return True
        return False

    def _fill(self) -> bool:
        try:
            self._input = self._file.read(COMPRESSED_BYTES)
        except OSError as error:
            raise self._bad(f"cannot be read at byte {self.taken}: {error}") from error
        return bool(self._input)

    def _bad(self, what: str) -> InputError:
        return _bad_archive(self._path, what, self._given)


def _bad_archive(path: str, what: str, given: int) -> InputError:
    return InputError(
        f"{path}: the archive {what}, {given} bytes into the decompressed data. "
        "All whole records before were read; get the file again"
    )


class ZstdBytes:
    """A Zstandard file of any number of frames (RFC 8878).

    cramjam decodes whole inputs only, but into any file: here into a pipe, from a thread of its own, so that an
    archive of any size needs one pipe of memory. The input is mapped: like with any mapped file, whoever cuts the
    archive off while it is read kills the process (it goes on from its last commit).
    """

    def __init__(self, path: str, file: io.FileIO) -> None:
        import cramjam

        self._path = path
        self._given = 0
        self._length = os.fstat(file.fileno()).st_size
        self._error: Exception | None = None
        self._pipe: io.FileIO | None = None
        self.size: int | None = None  # how much of the map is used is known to the decoder alone
        self.taken = 0
        if self._length == 0:  # nothing can be mapped, nothing is there
            file.close()
            return
        with file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        source, target = os.pipe()
        self._pipe = io.FileIO(source, "rb")
        # It can only open by name. Not readable: else the pipe would never break when the reader goes away.
        output = [cramjam.File(f"/dev/fd/{target}", read=False, write=True, truncate=False, append=True)]
        os.close(target)

        def decode() -> None:
            try:
                cramjam.zstd.decompress_into(data, output.pop())  # popped: the pipe's end closes with the call
            except Exception as error:  # noqa: BLE001 - told by the read that finds the pipe's end
                self._error = error
            finally:
                data.close()

        self._thread = threading.Thread(target=decode, name=f"zstd {path}", daemon=True)
        self._thread.start()

    def read(self, limit: int) -> bytes:
        if self._pipe is None:
            return b""
        piece: bytes = self._pipe.read(limit)
        self._given += len(piece)
        if not piece:
            self._thread.join()
            if self._error is not None:
                cut = "incomplete" in str(self._error)
                what = f"is cut off: it ends at byte {self._length} in the middle of a frame" if cut else "is damaged"
                raise _bad_archive(self._path, what if cut else f"{what} ({self._error})", self._given)
        return piece

    def ended(self) -> bool:
        return False

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._thread.join()
