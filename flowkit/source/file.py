"""Files and standard input as a source: one split a file, read in order, to be gone on with after any record.

    .jsonl .ndjson .json    one JSON value a line
    .csv                    RFC 4180; the first record is the header; quoted cells may hold newlines
    .txt                    one text a line
    … .gz, … .zst           the same, compressed; any number of members or frames
    -                       standard input: one JSON value a line; cannot be resumed

Blank lines are skipped, a UTF-8 byte order mark at the head too; lines end with LF or CRLF.
"""

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread

from flowkit.errors import ConfigError, InputError
from flowkit.source.file_batch import FileBatch, Place
from flowkit.source.file_bytes import RawBytes, open_bytes
from flowkit.source.file_cut import HEAD_BYTES, Chunk, Cutter

T = TypeVar("T")

CODECS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
COMPRESSIONS = (".gz", ".zst")

CHUNK_BYTES = 1 << 20
HEADER_CHUNK_BYTES = 1 << 16
MAX_RECORD_BYTES = 64 << 20


def format_of(path: str) -> tuple[str, str]:
    """Codec and compression ("" for none) by the name of a file. Raises ConfigError for a name that tells neither."""
    if path == "-":
        return "json", ""
    name = Path(path)
    compression = name.suffix if name.suffix in COMPRESSIONS else ""
    suffix = Path(name.stem).suffix if compression else name.suffix
    if suffix not in CODECS:
        if name.is_dir():
            raise ConfigError(f"{path}: is a directory. Name a file in it, such as {name / 'data.jsonl'}")
        known = " ".join(CODECS)
        raise ConfigError(f"{path}: a name must end in one of {known}, with or without .gz or .zst; or be - for stdin")
    return CODECS[suffix], compression


class FileSource:
    """A topic bound to files: split i is `paths[i]`.

    `chunk_bytes` is how much is read at once, and so the most that a batch holds. A record of more than
    `max_record_bytes` is not kept in memory: see `FileBatch.oversize`. Raises ConfigError if a name tells no format, or
    if the names tell several.
    """

    def __init__(
        self, paths: Sequence[str], *, chunk_bytes: int = CHUNK_BYTES, max_record_bytes: int = MAX_RECORD_BYTES
    ) -> None:
        self.paths = tuple(paths)
        self._chunk_bytes = chunk_bytes
        self._max_record_bytes = max(max_record_bytes, HEAD_BYTES)
        self.codec: str | None = None
        problems: list[str] = []
        for path in self.paths:
            try:
                codec, _ = format_of(path)
            except ConfigError as error:
                problems.extend(error.problems)
                continue
            if self.codec not in (None, codec):
                problems.append(f"{path}: is {codec}, but {self.paths[0]} is {self.codec}: one topic has one format")
            self.codec = self.codec or codec
        if self.paths.count("-") > 1:
            problems.append("-: standard input can be read only once")
        if not self.paths:
            problems.append("no file is named")
        if problems:
            raise ConfigError(*problems)

    def check(self) -> None:
        """Raise InputError for the first file that cannot be read; what it holds is not looked at."""
        for path in self.paths:
            if path != "-":
                open_bytes(path, "", 0).close()

    async def splits(self) -> Sequence[int]:
        """One a file, in the order in which they were named."""
        return range(len(self.paths))

    async def open(self, split: int, position: Any) -> "FileReader":
        """A reader of file `split` from `position` (None: from the start), with its first chunk read.

        Raises InputError if the file cannot be read, is not the one that `position` was taken from, or is standard
        input and something was already read from it.
        """
        path = self.paths[split]
        codec, compression = format_of(path)
        return await open_reader(
            "<stdin>" if path == "-" else path,
            codec,
            lambda offset: open_bytes(path, compression, offset),
            _place(path, position),
            chunk_bytes=self._chunk_bytes,
            max_record_bytes=self._max_record_bytes,
        )


