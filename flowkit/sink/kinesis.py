"""Kinesis Data Streams as a destination: `kinesis://STREAM`, or the stream's ARN.

    ?id=FIELD      the record's stable id as a field of its JSON value: readers tell by it what came again
    ?order=none    records of one key may pass each other; default `key`: they stay in order
    ?calls=8       requests under way at once, of each task

The partition key is the record's key as text; of a key that is no text of 1 to 256 characters the SHA-256 in hex; of a
record without a key its id, so that these spread over the shards. A tombstone is a record without data.

`put_records` may take some of a call's records and leave others, and promises no order within a call. So of one key one
record is under way at a time: a stream of very few keys is as slow as one request after the other, unless `order=none`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

import structlog

from flowkit.aws import AwsOptions, Right, arn
from flowkit.errors import ConfigError
from flowkit.sink.calls import bulk_client, called, described
from flowkit.sink.dispatch import Again, Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.record_id import with_id
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask
from flowkit.sink.url_options import UrlOptions

log = structlog.get_logger("flowkit.sink")

CALL_RECORDS = 500
CALL_BYTES = 5 << 20
"""Of data and partition keys. The API's model (botocore, PutRecords) says 10 MiB; it was 5 MiB until 2025, and some
regions and compatible servers still say so. A record may be larger than that: then it has a call of its own."""
RECORD_BYTES = 1 << 20
"""Of one record with its partition key, unless the stream says otherwise (MaxRecordSizeInKiB, up to 10 MiB)."""
KEY_CHARACTERS = 256

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}|arn:[a-z0-9-]+:kinesis:[a-z0-9-]+:\d+:stream/[a-zA-Z0-9_.-]{1,128}")
SLOW = "ProvisionedThroughputExceededException"


class KinesisDestination:
    """One stream. See the head of this file."""

    def __init__(
        self,
        stream: str,
        aws: AwsOptions,
        where: str,
        fields: Sequence[str] | None = None,
        *,
        id_field: str | None = None,
        ordered: bool = True,
        calls: int = 8,
    ) -> None:
        self.where, self.aws = where, aws
        self.id_field, self.ordered, self.calls = id_field, ordered, calls
        self.codec = None if id_field is None else "json"
        self.guarantee = "at least once" + (", in each key's order" if ordered else "")
        self.guarantee += ": after a failure a record may come again, " + (
            f"under the same id in field {id_field!r}" if id_field else "with nothing to tell it by (add ?id=FIELD)"
        )
        self.record_bytes = RECORD_BYTES
        self._name, self._stream = stream, {"StreamARN" if stream.startswith("arn:") else "StreamName": stream}
        self._fields = fields or ()
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError if there is no such stream, or nothing can be put into it."""
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(bulk_client("kinesis", self.aws, self.where, self.calls))
            found = await described(
                self.where,
                self._client.describe_stream_summary(**self._stream),
                right="kinesis:DescribeStreamSummary",
                missing=f"make it with `aws kinesis create-stream --stream-name {self._name}`, or mend the name",
            )
            if found is not None:
                self._take(found["StreamDescriptionSummary"])
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _take(self, summary: Mapping[str, Any]) -> None:
        if summary["StreamStatus"] in ("CREATING", "DELETING"):
            raise ConfigError(f"{self.where}: is {summary['StreamStatus']}: wait until it is ACTIVE, or make it again")
        self.record_bytes = summary.get("MaxRecordSizeInKiB", RECORD_BYTES >> 10) << 10
        if self.ordered and summary.get("RecordDistributionStrategy") == "AUTO":
            log.warning("the stream spreads records without regard to keys: no order is kept", sink=self.where)

    def check(self) -> None:
        """As the protocol says."""
        problems = []
        if not NAME.fullmatch(self._name):
            problems.append(f"{self.where}: needs a stream's name (letters, digits, _ . -) or ARN")
        if self.id_field in self._fields:
            problems.append(f"{self.where}: id={self.id_field}: records have such a field already: name another one")
        if problems:
            raise ConfigError(*problems)

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        """Any number can."""
        return ""

    def rights(self) -> Sequence[Right]:
        """As the protocol says."""
        stream = arn("kinesis", f"stream/{self._name}", self.aws.region)
        return (Right("kinesis", ("DescribeStreamSummary", "PutRecords"), stream),)

    def sink(self, task: SinkTask) -> RecordSink:
        """As the protocol says."""
        dispatch = Dispatch(self.where, self._send, Limits(CALL_RECORDS, CALL_BYTES, self.calls))
        return RecordSink(dispatch, self._make, task.clock, codec=self.codec)

    def _make(self, index: int, row: Row) -> Item | Never:
        value = b"" if row.value is None else with_id(row.value, self.id_field, row.id)
        if isinstance(value, Never):
            return value
        partition = row.id if row.key is None else partition_key(row.key)
        size = len(value) + len(partition.encode())
        if size > self.record_bytes:
            return Never("RecordTooLarge", f"{size} bytes with its key, and {self.where} takes {self.record_bytes}")
        return Item(index, row.key if self.ordered else None, size, (value, partition))

    async def _send(self, items: Sequence[Item]) -> Sequence[Outcome] | None:
        records = [{"Data": item.body[0], "PartitionKey": item.body[1]} for item in items]
        answer = await called(self.where, self._client.put_records(Records=records, **self._stream))
        if not answer.get("FailedRecordCount"):
            return None
        return [_outcome(record) for record in answer["Records"]]


def partition_key(key: bytes) -> str:
    """The partition key of a record's key: any reader can find it again.

    >>> partition_key(b"card-7"), partition_key(b"")[:8]
    ('card-7', 'e3b0c442')
    """
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = ""
    return text if 1 <= len(text) <= KEY_CHARACTERS else hashlib.sha256(key).hexdigest()


def _outcome(record: Mapping[str, Any]) -> Outcome:
    # The service names two codes, and neither is the record's fault.
    code = record.get("ErrorCode")
    return None if not code else Again(f"{code}: {record.get('ErrorMessage')}", slow=code == SLOW)


def open_destination(
    place: str, options: Mapping[str, str], where: str, fields: Sequence[str] | None
) -> KinesisDestination:
    """As the registry asks for it."""
    aws, rest = AwsOptions.take(options, where)
    own = UrlOptions(rest, where)
    id_field, order, calls = own.text("id"), own.choice("order", ("key", "none")), own.whole("calls", 8)
    own.done(*AwsOptions._fields)
    return KinesisDestination(place, aws, where, fields, id_field=id_field, ordered=order == "key", calls=calls)
