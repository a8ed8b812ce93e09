"""Topics and sinks: what can be told of them when they are declared."""

from dataclasses import dataclass
from typing import Any, TypedDict

import pytest

from flowkit.agent import Sink, Topic, check_name
from flowkit.errors import ConfigError, NoEvent
from flowkit.record import Record


class Sale(Record):
    shop: str
    at: int = 0


class Renamed(Record, rename="camel"):
    shop_name: str


@dataclass
class Point:
    x: float


class Beat(TypedDict):
    at: int


class Bare:
    """Nothing that can be sent."""


def shop_of(sale: Sale) -> str:
    return sale.shop


GOOD: list[tuple[Any, dict[str, Any]]] = [
    (Sale, {"key": "shop", "time": "at"}),
    (Sale, {"key": shop_of, "time": lambda sale: sale.at}),
    (Renamed, {"key": "shop_name"}),
    (Point, {"key": "x"}),
    (Beat, {"time": "at", "time_unit": "s"}),
    (dict[str, Any], {"key": "any", "time": "thing"}),
    (dict, {"key": "any"}),
    (Any, {"key": "any"}),
    (Sale | None, {"key": "shop"}),
    (str, {"codec": "text"}),
    (str, {"key": str.lower, "codec": "json"}),
    (bytes, {"codec": "bytes"}),
    (int, {"codec": "msgpack", "key": abs}),
    (Sale, {"codec": "csv", "timezone": "Europe/Berlin"}),
    (Sale, {"out_of_order": 0, "idle_after": 1, "close_after_idle": 1}),
]


@pytest.mark.parametrize(("of", "options"), GOOD)
def test_a_topic(of: Any, options: dict[str, Any]) -> None:
    topic: Topic[Any] = Topic("sales", of, **options)
    assert (topic.name, topic.type, topic.element) == ("sales", of, of)
    assert topic.key is options.get("key")
    assert topic.time is options.get("time")
    assert repr(topic) == "<Topic sales>"


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Sale, {"key": "card"}, "'sales': key='card' is no field of Sale, whose fields are: shop, at"),
    (Sale, {"time": "when"}, "'sales': time='when' is no field of Sale, whose fields are: shop, at"),
    (Renamed, {"key": "shopName"}, "key='shopName' is no field of Renamed"),
    (Point, {"key": "y"}, "key='y' is no field of Point, whose fields are: x"),
    (Beat, {"time": "time"}, "time='time' is no field of Beat, whose fields are: at"),
    (int, {"key": "real"}, "key='real' is no field of int"),
    (Sale | Point, {"key": "shop"}, "key='shop' is no field of"),
    (Sale, {"key": 5}, "key=5: give the name of a field, or a function of the value"),
    (Sale, {"key": ["shop"]}, "key=['shop']: give the name of a field"),
    (Sale, {"time": ""}, "time='' is no field"),
    (Sale, {"time_unit": "minutes"}, "time_unit='minutes'"),
    (Sale, {"timezone": "Mars"}, "timezone='Mars'"),
    (Sale, {"codec": "xml"}, "'sales': unknown codec 'xml'"),
    (Sale, {"codec": "text"}, "'sales': codec 'text' needs the type str, not Sale"),
    (dict[str, int], {"codec": "csv"}, "'sales': codec 'csv' needs columns"),
    (Bare, {}, "'sales': type Bare cannot be used with codec 'json': Bare has no to_state()"),
    (5, {}, "'sales': type 5 cannot be used"),
    (Sale, {"out_of_order": -1}, "out_of_order=-1: give whole ms, 0 or more"),
    (Sale, {"out_of_order": 1.5}, "out_of_order=1.5: give whole ms"),
    (Sale, {"out_of_order": True}, "out_of_order=True: give whole ms"),
    (Sale, {"out_of_order": None}, "out_of_order=None: give whole ms"),
    (Sale, {"out_of_order": "5s"}, "out_of_order='5s': give whole ms"),
    (Sale, {"idle_after": 0}, "idle_after=0: give whole ms, 1 or more"),
    (Sale, {"idle_after": -5}, "idle_after=-5: give whole ms"),
    (Sale, {"close_after_idle": 0}, "close_after_idle=0: give whole ms"),
    (Sale, {"close_after_idle": 1e3}, "close_after_idle=1000.0: give whole ms"),
]


@pytest.mark.parametrize(("of", "options", "problem"), BAD, ids=[problem for _, _, problem in BAD])
def test_a_topic_that_cannot_be_right(of: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Topic("sales", of, **options)
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["a", "fraud-alerts", "a.b_c", "größe", "x" * 300])
def test_a_name(name: str) -> None:
    check_name(name, "a topic")
    assert Sink(name, Sale).name == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a=b", "a/b", "a\nb", "a\tb", "a\0b", "a\u200bb", None, 5, b"a", Sale]
)
def test_no_name(name: Any) -> None:
    with pytest.raises(ConfigError, match="is no name for a topic"):
        check_name(name, "a topic")
    with pytest.raises(ConfigError, match="is no name"):
        Topic(name, Sale)


@pytest.mark.parametrize("outlet", [Sink("s", Sale), Topic("t", Sale)])
def test_nothing_is_sent_outside_an_event(outlet: Sink[Sale]) -> None:
    with pytest.raises(NoEvent, match=r"emit was called outside an event"):
        outlet.emit(Sale("a"))
