"""Bytes to values and back: JSON, msgpack, CSV, text and bytes; keys; and event times."""

from flowkit.codec.hints import arms_of, bare, class_of, field_getter, fields_of, has_field, is_mapping, type_name
from flowkit.codec.keys import KeyCodec, encode_key
from flowkit.codec.rows import csv_line
from flowkit.codec.times import EventTime, TimeUnit
from flowkit.codec.values import Codec, CodecName

__all__ = [
    "Codec",
    "CodecName",
    "EventTime",
    "KeyCodec",
    "TimeUnit",
    "arms_of",
    "bare",
    "class_of",
    "csv_line",
    "encode_key",
    "field_getter",
    "fields_of",
    "has_field",
    "is_mapping",
    "type_name",
]
