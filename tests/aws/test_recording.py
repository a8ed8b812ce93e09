"""The recording of the suite itself: what is not allowed by the rights of what was opened fails the test."""

import pytest

from flowkit.aws import Right, arn
from flowkit.sink import destination
from flowkit.sink.firehose import FirehoseDestination
from tests.aws.proxy import proxy_to
from tests.aws.recording import Recorder
from tests.aws.test_firehose_sink import stream


async def opened(server: str) -> None:
    """A destination whose service was looked at, through a proxy."""
    async with stream() as (name, _), proxy_to(server) as proxy:
        async with destination(f"firehose://{name}?endpoint={proxy.url}", None):
            pass
        assert proxy.times("DescribeDeliveryStream") == 1


async def test_a_call_without_a_right_is_told(moto: str, monkeypatch: pytest.MonkeyPatch, recording: Recorder) -> None:
    only_put = [Right("firehose", ("PutRecordBatch",), arn("firehose", "deliverystream/*"))]
    monkeypatch.setattr(FirehoseDestination, "rights", lambda _: only_put)
    await opened(moto)
    with pytest.raises(AssertionError, match="firehose:DescribeDeliveryStream on arn:aws:firehose:us-east-1"):
        recording.check()
    recording.refused.add("firehose:DescribeDeliveryStream")
    recording.check()


async def test_what_is_allowed_passes_and_other_streams_are_none_of_it(
    moto: str, monkeypatch: pytest.MonkeyPatch, recording: Recorder
) -> None:
    await opened(moto)
    recording.check()
    assert [made.where for made in recording.made] == [f"firehose://{recording.made[0]._name}"]
    monkeypatch.setattr(recording.made[0], "_name", "another")
    with pytest.raises(AssertionError, match="firehose:DescribeDeliveryStream"):
        recording.check()
    recording.refused.add("firehose:DescribeDeliveryStream")
