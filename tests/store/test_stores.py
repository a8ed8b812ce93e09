"""What every store does, whatever keeps the bytes: in memory, on disk by our own tree, on disk by RocksDB."""

import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowkit.errors import ConfigError, StoreError, StoreLocked
from flowkit.store import (
    Budget,
    Frame,
    Host,
    Inline,
    MemoryStore,
    Space,
    SpaceChange,
    Store,
    StoreOptions,
    open_host,
    open_store,
    read_store,
)
from tests.matrix import matrix

PLAIN: Space = ("t", None)
NOWHERE: Space = ("nowhere", None)
INF = 2**62

Opener = Callable[[], AbstractAsyncContextManager[Store]]


def memory(tmp_path: Path, options: StoreOptions) -> Opener:
    disk: list[bytes] = []
    return lambda: open_store(None, disk=disk)


def lsm(tmp_path: Path, options: StoreOptions) -> Opener:
    return lambda: open_store(tmp_path / "s", host=Host(Budget(32 * 2**20), Inline()), options=options)


def helper(tmp_path: Path, options: StoreOptions) -> Opener:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        async with open_host(32 * 2**20) as host, open_store(tmp_path / "s", host=host, options=options) as store:
            yield store

    return opened


def rocks(tmp_path: Path, options: StoreOptions) -> Opener:
    host = Host(Budget(32 * 2**20), Inline())
    return lambda: open_store(tmp_path / "s", host=host, options=options, engine="rocks")


KINDS = {"memory": memory, "lsm": lsm, "helper": helper, "rocks": rocks}
ON_DISK = ["lsm", "helper", "rocks"]


# The helper is another process: what it does at each change are the tests that name it.
@pytest.fixture(params=matrix(KINDS, quick=lambda kind: kind != "helper"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opener(kind: str, tmp_path: Path) -> Opener:
    return KINDS[kind](tmp_path, StoreOptions(durability="os"))


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    async with opener() as opened:
        yield opened


# The states in which a store may be asked: everything in memory, everything in files, or some here and some there.


async def leave(store: Store) -> None:
    """All in memory, or in the log."""


async def flush(store: Store) -> None:
    if not isinstance(store, MemoryStore):
        await store.flush()


async def compact(store: Store) -> None:
    if not isinstance(store, MemoryStore):
        await store.compact()


@pytest.fixture(params=[leave, flush, compact], ids=lambda step: step.__name__)
def settle(request: pytest.FixtureRequest) -> Any:
    return request.param


def rows(store: Store, space: Space = PLAIN, *bounds: bytes | None, reverse: bool = False) -> dict[bytes, bytes]:
    """What a scan gives, in its order; and it gives each key once."""
    found = list(store.scan(space, *bounds, reverse=reverse))
    assert len(dict(found)) == len(found)
    return dict(found)


def numbered(count: int, value: bytes = b"v") -> dict[bytes, bytes]:
    return {b"%06d" % n: value + b"%d" % n for n in range(count)}


def frame(store: Store, changes: Sequence[SpaceChange], drops: Sequence[Space] = (), **fields: Any) -> Frame:
    return Frame(
        store.number + 1,
        os.urandom(16),
        store.commit_id,
        0,
        fields.pop("meta", {}),
        list(changes),
        list(drops),
        **fields,
    )


# --- one key ---------------------------------------------------------------------------------------------------------


async def test_a_value_is_found_until_it_is_overwritten_or_deleted(store: Store, settle: Any) -> None:
    await store.commit({PLAIN: {b"a": b"1", b"b": b"2"}})
    await settle(store)
    assert (store.get(PLAIN, b"a"), store.get(PLAIN, b"b"), store.get(PLAIN, b"c")) == (b"1", b"2", None)
    await store.commit({PLAIN: {b"a": b"3", b"b": None}})
    assert (store.get(PLAIN, b"a"), store.get(PLAIN, b"b")) == (b"3", None)
    await settle(store)
    assert (store.get(PLAIN, b"a"), store.get(PLAIN, b"b")) == (b"3", None)
    assert rows(store) == {b"a": b"3"}
    await store.commit({PLAIN: {b"b": b"4"}})
    assert rows(store) == {b"a": b"3", b"b": b"4"}


async def test_what_is_not_there_is_none(store: Store) -> None:
    assert store.get(NOWHERE, b"a") is None
    assert store.get_many(NOWHERE, [b"a", b"b"]) == [None, None]
    assert list(store.scan(NOWHERE)) == list(store.scan(NOWHERE, reverse=True)) == []
    assert (store.has(NOWHERE), store.ends("nowhere"), store.tables()) == (False, [], [])


async def test_deleting_what_is_not_there_is_no_error(store: Store, settle: Any) -> None:
    await store.commit({PLAIN: {b"a": None, b"b": b"1"}})
    await settle(store)
    assert rows(store) == {b"b": b"1"}


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\x00",
        b"\x00\x00",
        b"\xff",
        b"\xff" * 40,
        b"\x01",
        b"\x00\xff",
        "schlüssel".encode(),
        b"k" * 300,
        b"x" * 70_000,
    ],
    ids=["empty", "zero", "zeros", "ff", "ffs", "one", "zero-ff", "unicode", "300", "70000"],
)
async def test_any_bytes_are_a_key(store: Store, settle: Any, key: bytes) -> None:
    await store.commit({PLAIN: {key: b"here", b"m": b"other"}, ("t", 5): {key: b"window"}, ("u", None): {key: b"u"}})
    await settle(store)
    assert store.get(PLAIN, key) == b"here"
    assert store.get_many(PLAIN, [b"m", key]) == [b"other", b"here"]
    assert list(store.scan(PLAIN)) == sorted([(key, b"here"), (b"m", b"other")])
    assert rows(store, PLAIN, key, key + b"\x00") == {key: b"here"}
    assert rows(store, ("t", 5)) == {key: b"window"}
    await store.commit({PLAIN: {key: None}})
    assert (rows(store), rows(store, ("u", None))) == ({b"m": b"other"}, {key: b"u"})


