"""CSV: one record of columns to a typed value and back."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NotRequired, TypedDict

import msgspec
import pytest

from flowkit.codec import Codec, csv_line
from flowkit.errors import ConfigError, DecodeError
from flowkit.record import Record


class Sale(Record):
    shop: str
    amount: float
    count: int = 1
    note: str | None = None
    gift: bool = False


class Text(Record):
    a: str
    b: str = "default"


class Needs(Record):
    text: str
    number: int
    perhaps: int | None


class Nested(Record):
    name: str
    tags: list[str] = []
    sizes: dict[str, int] = {}
    first: Text | None = None


class Renamed(Record, rename="camel"):
    shop_name: str
    total_amount: float = 0.0


class Strict(Record, forbid_unknown_fields=True):
    a: int


class Row(Record, array_like=True):
    a: int


class One(Record):
    only: str


class Money(Record):
    amount: Decimal
    at: datetime


@dataclass
class Reading:
    sensor: str
    value: float = 0.5
    tags: list[str] = field(default_factory=list[str])


class Beat(TypedDict):
    sensor: str
    at: int
    note: NotRequired[str]


class Weight:
    """Any object."""

    def __init__(self, grams: float) -> None:
        self.grams = grams

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weight) and self.grams == other.grams

    __hash__ = None  # type: ignore[assignment]

    def to_state(self) -> dict[str, float]:
        return {"grams": self.grams}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> "Weight":
        return cls(state["grams"])


class Parcel(Record):
    id: str
    weight: Weight


READ: list[tuple[Any, bytes, Any]] = [
    (Sale, b"a,1.5,2,n,true", Sale("a", 1.5, 2, "n", True)),
    (Sale, b"a,1,2,n,FALSE", Sale("a", 1.0, 2, "n")),
    (Sale, b"a,1,2,n,1", Sale("a", 1.0, 2, "n", True)),
    (Sale, "é,1e3,-2,ü,0".encode(), Sale("é", 1000.0, -2, "ü")),
    (Sale, b'"a,b",1,1,"say ""hi""",0', Sale("a,b", 1.0, 1, 'say "hi"')),
    (Sale, b'"a\nb",1,1,"\r\n",0', Sale("a\nb", 1.0, 1, "\r\n")),
    (Sale, b'"a\rb",1,1,,0', Sale("a\rb", 1.0)),
    (Sale, b" a ,1,1,  ,0", Sale(" a ", 1.0, 1, "  ")),
    (Sale, b"a\0b,1,1,,0", Sale("a\0b", 1.0)),
    (Sale, b"a,1,1,,0\r\n", Sale("a", 1.0)),
    (Sale, b"a,1,1,,0\n", Sale("a", 1.0)),
    # empty cells: the default, else None, else empty text
    (Sale, b"a,1.5,,,", Sale("a", 1.5)),
    (Sale, b",1.5,,,", Sale("", 1.5)),
    (Sale, b'"",1.5,"","",""', Sale("", 1.5)),
    (Text, b",", Text("")),
    (Needs, b",5,", Needs("", 5, None)),
    (Needs, b"null,5,null", Needs("null", 5, None)),
    (One, b"", One("")),
    (One, b'""', One("")),
    # fields that are no scalars hold JSON
    (Nested, b'a,"[""x"",""y""]","{""s"":1}",', Nested("a", ["x", "y"], {"s": 1})),
    (Nested, b'a,[],,"{""a"":""t""}"', Nested("a", first=Text("t"))),
    (Parcel, b'p,"{""grams"":2.5}"', Parcel("p", Weight(2.5))),
    (Renamed, b"a,2", Renamed("a", 2.0)),
    (Reading, b"s,2,", Reading("s", 2.0)),
    (Reading, b"s,,", Reading("s")),
    (Reading, b's,,"[""a""]"', Reading("s", tags=["a"])),
    (Beat, b"s,5,n", Beat(sensor="s", at=5, note="n")),
    (Beat, b"s,5,", Beat(sensor="s", at=5)),
    (Beat, b",5,", Beat(sensor="", at=5)),
    (Money, b"1.10,2024-01-01T00:00:00Z", Money(Decimal("1.10"), datetime(2024, 1, 1, tzinfo=UTC))),
]


@pytest.mark.parametrize(("of", "data", "value"), READ)
def test_a_record_is_read(of: Any, data: bytes, value: Any) -> None:
    assert Codec("csv", of).decode(data) == value


BAD: list[tuple[Any, bytes, str]] = [
    (Sale, b"a,1", "2 cells where the header has 5"),
    (Sale, b"a,1,1,n,0,extra", "6 cells where the header has 5"),
    (Sale, b"", "1 cells where the header has 5"),
    (Sale, b"\n", "1 cells where the header has 5"),
    (Sale, b"a,1,1,n,0\nb,1,1,n,0", "2 records where one was expected"),
    (Sale, b'"a,1,1,n,0', "unexpected end of data"),
    (Sale, b'"a"b,1,1,n,0', "',' expected after '\"'"),
    (Sale, b"a\rb,1,1,n,0", "new-line character seen in unquoted field"),
    (Sale, b"a,much,1,n,0", "Expected `float`, got `str` - at `$.amount`"),
    (Sale, b"a,,1,n,0", "missing required field `amount`"),
    (Sale, b"a,1,1.5,n,0", "Expected `int`, got `str` - at `$.count`"),
    (Sale, b"a,1,1,n,maybe", "Expected `bool`, got `str` - at `$.gift`"),
    (Sale, b"\xff,1,1,n,0", "can't decode byte 0xff"),
    (Sale, b"\xef\xbb\xbfa,1,1", "3 cells where the header has 5"),
    (Needs, b"t,,5", "missing required field `number`"),
    (Nested, b"a,x,,", "Expected `array`, got `str` - at `$.tags`"),
    (Nested, b'a,"[1]",,', "Expected `str`, got `int` - at `$.tags[0]`"),
    (Parcel, b'p,"{}"', "KeyError: 'grams'"),
    (Beat, b"s,,n", "missing required field `at`"),
    (Sale, b"x" * 200_000 + b",1,1,n,0", "field larger than field limit (131072)"),
]


