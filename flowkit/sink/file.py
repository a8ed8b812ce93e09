"""Files and standard output as a sink: a hand-off says which bytes stand where, so delivering it twice changes nothing.

    .jsonl .ndjson .json    one JSON value a line; a tombstone is the line `null`
    .csv                    RFC 4180 with a header; tombstones are left out
    .txt                    one text a line; tombstones are left out
    … .gz, … .zst           the same, compressed in blocks
    -                       standard output: one JSON value a line

A compressed file must not show where commits fell. So the lines are cut into blocks of a fixed length, each a gzip
member or Zstandard frame of its own; what does not fill a block yet waits in the state. At a stop it is written as a
short block, which the next run replaces: also a file that was written in several runs is that of an unbroken one.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from flowkit.aws import Right
from flowkit.codec import csv_line
from flowkit.errors import ConfigError
from flowkit.sink.file_target import DiskFile, Stdout
from flowkit.sink.seam import Outgoing, Rejected, SinkTask
from flowkit.store import in_thread

CODECS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".txt": "text"}

BLOCK_BYTES = 256 << 10
"""How many bytes of lines make a compressed block. Part of the format: another number gives another file."""


class FileDestination:
    """Files, one a task: `{partition}` and `{group}` in `path` are filled in. See `FileSink` for the rest."""

    def __init__(self, path: str, fields: Sequence[str] | None = None, *, sync: bool = True) -> None:
        self.path, self.fields, self.sync = path, fields, sync
        probe = self._sink("0", "group")
        self.codec, self.guarantee = probe.codec, probe.guarantee

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Each file is closed by its task."""

    def check(self) -> None:
        """As the protocol says."""
        self._sink("0", "group").check()

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """As the protocol says."""
        missing = ["{group}"] if len(groups) > 1 and "{group}" not in self.path else []
        if largest > 1 and "{partition}" not in self.path:
            missing.append("{partition}")
        if not missing:
            return ""
        return f"{tasks} tasks write it, and a file has one writer: put {' and '.join(missing)} into the name"

    def rights(self) -> Sequence[Right]:
        """None: files have no roles."""
        return ()

    def sink(self, task: SinkTask) -> "FileSink":
        """As the protocol says."""
        return self._sink(str(task.partition), task.group)

    def _sink(self, partition: str, group: str) -> "FileSink":
        path = self.path.replace("{partition}", partition).replace("{group}", group)
        return FileSink(path, self.fields, sync=self.sync)