@pytest.mark.parametrize("value", [b"", b"\x00", b"\xc0", b"\x01" * 255, b"v" * 256, b"v" * 65_536], ids=len)
async def test_any_bytes_are_a_value(store: Store, settle: Any, value: bytes) -> None:
    await store.commit({PLAIN: {b"a": value, b"b": b"x", b"c": value}})
    await settle(store)
    assert (store.get(PLAIN, b"a"), store.get_many(PLAIN, [b"c"])) == (value, [value])
    assert rows(store) == {b"a": value, b"b": b"x", b"c": value}


async def test_a_value_of_8_mb_comes_back(opener: Opener, settle: Any) -> None:
    large = os.urandom(2**20) * 8
    async with opener() as store:
        await store.commit({PLAIN: {b"small": b"1", b"large": large, b"zero": b""}})
        await settle(store)
        assert store.get(PLAIN, b"large") == large
    async with opener() as store:
        assert rows(store) == {b"large": large, b"small": b"1", b"zero": b""}


async def test_get_many_answers_in_the_order_of_the_question(store: Store, settle: Any) -> None:
    await store.commit({PLAIN: numbered(3000)})
    await settle(store)
    await store.commit({PLAIN: {b"000007": b"new", b"000008": None}})
    asked = [b"000008", b"002999", b"nothing", b"000007", b"002999", b"", b"000000"]
    assert store.get_many(PLAIN, asked) == [None, b"v2999", None, b"new", b"v2999", None, b"v0"]
    assert store.get_many(PLAIN, (b"000001",)) == [b"v1"]
    assert store.get_many(PLAIN, []) == []


# --- many keys -------------------------------------------------------------------------------------------------------


async def test_a_scan_is_in_byte_order_both_ways(store: Store, settle: Any) -> None:
    keys = [
        b"",
        b"\x00",
        b"\x00\x01",
        b"\x01",
        b"a",
        b"a\x00",
        b"ab",
        b"b",
        b"\x7f",
        b"\x80",
        b"\xfe\xff",
        b"\xff",
        b"\xff\xff",
    ]
    await store.commit(
        {PLAIN: {key: b"v" + key for key in reversed(keys)}, ("s", None): {b"a": b""}, ("t", 0): {b"a": b""}}
    )
    await settle(store)
    assert list(rows(store)) == sorted(keys)
    assert list(rows(store, reverse=True)) == sorted(keys, reverse=True)


