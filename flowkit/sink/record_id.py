"""A record's stable id as a field of its JSON value: the one place where it can travel to all who read a stream.

Kinesis and Firehose have no headers, and a sequence number names a delivery, not a record: a record that is sent again
gets another one. So readers who want each record once tell it by this field.
"""

import msgspec

from flowkit.sink.dispatch import Never


def with_id(value: bytes, field: str | None, record_id: str) -> bytes | Never:
    """The JSON object `value` with `field` (None: nothing) put in front; Never if it is no object.

    >>> with_id(b'{"a":1}', "id", "7f-1"), with_id(b"{}", "id", "7f-1")
    (b'{"id":"7f-1","a":1}', b'{"id":"7f-1"}')
    """
    if field is None:
        return value
    if not value.startswith(b"{"):
        return Never("NoObject", f"field {field!r} is to hold the record's id, and the value is no JSON object")
    rest = value[1:]
    return b"{%b:%b%b%b" % (
        msgspec.json.encode(field),
        msgspec.json.encode(record_id),
        b"" if rest.lstrip() == b"}" else b",",
        rest,
    )