@pytest.mark.parametrize(("of", "data", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_a_bad_record_is_told_with_the_reason(of: Any, data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Codec("csv", of).decode(data)
    assert reason in str(caught.value)


HEADERS: list[tuple[Any, list[str], bytes, Any]] = [
    (Sale, ["amount", "shop"], b"2,a", Sale("a", 2.0)),
    (Sale, ["unknown", "amount", "shop"], b"x,2,a", Sale("a", 2.0)),
    (Sale, ["", "amount", "shop"], b",2,a", Sale("a", 2.0)),
    (Renamed, ["totalAmount", "shopName"], b"2,a", Renamed("a", 2.0)),
    (dict, ["a", "b"], b"1,", {"a": "1", "b": ""}),
    (dict[str, Any], ["a", "b"], b"1,", {"a": "1", "b": ""}),
    (dict[str, str], ["a", "b"], b"1,", {"a": "1", "b": ""}),
    (dict[str, float], ["a", "b"], b"1,", {"a": 1.0}),
    (dict[str, float | None], ["a", "b"], b"1,", {"a": 1.0, "b": None}),
    (Any, ["a", "b"], b"1,", {"a": "1", "b": ""}),
    (Beat, ["at", "sensor"], b"5,s", Beat(sensor="s", at=5)),
]


@pytest.mark.parametrize(("of", "header", "data", "value"), HEADERS)
def test_a_files_header_says_which_column_is_which(of: Any, header: list[str], data: bytes, value: Any) -> None:
    assert Codec("csv", of, header).decode(data) == value


def test_a_type_may_forbid_columns_that_it_does_not_know() -> None:
    with pytest.raises(DecodeError, match="unknown field `b`"):
        Codec("csv", Strict, ["a", "b"]).decode(b"1,2")


WRITTEN: list[tuple[Any, Any, bytes]] = [
    (Sale, Sale("a", 1.5, 2, "n", True), b"a,1.5,2,n,true"),
    (Sale, Sale("a", 1.0), b"a,1.0,1,,false"),
    (Sale, Sale("a,b", 1.0, 1, 'say "hi"'), b'"a,b",1.0,1,"say ""hi""",false'),
    (Sale, Sale("a\nb", 1.0, 1, "c\rd"), b'"a\nb",1.0,1,"c\rd",false'),
    (Sale, Sale("a", math.inf), b"a,inf,1,,false"),
    (One, One(""), b'""'),
    (Nested, Nested("a", ["x", 'y"']), b'a,"[""x"",""y\\""""]",{},'),
    (Nested, Nested("a", first=Text("t", "u")), b'a,[],{},"{""a"":""t"",""b"":""u""}"'),
    (Parcel, Parcel("p", Weight(2.5)), b'p,"{""grams"":2.5}"'),
    (Renamed, Renamed("a", 2.0), b"a,2.0"),
    (Reading, Reading("s", 2.0), b"s,2.0,[]"),
    (Beat, Beat(sensor="s", at=5), b"s,5,"),
    (Money, Money(Decimal("1.10"), datetime(2024, 1, 1, tzinfo=UTC)), b"1.10,2024-01-01T00:00:00Z"),
]


@pytest.mark.parametrize(("of", "value", "data"), WRITTEN)
def test_a_value_is_written_and_read_again(of: Any, value: Any, data: bytes) -> None:
    codec = Codec("csv", of)
    assert codec.encode(value) == data
    assert codec.decode(data) == value


def test_nan_survives() -> None:
    codec = Codec("csv", Sale)
    assert math.isnan(codec.decode(codec.encode(Sale("a", math.nan))).amount)


@pytest.mark.parametrize("of", [dict, dict[str, int], int, str, Any, Sale | Text, list[Sale], Row])
def test_a_type_without_named_columns_is_a_configuration_error(of: Any) -> None:
    with pytest.raises(ConfigError, match="codec 'csv'"):
        Codec("csv", of)


LINES: list[tuple[list[Any], bytes]] = [
    (["a", "b"], b"a,b"),
    (["a,b", 'c"d'], b'"a,b","c""d"'),
    (["a\nb"], b'"a\nb"'),  # once it was not quoted: two records where there was one
    (["a\rb", "c\r\nd"], b'"a\rb","c\r\nd"'),
    ([""], b'""'),
    (["", ""], b","),
    ([1, 1.5, None], b"1,1.5,"),
    (["é\0"], "é\0".encode()),
]


@pytest.mark.parametrize(("cells", "line"), LINES)
def test_a_line(cells: list[Any], line: bytes) -> None:
    assert csv_line(cells) == line


def test_a_decoded_value_is_of_its_type_and_not_a_dict() -> None:
    assert isinstance(Codec("csv", Sale).decode(b"a,1,1,,"), msgspec.Struct)