BOUNDS = [
    (None, None), (b"000010", None), (None, b"000010"), (b"000010", b"000020"), (b"000010", b"000010"),
    (b"000020", b"000010"), (b"0000105", b"0000199"), (b"", b"\xff"), (b"", b""), (b"004999", None), (b"9", None),
    (None, b"0"), (b"001023", b"001025"), (b"000512", b"004096"),
]  # fmt: skip


async def test_a_scan_keeps_to_its_bounds(store: Store, settle: Any) -> None:
    first, second = numbered(5000), {b"%06d" % n: b"new" for n in range(0, 5000, 7)}
    gone = {b"%06d" % n: None for n in range(3, 5000, 11)}
    await store.commit({PLAIN: first, ("s", None): first, ("t", 1): first})
    await settle(store)
    await store.commit({PLAIN: second})
    await settle(store)
    await store.commit({PLAIN: gone})
    here = {k: v for k, v in (first | second).items() if k not in gone}
    for start, stop in BOUNDS:
        expected = sorted((k, v) for k, v in here.items() if (start or b"") <= k and (stop is None or k < stop))
        assert list(store.scan(PLAIN, start, stop)) == expected, (start, stop)
        assert list(store.scan(PLAIN, start, stop, reverse=True)) == expected[::-1], (start, stop)


async def test_columns_are_the_rows_of_the_scan(store: Store, settle: Any) -> None:
    await store.commit({PLAIN: numbered(5000)})
    await settle(store)
    chunks = list(store.scan_columns(PLAIN, b"000100"))
    assert [key for keys, _ in chunks for key in keys] == [b"%06d" % n for n in range(100, 5000)]
    assert [value for _, values in chunks for value in values] == [b"v%d" % n for n in range(100, 5000)]
    backwards = list(store.scan_columns(PLAIN, b"000100", reverse=True))
    assert [key for keys, _ in reversed(backwards) for key in keys] == [b"%06d" % n for n in range(100, 5000)]


async def test_a_scan_sees_the_store_as_it_was(store: Store, settle: Any) -> None:
    await store.commit({PLAIN: numbered(9000), ("t", 1): {b"a": b"1"}})
    await settle(store)
    scan, backwards, window = store.scan(PLAIN), store.scan(PLAIN, reverse=True), store.scan(("t", 1))
    assert next(scan) == (b"000000", b"v0")
    await store.commit(
        {PLAIN: {b"%06d" % n: b"later" for n in range(9000)} | {b"008000": None, b"new": b""}}, [("t", 1)]
    )
    await settle(store)
    assert dict(scan) == {k: v for k, v in numbered(9000).items() if k != b"000000"}
    assert dict(backwards) == numbered(9000)
    assert dict(window) == {b"a": b"1"}


async def test_a_scan_may_be_left_alone(opener: Opener, settle: Any) -> None:
    async with opener() as store:
        await store.commit({PLAIN: numbered(9000)})
        await settle(store)
        scan = store.scan(PLAIN)
        next(scan)
    async with opener() as store:  # whoever still holds a scan of the store before is not in the way
        assert len(rows(store)) == 9000
    del scan


# --- spaces ----------------------------------------------------------------------------------------------------------

ENDS = [-(2**63), -60_000, -1, 0, 1, 255, 256, 2**40, 2**63 - 1]


async def test_windows_are_apart_and_their_ends_in_order(opener: Opener, settle: Any) -> None:
    spaces: list[Space] = [("t", end) for end in (None, *ENDS)]
    async with opener() as store:
        for n, space in enumerate(reversed(spaces)):
            await store.commit({space: {b"k": b"%d" % n, b"own%d" % n: b""}})
        await settle(store)
        assert store.ends("t") == ENDS
        assert store.ends("other") == []
        for n, space in enumerate(reversed(spaces)):
            assert store.has(space)
            assert rows(store, space) == {b"k": b"%d" % n, b"own%d" % n: b""}
    async with opener() as store:
        assert store.ends("t") == ENDS
        assert not store.has(("t", 7))