async def open_reader(
    name: str,
    codec: str,
    open_raw: Callable[[int], RawBytes],
    place: Place | None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> "FileReader":
    """A reader of what `open_raw` gives from an offset on, from `place` (None: from the start), its first chunk read.

    `open_raw` runs in the reader's thread. Raises InputError.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"read {name}")

    def begin() -> tuple[tuple[str, ...] | None, Cutter]:
        fields, start = None, place
        if codec == "csv":
            head = Cutter(name, codec, open_raw(0), (0, 0), HEADER_CHUNK_BYTES, max_record_bytes)
            fields, after = _header(head)
            start = place or after
        start = start or (0, 0)
        return fields, Cutter(name, codec, open_raw(start[0]), start, chunk_bytes, max_record_bytes)

    begun = thread.submit(begin)
    try:
        fields, cutter = await _result(begun)
    except BaseException:
        begun.add_done_callback(_let_go)  # whoever was to get it has gone
        thread.shutdown(wait=False)
        raise
    reader = FileReader(name, cutter, thread, fields)
    try:
        await reader.load()
    except BaseException:
        await reader.close()
        raise
    return reader


def _let_go(begun: "Future[tuple[Any, Cutter]]") -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result()[1].raw.close()


def _header(cutter: Cutter) -> tuple[tuple[str, ...], Place]:
    """The columns of a CSV file and where its data begins; no columns if the file is empty."""
    try:
        batch = cutter.next()
    finally:
        cutter.raw.close()
    if batch is None:
        return (), (0, 0)
    try:
        [header] = csv.reader(io.StringIO((batch.values[0] or b"").decode(), newline=""), strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{batch.where(0)}: not a CSV header: {error}") from error
    twice = sorted({field for field in header if header.count(field) > 1})
    if twice:
        raise InputError(f"{batch.where(0)}: the header names a column twice: {', '.join(twice)}. Rename one")
    return tuple(header), batch.place(1)


class FileReader:
    """Reads one file. While a chunk is worked on, piece by piece, the next one is read in a thread."""

    def __init__(self, path: str, cutter: Cutter, thread: ThreadPoolExecutor, fields: tuple[str, ...] | None) -> None:
        self.at_end = False
        self.fields = fields
        """The columns of a CSV file, from its header; None for other formats."""
        self.size = cutter.raw.size
        """The length of the file in bytes, for a progress bar; None where `read` cannot be told in such bytes."""
        self.read = cutter.raw.taken
        """How many bytes of the file were read, those of the current chunk included."""
        self._path = path
        self._cutter = cutter
        self._thread = thread
        self._next: Future[Chunk | None] | None = None
        self._chunk: Chunk | None = None
        self._cut = 0
        self._all_read = False
        self._records: FileBatch | None = None
        self._given = 0
        self._place: Place = (0, 0)
        self._closed = False

    async def fetch(self, max_records: int) -> FileBatch | None:
        """At most `max_records`, of one piece; None at the end or, on standard input, if nothing came for 0.1 s.

        Raises InputError if the file cannot be read further; what was whole before that was given by then.
        """
        if self._records is None:
            await self.load()
        records = self._records
        if records is None:
            return None
        batch = records.part(self._given, max(max_records, 1), self._place)
        self._given += len(batch)
        self._place = batch.end
        if self._given == len(records):
            self._records = None
            self.at_end = self._is_drained()
        return batch

    async def load(self) -> None:
        """Get records ready, if there are any for now."""
        while self._records is None and not self.at_end:
            if self._chunk is not None:
                records = self._cutter.cut(self._next_piece(self._chunk))
            elif self._all_read:
                records = self._cutter.unclosed()
            elif await self._read():
                continue
            else:
                return
            if len(records):
                self._records, self._given, self._place = records, 0, records.start
            else:
                self.at_end = self._is_drained()

    def _next_piece(self, chunk: Chunk) -> Chunk:
        piece = chunk.piece(self._cut)
        self._cut += len(piece.data)
        if self._cut == len(chunk.data):
            self._chunk = None
        return piece

    async def _read(self) -> bool:
        """Take the chunk that was read meanwhile, and read on; False if there is nothing for now."""
        if self._next is None:
            self._next = self._thread.submit(self._cutter.read)
        # An error stays where it is: whoever fetches again gets it again.
        chunk = self._next.result() if self._next.done() else await _result(self._next)
        self._next = None
        self.read = self._cutter.raw.taken
        self._all_read = self._cutter.all_read
        if chunk is not None:
            self._chunk, self._cut = chunk, 0
            if not self._all_read:
                self._next = self._thread.submit(self._cutter.read)
        return chunk is not None or self._all_read

    def _is_drained(self) -> bool:
        return self._all_read and self._chunk is None and not self._cutter.is_open

    async def close(self) -> None:
        """Let go of the file. Waits for a read that is under way (on standard input up to 0.1 s)."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            await _result(self._thread.submit(self._cutter.raw.close))
        self._thread.shutdown(wait=False)


async def _result(future: "Future[T]") -> T:
    wait: Callable[[], T] = future.result
    return await anyio.to_thread.run_sync(wait, abandon_on_cancel=True)


def _place(path: str, position: Any) -> Place | None:
    if position is None:
        return None
    try:
        offset, line = (int(number) for number in position)
    except (TypeError, ValueError):
        raise InputError(f"{path}: {position!r} is no position in a file: the state is another source's") from None
    if path == "-" and line > 0:
        raise InputError(
            f"standard input cannot be resumed: {line} lines of it were already used and are gone. "
            "Name a file instead of -, or start anew without the stored state"
        )
    return offset, line
