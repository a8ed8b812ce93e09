"""What an object of the S3 sink is made of: lines (JSON or CSV), compressed as one stream, or Parquet.

The bytes hang on the records alone, and on nothing that another try would do otherwise: not on the pieces in which the
records come, and on no clock. So whoever writes an object again, writes the very same.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Protocol

from flowkit.codec import csv_line
from flowkit.errors import ConfigError

BLOCK_BYTES = 256 << 10
"""So much is given to a compressor at once. Part of the format, as is `FLUSH_BLOCKS`."""
FLUSH_BLOCKS = 32

FORMATS = ("jsonl", "csv", "parquet")
COMPRESSIONS = {
    "jsonl": ("gz", "zst", "none"),
    "csv": ("gz", "zst", "none"),
    "parquet": ("snappy", "zst", "gz", "none"),
}
"""The first one is what is taken if nothing is said."""


class Encoder(Protocol):
    """Makes one object's bytes of its lines (each with its line end)."""

    @property
    def refused(self) -> Sequence[tuple[bytes, str]]:
        """Lines that can be in no such object, and why; all of them are known once it is finished."""

    def feed(self, lines: bytes) -> bytes:
        """Whole lines; the bytes that are ready."""

    def finish(self) -> bytes:
        """The last bytes."""


class Format(Protocol):
    """How objects are written."""

    codec: str
    suffix: str
    content_type: str
    is_work: bool
    """True if making the bytes takes longer than a turn of the event loop may: that is for a thread."""

    def check(self, where: str) -> None:
        """Raise ConfigError if records cannot be written so."""

    def begin(self) -> Encoder:
        """The encoder of one object."""


def format_of(name: str, compression: str, fields: Sequence[str] | None, element: Any) -> Format:
    """The format `name` (one of FORMATS) for records with these fields, of this type."""
    if name == "parquet":
        from flowkit.sink.s3_parquet import Parquet

        return Parquet(compression, element)
    return LineFormat(name, compression, fields)


class LineFormat:
    """JSON or CSV lines."""

    def __init__(self, name: str, compression: str, fields: Sequence[str] | None) -> None:
        self.codec = "csv" if name == "csv" else "json"
        self.content_type = "text/csv" if name == "csv" else "application/x-ndjson"
        self.suffix = f".{name}" + ("" if compression == "none" else f".{compression}")
        self.compression, self.fields = compression, fields
        self.is_work = compression != "none"

    def check(self, where: str) -> None:
        """As the protocol says."""
        if self.codec == "csv" and not self.fields:
            raise ConfigError(f"{where}: CSV needs columns, and the type of the records names none")

    def begin(self) -> Encoder:
        """As the protocol says."""
        head = csv_line(self.fields or ()) + b"\n" if self.codec == "csv" else b""
        return Plain(head) if self.compression == "none" else Compressed(self.compression, head)


class Plain:
    """Lines as they are."""

    refused: Sequence[tuple[bytes, str]] = ()

    def __init__(self, head: bytes) -> None:
        self._head = head

    def feed(self, lines: bytes) -> bytes:
        """As the protocol says."""
        head, self._head = self._head, b""
        return head + lines

    def finish(self) -> bytes:
        """As the protocol says."""
        return self.feed(b"")


class Compressed:
    """Lines as one gzip member (RFC 1952, without name or time) or one Zstandard frame (RFC 8878)."""

    refused: Sequence[tuple[bytes, str]] = ()

    def __init__(self, compression: str, head: bytes) -> None:
        self._rest = head
        self._stream: _Gzip | _Zstd = _Gzip() if compression == "gz" else _Zstd()

    def feed(self, lines: bytes) -> bytes:
        """As the protocol says."""
        data = self._rest + lines
        whole = len(data) - len(data) % BLOCK_BYTES
        self._rest = data[whole:]
        return b"".join([self._stream.add(data[at : at + BLOCK_BYTES]) for at in range(0, whole, BLOCK_BYTES)])

    def finish(self) -> bytes:
        """As the protocol says."""
        return self._stream.add(self._rest) + self._stream.end()


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def add(self, block: bytes) -> bytes:
        return self._stream.compress(block)

    def end(self) -> bytes:
        return self._stream.flush()


class _Zstd:
    def __init__(self) -> None:
        import cramjam

        self._stream = cramjam.zstd.Compressor(level=3)
        self._blocks = 0

    def add(self, block: bytes) -> bytes:
        self._stream.compress(block)
        self._blocks += 1
        return b"" if self._blocks % FLUSH_BLOCKS else bytes(self._stream.flush())

    def end(self) -> bytes:
        return bytes(self._stream.finish())
