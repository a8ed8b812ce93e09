"""No bytes make a decoder raise anything but our errors. `tests/store/fuzz.py` goes on for hours."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flowkit.errors import StoreCorrupt
from flowkit.store.block import LZ4, ZSTD, unpack
from flowkit.store.frame import decode_frame
from flowkit.store.records import LOG, MANIFEST, Header, decode_header, decode_records, encode_header, encode_record
from tests.store.fuzz import Fuzz, once


def test_damaged_and_forged_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path)
    for target in range(len(fuzz.targets)):
        refused = sum(once(fuzz, len(fuzz.targets) * n + target) for n in range(150))
        # Mangled blocks are refused by their callers; for all others nothing refused would mean nothing tried.
        assert refused or fuzz.targets[target].__name__ in {"forged_block", "packed_block"}


few = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(data=st.binary(max_size=200))
@example(data=encode_header(LOG))
@example(data=b"FLOWKITL")
def test_any_bytes_are_a_log_or_refused(data: bytes) -> None:
    try:
        header = decode_header(data, LOG, "a log")
        if header is not None:
            list(decode_records(data, header, "a log"))
    except StoreCorrupt as error:
        assert error.args[0].startswith("a log:")  # noqa: PT017


@few
@given(payload=st.binary(min_size=1, max_size=200))
def test_any_payload_is_a_frame_or_refused(payload: bytes) -> None:
    try:
        decode_frame(payload, "a log", 5)
    except StoreCorrupt as error:
        assert "offset 5" in error.args[0]  # noqa: PT017


@few
@given(payloads=st.lists(st.binary(min_size=1, max_size=700), min_size=1, max_size=5), data=st.data())
def test_records_come_back_up_to_any_cut(payloads: list[bytes], data: st.DataObject) -> None:
    whole, ends = b"", []
    for payload in payloads:
        whole += encode_record(payload, len(whole), len(whole))
        ends.append(len(whole))
    cut = data.draw(st.integers(0, len(whole)))
    found = [record.payload for record in decode_records(whole[:cut], Header(0, None), "a log")]
    assert found == payloads[: sum(end <= cut for end in ends)]
    if cut not in {0, *ends}:
        with pytest.raises(StoreCorrupt, match="offset"):
            list(decode_records(whole[:cut], Header(0, None), "a log", promised=cut))


@pytest.mark.parametrize("packing", [LZ4, ZSTD])
def test_a_size_that_no_packing_reaches_asks_for_no_memory(packing: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError):
        unpack(b"x" * 100, packing, 2**32 - 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("bit", range(32))
def test_a_header_whose_length_was_flipped_is_damaged_and_not_torn(bit: int) -> None:
    """It was taken for the header of a log that a crash had cut short: an empty one."""
    data = bytearray(encode_header(LOG) + encode_record(b"a frame", 23, 23))
    (length,) = struct.unpack_from("<I", data, 10)
    struct.pack_into("<I", data, 10, length ^ 1 << bit)
    with pytest.raises(StoreCorrupt, match="checksum mismatch in the header"):
        decode_header(bytes(data), LOG, "a log")


def test_a_header_of_zeros_was_never_written() -> None:
    """Space that was set aside for it, by a crash before its sync; it was an error."""
    assert decode_header(bytes(23), LOG, "a log") is None
    assert decode_header(bytes(23), MANIFEST, "a manifest") is None
