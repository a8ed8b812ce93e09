from hypothesis import given
from hypothesis import strategies as st

from flowkit.codec import decode_parcel, encode_parcel

rows = st.tuples(
    st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=30), st.integers(-(2**63), 2**63 - 1)
)


@given(st.text(), st.integers(1, 2**60), st.lists(rows, min_size=1))
def test_what_goes_in_comes_out(
    sender: str, first: int, given_rows: list[tuple[bytes | None, bytes | None, int]]
) -> None:
    parcel = decode_parcel(encode_parcel(sender, first, given_rows))
    assert parcel is not None
    assert (parcel.sender, parcel.first) == (sender, first)
    assert list(zip(parcel.keys, parcel.values, parcel.times, strict=True)) == given_rows


@given(st.data())
def test_a_byte_that_is_another_makes_it_none(data: st.DataObject) -> None:
    whole = encode_parcel("orders/0", 1, [(b"k", b"v", 3), (None, None, 4)])
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    assert decode_parcel(broken) is None
    assert decode_parcel(whole[:at]) is None
