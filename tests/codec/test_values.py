"""JSON, msgpack, text and bytes: typed values to bytes and back, and what is refused, when."""

import enum
import pathlib
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from flowkit.codec import Codec
from flowkit.errors import ConfigError, DecodeError
from flowkit.record import Change, Closed, DeadLetter, Record

T = TypeVar("T")


class Spend(Record):
    count: int = 0
    total: float = 0.0


class Tagged(Record, tag="tagged"):
    a: int


class Other(Record, tag="other"):
    b: int


class Small(Record, array_like=True):
    a: int
    b: str = ""


class Renamed(Record, rename="camel"):
    my_name: str


class Box(Record, Generic[T]):
    item: T


class Tree(Record):
    name: str
    children: list["Tree"] = []


class Positive(Record):
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError("n must be positive")


@dataclass
class Point:
    x: float
    y: float = 0.0


class Beat(TypedDict):
    sensor: str
    at: NotRequired[int]


class Colour(enum.Enum):
    RED = "red"


class Model:
    """Any object, by to_state and from_state."""

    def __init__(self, weight: float = 0.0) -> None:
        self.weight = weight

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.weight == other.weight

    __hash__ = None  # type: ignore[assignment]

    def to_state(self) -> dict[str, float]:
        return {"weight": self.weight}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> "Model":
        return cls(state["weight"])


class Holder(Record):
    models: dict[str, Model] = {}
    best: Model | None = None


class Bare:
    """An object that nobody can encode."""


class OneWay:
    """An object that can be encoded, but not decoded."""

    def to_state(self) -> int:
        return 5


class Hidden(Record):
    deep: dict[str, list[Bare | None]]


AT = datetime(2024, 1, 1, tzinfo=UTC)
VALUES: list[tuple[Any, Any]] = [
    (Spend, Spend(2, 1.5)),
    (Tagged | Other, Other(5)),
    (Tagged, Tagged(5)),
    (Small, Small(1, "b")),
    (Renamed, Renamed("n")),
    (Box[int], Box(5)),
    (Box[Spend], Box(Spend(1))),
    (Tree, Tree("a", [Tree("b"), Tree("c", [Tree("d")])])),
    (Positive, Positive(1)),
    (Point, Point(1.5)),
    (list[Point], [Point(1.5), Point(0.0, 2.0)]),
    (Beat, Beat(sensor="s")),
    (Beat, Beat(sensor="s", at=5)),
    (dict[str, Any], {"a": [1, None, {"b": True}], "é": 1.5}),
    (dict[str, int], {}),
    (dict[int, str], {1: "a"}),
    (int, -(2**63)),
    (int, 2**64 - 1),
    (float, 1e308),
    (bool, True),
    (str, "é\0\n\U0001f600"),
    (bytes, b"\0\xff"),
    (type(None), None),
    (int | None, None),
    (int | str, "5"),
    (list[int], [1, 2]),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (Literal["a", "b"], "b"),
    (Colour, Colour.RED),
    (Decimal, Decimal("1.10")),
    (datetime, AT),
    (UUID, UUID(int=5)),
    (Model, Model(2.5)),
    (list[Model], [Model(1.0)]),
    (Holder, Holder({"a": Model(1.0)}, Model(2.0))),
    (Closed[str, Spend], Closed("a", Spend(1), 0, 10, "late")),
    (Closed[str, Model], Closed("a", Model(1.0), 0, 10)),
    (Change[str, Spend], Change("a", None, Spend(1), 5)),
    (Change[int, Model], Change(5, Model(1.0), None, 5, 0, 10)),
    (DeadLetter, DeadLetter("t", 0, 5, "f:5", b"k", None, 5, "E", "r")),
    (Any, {"a": [1, 2.5, None, "x"]}),
]


@pytest.mark.parametrize(("of", "value"), VALUES)
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_a_value_comes_back_as_it_was(name: str, of: Any, value: Any) -> None:
    codec = Codec(name, of)
    data = codec.encode(value)
    assert codec.decode(data) == value == codec.decode_fast(data)
    assert type(codec.decode(data)) is type(value)


def test_lines_are_decoded_in_one_call() -> None:
    codec = Codec("json", Spend)
    assert codec.lines is not None
    assert codec.lines(b'{"count":1}\n{"total":2}\n') == [Spend(1), Spend(0, 2.0)]
    assert Codec("msgpack", Spend).lines is None


def test_integers_beyond_64_bits_pass_json() -> None:
    codec = Codec("json", int)
    assert codec.decode(codec.encode(10**30)) == 10**30
    assert codec.decode(b"1" * 400) == int("1" * 400)


def test_msgpack_refuses_integers_beyond_64_bits() -> None:
    with pytest.raises((ValueError, OverflowError)):
        Codec("msgpack", int).encode(2**64)


