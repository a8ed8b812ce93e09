"""A batch of which a service takes every other record, and says so.

Kinesis, Firehose, DynamoDB's BatchWriteItem, SQS, SNS, EventBridge, and OpenSearch, to which it goes on uncompressed.
"""

import gzip
import json
import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

BUSY = {"Code": "RequestThrottled", "Message": "Rate exceeded", "SenderFault": False}
BUSY_XML = "<Code>Throttled</Code><Message>Rate exceeded</Message><SenderFault>false</SenderFault>"


def split(action: str, body: bytes) -> tuple[bytes, list[Any]] | None:
    """The request with every other entry, and the entries that are left out; None for what takes no batches."""
    if action == "_bulk":
        lines = (gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body).splitlines(keepends=True)
        entries = bulk_entries(lines)
        if len(entries) < 2:
            return None
        return b"".join(entries[::2]), entries[1::2]
    if action == "PublishBatch":
        return _split_form(body)
    if action not in ("PutRecords", "PutRecordBatch", "BatchWriteItem", "SendMessageBatch", "PutEvents"):
        return None
    asked = json.loads(body)
    if action in ("SendMessageBatch", "PutEvents"):
        messages = asked["Entries"]
        if len(messages) < 2:
            return None
        return json.dumps({**asked, "Entries": messages[::2]}).encode(), messages[1::2]
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
    if action == "PublishBatch":
        failed = "".join(f"<member><Id>{name}</Id>{BUSY_XML}</member>" for name in left)
        kept = re.sub(rb"<Failed\s*/>|<Failed>\s*</Failed>", b"", answer)
        return kept.replace(b"</Successful>", f"</Successful><Failed>{failed}</Failed>".encode())
    got = json.loads(answer)
    if action == "SendMessageBatch":
        return json.dumps({**got, "Failed": [{"Id": message["Id"], **BUSY} for message in left]}).encode()
    if action == "PutEvents":
        refused = {"ErrorCode": "ThrottlingException", "ErrorMessage": "Rate exceeded"}
        entries = alternately(got["Entries"], [refused] * len(left))
        return json.dumps({"FailedEntryCount": len(left), "Entries": entries}).encode()
    if action == "_bulk":
        full = {"type": "es_rejected_execution_exception", "reason": "the queue is full"}
        mixed = alternately(got["items"], [{"index": {"status": 429, "error": full}}] * len(left))
        return json.dumps({**got, "errors": True, "items": mixed}).encode()
    if action == "BatchWriteItem":
        (table,) = json.loads(body)["RequestItems"]
        return json.dumps({**got, "UnprocessedItems": {table: left}}).encode()
    throttled, name = "ProvisionedThroughputExceededException", "Records"
    if action == "PutRecordBatch":
        throttled, name = "ServiceUnavailableException", "RequestResponses"
    count = "FailedRecordCount" if name == "Records" else "FailedPutCount"
    entry = {"ErrorCode": throttled, "ErrorMessage": "Rate exceeded for shard"}
    taken = iter(got[name])
    mixed = [next(taken) if n % 2 == 0 else entry for n in range(len(got[name]) + len(left))]
    return json.dumps({**got, name: mixed, count: len(left)}).encode()


def _split_form(body: bytes) -> tuple[bytes, list[Any]] | None:
    """PublishBatch: PublishBatchRequestEntries.member.N.…; what is left out is told by its Id."""
    kept, left, count = [], [], 0
    for name, value in parse_qsl(body.decode(), keep_blank_values=True):
        found = re.fullmatch(r"(PublishBatchRequestEntries\.(?:member|entry)\.)(\d+)(\..*)", name)
        if found is None:
            kept.append((name, value))
            continue
        number = int(found[2])
        count = max(count, number)
        if number % 2:
            kept.append((f"{found[1]}{number // 2 + 1}{found[3]}", value))
        elif found[3] == ".Id":
            left.append(value)
    return None if count < 2 else (urlencode(kept).encode(), left)


def bulk_entries(lines: list[bytes]) -> list[bytes]:
    """The entries of a bulk request: an action, and, but for a removal, a document in the line after it."""
    entries, at = [], 0
    while at < len(lines):
        step = 1 if lines[at].startswith(b'{"delete"') else 2
        entries.append(b"".join(lines[at : at + step]))
        at += step
    return entries


def alternately(some: list[Any], others: list[Any]) -> list[Any]:
    """The first of `some`, the first of `others`, and so on."""
    left, right = iter(some), iter(others)
    return [next(right if n % 2 else left) for n in range(len(some) + len(others))]
