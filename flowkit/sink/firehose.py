"""Amazon Data Firehose as a destination: `firehose://STREAM`.

    ?id=FIELD      the record's stable id as a field of its JSON value: readers tell by it what came again
    ?newline=no    records as they are; default `yes`: each ends in a newline, as Firehose puts none between them
    ?calls=8       requests under way at once, of each task

Firehose has no keys and keeps no order. A tombstone is the line `null`, as in a file of JSON lines.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from flowkit.aws import AwsOptions, Right, arn
from flowkit.errors import ConfigError
from flowkit.sink.calls import bulk_client, called, described
from flowkit.sink.dispatch import Again, Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.record_id import with_id
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

CALL_RECORDS = 500
CALL_BYTES = 4_000_000
RECORD_BYTES = 1_000 << 10
"""As the API's model says (botocore, PutRecordBatch): 500 records and 4 MB a call, 1,000 KiB a record before base64."""

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
SLOW = "ServiceUnavailableException"


class FirehoseDestination:
    """One delivery stream. See the head of this file."""

    def __init__(
        self,
        stream: str,
        aws: AwsOptions,
        where: str,
        fields: Sequence[str] | None = None,
        *,
        id_field: str | None = None,
        newline: bool = True,
        calls: int = 8,
    ) -> None:
        self.where, self.aws = where, aws
        self.id_field, self.calls = id_field, calls
        self.codec = None if id_field is None else "json"
        self.guarantee = "at least once, in no order: after a failure a record may come again, " + (
            f"under the same id in field {id_field!r}" if id_field else "with nothing to tell it by (add ?id=FIELD)"
        )
        self._name, self._fields, self._end = stream, fields or (), b"\n" if newline else b""
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such stream, or nothing can be put into it."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(bulk_client("firehose", self.aws, self.where, self.calls))
            found = await described(
                self.where,
                self._client.describe_delivery_stream(DeliveryStreamName=self._name, Limit=1),
                right="firehose:DescribeDeliveryStream",
                missing="make it with `aws firehose create-delivery-stream`, or mend the name",
            )
            if found is not None:
                self._look_at(found["DeliveryStreamDescription"])
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _look_at(self, description: Mapping[str, Any]) -> None:
        status, kind = description["DeliveryStreamStatus"], description.get("DeliveryStreamType", "DirectPut")
        if status != "ACTIVE":
            raise ConfigError(f"{self.where}: is {status}: wait until it is ACTIVE, or make it again")
        if kind != "DirectPut":
            raise ConfigError(f"{self.where}: is fed by another source ({kind}): only a DirectPut stream takes records")

    def check(self) -> None:
        """As the protocol says."""
        problems = []
        if not NAME.fullmatch(self._name):
            problems.append(f"{self.where}: needs a delivery stream's name (letters, digits, _ . -, 64 at most)")
        if self.id_field in self._fields:
            problems.append(f"{self.where}: id={self.id_field}: records have such a field already: name another one")
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        stream = arn("firehose", f"deliverystream/{self._name}", self.aws.region)
        return (Right("firehose", ("DescribeDeliveryStream", "PutRecordBatch"), stream),)

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        dispatch = Dispatch(self.where, self._send, Limits(CALL_RECORDS, CALL_BYTES, self.calls))
        return RecordSink(dispatch, self._make, task.clock, codec=self.codec)

    def _make(self, index: int, row: Row) -> Item | Never:
        value = b"null" if row.value is None else with_id(row.value, self.id_field, row.id)
        if isinstance(value, Never):
            return value
        if not value.endswith(self._end):
            value += self._end
        if len(value) > RECORD_BYTES:
            return Never("RecordTooLarge", f"{len(value)} bytes, and Firehose takes {RECORD_BYTES}")
        return Item(index, None, len(value), value)

    async def _send(self, items: Sequence[Item]) -> Sequence[Outcome] | None:
        records = [{"Data": item.body} for item in items]
        call = self._client.put_record_batch(DeliveryStreamName=self._name, Records=records)
        answer = await called(self.where, call)
        if not answer.get("FailedPutCount"):
            return None
        return [_outcome(record) for record in answer["RequestResponses"]]


def _outcome(record: Mapping[str, Any]) -> Outcome:
    # The service names two codes, and neither is the record's fault.
    code = record.get("ErrorCode")
    return None if not code else Again(f"{code}: {record.get('ErrorMessage')}", slow=code == SLOW)


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> FirehoseDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    id_field, newline, calls = own.text("id"), own.choice("newline", ("yes", "no")), own.whole("calls", 8)
    own.done(*AwsOptions._fields)
    return FirehoseDestination(place, aws, where, fields, id_field=id_field, newline=newline == "yes", calls=calls)
