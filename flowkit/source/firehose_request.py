"""One request of Amazon Data Firehose's HTTP endpoint delivery, version 1.0: what it must be, and what is answered.

    POST, Content-Type: application/json, Content-Encoding: gzip or none; X-Amz-Firehose-Protocol-Version: 1.0
    X-Amz-Firehose-Request-Id          the same for every try of the same request
    X-Amz-Firehose-Access-Key          the secret that was given to the delivery stream
    X-Amz-Firehose-Common-Attributes   {"commonAttributes": {NAME: VALUE, …}}, the same for all of a delivery stream
    {"requestId": ID, "timestamp": ms, "records": [{"data": BASE64}, …]}           64 MiB at most, uncompressed

    {"requestId": ID, "timestamp": ms}                              taken: status 200, and nothing but 200
    {"requestId": ID, "timestamp": ms, "errorMessage": TEXT}        not taken: Firehose tries again for as long as it
                                    was told to, then puts it into its error bucket; at 413 it does that at once

(Amazon Data Firehose, Developer Guide: HTTP endpoint delivery request and response specifications.)
"""

import zlib
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec

MOST_BYTES = 64 << 20
MOST_ATTRIBUTES, MOST_ID = 50, 256
LAST_MS = 253_402_300_799_999
"""The end of the year 9999."""
ERROR_CHARACTERS = 8192
VERSION = "1.0"
PREFIX = "X-Amz-Firehose-"
ID, KEY = f"{PREFIX}Request-Id", f"{PREFIX}Access-Key"


ODD = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What JSON is not taken apart for: RecursionError is that it is nested too deeply."""


class Refused(Exception):
    """What is not taken, as `status` and a message for who looks into Firehose's error log."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Record(msgspec.Struct):
    data: bytes


class _Body(msgspec.Struct, rename={"request_id": "requestId"}):
    request_id: str
    timestamp: Annotated[int, msgspec.Meta(ge=0, le=LAST_MS)]
    records: list[_Record]


class _Attributes(msgspec.Struct, rename={"attributes": "commonAttributes"}):
    attributes: dict[str, str]


class Delivery(NamedTuple):
    """What was delivered, at `time` (ms, by Firehose's clock)."""

    id: str
    time: int
    values: list[bytes]


def check_head(method: str, headers: Mapping[str, str]) -> None:
    """Raise Refused for what can be told before the body is read."""
    if method != "POST":
        raise Refused(405, f"{method}: only POST is possible here")
    content = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content != "application/json":
        raise Refused(400, f"Content-Type {content!r}: application/json was expected")
    encoding = headers.get("Content-Encoding", "").lower()
    if encoding not in ("", "identity", "gzip"):
        raise Refused(400, f"Content-Encoding {encoding!r}: gzip or none was expected")
    version = headers.get(f"{PREFIX}Protocol-Version", VERSION)
    if version != VERSION:
        raise Refused(400, f"{PREFIX}Protocol-Version {version!r}: this endpoint speaks {VERSION}")
    id_ = headers.get(ID, "")
    if not id_:
        raise Refused(400, f"there is no {ID}: is it Firehose that asks?")
    if len(id_) > MOST_ID:
        raise Refused(400, f"{ID}: {len(id_)} characters, and {MOST_ID} is the most")


def attributes_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The common attributes; none if there is no such header. Raises Refused."""
    name = f"{PREFIX}Common-Attributes"
    if name not in headers:
        return {}
    try:
        found = msgspec.json.decode(headers[name], type=_Attributes).attributes
    except ODD as error:
        raise Refused(400, f"{name}: {error}") from None
    if len(found) > MOST_ATTRIBUTES:
        raise Refused(400, f"{name}: {len(found)} attributes, and {MOST_ATTRIBUTES} is the most")
    return found


def read_delivery(id_: str, body: bytes, *, gzip: bool) -> Delivery:
    """The records of a request with this id. Takes its time: not for the event loop. Raises Refused."""
    if gzip:
        body = _unpacked(body)
    if len(body) > MOST_BYTES:
        raise too_large()
    try:
        found = msgspec.json.decode(body, type=_Body)
    except ODD as error:
        raise Refused(400, f"the body is not as it should be: {error}") from None
    if found.request_id != id_:
        raise Refused(400, f"requestId {found.request_id!r} in the body, and {id_!r} in {ID}")
    return Delivery(id_, found.timestamp, [record.data for record in found.records])


def _unpacked(body: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        data = inflate.decompress(body, MOST_BYTES + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is no gzip: {error}") from None
    if len(data) > MOST_BYTES:
        raise too_large()
    if not inflate.eof or inflate.unused_data:
        raise Refused(400, "the body is no whole gzip: it was cut off, or something follows it")
    return data


def too_large() -> Refused:
    """For a body that no try makes smaller."""
    return Refused(413, f"the body has more than {MOST_BYTES} bytes: make the delivery stream's buffer smaller")


def answer(id_: str, now_ms: int, error: str | None = None) -> bytes:
    """The body of an answer.

    >>> answer("ed4acda5", 1578090903599)
    b'{"requestId":"ed4acda5","timestamp":1578090903599}'
    """
    told = {} if error is None else {"errorMessage": error[:ERROR_CHARACTERS]}
    return msgspec.json.encode({"requestId": id_, "timestamp": now_ms, **told})
