"""What a record of an internal topic looks like: an event in its envelope, or a mark between events.

    event   0x91 + the event as msgpack                          a msgpack array of one
    mark    0x93 + sender, watermark (ms), standing as msgpack   a msgpack array of three

The first byte tells them apart, and no text or JSON begins with either. Any broker carries both as ordinary records.
"""

from typing import Any

import msgspec

from flowkit.codec.values import Codec

EVENT_BYTE, MARK_BYTE = b"\x91", b"\x93"

_MARK = msgspec.msgpack.Decoder(tuple[str, int, int])
_encode = msgspec.msgpack.Encoder().encode


class Envelope(Codec):
    """Encodes and decodes events of one type as records of an internal topic. Raises what `Codec` raises."""

    def __init__(self, type_: Any) -> None:
        super().__init__("msgpack", tuple[type_])
        self.type = type_
        wrapped, unwrapped = self.encode, self.decode_fast
        self.encode = lambda value: wrapped((value,))
        self.decode_fast = lambda data: unwrapped(data)[0]


def encode_mark(sender: str, watermark: int, standing: int) -> bytes:
    """The record that tells how far `sender` is."""
    return _encode((sender, watermark, standing))


def decode_mark(value: bytes | None) -> tuple[str, int, int] | None:
    """Sender, watermark (ms) and standing, or None if the record is no mark."""
    if value is None or value[:1] != MARK_BYTE:
        return None
    try:
        return _MARK.decode(value)
    except msgspec.MsgspecError:
        return None


def enveloped(value: bytes | None) -> Any:
    """The event in a record of an internal topic, as builtins; None if that is not what the record is."""
    if value is None or value[:1] != EVENT_BYTE:
        return None
    try:
        return msgspec.msgpack.decode(value)[0]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
