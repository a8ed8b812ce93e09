"""Values in one of the formats, checked against the declared type. msgspec does the work in C.

A decoder never lets a foreign exception out: what cannot be decoded is a `DecodeError`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from flowkit.codec.hints import bare, fields_of, type_name
from flowkit.codec.hooks import as_bytes, check_type, dec_hook, decode_text, enc_hook
from flowkit.codec.rows import Rows
from flowkit.errors import ConfigError, DecodeError

CodecName = Literal["json", "msgpack", "bytes", "text", "csv"]


class Codec:
    """Encodes and decodes values of one type in one format.

    `decode` raises DecodeError, `encode` TypeError or ValueError. `fields` are the columns of CSV. A type that the
    format cannot take raises ConfigError.
    """

    def __init__(self, name: str, type_: Any, fields: Sequence[str] | None = None) -> None:
        self.name = name
        self.type = type_
        self.fields = tuple(fields) if fields is not None else fields_of(type_)
        self.decode_fast: Callable[[bytes], Any]
        """The C decoder, for batches: raises whatever it raises. On an error ask `decode` for the reason."""
        self.lines: Callable[[bytes], list[Any]] | None = None
        """Decodes a whole chunk of lines in one call, where the format can."""
        self.encode: Callable[[Any], bytes]
        try:
            self._choose(name, type_)
        except TypeError as error:
            raise ConfigError(f"type {type_name(type_)} cannot be used with codec {name!r}: {error}") from error

    def _choose(self, name: str, type_: Any) -> None:
        if name in ("json", "msgpack", "csv"):
            check_type(type_)
        if name == "json":
            decoder = msgspec.json.Decoder(type_, dec_hook=dec_hook)
            self.decode_fast, self.lines = decoder.decode, decoder.decode_lines
            self.encode = msgspec.json.Encoder(enc_hook=enc_hook).encode
        elif name == "msgpack":
            self.decode_fast = msgspec.msgpack.Decoder(type_, dec_hook=dec_hook).decode
            self.encode = msgspec.msgpack.Encoder(enc_hook=enc_hook).encode
        elif name == "text":
            if bare(type_) not in (str, Any):
                raise ConfigError(f"codec 'text' needs the type str, not {type_name(type_)}")
            self.decode_fast, self.encode = decode_text, str.encode
        elif name == "bytes":
            if bare(type_) not in (bytes, Any):
                raise ConfigError(f"codec 'bytes' needs the type bytes, not {type_name(type_)}")
            self.decode_fast, self.encode = bytes, as_bytes
        elif name == "csv":
            if self.fields is None:
                raise ConfigError(
                    f"codec 'csv' needs columns: a Record, dataclass or TypedDict, not {type_name(type_)}"
                )
            rows = Rows(type_, self.fields)
            self.decode_fast, self.encode = rows.decode, rows.encode
        else:
            raise ConfigError(f"unknown codec {name!r}: use json, msgpack, csv, text or bytes")

    def decode(self, data: bytes) -> Any:
        """One value. Raises DecodeError with the reason."""
        try:
            return self.decode_fast(data)
        except DecodeError:
            raise
        except RecursionError as error:
            raise DecodeError("nested too deeply") from error
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise DecodeError(str(error)) from error
        except Exception as error:  # a user's from_state or __post_init__
            raise DecodeError(f"{type(error).__name__}: {error}") from error
