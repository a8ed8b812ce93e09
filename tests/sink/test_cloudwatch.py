"""CloudWatch's destinations without a server: what becomes of a record, and what is told of a URL."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.clock import VirtualClock
from flowkit.sink import destination
from flowkit.sink.cloudwatch import MetricOptions, _Maker
from flowkit.sink.cloudwatch_logs import CALL_BYTES, event_of, refusals, spans
from flowkit.sink.dispatch import Item, Never
from flowkit.sink.records import Row

NOW = 1_700_000_000_000
DAY = 86_400_000


def made(value: Any, time: int = NOW, **options: Any) -> Item | Never | None:
    maker = _Maker(MetricOptions("n", "orders", **options), VirtualClock(NOW))
    return maker.item(0, Row(b"k", None if value is None else json.dumps(value).encode(), time, None, 1, "id"))


def test_a_record_is_a_value_at_its_time_with_its_dimensions() -> None:
    found = made({"n": 3, "country": "DE", "gift": True}, dimensions=("country", "gift"), unit="Count", resolution=1)
    assert isinstance(found, Item)
    assert found.body.pop("Timestamp").timestamp() * 1000 == NOW
    assert found.body == {
        "MetricName": "orders",
        "Value": 3.0,
        "Unit": "Count",
        "StorageResolution": 1,
        "Dimensions": [{"Name": "country", "Value": "DE"}, {"Name": "gift", "Value": "true"}],
    }
    assert made(None) is None
    assert made({"n": None}) is None


@pytest.mark.parametrize(
    ("value", "time", "error"),
    [
        ({"n": 1, "c": "x"}, NOW - 14 * DAY - 1, "TooOld"),
        ({"n": 1, "c": "x"}, NOW + 2 * 3_600_000 + 1, "TooNew"),
        ({"n": "1", "c": "x"}, NOW, "NoNumber"),
        ({"n": True, "c": "x"}, NOW, "NoNumber"),
        ({"n": 1e200, "c": "x"}, NOW, "NoNumber"),
        ({"n": 1, "c": ""}, NOW, "NoDimension"),
        ({"n": 1}, NOW, "NoDimension"),
        ({"n": 1, "c": "ä"}, NOW, "NoDimension"),
        ({"n": 1, "c": "x" * 1_025}, NOW, "NoDimension"),
        ([1], NOW, "NoObject"),
    ],
)
def test_what_cloudwatch_never_takes_is_told_apart(value: Any, time: int, error: str) -> None:
    found = made(value, time, dimensions=("c",))
    assert isinstance(found, Never)
    assert found.error == error
    assert isinstance(made({"n": 1, "c": "x" * 1_024}, NOW - 14 * DAY, dimensions=("c",)), Item)


def event(time: int) -> Item:
    found = event_of(0, time, "x")
    assert isinstance(found, Item)
    return found


def test_a_call_spans_less_than_a_day() -> None:
    times = [0, 1, DAY - 1, DAY, DAY + 1, 3 * DAY]
    found = [[item.body["timestamp"] for item in run] for run in spans([event(time) for time in times])]
    assert found == [[0, 1, DAY - 1], [DAY, DAY + 1], [3 * DAY]]


@pytest.mark.parametrize(
    ("info", "errors"),
    [
        ({}, [None, None, None]),
        ({"tooOldLogEventEndIndex": 2}, ["TooOld", "TooOld", None]),
        ({"expiredLogEventEndIndex": 2, "tooOldLogEventEndIndex": 1}, ["TooOld", "Expired", None]),
        ({"tooNewLogEventStartIndex": 1}, [None, "TooNew", "TooNew"]),
        ({"tooNewLogEventStartIndex": 2, "tooOldLogEventEndIndex": 1}, ["TooOld", None, "TooNew"]),
    ],
)
def test_what_the_service_says_of_a_call_is_said_of_its_events(info: Any, errors: Sequence[str | None]) -> None:
    found = refusals({"rejectedLogEventsInfo": info}, 3)
    assert [outcome.error if isinstance(outcome, Never) else outcome for outcome in found] == errors


def test_an_event_that_is_too_large_or_empty_is_never_taken() -> None:
    assert isinstance(event_of(0, 0, "ä" * ((CALL_BYTES - 26) // 2)), Item)
    for message, error in (("ä" * ((CALL_BYTES - 26) // 2 + 1), "RecordTooLarge"), ("", "Empty")):
        found = event_of(0, 0, message)
        assert isinstance(found, Never)
        assert found.error == error


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("cloudwatch://AWS/EC2?value=n", "Amazon's own"),
        ("cloudwatch://:x?value=n", "needs a namespace"),
        ("cloudwatch://shop", "needs value=FIELD"),
        ("cloudwatch://shop?value=m", "no record has a field 'm'; there are n, c"),
        ("cloudwatch://shop?value=n&dimensions=c,d", "no record has a field 'd'"),
        ("cloudwatch://shop?value=n&unit=Furlongs", "unit=Furlongs: there are None, Seconds"),
        ("cloudwatch://shop?value=n&resolution=5", "there are 60, 1"),
        ("logs://group", "needs GROUP/STREAM"),
        ("logs://group/a:b", "needs GROUP/STREAM"),
        ("logs://group/s?make=yes", "unknown option 'make'; there are calls, create"),
    ],
)
def test_what_is_wrong_with_a_url_is_told(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        destination(url, ["n", "c"]).check()
    destination("cloudwatch://shop?value=n&dimensions=c", ["n", "c"]).check()
    destination("logs:///aws/flowkit/a%2Fb", None).check()
