"""Records of an internal topic on their way through a stream that may bring them twice: many in one, numbered.

    parcel := F1 `kp1`, CRC-32 of the rest, msgpack [sender, number of the first, keys, values, times in ms]

Each sender numbers what it sends to one split, from 1 on. A receiver keeps the next number of each sender, and passes
over what it has had.
"""

import zlib
from collections.abc import Sequence

import msgspec

PARCEL = b"\xf1kp1"
"""What a parcel begins with."""
_CRC = 4


class Parcel(msgspec.Struct, array_like=True):
    """Records of one sender, in order; the first has the number `first`."""

    sender: str
    first: int
    keys: list[bytes | None]
    values: list[bytes | None]
    times: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Parcel).decode


def encode_parcel(sender: str, first: int, rows: Sequence[Sequence[object]]) -> bytes:
    """A parcel of rows (key, value, time).

    >>> decode_parcel(encode_parcel("orders/0", 7, [(b"k", b"v", 3)]))
    Parcel(sender='orders/0', first=7, keys=[b'k'], values=[b'v'], times=[3])
    """
    keys, values, times = zip(*rows, strict=True)
    data = _encode([sender, first, keys, values, times])
    return PARCEL + zlib.crc32(data).to_bytes(_CRC, "big") + data


def decode_parcel(data: bytes) -> Parcel | None:
    """The parcel in a record, or None if it is none.

    >>> decode_parcel(b"{}") is None
    True
    """
    if not data.startswith(PARCEL):
        return None
    rest = data[len(PARCEL) + _CRC :]
    if zlib.crc32(rest).to_bytes(_CRC, "big") != data[len(PARCEL) : len(PARCEL) + _CRC]:
        return None
    try:
        return _decode(rest)
    except msgspec.MsgspecError:
        return None
