import hashlib
import json
from collections.abc import Sequence

import pytest

from flowkit import ConfigError
from flowkit.sink import destination
from flowkit.sink.dispatch import Item, Never
from flowkit.sink.kinesis import KinesisDestination, partition_key
from flowkit.sink.record_id import with_id
from flowkit.sink.records import Row


def opened(url: str, fields: Sequence[str] | None = None) -> KinesisDestination:
    found = destination(url, fields)
    assert isinstance(found, KinesisDestination)
    found.check()
    return found


def item(url: str, key: bytes | None, value: bytes | None) -> Item | Never:
    return opened(url)._make(0, Row(key, value, 0, None, 7, "me"))


@pytest.mark.parametrize(
    ("key", "partition"),
    [
        (b"card-7", "card-7"),
        ("ü".encode() * 256, "ü" * 256),
        (b"x" * 257, hashlib.sha256(b"x" * 257).hexdigest()),
        (b"", hashlib.sha256(b"").hexdigest()),
        (b"\xff\x00", hashlib.sha256(b"\xff\x00").hexdigest()),
        (b'["a",1]', '["a",1]'),
    ],
)
def test_the_partition_key_is_the_key_where_it_can_be(key: bytes, partition: str) -> None:
    assert partition_key(key) == partition


def test_a_record_is_its_value_and_one_without_a_key_is_spread_by_its_id() -> None:
    assert item("kinesis://s", b"k", b"{}") == Item(0, b"k", 3, (b"{}", "k"))
    assert item("kinesis://s", None, b"{}") == Item(0, None, 6, (b"{}", "me-7"))
    assert item("kinesis://s", b"k", None) == Item(0, b"k", 1, (b"", "k"))
    assert item("kinesis://s?order=none", b"k", b"{}") == Item(0, None, 3, (b"{}", "k"))


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"a": {"id": 2}}])
def test_the_id_is_a_field_of_the_value(value: dict[str, object]) -> None:
    made = with_id(json.dumps(value).encode(), 'i"d', "me-7")
    assert isinstance(made, bytes)
    assert json.loads(made) == {'i"d': "me-7", **value}


def test_what_can_hold_no_id_or_is_too_large_is_never_sent() -> None:
    assert item("kinesis://s?id=i", b"k", b"[1]") == Never(
        "NoObject", "field 'i' is to hold the record's id, and the value is no JSON object"
    )
    most = (1 << 20) - 1
    assert isinstance(item("kinesis://s", b"k", b"x" * most), Item)
    assert item("kinesis://s", b"k", b"x" * (most + 1)) == Never(
        "RecordTooLarge", "1048577 bytes with its key, and kinesis://s takes 1048576"
    )
    wide = opened("kinesis://s")
    wide._take({"StreamStatus": "ACTIVE", "MaxRecordSizeInKiB": 10_240})
    assert isinstance(wide._make(0, Row(b"k", b"x" * (5 << 20), 0, None, 7, "me")), Item)


def test_the_guarantee_says_what_records_are_told_by() -> None:
    assert opened("kinesis://s").guarantee == (
        "at least once, in each key's order: after a failure a record may come again, "
        "with nothing to tell it by (add ?id=FIELD)"
    )
    assert opened("kinesis://s?order=none&id=rid").guarantee == (
        "at least once: after a failure a record may come again, under the same id in field 'rid'"
    )
    assert (opened("kinesis://s").codec, opened("kinesis://s?id=rid").codec) == (None, "json")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kinesis://", "needs a stream's name"),
        ("kinesis://a/b", "needs a stream's name"),
        ("kinesis://s?id=n", "id=n: records have such a field already"),
        ("kinesis://s?order=yes", "order=yes: there are key, none"),
        ("kinesis://s?calls=0", "calls=0: needs a whole number from 1 to 1000"),
        ("kinesis://s?shard=1", "unknown option 'shard'; there are calls, endpoint, id, order, profile, region"),
    ],
)
def test_what_is_wrong_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(url, ("n",))
    assert told in str(caught.value)


def test_an_arn_is_a_stream_too() -> None:
    opened("kinesis://arn:aws:kinesis:eu-west-1:123456789012:stream/orders")
