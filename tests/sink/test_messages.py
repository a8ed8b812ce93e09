"""Messages of SQS, SNS and EventBridge, without a server."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.errors import SinkError
from flowkit.sink import destination
from flowkit.sink.dispatch import Again, Item, Never
from flowkit.sink.messages import MessagesDestination
from flowkit.sink.records import Row

TOPIC = "arn:aws:sns:eu-west-1:123456789012:t"


def opened(url: str, *fields: str) -> MessagesDestination:
    found = destination(url, fields or None)
    assert isinstance(found, MessagesDestination)
    found.check()
    return found


def made(url: str, key: bytes | None, value: bytes | None) -> Any:
    found = opened(url)._make(0, Row(key, value, 1_500, None, 7, "me"))
    return found.body if isinstance(found, Item) else found


def text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def test_a_message_is_text_with_its_id_and_key() -> None:
    assert made("sqs://q", b"k", b'{"a":1}') == {
        "MessageBody": '{"a":1}',
        "MessageAttributes": {"flowkit_id": text("me-7"), "flowkit_key": text("k")},
    }
    assert made(f"sns://{TOPIC}", None, None) == {
        "Message": "null",
        "MessageAttributes": {"flowkit_id": text("me-7")},
    }


@pytest.mark.parametrize("url", ["sqs://q.fifo", f"sns://{TOPIC}.fifo"])
def test_in_a_fifo_the_key_is_the_group_and_the_id_tells_what_came_again(url: str) -> None:
    for key, group in (
        (b"k", "k"),
        (None, "me-7"),
        (b"two words", hashlib.sha256(b"two words").hexdigest()),
        (b"\xff", hashlib.sha256(b"\xff").hexdigest()),
        (b"k" * 129, hashlib.sha256(b"k" * 129).hexdigest()),
    ):
        found = made(url, key, b"1")
        assert (found["MessageGroupId"], found["MessageDeduplicationId"]) == (group, "me-7")
    item = opened(url)._make(0, Row(b"k", b"1", 0, None, 7, "me"))
    assert isinstance(item, Item)
    assert item.key == b"k"


def test_an_event_has_the_records_time_and_its_object() -> None:
    assert made("events://bus?source=shop&detail_type=order&id=record_id", b"k", b'{"a":1}') == {
        "Source": "shop",
        "DetailType": "order",
        "Detail": '{"record_id":"me-7","a":1}',
        "EventBusName": "bus",
        "Time": datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC),
    }


@pytest.mark.parametrize(
    ("url", "value", "error"),
    [
        ("sqs://q", b"\xff", "NoText"),
        ("sqs://q", b"a\x00b", "InvalidMessageContents"),
        ("sqs://q", b"", "EmptyMessage"),
        ("sqs://q", b"x" * (1 << 20), "MessageTooLarge"),
        (f"sns://{TOPIC}", b"x" * (256 << 10), "MessageTooLarge"),
        ("events://b", None, "NoObject"),
        ("events://b", b"[1]", "NoObject"),
        ("events://b", b"{" + b" " * 1_000_000 + b"}", "MessageTooLarge"),
    ],
)
def test_what_can_be_no_message_is_never_sent(url: str, value: bytes | None, error: str) -> None:
    found = made(url, b"k", value)
    assert isinstance(found, Never)
    assert found.error == error


def test_a_topic_may_take_larger_messages() -> None:
    to = opened(f"sns://{TOPIC}")
    to.service.learn({"Attributes": {"MaximumMessageSize": "300000"}})
    assert isinstance(to._make(0, Row(b"k", b"x" * (256 << 10), 0, None, 7, "me")), Item)


@pytest.mark.parametrize("url", ["sqs://q", f"sns://{TOPIC}"])
def test_each_message_has_its_own_fate(url: str) -> None:
    service = opened(url).service
    failed = [
        {"Id": "1", "Code": "InternalError", "Message": "m", "SenderFault": False},
        {"Id": "3", "Code": "InvalidMessageContents", "Message": "m", "SenderFault": True},
        {"Id": "2", "Code": "RequestThrottled", "Message": "m", "SenderFault": True},
    ]
    assert service.outcomes({"Failed": failed}, 5, url) == [
        None,
        Again("InternalError: m"),
        Again("RequestThrottled: m", slow=True),
        Never("InvalidMessageContents", "m"),
        None,
    ]
    with pytest.raises(SinkError, match=r"KMS.AccessDeniedException: m"):
        service.outcomes({"Failed": [{"Id": "0", "Code": "KMS.AccessDeniedException", "Message": "m"}]}, 1, url)


def test_each_event_has_its_own_fate() -> None:
    service = opened("events://b").service
    codes = [None, "ThrottlingException", "InternalFailure", "InternalException", "MalformedDetail"]
    entries = [{"EventId": "1"} if code is None else {"ErrorCode": code, "ErrorMessage": "m"} for code in codes]
    assert service.outcomes({"FailedEntryCount": 4, "Entries": entries}, 5, "events://b") == [
        None,
        Again("ThrottlingException: m", slow=True),
        Again("InternalFailure: m"),
        Again("InternalException: m"),
        Never("MalformedDetail", "m"),
    ]
    with pytest.raises(SinkError, match="NotAuthorizedForSourceException"):
        service.outcomes(
            {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "NotAuthorizedForSourceException"}]}, 1, "events://b"
        )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqs://", "needs a queue's name"),
        ("sqs://q.other", "needs a queue's name"),
        ("sns://t", "needs a topic's ARN"),
        ("events://a bus", "needs an event bus's name"),
        ("events://b?source=aws.ec2", "are Amazon's own"),
        ("events://b?id=n", "id=n: records have such a field already"),
        ("sqs://q?source=x", "unknown option 'source'"),
        ("sqs://q?calls=0", "calls=0: needs a whole number"),
    ],
)
def test_what_is_wrong_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(url, "n")
    assert told in str(caught.value)


def test_a_queues_arn_names_its_owner() -> None:
    service: Any = opened("sqs://arn:aws:sqs:eu-west-1:123456789012:orders.fifo").service
    assert service._asked == {"QueueName": "orders.fifo", "QueueOwnerAWSAccountId": "123456789012"}
    assert service.fifo
