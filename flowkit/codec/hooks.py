"""Values that msgspec does not know: any object with `to_state()` and `from_state()`; and what no codec can take."""

from typing import Any

import msgspec

from flowkit.codec.hints import type_name


def enc_hook(value: Any) -> Any:
    """What msgspec asks for a value that it does not know. Raises TypeError."""
    if hasattr(value, "to_state"):
        return value.to_state()
    raise TypeError(f"a {type(value).__name__} cannot be encoded: give it to_state() and from_state()")


def dec_hook(type_: Any, state: Any) -> Any:
    """What msgspec asks for a type that it does not know; `check_type` has seen that it has a `from_state`."""
    return type_.from_state(state)


def check_type(type_: Any) -> None:
    """Raise TypeError for a type with parts that cannot be decoded. msgspec would tell with the first record."""
    seen: set[int] = set()

    def look(part: Any) -> None:
        if isinstance(part, tuple | list):
            for item in part:
                look(item)
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field) and id(part) not in seen:
            seen.add(id(part))
            if isinstance(part, msgspec.inspect.CustomType):
                missing = [name for name in ("to_state", "from_state") if not hasattr(part.cls, name)]
                if missing:
                    raise TypeError(f"{type_name(part.cls)} has no {missing[0]}() (see app.table)")
            for name in part.__struct_fields__:
                look(getattr(part, name))

    look(msgspec.inspect.type_info(type_))


def as_bytes(value: Any) -> bytes:
    """Bytes as they are. Raises TypeError for anything else: `bytes(5)` would be five zeros."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"expected bytes, not {type(value).__name__}")
    return bytes(value)


def decode_text(data: bytes) -> str:
    """UTF-8 as text. Raises UnicodeDecodeError."""
    return data.decode()
