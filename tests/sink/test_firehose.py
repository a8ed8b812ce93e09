import pytest

from flowkit import ConfigError
from flowkit.sink import destination
from flowkit.sink.dispatch import Item, Never
from flowkit.sink.firehose import FirehoseDestination
from flowkit.sink.records import Row


def item(url: str, value: bytes | None) -> Item | Never:
    found = destination(url, None)
    assert isinstance(found, FirehoseDestination)
    found.check()
    return found._make(0, Row(b"k", value, 0, None, 7, "me"))


@pytest.mark.parametrize(
    ("url", "value", "data"),
    [
        ("firehose://f", b"{}", b"{}\n"),
        ("firehose://f", None, b"null\n"),
        ("firehose://f?newline=no", b"{}", b"{}"),
        ("firehose://f?id=i", b'{"a":1}', b'{"i":"me-7","a":1}\n'),
    ],
)
def test_a_record_is_its_value_and_a_newline(url: str, value: bytes | None, data: bytes) -> None:
    assert item(url, value) == Item(0, None, len(data), data)


def test_what_is_too_large_with_its_newline_is_never_sent() -> None:
    assert isinstance(item("firehose://f", b"x" * 1_023_999), Item)
    assert item("firehose://f", b"x" * 1_024_000) == Never(
        "RecordTooLarge", "1024001 bytes, and Firehose takes 1024000"
    )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("firehose://", "needs a delivery stream's name"),
        ("firehose://f?id=n", "id=n: records have such a field already"),
        ("firehose://f?newline=1", "newline=1: there are yes, no"),
    ],
)
def test_what_is_wrong_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        destination(url, ("n",)).check()
    assert told in str(caught.value)
