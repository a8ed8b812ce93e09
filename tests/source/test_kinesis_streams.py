"""What Kinesis says, as it is understood."""

import pytest

from flowkit.source.kinesis_streams import milliseconds


@pytest.mark.parametrize(
    ("said", "ms"),
    [
        (1_700_000_000.123, 1_700_000_000_123),
        (1_700_000_000, 1_700_000_000_000),
        ("1700000000.123", 1_700_000_000_123),
        ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
    ],
)
def test_times_are_milliseconds_however_they_are_said(said: object, ms: int) -> None:
    assert milliseconds(said) == ms
