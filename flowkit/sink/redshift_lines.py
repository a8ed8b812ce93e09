"""Records as the lines of JSON that Redshift's COPY takes, each with its row's number, and whether it removes a row."""

from collections.abc import Sequence
from typing import Any

import msgspec

from flowkit.sink.dispatch import Never
from flowkit.sink.redshift_sql import GONE, ROW

LINE_BYTES = 4 << 20
"""What COPY takes of one JSON object."""
VALUE_BYTES = LINE_BYTES - 100
"""What it takes of a value, beside the columns of our own."""
_ROW, _GONE = ROW.encode(), GONE.encode()


class Lines:
    """Makes records lines. `keys` are the fields by which a row is found; a tombstone has its record's key alone."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        fields: list[Any] = [(f"k{n}", Any, msgspec.field(default=None, name=key)) for n, key in enumerate(keys)]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Keys", fields)) if keys else None

    def of(self, keys: Sequence[bytes | None], values: list[bytes | None]) -> list[bytes | Never | None]:
        """The lines of records, which are numbered from 0; the very `values` if all are good as they are."""
        if not self.keys and _are_plain(values):
            return values  # type: ignore[return-value]  # nobody looks at their numbers: 0.05 instead of 1.3 µs each
        return [self.line(n, key, value) for n, (key, value) in enumerate(zip(keys, values, strict=True))]

    def line(self, row: int, key: bytes | None, value: bytes | None) -> bytes | Never | None:
        """Never if it cannot be loaded; None if there is nothing to load."""
        if value is None:
            return self._tombstone(row, key) if self.keys else None
        value = value.strip()
        if not value.startswith(b"{"):
            return Never("NoObject", "the value is no JSON object, and has no columns")
        if len(value) > VALUE_BYTES:
            return Never("RecordTooLarge", f"{len(value)} bytes, and COPY takes {LINE_BYTES} of a line")
        if self._decoder is not None:
            try:
                found = msgspec.structs.astuple(self._decoder.decode(value))
            except msgspec.MsgspecError as error:
                return Never("NoObject", f"the value is no JSON object: {error}")
            if None in found:
                return Never("NoKey", f"{self.keys[found.index(None)]!r} is null, and a row is found by it")
        rest = value[1:]
        comma = b"" if rest.lstrip() == b"}" else b","
        return b'{"%b":%d,"%b":0%b%b' % (_ROW, row, _GONE, comma, rest.replace(b"\n", b" "))

    def _tombstone(self, row: int, key: bytes | None) -> bytes | Never:
        if len(self.keys) > 1 or key is None:
            return Never(
                "NoKey", f"a tombstone has the record's key alone, and a row is found by {', '.join(self.keys)}"
            )
        try:
            text = key.decode()
        except UnicodeDecodeError as error:
            return Never("NoKey", f"the key of a tombstone has to be text: {error}")
        return msgspec.json.encode({ROW: row, GONE: 1, self.keys[0]: text})


def _are_plain(values: Sequence[bytes | None]) -> bool:
    """True if each is surely an object on one line that is not too long."""
    try:
        joined = b"\n".join(values)  # type: ignore[arg-type]
    except TypeError:  # a tombstone
        return False
    begun = joined.startswith(b'{"') + joined.count(b'\n{"')
    return begun == len(values) == joined.count(b"\n") + 1 and max(map(len, values)) <= VALUE_BYTES  # type: ignore[arg-type]
