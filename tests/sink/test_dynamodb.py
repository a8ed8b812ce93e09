from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import ConfigError
from flowkit.sink import destination
from flowkit.sink.dispatch import Item, Never
from flowkit.sink.dynamodb import DynamoDestination, Write
from flowkit.sink.dynamodb_items import KeyPart, KeySchema, Unfit, decoded, item_of, key_bytes
from flowkit.sink.dynamodb_versions import settled
from flowkit.sink.records import Row

HASH = KeySchema((KeyPart("id", "S", 2048),))
BOTH = KeySchema((KeyPart("id", "S", 2048), KeyPart("n", "N", 1024)))


def opened(url: str, fields: Sequence[str] | None = None, keys: KeySchema = HASH) -> DynamoDestination:
    found = destination(url, fields)
    assert isinstance(found, DynamoDestination)
    found.check()
    found.keys = keys
    return found


def made(url: str, row: Row, keys: KeySchema = HASH) -> Any:
    return opened(url, keys=keys)._make(0, row)


def row(value: bytes | None, key: bytes | None = b"a", *, time: int = 0, order: int | None = None) -> Row:
    return Row(key, value, time, order, 7, "me")


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("json", "attribute", "size"),
    [
        (b'"x"', {"S": "x"}, 1),
        ('"ü"'.encode(), {"S": "ü"}, 2),
        (b'""', {"S": ""}, 0),
        (b"0", {"N": "0"}, 2),
        (b"-12.50", {"N": "-12.50"}, 5),
        (b"1e-130", {"N": "1e-130"}, 5),
        (b"99999999999999999999999999999999999999", {"N": "9" * 38}, 21),
        (b"true", {"BOOL": True}, 1),
        (b"null", {"NULL": True}, 1),
        (b"[]", {"L": []}, 3),
        (b'[1,"a"]', {"L": [{"N": "1"}, {"S": "a"}]}, 8),
        (b'{"b":null}', {"M": {"b": {"NULL": True}}}, 6),
    ],
)
def test_values_as_they_go_over_the_wire(json: bytes, attribute: object, size: int) -> None:
    item, counted = item_of(decoded(b'{"field":' + json + b"}"))
    assert item == {"field": attribute}
    assert counted == len("field") + size


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        (b"7", "NoObject", "the value is a int"),
        (b"{", "NoJson", "the value is no JSON"),
        (b'{"":1}', "EmptyName", "the value has a field without a name"),
        (b'{"a":{"":1}}', "EmptyName", "a has a field without a name"),
        (b'{"a":[1,%d]}' % (10**38 + 1), "NumberTooLong", "a[1]: 1000"),
        (b'{"a":1e126}', "NumberOutOfRange", "a: 1e126 is outside"),
        (b'{"a":-1e-131}', "NumberOutOfRange", "a: -1e-131 is outside"),
        (b'{"a":1e9999999999999999999}', "NumberOutOfRange", "is no number that a table can hold"),
        (b'{"a":' + b"[" * 33 + b"]" * 33 + b"}", "NestedTooDeeply", "nested deeper than 32 levels"),
    ],
)
def test_what_no_item_can_hold_is_told(value: bytes, error: str, reason: str) -> None:
    with pytest.raises(Unfit) as caught:
        item_of(decoded(value))
    assert caught.value.never.error == error
    assert reason in caught.value.never.reason


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        (b'{"n":1}', "NoKey", "id: is a key of the table, and the record has none"),
        (b'{"id":null,"n":1}', "NoKey", "id: is a key"),
        (b'{"id":"","n":1}', "EmptyKey", "id: is empty"),
        (b'{"id":7,"n":1}', "KeyMismatch", "the table's key is of type S, and the record has a int"),
        (b'{"id":"a","n":"1"}', "KeyMismatch", "n: the table's key is of type N, and the record has a str"),
        (b'{"id":"a","n":true}', "KeyMismatch", "and the record has a bool"),
        (b'{"id":"' + b"x" * 2049 + b'","n":1}', "KeyTooLong", "id: has 2049 bytes"),
    ],
)
def test_a_record_whose_key_the_table_cannot_take_is_a_dead_letter(value: bytes, error: str, reason: str) -> None:
    found = made("dynamodb://tab", row(value), BOTH)
    assert isinstance(found, Never)
    assert found.error == error
    assert reason in found.reason


def test_the_same_number_in_other_digits_is_the_same_item() -> None:
    same = ["10", "10.0", "1e1", "1.00E+1"]
    assert len({key_bytes({"n": {"N": digits}}) for digits in same}) == 1
    assert len({key_bytes({"n": {"N": digits}}) for digits in ("0", "-0.0", "0e5")}) == 1
    long = ["1." + "0" * 36 + "1", "1." + "0" * 36 + "2"]
    assert len({key_bytes({"n": {"N": digits}}) for digits in long}) == 2
    assert key_bytes({"a": {"S": "x"}, "b": {"S": ""}}) != key_bytes({"a": {"S": ""}, "b": {"S": "x"}})


