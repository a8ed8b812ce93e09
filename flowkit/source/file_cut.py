"""Cuts a stream of bytes into records: lines of JSON or text, or CSV records, whose quoted cells may hold newlines.

Blank lines are no records. NUL bytes, invalid UTF-8 and whatever else a line holds are for the codec to judge.
"""

from dataclasses import dataclass

from flowkit.source.file_batch import FileBatch, Index, Place
from flowkit.source.file_bytes import BOM, RawBytes

HEAD_BYTES = 1024
"""How much of a record that is too long is kept."""

PIECE_BYTES = 1 << 17
"""How much is cut into records at once: while they are decoded they then are in the core's own cache (1 MiB).

Cutting and decoding: 0.26 µs a record, against 0.37 for a whole chunk of 1 MiB.
"""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines, each ended by a newline (the file's last one may have got it here), from `start` to `end`."""

    data: bytes
    start: int
    end: int
    oversize: bool = False

    def piece(self, at: int) -> "Chunk":
        """The lines from byte `at` of `data` on: at most `PIECE_BYTES`, but for a line that is longer."""
        data = self.data
        stop = len(data)
        if stop - at > PIECE_BYTES and not self.oversize:
            stop = data.rfind(b"\n", at, at + PIECE_BYTES) + 1 or data.find(b"\n", at + PIECE_BYTES) + 1
        if at == 0 and stop == len(data):
            return self
        return Chunk(data[at:stop], self.start + at, self.end if stop == len(data) else self.start + stop)


class Lines:
    """Gives the stream in chunks of whole lines. A line of more than `max_bytes` comes alone, cut to its head."""

    def __init__(self, raw: RawBytes, offset: int, chunk_bytes: int, max_bytes: int) -> None:
        self.raw = raw
        self.ended = False
        self._max = max_bytes
        # No line within one piece is too long then: only the first one, which began in an earlier piece, can be.
        self._limit = min(chunk_bytes, max_bytes)
        self._start = offset
        self._rest: list[bytes] = []
        self._held = 0
        self._again = b""
        self._head: bytes | None = b"" if offset == 0 else None

    def next(self) -> Chunk | None:
        """The next lines; None at the end (then `ended`) or if there is nothing for now. Raises InputError."""
        while not self.ended:
            piece: bytes | None = self._again or self._read()
            self._again = b""
            if piece is None:
                return None
            if not piece:
                self.ended = True
                return self._give(b"\n", 0) if self._held else None
            first = piece.find(b"\n")
            if first < 0:
                self._hold(piece)
            elif self._held + first > self._max:
                self._hold(piece[:first])
                self._again = piece[first + 1 :]
                return self._give(b"\n", 1)
            else:
                cut = piece.rfind(b"\n") + 1
                chunk = self._give(piece[:cut], cut)
                self._hold(piece[cut:])
                self.ended = not self._held and self.raw.ended()
                return chunk
        return None

    def _read(self) -> bytes | None:
        if self._head is None:
            return self.raw.read(self._limit)
        while len(self._head) < len(BOM):
            piece = self.raw.read(self._limit)
            if piece is None:
                return None
            if not piece:
                break
            self._head += piece
        head, self._head = self._head, None
        if head.startswith(BOM):
            head = head[len(BOM) :]
            self._start += len(BOM)
        return head or self.raw.read(self._limit)

    def _hold(self, piece: bytes) -> None:
        if not piece:
            return
        if self._held <= self._max:
            self._rest.append(piece)
        self._held += len(piece)
        if self._held > self._max:
            self._rest = [b"".join(self._rest)[:HEAD_BYTES]]

    def _give(self, piece: bytes, size: int) -> Chunk:
        end = self._start + self._held + size
        chunk = Chunk(b"".join((*self._rest, piece)), self._start, end, self._held > self._max)
        self._start, self._rest, self._held = end, [], 0
        return chunk


class OpenRecord:
    """A CSV record whose quoted cell goes on in the next line."""

    def __init__(self, line: int, max_bytes: int) -> None:
        self.line = line
        self.oversize = False
        self._max = max_bytes
        self._lines: list[bytes] = []
        self._size = -1  # the last line's end is no part of the record

    def add(self, text: bytes, *, oversize: bool) -> None:
        if self.oversize:
            return
        self._lines.append(text)
        self._size += len(text) + 1
        if oversize or self._size > self._max:
            self.oversize = True
            self._lines = [self.value()[:HEAD_BYTES]]

    def value(self) -> bytes:
        return b"\n".join(self._lines)


class Cutter:
    """Gives the records of a stream in batches: `read` a chunk, then `cut` it, or its pieces in order.

    `codec` is json, csv or text. `read` may run in a thread of its own, one call at a time.
    """

    def __init__(self, name: str, codec: str, raw: RawBytes, place: Place, chunk_bytes: int, max_bytes: int) -> None:
        self.raw = raw
        self._name = name
        self._codec = codec
        self._max = max_bytes
        self._lines = Lines(raw, place[0], chunk_bytes, max_bytes)
        self._offset, self._line = place
        """How far the lines were looked at."""
        self._place = place
        """After the last record given, and the blank lines that follow it."""
        self._open: OpenRecord | None = None

    @property
    def all_read(self) -> bool:
        """True once `read` has nothing more to give."""
        return self._lines.ended

    @property
    def is_open(self) -> bool:
        """True if a record goes on where the last piece ended: more lines follow, or `unclosed` gives it."""
        return self._open is not None

    def read(self) -> Chunk | None:
        """The next lines; None at the end (then `all_read`) or if there are none for now. Raises InputError."""
        return self._lines.next()

    def cut(self, chunk: Chunk) -> FileBatch:
        """The records that end in these lines; there may be none."""
        return self._fast(chunk) or self._walk(chunk)

    def next(self) -> FileBatch | None:
        """The records of the next chunk that has any; None at the end, or if there are none for now."""
        while not self.all_read or self.is_open:
            chunk = self.read()
            if chunk is None and not self.all_read:
                return None
            batch = self.unclosed() if chunk is None else self.cut(chunk)
            if len(batch):
                return batch
        return None

    def _fast(self, chunk: Chunk) -> FileBatch | None:
        """One record a line, if the chunk is as plain as that."""
        data = chunk.data
        if chunk.oversize or b"\r" in data or (self._codec == "csv" and (self._open is not None or b'"' in data)):
            return None
        values = data.split(b"\n")
        values.pop()
        # The least line begins with a space if any does: to JSON, white space alone is a blank line.
        if not (min(values)[:1] > b" " if self._codec == "json" else all(values)):
            return None
        start = (chunk.start, self._line)
        self._line += len(values)
        self._offset = chunk.end
        self._place = (self._offset, self._line)
        return FileBatch(self._name, values, start, self._place)

    def _walk(self, chunk: Chunk) -> FileBatch:
        start = self._place if self._open is not None else (chunk.start, self._line)
        values: list[bytes] = []
        index = Index([], [])
        oversize: set[int] = set()
        self._offset = chunk.start
        lines = chunk.data.split(b"\n")
        lines.pop()
        for text in lines:
            self._offset = chunk.end if chunk.oversize else min(self._offset + len(text) + 1, chunk.end)
            self._line += 1
            number, value, too_long = self._line, text, chunk.oversize
            record = self._open
            if self._codec == "csv" and (record is not None or b'"' in text):
                # What was cut off a line that is too long may have closed the quote: it ends the record in any case.
                open_now = not chunk.oversize and ends_open(text, inside=record is not None)
                if open_now and record is None:
                    record = self._open = OpenRecord(self._line, self._max)
                if record is not None:
                    record.add(text, oversize=chunk.oversize)
                    if open_now:
                        continue
                    number, value, too_long = record.line, record.value(), record.oversize
                    self._open = None
            self._place = (self._offset, self._line)
            if too_long:
                oversize.add(len(values))
            else:
                value = value.removesuffix(b"\r")
                if not (value.strip(b" \t\r") if self._codec == "json" else value):
                    continue
            values.append(value)
            index.numbers.append(number)
            index.after.append(self._place)
        return FileBatch(self._name, values, start, self._place, index, frozenset(oversize))

    def unclosed(self) -> FileBatch:
        """The file's end closes a quote that nothing else closed; the codec will say what is wrong with it."""
        start, record = self._place, self._open
        if record is None:
            return FileBatch(self._name, [], start, start)
        self._open = None
        self._place = (self._offset, self._line)
        index = Index([record.line], [self._place])
        oversize = frozenset({0}) if record.oversize else frozenset[int]()
        return FileBatch(self._name, [record.value()], start, self._place, index, oversize)


def ends_open(text: bytes, *, inside: bool) -> bool:
    """True if a quoted cell goes on behind this line; `inside` if one came in from the line before.

    As Python's csv module reads it: a quote opens a cell only as its first character, and elsewhere stands for itself.
    """
    at = 0
    while True:
        if not inside and text[at : at + 1] == b'"':
            inside = True
            at += 1
        if inside:
            at = text.find(b'"', at)
            if at < 0:
                return True
            if text[at + 1 : at + 2] == b'"':
                at += 2
                continue
            inside = False
        at = text.find(b",", at) + 1
        if not at:
            return False