async def test_tables_may_have_any_name(opener: Opener, settle: Any) -> None:
    names = ["", "a", "a\x00", "a\x00b", "a\x01", "aa", "ab", "tabelle-ü", "表", "🙂", "\x00", "\uffff", "a" * 500]
    async with opener() as store:
        await store.commit({(name, end): {b"k": name.encode()} for name in names for end in (None, 5)})
        await settle(store)
        assert store.tables() == sorted(names)
        for name in names:
            assert rows(store, (name, None)) == rows(store, (name, 5)) == {b"k": name.encode()}
            assert store.ends(name) == [5]
        await store.commit(drops=[("a", None), ("a", 5)])
        assert store.tables() == sorted(set(names) - {"a"})
    async with opener() as store:
        assert store.tables() == sorted(set(names) - {"a"})
        assert rows(store, ("a\x00", 5)) == {b"k": b"a\x00"}


async def test_a_dropped_space_is_gone_and_the_others_are_not(opener: Opener, settle: Any) -> None:
    async with opener() as store:
        for end in (1, 2, 3, None):
            await store.commit({("t", end): numbered(500), ("u", end): numbered(5)})
        await settle(store)
        await store.commit(drops=[("t", 2), ("t", 77), ("never", None)])
        for _ in range(2):
            assert (store.ends("t"), store.ends("u")) == ([1, 3], [1, 2, 3])
            assert not store.has(("t", 2))
            assert store.get(("t", 2), b"000001") is None
            assert store.get_many(("t", 2), [b"000001"]) == [None]
            assert rows(store, ("t", 2)) == {}
            assert rows(store, ("t", 1)) == rows(store, ("t", 3)) == rows(store, PLAIN) == numbered(500)
            await settle(store)
    async with opener() as store:
        assert (store.ends("t"), rows(store, ("t", 2)), len(rows(store, ("t", 3)))) == ([1, 3], {}, 500)


async def test_a_dropped_space_may_come_again(opener: Opener, settle: Any) -> None:
    space = ("t", 60_000)
    async with opener() as store:
        await store.commit({space: numbered(100, b"old")})
        await settle(store)
        await store.commit({space: {b"000001": b"same commit"}}, [space])  # drops come first
        assert rows(store, space) == {b"000001": b"same commit"}
        await settle(store)
        await store.commit({space: {b"000002": b"later"}})
        assert rows(store, space) == {b"000001": b"same commit", b"000002": b"later"}
        await store.commit(drops=[space])
        await store.commit({space: {b"000003": b"again"}})
        await settle(store)
        assert rows(store, space) == {b"000003": b"again"}
        assert store.get(space, b"000001") is None
    async with opener() as store:
        assert rows(store, space) == {b"000003": b"again"}
        assert store.get(space, b"000002") is None


# --- expiry ----------------------------------------------------------------------------------------------------------


async def test_values_expire_when_the_commits_time_has_reached_them(opener: Opener, settle: Any) -> None:
    async with opener() as store:
        await store.commit({PLAIN: {b"a": b"short"}}, expires=1000, now=0)
        await store.commit({PLAIN: {b"b": b"long"}}, expires=INF)
        await store.commit({PLAIN: {b"c": b"ever"}})
        await settle(store)
        assert rows(store) == {b"a": b"short", b"b": b"long", b"c": b"ever"}
        await store.commit(now=999)
        assert store.get(PLAIN, b"a") == b"short"
        await store.commit(now=1000)
        for _ in range(2):
            assert store.get(PLAIN, b"a") is None
            assert store.get_many(PLAIN, [b"a", b"b"]) == [None, b"long"]
            assert rows(store) == {b"b": b"long", b"c": b"ever"}
            await settle(store)
    async with opener() as store:
        assert store.now == 1000
        assert rows(store) == {b"b": b"long", b"c": b"ever"}


async def test_an_expired_value_does_not_uncover_an_older_one(store: Store, settle: Any) -> None:
    await store.commit({PLAIN: {b"a": b"older"}})
    await settle(store)
    await store.commit({PLAIN: {b"a": b"newer"}}, expires=10, now=0)
    await settle(store)
    await store.commit(now=10)
    await settle(store)
    assert (store.get(PLAIN, b"a"), rows(store)) == (None, {})
    await store.commit({PLAIN: {b"a": b"newest"}})
    assert store.get(PLAIN, b"a") == b"newest"