@pytest.mark.parametrize(
    ("keys", "key", "wire"),
    [
        (HASH, b"card 7", {"id": {"S": "card 7"}}),
        (KeySchema((KeyPart("id", "N", 2048),)), b"-7", {"id": {"N": "-7"}}),
        (KeySchema((KeyPart("id", "B", 2048),)), b"\xff", {"id": {"B": b"\xff"}}),
        (BOTH, b'["a",1]', {"id": {"S": "a"}, "n": {"N": "1"}}),
        (BOTH, b'{"n":1,"id":"a"}', {"id": {"S": "a"}, "n": {"N": "1"}}),
    ],
)
@pytest.mark.parametrize("value", [None, b"null"])
def test_a_tombstone_removes_the_item_of_its_key(keys: KeySchema, key: bytes, wire: object, value: bytes) -> None:
    found = made("dynamodb://tab", row(value, key), keys)
    assert found.body == Write(wire, None, None, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "key", "error"),
    [
        (HASH, None, "NoKey"),
        (HASH, b"", "EmptyKey"),
        (HASH, b"\xff", "KeyMismatch"),
        (KeySchema((KeyPart("id", "N", 2048),)), b"seven", "KeyMismatch"),
        (BOTH, b"a", "KeyMismatch"),
        (BOTH, b'["a"]', "KeyMismatch"),
    ],
)
def test_a_tombstone_that_names_no_item_is_a_dead_letter(keys: KeySchema, key: bytes | None, error: str) -> None:
    found = made("dynamodb://tab", row(None, key), keys)
    assert isinstance(found, Never)
    assert found.error == error


# --- versions -------------------------------------------------------------------------------------------------------


def test_the_version_is_the_number_and_of_a_window_its_order_too() -> None:
    plain = made("dynamodb://tab?version=ver", row(b'{"id":"a"}')).body
    assert plain.item == {"id": {"S": "a"}, "ver": {"N": "7"}}
    window = made("dynamodb://tab", row(b'{"id":"a"}', order=41)).body
    assert window.item == {"id": {"S": "a"}, "flowkit_version": {"N": "7"}, "flowkit_version_window": {"N": "41"}}
    assert made("dynamodb://tab?write=batch", row(b'{"id":"a"}', order=41)).body.item == {"id": {"S": "a"}}


def writes(*orders: int | None) -> list[Item]:
    return [Item(n, b"k", 1, Write({}, {}, order, n)) for n, order in enumerate(orders)]


@pytest.mark.parametrize(
    ("orders", "kept"),
    [
        ([None, None, None], [2]),
        ([8, 12, 4], [1]),
        ([8, 8], [1]),
        ([8, 12, None, None, 4, 20], [1, 3, 5]),
    ],
)
def test_of_one_item_the_newest_of_each_run_is_written(orders: list[int | None], kept: list[int]) -> None:
    assert [item.row for item in settled(writes(*orders), batch=False)] == kept
    assert [item.row for item in settled(writes(*orders), batch=True)] == [len(orders) - 1]


def newer(one: Write, other: Write) -> bool:
    """The rule, as its file's head says it."""
    if one.order is not None and other.order is not None:
        return (one.order, one.number) > (other.order, other.number)
    return one.number > other.number


@given(st.lists(st.sampled_from([None, 4, 8, 12]), max_size=8), st.sampled_from([None, 4, 8]))
def test_leaving_out_what_is_replaced_at_once_changes_nothing(orders: list[int | None], before: int | None) -> None:
    def written(items: Sequence[Item]) -> Write:
        found = Write({}, {}, before, -1)
        for item in items:
            found = item.body if newer(item.body, found) else found
        return found

    items = writes(*orders)
    assert written(settled(items, batch=False)) == written(items)


# --- expiry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "value", "expires"),
    [
        ("ttl=exp&ttl_after=7d", b'{"id":"a"}', "604801"),
        ("ttl=exp&ttl_after=1.5s", b'{"id":"a","exp":null}', "3"),
        ("ttl=exp", b'{"id":"a","exp":5999}', "5"),
        ("ttl=exp", b'{"id":"a","exp":"1970-01-01T00:00:09.5Z"}', "9"),
        ("ttl=exp&ttl_after=1m", b'{"id":"a","exp":"1970-01-01T01:00:09+01:00"}', "69"),
        ("ttl=exp", b'{"id":"a","exp":null}', None),
    ],
)
def test_the_ttl_is_in_seconds_from_the_records_time_or_the_events(
    options: str, value: bytes, expires: str | None
) -> None:
    item = made(f"dynamodb://tab?{options}", row(value, time=1_999)).body.item
    assert item.get("exp") == (None if expires is None else {"N": expires})


def test_a_time_that_is_none_is_a_dead_letter() -> None:
    found = made("dynamodb://tab?ttl=exp", row(b'{"id":"a","exp":"soon"}'))
    assert found == Never("NoTime", "exp: 'soon' is neither ISO 8601 nor ms since the epoch")


# --- what is told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("dynamodb://t", "needs a table's name"),
        ("dynamodb://tab?version=n", "records have a field 'n', which flowkit writes: rename it, or give another"),
        ("dynamodb://tab?write=transact", "write=transact: there are conditional, batch"),
        ("dynamodb://tab?write=batch&tombstone=mark", "write=batch has none"),
        ("dynamodb://tab?ttl_after=7d", "ttl_after= needs ttl=NAME"),
        ("dynamodb://tab?ttl=exp", "ttl=exp: no record has such a field"),
        ("dynamodb://tab?ttl=flowkit_version&ttl_after=1d", "is the attribute of the version"),
        ("dynamodb://tab?ttl=exp&ttl_after=7", "ttl_after=7: needs a number with a unit: ms, s, m, min, h, d, w"),
        ("dynamodb://tab?ttk=exp", "unknown option 'ttk'; there are calls, endpoint, every, profile, region"),
    ],
)
def test_what_is_wrong_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(url, ("id", "n"))
    assert told in str(caught.value)


def test_guarantees() -> None:
    assert opened("dynamodb://tab").guarantee.startswith("effectively once")
    assert opened("dynamodb://tab?write=batch").guarantee.startswith("at least once")
