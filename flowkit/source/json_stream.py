"""JSON values one after another, with or without lines between them (Firehose's objects), as one value a line.

{"a":1}{"a":2}          →   {"a":1}
{"a":                       {"a":2}
  3}                        {"a":  3}
"""

import re

from flowkit.source.file_bytes import RawBytes

_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]|"', re.DOTALL)
"""A string, a bracket, or the quote of a string that does not end here."""


class JsonLines:
    """The bytes of `raw` as lines: a line end after each object or array, and none within."""

    def __init__(self, raw: RawBytes) -> None:
        self.raw = raw
        self.size = raw.size
        self._held = b""
        """The beginning of a value that has not ended."""
        self._at = self._depth = 0
        """How far in it was looked, and how many brackets are open there."""
        self._ready = b""

    @property
    def taken(self) -> int:
        """As of `raw`."""
        return self.raw.taken

    def read(self, limit: int) -> bytes | None:
        """As the protocol says."""
        while not self._ready:
            piece = self.raw.read(limit)
            if piece is None:
                return None
            if not piece:
                self._ready = self._cut(b"", last=True)
                break
            self._ready = self._cut(piece, last=False)
        given, self._ready = self._ready[:limit], self._ready[limit:]
        return given

    def ended(self) -> bool:
        """As the protocol says."""
        return not self._ready and not self._held and self.raw.ended()

    def close(self) -> None:
        """As the protocol says."""
        self.raw.close()

    def _cut(self, piece: bytes, *, last: bool) -> bytes:
        """What is whole. Where pieces end does not show in it: who goes on from an offset must find the same."""
        data = self._held + piece
        depth, at, start, whole = self._depth, self._at, 0, True
        found: list[bytes] = []
        for match in _TOKENS.finditer(data, at):
            token = match[0]
            if token == b'"':
                at, whole = match.start(), False
                break
            if token in b"{[":
                if not depth and match.start() > start:  # what stands between values stays as it is
                    found.append(data[start : match.start()])
                    start = match.start()
                depth += 1
            elif token in b"}]":
                if depth == 1:
                    if match.end() == len(data) and not last:  # whether a line ends here is not known yet
                        at, whole = match.start(), False
                        break
                    found.append(data[start : match.end()].replace(b"\r", b" ").replace(b"\n", b" "))
                    start = match.end()
                    if data[start : start + 1] not in (b"\n", b"\r"):
                        found.append(b"\n")
                depth = max(depth - 1, 0)
            at = match.end()
        if whole:
            at = len(data)
        if last:
            found.append(data[start:])
            start = at = len(data)
        elif not depth and whole:
            cut = data.rfind(b"\n", start) + 1
            if cut:
                found.append(data[start:cut])
                start = cut
        self._held, self._at, self._depth = data[start:], at - start, depth
        return b"".join(found)
