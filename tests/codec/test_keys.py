"""Keys to bytes and back: what decides the partition and the order of firing."""

import enum
import math
import uuid
from datetime import UTC, date, datetime
from typing import Annotated, Any, NewType

import pytest

from flowkit.codec import KeyCodec, encode_key
from flowkit.errors import ConfigError
from flowkit.record import Record

CardId = NewType("CardId", str)


class Pair(Record, frozen=True):
    card: str
    country: str = "DE"


class Colour(enum.Enum):
    RED = "red"


KEYS: list[tuple[Any, Any, bytes]] = [
    (str, "a", b"a"),
    (str, "", b""),
    (str, "5", b"5"),
    (str, "true", b"true"),
    (str, "é\0\n", "é\0\n".encode()),
    (CardId, "a", b"a"),
    (Annotated[str, "a card"], "a", b"a"),
    (bytes, b"\xff\0", b"\xff\0"),
    (bytes, b"", b""),
    (int, 5, b"5"),
    (int, -5, b"-5"),
    (int, 2**80, str(2**80).encode()),
    (bool, True, b"true"),
    (float, 1.5, b"1.5"),
    (float, 1.0, b"1.0"),
    (tuple[str, int], ("a", 1), b'["a",1]'),
    (Pair, Pair("a"), b'{"card":"a","country":"DE"}'),
    (Colour, Colour.RED, b'"red"'),
    (date, date(2024, 1, 1), b'"2024-01-01"'),
    (datetime, datetime(2024, 1, 1, tzinfo=UTC), b'"2024-01-01T00:00:00Z"'),
    (uuid.UUID, uuid.UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
]
MIXED: list[tuple[Any, Any]] = [
    *(
        (of, key)
        for of in (Any, str | int | bool | None)
        for key in ("a", "5", "true", '"a"', "", "null", 5, True, None)
    ),
    (Any, b"a"),
    (Any, b"\xff"),
    (Any, 1.5),
    (str | int, 5),
    (tuple[str, int] | str, ("a", 1)),
    (tuple[str, int] | str, '["a",1]'),
]


@pytest.mark.parametrize(("of", "key", "data"), KEYS)
def test_a_key_goes_to_its_bytes_and_back(of: Any, key: Any, data: bytes) -> None:
    codec = KeyCodec(of)
    assert codec.encode(key) == data
    assert codec.decode(data) == key
    assert type(codec.decode(data)) is type(key)
    assert codec.wire(data) == data


@pytest.mark.parametrize(("of", "key", "data"), KEYS)
def test_a_key_has_the_same_bytes_in_a_topic_as_in_a_table(of: Any, key: Any, data: bytes) -> None:
    assert encode_key(key) == data


@pytest.mark.parametrize(("of", "key"), MIXED)
def test_keys_of_mixed_types_come_back_as_what_they_were(of: Any, key: Any) -> None:
    codec = KeyCodec(of)
    back = codec.decode(codec.encode(key))
    assert back == (list(key) if of is Any and isinstance(key, tuple) else key)
    assert type(back) is type(key)
    assert codec.wire(codec.encode(key)) == encode_key(key)


def test_keys_of_mixed_types_stay_apart() -> None:
    codec = KeyCodec(Any)
    keys: list[Any] = ["5", 5, "true", True, b"5", "null", None]
    assert len({codec.encode(key) for key in keys}) == len(keys)


def test_a_float_key_has_one_form() -> None:
    codec = KeyCodec(float)
    assert codec.encode(1) == codec.encode(1.0) == b"1.0"
    assert codec.encode(0.0) == codec.encode(-0.0)


WRONG: list[tuple[Any, Any]] = [
    (str, 5),
    (str, b"a"),
    (str, None),
    (bytes, "a"),
    (bytes, 5),
    (int, "5"),
    (int, 5.0),
    (int, None),
    (float, "1.5"),
    (Pair, ("a", "DE")),
    (Pair, {"card": "a"}),
    (tuple[str, int], ["a", 1]),
    (uuid.UUID, "00000000-0000-0000-0000-000000000005"),
    (Any, object()),
]


@pytest.mark.parametrize(("of", "key"), WRONG)
def test_a_key_of_another_type_is_refused(of: Any, key: Any) -> None:
    with pytest.raises(TypeError):
        KeyCodec(of).encode(key)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        KeyCodec(str).encode("\ud800")


@pytest.mark.parametrize("of", [object, complex])
def test_a_type_without_bytes_of_its_own(of: Any) -> None:
    try:
        codec = KeyCodec(of)
    except (ConfigError, TypeError):
        return
    with pytest.raises(TypeError):
        codec.encode(object())


def test_nan_is_a_key_of_a_sort() -> None:
    assert KeyCodec(float).encode(math.nan) == b"null"