BAD_JSON: list[tuple[Any, bytes, str]] = [
    (Spend, b"", "Input data was truncated"),
    (Spend, b'{"count": 1', "truncated"),
    (Spend, b"{'count': 1}", "malformed"),
    (Spend, b'{"count": 1} x', "malformed"),
    (Spend, b"[]", "Expected `object`, got `array`"),
    (Spend, b"null", "Expected `object`, got `null`"),
    (Spend, b'{"count": "1"}', "Expected `int`, got `str` - at `$.count`"),
    (Spend, b'{"count": 1.5}', "Expected `int`, got `float` - at `$.count`"),
    (Spend, b'{"count": true}', "Expected `int`, got `bool` - at `$.count`"),
    (Spend, b'{"total": NaN}', "malformed"),
    (Spend, b'{"total": 1e999}', "out of range"),
    (Spend, b'{"total": null}', "Expected `float`, got `null`"),
    (Spend, b'\xef\xbb\xbf{"count": 1}', "malformed"),
    (Spend, b'{"count": 1}\0', "malformed"),
    (Spend, b"\0", "malformed"),
    (str, b'"\xff"', "utf-8"),
    (str, b'"a\nb"', "invalid character"),
    (Tagged | Other, b'{"b": 1}', "missing required field `type`"),
    (Tagged | Other, b'{"type": "third"}', "Invalid value 'third'"),
    (Point, b"{}", "missing required field `x`"),
    (Beat, b'{"at": 5}', "missing required field `sensor`"),
    (Positive, b'{"n": 0}', "n must be positive"),
    (Literal["a"], b'"b"', "Invalid enum value 'b'"),
    (datetime, b'"soon"', "Invalid RFC3339"),
    (Model, b"{}", "KeyError: 'weight'"),
    (Model, b"5", "'int' object is not subscriptable"),
    (Any, b"[" * 100_000, "nested too deeply"),
    (Tree, b'{"name":"","children":[' * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("of", "data", "reason"), BAD_JSON, ids=[reason for _, _, reason in BAD_JSON])
def test_bad_json_is_told_with_the_reason(of: Any, data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Codec("json", of).decode(data)
    assert reason in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x81", b"\xc1", b"\x81\xa5count\xa11", b"\x01\x02"])
def test_bad_msgpack_is_told_with_the_reason(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r".+"):
        Codec("msgpack", Spend).decode(data)


def test_unknown_fields_are_left_out() -> None:
    assert Codec("json", Spend).decode(b'{"count":1,"new":[1]}') == Spend(1)


def test_a_field_that_is_null_where_it_may_be() -> None:
    assert Codec("json", Holder).decode(b'{"best":null}') == Holder()


@pytest.mark.parametrize(("value", "data"), [("a", b"a"), ("", b""), ("é\0", "é\0".encode())])
def test_text(value: str, data: bytes) -> None:
    for of in (str, Any):
        codec = Codec("text", of)
        assert codec.encode(value) == data
        assert codec.decode(data) == value


def test_text_that_is_no_utf8() -> None:
    with pytest.raises(DecodeError, match="invalid start byte"):
        Codec("text", str).decode(b"\xff")


@pytest.mark.parametrize("value", [5, b"a", None])
def test_only_text_is_text(value: Any) -> None:
    with pytest.raises(TypeError):
        Codec("text", str).encode(value)


def test_bytes_are_bytes() -> None:
    codec = Codec("bytes", bytes)
    assert codec.encode(b"\0\xff") == codec.decode(b"\0\xff") == b"\0\xff"
    assert codec.encode(bytearray(b"a")) == b"a"


@pytest.mark.parametrize("value", [5, "a", None, [1, 2], [300]])
def test_only_bytes_are_bytes(value: Any) -> None:
    with pytest.raises(TypeError):  # bytes(5) would be five zeros, bytes([1, 2]) two bytes
        Codec("bytes", bytes).encode(value)


UNFIT: list[tuple[str, Any, str]] = [
    ("json", Bare, "Bare has no to_state"),
    ("msgpack", Bare, "Bare has no to_state"),
    ("json", OneWay, "OneWay has no from_state"),
    ("json", Hidden, "Bare has no to_state"),
    ("json", list[dict[str, Bare]], "Bare has no to_state"),
    ("json", complex, "complex has no to_state"),
    ("json", pathlib.Path, "Path has no to_state"),
    ("json", 5, "5"),
    ("json", "Spend", "Spend"),
    ("json", Tagged | Spend, "cannot be used"),  # no telling which a record is
    ("text", int, "codec 'text' needs the type str, not int"),
    ("text", Spend, "codec 'text' needs the type str, not Spend"),
    ("bytes", str, "codec 'bytes' needs the type bytes, not str"),
    ("csv", int, "codec 'csv' needs columns"),
    ("xml", Spend, "unknown codec 'xml': use json, msgpack, csv, text or bytes"),
    ("", Spend, "unknown codec ''"),
]


@pytest.mark.parametrize(("name", "of", "reason"), UNFIT)
def test_a_type_that_the_format_cannot_take_is_a_configuration_error(name: str, of: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Codec(name, of)
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [Bare(), {"a": Bare()}, [Bare()], {1j: 1}])
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_what_cannot_be_encoded_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        Codec(name, Any).encode(value)


def test_a_stored_value_may_gain_a_field_with_a_default() -> None:
    class Old(Record):
        count: int = 0

    assert Codec("msgpack", Spend).decode(Codec("msgpack", Old).encode(Old(5))) == Spend(5)


def test_a_raw_field_is_left_alone() -> None:
    class Envelope(Record):
        body: msgspec.Raw

    assert bytes(Codec("json", Envelope).decode(b'{"body": [1, 2]}').body) == b"[1, 2]"
