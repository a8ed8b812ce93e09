"""A batch of which a service takes every other record, and says so: Kinesis, Firehose, DynamoDB's BatchWriteItem."""

import json
from typing import Any


def split(action: str, body: bytes) -> tuple[bytes, list[Any]] | None:
    """The request with every other entry, and the entries that are left out; None for what takes no batches."""
    if action not in ("PutRecords", "PutRecordBatch", "BatchWriteItem"):
        return None
    asked = json.loads(body)
    if action in ("PutRecords", "PutRecordBatch"):
        records = asked["Records"]
        if len(records) < 2:
            return None
        return json.dumps({**asked, "Records": records[::2]}).encode(), records[1::2]
    if action == "BatchWriteItem":
        ((table, requests),) = asked["RequestItems"].items()
        if len(requests) < 2:
            return None
        return json.dumps({**asked, "RequestItems": {table: requests[::2]}}).encode(), requests[1::2]
    return None


def joined(action: str, body: bytes, answer: bytes, left: list[Any]) -> bytes:
    """The service's answer to half of `body`, as one to all of it."""
    got = json.loads(answer)
    if action == "BatchWriteItem":
        (table,) = json.loads(body)["RequestItems"]
        return json.dumps({**got, "UnprocessedItems": {table: left}}).encode()
    throttled, name = "ProvisionedThroughputExceededException", "Records"
    if action == "PutRecordBatch":
        throttled, name = "ServiceUnavailableException", "RequestResponses"
    count = "FailedRecordCount" if name == "Records" else "FailedPutCount"
    failed = {"ErrorCode": throttled, "ErrorMessage": "Rate exceeded for shard"}
    taken = iter(got[name])
    mixed = [next(taken) if n % 2 == 0 else failed for n in range(len(got[name]) + len(left))]
    return json.dumps({**got, name: mixed, count: len(left)}).encode()