class FileSink:
    """Writes records to the file `path`.

    `fields` are the columns of CSV, which its header names; they may be set until `open`. With `sync` a delivery
    returns once the data is on disk: only then does the guarantee outlive a power failure. Without stored state to go
    on from, `sync=False` loses nothing. Raises ConfigError if the name tells no format.
    """

    def __init__(self, path: str, fields: Sequence[str] | None = None, *, sync: bool = True) -> None:
        self.path = path
        self.codec: str | None
        self.codec, compression = format_of(path)
        self.fields = fields
        self._target: DiskFile | Stdout = Stdout() if path == "-" else DiskFile(path, sync=sync)
        self.guarantee, self.repeats = self._target.guarantee, self._target.repeats
        self._compress = COMPRESSIONS.get(compression)
        self._null = b"null" if self.codec == "json" else None
        self._offset = 0
        """Where the next hand-off begins."""
        self._start = 0
        """Where the last hand-off begins: what lies before was delivered when it was committed."""
        self._end = 0
        """How long the file is once everything staged is delivered: `_offset` and, after a stop, the short block."""
        self._tail = b""
        self._begun = False
        """True once something was staged: then what is delivered is of our own commits."""

    def check(self) -> None:
        """Raise ConfigError if no file can be there (no such directory, or it is one itself); changes nothing."""
        if self.codec == "csv" and not self.fields:
            raise ConfigError(f"{self.path}: CSV needs columns, and the type of the records names none")
        self._target.check()

    async def open(self, state: Any) -> None:
        """Begin a new file (state None: in place of one that is there), or go on with one.

        Bytes behind those that `state` knows are of another run, and cut off once the first commit from here counts.
        Raises ConfigError if the file cannot be written there at all, StoreError if committed bytes are missing.
        """
        self.check()
        known = state or {"offset": 0, "start": 0, "end": 0, "tail": b""}
        self._offset, self._start, self._end = known["offset"], known["start"], known["end"]
        self._tail = known["tail"]
        await in_thread(self._target.open, None if state is None else (self._start, self._end))

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """The hand-off {offset, data}: `data` are the file's bytes from `offset` to its end. None if there are none."""
        data = self._lines(records, final)
        last = b""
        if self._compress is not None:
            data, last = self._blocks(data, self._compress, final)
        self._start, self._begun = self._offset, True
        if not data and not last and not self._target.rest:
            return None
        self._offset += len(data)
        self._end = self._offset + len(last)
        return {"offset": self._start, "data": data + last}

    def state(self) -> Any:
        """What `open` needs: the file's lengths, and the lines that do not fill a compressed block yet."""
        return {"offset": self._offset, "start": self._start, "end": self._end, "tail": self._tail}

    async def deliver(self, handoff: Any) -> Sequence[Rejected]:
        """Write a hand-off where it belongs, and cut off what lies behind it. None does nothing.

        That which the file was opened with is not the last one if there is more in it: then nothing is cut off, and
        its short block is left out, in whose place there may be others by now.

        Raises StoreError if the disk does not take it (it may be delivered again), or if bytes before it are missing;
        OutputClosed if nobody reads standard output any more.
        """
        if handoff is None:
            return ()
        offset, data = handoff["offset"], handoff["data"]
        last = self._begun or not self._target.rest
        if not last:
            data = data[: self._offset - offset]
        await in_thread(partial(self._target.write, offset, data, last=last))
        return ()

    async def close(self) -> None:
        """Let go of the file."""
        self._begun = False
        self._target.close()

    def _lines(self, records: Sequence[Outgoing], final: bool) -> bytes:
        values = [record.value for record in records]
        if None in values:
            lines = [self._null if value is None else value for value in values]
            present = [line for line in lines if line is not None]
        else:
            present = values  # type: ignore[assignment]
        if self.codec == "csv" and not self._offset and not self._tail and (values or final):
            present = [csv_line(self.fields or ()), *present]
        return b"\n".join([*present, b""]) if present else b""

    def _blocks(self, lines: bytes, compress: Callable[[bytes], bytes], final: bool) -> tuple[bytes, bytes]:
        """Whole blocks, and at a stop what is left as a short one."""
        lines = self._tail + lines
        whole = len(lines) - len(lines) % BLOCK_BYTES
        blocks = b"".join([compress(lines[at : at + BLOCK_BYTES]) for at in range(0, whole, BLOCK_BYTES)])
        self._tail = lines[whole:]
        # Not even an empty file may be without a block: gzip takes one of no bytes for a broken archive.
        short = final and (self._tail or not (self._offset or blocks))
        return blocks, compress(self._tail) if short else b""


def format_of(path: str) -> tuple[str, str]:
    """Codec and compression ("" for none) by the name of a file. Raises ConfigError for a name that tells neither."""
    if path == "-":
        return "json", ""
    name = Path(path)
    compression = name.suffix if name.suffix in COMPRESSIONS else ""
    suffix = Path(name.stem).suffix if compression else name.suffix
    if suffix not in CODECS:
        if name.is_dir():
            raise ConfigError(f"{path}: is a directory. Name a file in it, such as {name / 'out.jsonl'}")
        known = " ".join(CODECS)
        raise ConfigError(f"{path}: a name must end in one of {known}, with or without .gz or .zst; or be - for stdout")
    return CODECS[suffix], compression


def _gzip(data: bytes) -> bytes:
    """A member without name or time (RFC 1952): the same bytes at any time."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def _zstd(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.zstd.compress(data, 3))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {".gz": _gzip, ".zst": _zstd}