async def test_time_does_not_go_back(store: Store) -> None:
    await store.commit({PLAIN: {b"a": b"1"}}, expires=50, now=100)
    await store.commit(now=10)
    assert store.now == 100
    assert store.get(PLAIN, b"a") is None


# --- commits ---------------------------------------------------------------------------------------------------------


async def test_commits_have_numbers_ids_and_meta(opener: Opener, settle: Any) -> None:
    async with opener() as store:
        assert (store.number, store.commit_id, store.meta) == (0, b"", {})
        assert await store.commit({PLAIN: {b"a": b"1"}}, meta={"positions": {"x": [1, 2]}, "ü": None}) == 1
        first = store.commit_id
        assert await store.commit() == 2
        await settle(store)
        assert store.commit_id not in (b"", first)
        assert store.meta == {"positions": {"x": [1, 2]}, "ü": None}
        number, commit_id = store.number, store.commit_id
    async with opener() as store:
        assert (store.number, store.commit_id, store.meta) == (
            number,
            commit_id,
            {"positions": {"x": [1, 2]}, "ü": None},
        )
        assert await store.commit(meta={}) == 3
        assert store.meta == {}


async def decide_again(store: Store, prepared: Frame, applied: bool) -> None:
    """A frame that was resolved and has no successor may be found undecided: who knows the answer gives it again."""
    if applied and store.undecided is not None:
        assert store.undecided == prepared
        await store.resolve(prepared.commit_id, applied)


@pytest.mark.parametrize("kind", KINDS)
async def test_everything_is_there_when_opened_again(opener: Opener, settle: Any) -> None:
    expected: dict[bytes, bytes] = {}
    for turn in range(4):
        async with opener() as store:
            assert rows(store) == expected
            changes: dict[bytes, bytes | None] = {
                b"%06d" % n: b"%d" % turn for n in range(turn * 100, turn * 100 + 300)
            }
            changes[b"%06d" % (turn * 100 + 50)] = None
            await store.commit({PLAIN: changes})
            expected |= {k: v for k, v in changes.items() if v is not None}
            expected.pop(b"%06d" % (turn * 100 + 50), None)
            await settle(store)
            assert rows(store) == expected
    async with opener() as store:
        assert rows(store) == expected
        assert store.number == 4


async def test_an_undecided_frame_is_seen_but_does_not_count(store: Store, settle: Any) -> None:
    await store.commit(
        {PLAIN: {b"a": b"1", b"b": b"2"}, ("t", 1): {b"w": b"1"}, ("t", 2): {b"w": b"2"}}, meta={"at": 1}
    )
    await settle(store)
    prepared = frame(
        store,
        [SpaceChange("t", None, [b"c", b"a", b"b"], [b"3", None, b"new"]), SpaceChange("t", 2, [b"x"], [b"fresh"])],
        [("t", 1), ("t", 2)],
        meta={"at": 2},
    )
    await store.prepare(prepared)
    assert store.undecided is not None
    assert store.undecided.commit_id == prepared.commit_id
    assert (store.number, store.meta) == (1, {"at": 1})
    assert [store.get(PLAIN, key) for key in (b"a", b"b", b"c", b"d")] == [None, b"new", b"3", None]
    assert store.get_many(PLAIN, [b"c", b"a"]) == [b"3", None]
    assert rows(store) == {b"b": b"new", b"c": b"3"}
    assert rows(store, PLAIN, b"c") == {b"c": b"3"}
    assert list(store.scan(PLAIN, reverse=True)) == [(b"c", b"3"), (b"b", b"new")]
    assert (rows(store, ("t", 1)), rows(store, ("t", 2)), store.ends("t")) == ({}, {b"x": b"fresh"}, [2])
    assert (store.has(("t", 1)), store.has(("t", 2))) == (False, True)


