"""Keys to bytes and back. Their bytes decide the partition, and the order in which windows fire."""

from collections.abc import Callable
from typing import Any

import msgspec

from flowkit.codec.hints import arms_of, class_of, type_name
from flowkit.codec.hooks import as_bytes, check_type, dec_hook, decode_text, enc_hook


class KeyCodec:
    """Table keys to bytes and back: text as UTF-8, bytes as they are, anything else as JSON.

    These bytes decide the order in which windows fire. Where keys may be text or something else (Any, a union), what
    is no text has a byte in front that no text starts with, so that "5" and 5 stay two keys; `wire` takes it off.
    `encode` raises TypeError for a key of another type.
    """

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self.encode: Callable[[Any], bytes]
        self.decode: Callable[[bytes], Any]
        self.wire: Callable[[bytes], bytes] = bytes
        """From a key's bytes here to those that records of this key have in topics, which decide the partition."""
        cls = class_of(type_)
        if cls is str:
            self.encode, self.decode = str.encode, decode_text
        elif cls is bytes:
            self.encode, self.decode = as_bytes, bytes
        elif len(arms_of(type_)) > 1 or cls in (Any, object) or not isinstance(cls, type):
            self.encode, self.decode, self.wire = _encode_any, self._decode_any, _without_mark
            self._decoder = msgspec.json.Decoder(type_, dec_hook=dec_hook)
        else:
            check_type(type_)
            self.encode = _encode_int if cls is int else _encode_float if cls is float else self._encode_checked
            self.decode = msgspec.json.Decoder(type_, dec_hook=dec_hook).decode
            self._class = cls

    def _encode_checked(self, key: Any) -> bytes:
        if not isinstance(key, self._class):
            raise TypeError(f"key {key!r} is a {type(key).__name__}, not a {type_name(self.type)}")
        return encode_key(key)

    def _decode_any(self, data: bytes) -> Any:
        if data[:1] == b"\xff":
            return self._decoder.decode(data[1:])
        return data[1:] if data[:1] == b"\xfe" else data.decode()


def _encode_any(key: Any) -> bytes:
    if isinstance(key, str):
        return key.encode()
    return b"\xfe" + key if isinstance(key, bytes) else b"\xff" + encode_key(key)


def _without_mark(data: bytes) -> bytes:
    return data[1:] if data[:1] in (b"\xfe", b"\xff") else data


def _encode_int(key: Any) -> bytes:
    if not isinstance(key, int):  # a float, say: 1.0 would be found as 1 while it is in memory, and not afterwards
        raise TypeError(f"key {key!r} is a {type(key).__name__}, not an int")
    return b"%d" % key


def _encode_float(key: Any) -> bytes:
    if not isinstance(key, int | float):
        raise TypeError(f"key {key!r} is a {type(key).__name__}, not a float")
    return msgspec.json.encode(key + 0.0)  # 1 and 1.0 are one key, 0.0 and -0.0 too


def encode_key(key: Any) -> bytes:
    """The wire bytes of a key of whatever type."""
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    return msgspec.json.encode(key, enc_hook=enc_hook, order="sorted")
