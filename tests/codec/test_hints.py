"""What a type annotation says of its values."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, NewType, Optional, TypedDict, TypeVar

import pytest

from flowkit.codec import arms_of, bare, class_of, field_getter, fields_of, has_field, is_mapping, type_name
from flowkit.record import Record

T = TypeVar("T")


class Sale(Record):
    shop: str
    amount: float = 0.0


class Renamed(Record, rename="camel"):
    shop_name: str


class Box(Record, Generic[T]):
    item: T


@dataclass
class Point:
    x: float
    y: float


@dataclass
class Pair(Generic[T]):
    left: T
    right: T


class Beat(TypedDict):
    sensor: str


class LongBeat(Beat, total=False):
    note: str


Noted = Annotated[Sale, "with a note"]
PointId = NewType("PointId", Point)

FIELDS: list[tuple[Any, tuple[str, ...] | None]] = [
    (Sale, ("shop", "amount")),
    (Renamed, ("shopName",)),
    (Box, ("item",)),
    (Box[int], ("item",)),
    (Point, ("x", "y")),
    (Pair[int], ("left", "right")),
    (Beat, ("sensor",)),
    (LongBeat, ("sensor", "note")),
    (Noted, ("shop", "amount")),
    (PointId, ("x", "y")),
    (dict, None),
    (dict[str, int], None),
    (Any, None),
    (int, None),
    (Sale | Point, None),
    (list[Sale], None),
]


@pytest.mark.parametrize(("of", "fields"), FIELDS)
def test_fields_are_those_of_the_outside(of: Any, fields: tuple[str, ...] | None) -> None:
    assert fields_of(of) == fields


HAS: list[tuple[Any, str, bool]] = [
    (Sale, "shop", True),
    (Sale, "missing", False),
    (Sale, "__class__", False),
    (Renamed, "shop_name", True),
    (Renamed, "shopName", False),
    (Box[int], "item", True),
    (Box[int], "other", False),
    (Point, "x", True),
    (Point, "z", False),
    (Pair[str], "left", True),
    (Beat, "sensor", True),
    (LongBeat, "sensor", True),
    (LongBeat, "note", True),
    (Beat, "note", False),
    (Noted, "shop", True),
    (PointId, "x", True),
    (PointId, "missing", False),
    (dict, "anything", True),
    (dict[str, int], "anything", True),
    (Any, "anything", True),
    (int, "real", False),
    (str, "upper", False),
    (list[Sale], "shop", False),
    (Sale | Box[int], "shop", False),
    (Sale | dict[str, str], "shop", True),
    (Sale | None, "shop", True),
    (Optional[Sale], "missing", False),  # noqa: UP045
    (type(None), "shop", False),
    ("Sale", "shop", False),
]


@pytest.mark.parametrize(("of", "name", "has"), HAS)
def test_has_field(of: Any, name: str, has: bool) -> None:
    assert has_field(of, name) is has


GOT: list[tuple[Any, str, Any, Any]] = [
    (Sale, "shop", Sale("a"), "a"),
    (Renamed, "shop_name", Renamed("a"), "a"),
    (Point, "y", Point(1, 2), 2),
    (Beat, "sensor", Beat(sensor="a"), "a"),
    (LongBeat, "note", LongBeat(sensor="a"), None),
    (dict, "a", {"a": 1}, 1),
    (dict[str, int], "b", {"a": 1}, None),
    (Any, "a", {"a": 1}, 1),
    (Any, "shop", Sale("a"), "a"),
    (Any, "missing", Sale("a"), None),
    (Sale | dict[str, str], "shop", Sale("a"), "a"),
    (Sale | dict[str, str], "shop", {"shop": "b"}, "b"),
    (Noted, "shop", Sale("a"), "a"),
    (PointId, "x", Point(1, 2), 1),
]


@pytest.mark.parametrize(("of", "name", "value", "found"), GOT)
def test_field_getter(of: Any, name: str, value: Any, found: Any) -> None:
    assert field_getter(of, name)(value) == found


@pytest.mark.parametrize(
    ("of", "mapping"),
    [
        (dict, True),
        (dict[str, int], True),
        (Beat, True),
        (Sale, False),
        (Any, False),
        (list[int], False),
        (Noted, False),
    ],
)
def test_is_mapping(of: Any, mapping: bool) -> None:
    assert is_mapping(of) is mapping


@pytest.mark.parametrize(
    ("of", "stripped", "cls", "arms"),
    [
        (int, int, int, (int,)),
        (Noted, Sale, Sale, (Sale,)),
        (PointId, Point, Point, (Point,)),
        (Annotated[PointId, 1], Point, Point, (Point,)),
        (list[int], list[int], list, (list[int],)),
        (Annotated[list[int], 1], list[int], list, (list[int],)),
        (Any, Any, Any, (Any,)),
        (T, T, T, (T,)),
    ],
)
def test_what_only_annotates_is_taken_off(of: Any, stripped: Any, cls: Any, arms: tuple[Any, ...]) -> None:
    assert bare(of) == stripped
    assert class_of(of) == cls
    assert arms_of(of) == arms


def test_arms_of_unions_within_unions() -> None:
    assert arms_of(int | Annotated[str | None, 1] | PointId) == (int, str, type(None), Point)


@pytest.mark.parametrize(
    ("of", "name"),
    [(int, "int"), (Sale, "Sale"), (list[int], "list[int]"), (int | None, "int | None"), (Any, "typing.Any")],
)
def test_type_name(of: Any, name: str) -> None:
    assert type_name(of).removeprefix("typing.") == name.removeprefix("typing.")