@pytest.mark.parametrize("again", [False, True], ids=["", "opened-again"])
@pytest.mark.parametrize("applied", [True, False], ids=["applied", "taken-back"])
async def test_an_undecided_frame_is_decided_once(opener: Opener, settle: Any, applied: bool, again: bool) -> None:
    before = {PLAIN: {b"a": b"1"}, ("t", 1): {b"w": b"1"}}
    async with opener() as store:
        await store.commit(before, meta={"at": 1})
        await settle(store)
        prepared = frame(
            store, [SpaceChange("t", None, [b"a", b"b"], [None, b"2"])], [("t", 1)], meta={"at": 2}, now=50
        )
        await store.prepare(prepared)
        if not again:
            await store.resolve(prepared.commit_id, applied)
    async with opener() as store:
        if again:
            assert store.undecided is not None
            assert store.undecided == prepared
            assert rows(store) == {b"b": b"2"}
            assert store.number == 1
            await store.resolve(prepared.commit_id, applied)
        else:
            await decide_again(store, prepared, applied)
        assert store.undecided is None
        # Nothing after a decided frame may turn it round, not even a crash.
        await store.commit({("u", None): {b"k": b"v"}}, meta={"at": 3})
    async with opener() as store:
        assert store.undecided is None
        assert (store.number, store.meta) == (3 if applied else 2, {"at": 3})
        assert store.now == (50 if applied else -(2**63))
        assert rows(store) == ({b"b": b"2"} if applied else {b"a": b"1"})
        assert rows(store, ("t", 1)) == ({} if applied else {b"w": b"1"})
        await settle(store)
        assert rows(store) == ({b"b": b"2"} if applied else {b"a": b"1"})
        with pytest.raises(StoreError, match="no undecided frame"):
            await store.resolve(prepared.commit_id, applied)


async def test_the_same_number_may_be_prepared_again_with_another_id(opener: Opener) -> None:
    async with opener() as store:
        await store.commit({PLAIN: {b"a": b"1"}})
        zombie = frame(store, [SpaceChange("t", None, [b"a", b"z"], [b"zombie", b"zombie"])])
        await store.prepare(zombie)
        await store.resolve(zombie.commit_id, applied=False)
        assert rows(store) == {b"a": b"1"}
        rightful = frame(store, [SpaceChange("t", None, [b"a"], [b"2"])])
        assert rightful.number == zombie.number
        await store.prepare(rightful)
        await store.resolve(rightful.commit_id, applied=True)
    async with opener() as store:
        await decide_again(store, rightful, applied=True)
        assert (store.number, store.commit_id, rows(store)) == (2, rightful.commit_id, {b"a": b"2"})


async def test_a_frame_that_is_decided_counts_without_being_asked(opener: Opener) -> None:
    async with opener() as store:
        await store.prepare(frame(store, [SpaceChange("t", None, [b"a"], [b"1"])], decided=True))
    async with opener() as store:
        assert store.undecided is None
        assert (store.number, rows(store)) == (1, {b"a": b"1"})


async def test_there_is_one_undecided_frame_at_most(store: Store) -> None:
    prepared = frame(store, [SpaceChange("t", None, [b"a"], [b"1"])])
    await store.prepare(prepared)
    with pytest.raises(StoreError, match="frame 1 is still undecided"):
        await store.prepare(frame(store, []))
    with pytest.raises(StoreError, match="frame 1 is still undecided"):
        await store.commit({PLAIN: {b"b": b"2"}})
    if not isinstance(store, MemoryStore):
        with pytest.raises(StoreError, match="frame 1 is still undecided"):
            await store.flush()
        with pytest.raises(StoreError, match="frame 1 is still undecided"):
            await store.compact()
    with pytest.raises(StoreError, match="no undecided frame"):
        await store.resolve(b"another", applied=True)
    assert store.undecided == prepared
    await store.resolve(prepared.commit_id, applied=True)
    assert rows(store) == {b"a": b"1"}


async def test_undecided_values_expire_too(store: Store) -> None:
    await store.commit(now=100)
    await store.prepare(frame(store, [SpaceChange("t", None, [b"a", b"b"], [[100, b"gone"], [101, b"here"]])]))
    assert (store.get(PLAIN, b"a"), store.get(PLAIN, b"b"), rows(store)) == (None, b"here", {b"b": b"here"})


# --- on disk ---------------------------------------------------------------------------------------------------------

