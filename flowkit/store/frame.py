"""One commit as bytes: what the log holds a record of, and what recovery applies.

frame  := msgpack [number, commit id, parent id, epoch, meta, changes, drops, now, decided]
changes:= [[table, end | nil, [key …], [value | nil | [expiry ms, value] …]] …]   columns; nil deletes
drops  := [[table, end | nil] …]                                                  whole spaces, before the changes
"""

from typing import Any

import msgspec

from flowkit.errors import StoreCorrupt
from flowkit.store.records import UNDECODABLE

Space = tuple[str, int | None]
"""Where keys live: a table, and the window end (ms) for tables whose windows are dropped whole."""

BEGINNING = -(2**63)
"""A `now` (ms) at which nothing has expired."""


class SpaceChange(msgspec.Struct, array_like=True):
    """Changed keys of one space, as columns. A value is bytes, None to delete the key, or [expiry in ms, bytes]."""

    table: str
    end: int | None
    keys: list[bytes]
    values: list[Any]


class Frame(msgspec.Struct, array_like=True):
    """One commit. Its identity is number *and* id: a zombie may prepare another frame of the same number.

    `now` (ms, the application's time) is what expiries are compared with from here on. `decided` says that the frame
    counts as soon as it is durable: no one else is asked.
    """

    number: int
    commit_id: bytes
    parent: bytes
    epoch: int
    meta: dict[str, Any]
    changes: list[SpaceChange] = []
    drops: list[tuple[str, int | None]] = []
    now: int = BEGINNING
    decided: bool = False


encode_frame = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def decode_frame(payload: bytes, name: str, offset: int) -> Frame:
    """The frame in a log record. Raises StoreCorrupt."""
    try:
        frame = _decode(payload)
    except UNDECODABLE as error:
        raise StoreCorrupt(f"{name}: unreadable frame at offset {offset}: {error}") from error
    for change in frame.changes:
        kinds = set(map(type, change.values))
        if len(change.keys) != len(change.values) or not kinds <= _KINDS or (list in kinds and not _timed(change)):
            raise StoreCorrupt(f"{name}: unreadable frame at offset {offset}: values of {change.table!r} are none")
    return frame


_KINDS = {bytes, type(None), list}


def _timed(change: SpaceChange) -> bool:
    return all(list(map(type, value)) == [int, bytes] for value in change.values if type(value) is list)
