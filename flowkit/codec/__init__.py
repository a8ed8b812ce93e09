"""Bytes to values and back: JSON, msgpack, CSV, text and bytes; keys; and event times."""

from flowkit.codec.envelope import MARK_BYTE, Envelope, decode_mark, encode_mark, enveloped
from flowkit.codec.hints import arms_of, bare, class_of, field_getter, fields_of, has_field, is_mapping, type_name
from flowkit.codec.keys import KeyCodec, encode_key
from flowkit.codec.parcel import PARCEL, decode_parcel, encode_parcel
from flowkit.codec.rows import csv_line
from flowkit.codec.times import EventTime, TimeUnit
from flowkit.codec.values import Codec, CodecName

__all__ = [
    "MARK_BYTE",
    "PARCEL",
    "Codec",
    "CodecName",
    "Envelope",
    "EventTime",
    "KeyCodec",
    "TimeUnit",
    "arms_of",
    "bare",
    "class_of",
    "csv_line",
    "decode_mark",
    "decode_parcel",
    "encode_key",
    "encode_mark",
    "encode_parcel",
    "enveloped",
    "field_getter",
    "fields_of",
    "has_field",
    "is_mapping",
    "type_name",
]