KILLED = """
import asyncio, os, signal, sys
from tests.store.test_stores import KINDS, PLAIN, frame, SpaceChange, StoreOptions
from pathlib import Path
async def main():
    async with KINDS[sys.argv[1]](Path(sys.argv[2]), StoreOptions(durability=sys.argv[3]))() as store:
        for n in range(20):
            rows = {b"%d" % k: b"%d" % n for k in range(n * 10)}
            await store.commit({PLAIN: rows, ("t", n): {b"k": b"v"}}, meta={"n": n})
        await store.prepare(frame(store, [SpaceChange("t", None, [b"undecided"], [b"1"])], [("t", 3)]))
        print(store.number, store.undecided.commit_id.hex(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "kind, durability, applied",
    matrix(
        ["lsm", "rocks"],
        ["commit", "interval", "os"],
        [True, False],
        quick=lambda *case: case in (("lsm", "os", True), ("rocks", "commit", False)),
    ),
)
async def test_kill_9_takes_nothing_that_was_committed(
    kind: str, durability: Any, applied: bool, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, kind, str(tmp_path), durability]
    done = await anyio.run_process(command, check=False, cwd=root, env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    number, commit_id = done.stdout.decode().split()
    async with KINDS[kind](tmp_path, StoreOptions(durability=durability))() as store:
        assert store.undecided is not None
        assert (store.number, store.undecided.commit_id.hex(), store.meta) == (int(number), commit_id, {"n": 19})
        await store.resolve(store.undecided.commit_id, applied)
        expected = {b"%d" % k: b"19" for k in range(190)} | ({b"undecided": b"1"} if applied else {})
        assert rows(store) == expected
        assert store.ends("t") == [n for n in range(20) if n != 3 or not applied]


@pytest.mark.parametrize("kind", ON_DISK)
async def test_a_store_has_one_owner(opener: Opener) -> None:
    async with opener():
        with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}"):
            async with opener():
                pass
    async with opener() as store:
        await store.commit({PLAIN: {b"a": b"1"}})


@pytest.mark.parametrize("kind", matrix(ON_DISK, quick=lambda kind: kind != "helper"))
@pytest.mark.parametrize("durability", ["commit", "interval", "os"])
async def test_every_durability_gives_back_what_was_closed(kind: str, durability: Any, tmp_path: Path) -> None:
    opener = KINDS[kind](tmp_path, StoreOptions(durability=durability, sync_interval=1))
    async with opener() as store:
        for n in range(50):
            await store.commit({PLAIN: {b"%d" % n: b"v"}})
    gc.collect()
    async with opener() as store:
        assert len(rows(store)) == store.number == 50


@pytest.mark.parametrize("kind", ON_DISK)
async def test_stats_tell_what_was_done(opener: Opener) -> None:
    async with opener() as store:
        await store.commit({PLAIN: numbered(2000)})
        await store.commit({PLAIN: numbered(10)})
        await compact(store)
        stats = store.stats()  # type: ignore[union-attr]
        assert (stats.commits, stats.records) == (2, 2000)
        assert stats.tables == sum(files for files, _ in stats.levels.values()) == 1
        assert stats.table_bytes == sum(size for _, size in stats.levels.values()) > 5_000
        assert stats.logged > 20_000


@pytest.mark.parametrize(("made_by", "opened_by"), [("lsm", "rocks"), ("rocks", "lsm")])
async def test_a_directory_stays_with_its_engine(made_by: str, opened_by: str, tmp_path: Path) -> None:
    options = StoreOptions(durability="os")
    async with KINDS[made_by](tmp_path, options)() as store:
        await store.commit({PLAIN: {b"a": b"1"}})
    before = sorted(path.name for path in (tmp_path / "s").iterdir())
    with pytest.raises(ConfigError, match=f"{tmp_path / 's'}: made by engine '{made_by}'"):
        async with KINDS[opened_by](tmp_path, options)():
            pass
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == before
    async with KINDS[made_by](tmp_path, options)() as store:
        assert rows(store) == {b"a": b"1"}


# --- what RocksDB does otherwise -------------------------------------------------------------------------------------


async def test_rocks_says_what_it_cannot_do(tmp_path: Path) -> None:
    from flowkit.store import StaticKey
    from flowkit.store.files import Disk

    for wrong, message in (
        ({"keys": StaticKey(b"k" * 32)}, "engine 'rocks' encrypts nothing"),
        ({"files": Disk()}, "engine 'rocks' writes its own files"),
    ):
        with pytest.raises(ConfigError, match=message):
            async with open_store(tmp_path / "s", engine="rocks", **wrong):
                pass
    with pytest.raises(ConfigError, match="no engine 'bolt': there are 'lsm' and 'rocks'"):
        async with open_store(tmp_path / "s", engine="bolt"):  # type: ignore[arg-type]
            pass
    async with rocks(tmp_path, StoreOptions())() as store:
        with pytest.raises(StoreError, match="takes 64 bits with sign"):
            await store.commit({("t", 2**63): {b"a": b"1"}})
        with pytest.raises(StoreError, match="engine 'rocks' takes times from 1970 on"):
            await store.commit({PLAIN: {b"a": b"1"}}, expires=-1)
        with pytest.raises(StoreError, match="takes times from 1970 on"):
            await store.prepare(frame(store, [SpaceChange("t", None, [b"a"], [[-1, b"1"]])]))
        assert (store.undecided, store.number, store.tables()) == (None, 0, [])
        await store.commit({PLAIN: {b"a": b"1"}})
        with pytest.raises(ConfigError, match="which only its owner can read"):
            read_store(tmp_path / "s")


async def test_rocks_missing_is_told_with_what_to_do(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; sys.modules['rocksdict'] = None\n"
        "from flowkit.store import open_store\n"
        "async def main():\n"
        f"    async with open_store({str(tmp_path / 's')!r}) as db: await db.commit()\n"
        f"    async with open_store({str(tmp_path / 'r')!r}, engine='rocks'): pass\n"
        "asyncio.run(main())"
    )
    done = await anyio.run_process([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert done.stderr.decode().splitlines()[-1] == (
        "flowkit.errors.ConfigError: engine 'rocks' needs rocksdict, which is not installed: "
        "pip install 'flowkit[rocks]'"
    )


async def test_rocks_gives_back_the_room_of_what_expired(tmp_path: Path) -> None:
    async with rocks(tmp_path, StoreOptions())() as store:
        await store.commit({PLAIN: {b"%d" % n: os.urandom(100) for n in range(2000)}}, expires=10, now=0)
        await store.commit({PLAIN: {b"stays": b"1"}}, now=10)
        await compact(store)
        assert store.stats().records == 1  # type: ignore[union-attr]
        assert store.stats().table_bytes < 5_000  # type: ignore[union-attr]
        assert rows(store) == {b"stays": b"1"}


async def test_rocks_keeps_cache_and_filters_when_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        async with rocks(tmp_path, StoreOptions())() as store:
            await store.commit({PLAIN: {b"a": b"1"}})
            assert store._db.property_int_value("rocksdb.block-cache-capacity") == 16 * 2**20  # type: ignore[union-attr]
        newest = max((tmp_path / "s" / "rocks").glob("OPTIONS-*"))
        assert "filter_policy=bloomfilter" in newest.read_text()


async def test_a_scan_of_a_closed_rocks_store_says_so(tmp_path: Path) -> None:
    async with rocks(tmp_path, StoreOptions())() as store:
        await store.commit({PLAIN: numbered(5000)})
        scan = store.scan(PLAIN)
        next(scan)
    with pytest.raises(StoreError, match="closed"):
        list(scan)
    with pytest.raises(StoreError, match="closed"):
        store.get(PLAIN, b"a")


@pytest.mark.parametrize("kind", ["rocks"])
async def test_damaged_rocks_files_are_told(opener: Opener, tmp_path: Path) -> None:
    from flowkit.errors import StoreCorrupt

    async with opener() as store:
        await store.commit({PLAIN: {b"a": b"1"}})
        await flush(store)
    manifest = next((tmp_path / "s" / "rocks").glob("MANIFEST-*"))
    manifest.write_bytes(b"nonsense" * 20)
    with pytest.raises(StoreCorrupt, match="RocksDB cannot open it"):
        async with opener():
            pass
