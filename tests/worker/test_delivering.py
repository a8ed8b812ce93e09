"""What becomes of records whose destination is a service: numbered, delivered once their commit counts, or dead."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from flowkit import App, Closed, ConfigError, Record, Stream, Tumbling, seconds
from flowkit.clock import VirtualClock
from flowkit.options import WorkerOptions
from flowkit.sink import destination, destinations
from flowkit.sink.dispatch import Dispatch, Item, Limits, Never, Outcome
from flowkit.sink.records import RecordSink, Row
from flowkit.worker import Summary, run
from flowkit.worker.outlets import Outgoing
from tests.sink.shelf import Shelf


class Order(Record):
    id: str
    amount: int
    at: int


class Total(Record):
    id: str
    total: int = 0


def app_of() -> App:
    app = App("shop")
    orders = app.topic("orders", Order, key="id", time="at")
    totals = app.table("totals", str, int, window=Tumbling(seconds(10)))
    out = app.sink("out", Order, key="id")
    results = app.sink("results", Total, key="id")

    @app.agent(orders, tables=[totals], sinks=[out])
    async def keep(stream: Stream[Order]) -> AsyncIterator[Order]:
        async for order in stream:
            totals[order.id] += order.amount
            yield order

    @app.each(totals.closed, sinks=[results])
    def close(window: Closed[str, int]) -> Total:
        return Total(window.key, window.value)

    return app


ORDERS = [Order("ab"[n % 2], n, n * 3_000) for n in range(12)]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    with monkeypatch.context() as patch:
        patch.setitem(destinations.SERVICES, "shelf", ("tests.sink.shelf", "shelf://NAME"))
        Shelf.shelves["one"] = Shelf()
        yield Shelf.shelves["one"]


@pytest.fixture
def orders(tmp_path: Path) -> str:
    path = tmp_path / "orders.jsonl"
    path.write_text("".join(json.dumps({"id": o.id, "amount": o.amount, "at": o.at}) + "\n" for o in ORDERS))
    return str(path)


async def run_it(orders: str, state: Path, stop: str = "", after: int = 0, name: str = "out") -> Summary:
    """Run it, broken off at step `stop` of the commit after `after` others."""
    seen = 0

    async def hook(step: str) -> None:
        nonlocal seen
        seen += step == stop
        if seen > after:
            raise Killed

    return await run(
        app_of(),
        [("orders", orders)],
        [(name, "shelf://one?items=2"), ("dead-letters", str(state.with_suffix(".dead.jsonl")))],
        state=state,
        options=WorkerOptions(commit_every=4, commit_interval=10_000),
        hook=hook,
    )


class Killed(Exception):
    pass


async def test_all_arrives_in_order_each_under_its_own_number(shelf: Shelf, orders: str, tmp_path: Path) -> None:
    await run_it(orders, tmp_path / "state")
    for key in (b"a", b"b"):
        amounts = [json.loads(value or b"")["amount"] for _, k, value in shelf.taken if k == key]
        assert amounts == [o.amount for o in ORDERS if o.id == key.decode()]
    assert len({row.id for row in shelf.rows}) == len(ORDERS)
    numbers = {row.number: json.loads(row.value or b"")["amount"] for row in shelf.rows}
    assert [numbers[number] for number in sorted(numbers)] == list(range(12))
    assert (shelf.opened, shelf.is_open) == (1, False)


@pytest.mark.parametrize("stop", ["cut", "prepared", "resolved", "delivered"])
@pytest.mark.parametrize("after", [0, 1])
async def test_broken_off_anywhere_all_arrives_and_again_only_under_the_same_number(
    shelf: Shelf, orders: str, tmp_path: Path, stop: str, after: int
) -> None:
    with pytest.raises(Killed):
        await run_it(orders, tmp_path / "state", stop, after)
    await run_it(orders, tmp_path / "state")
    seen = dict.fromkeys(shelf.taken)  # the same number: the same record
    assert sorted(json.loads(value or b"")["amount"] for _, _, value in seen) == list(range(12))
    assert len({id_ for id_, _, _ in seen}) == len(ORDERS)


async def test_what_a_window_gave_has_its_end_as_order_and_what_an_event_gave_has_none(
    shelf: Shelf, orders: str, tmp_path: Path
) -> None:
    await run_it(orders, tmp_path / "state", name="results")
    assert [(row.time, (row.order or 0) >> 2) for row in shelf.rows] == [
        (end - 1, end) for end in (10_000, 20_000, 30_000, 40_000) for _ in "ab"
    ]
    shelf.rows.clear()
    await run_it(orders, tmp_path / "other")
    assert {row.order for row in shelf.rows} == {None}


@pytest.mark.parametrize("stop", ["", "delivered", "cut"])
async def test_what_a_service_never_takes_is_a_dead_letter_once(
    shelf: Shelf, orders: str, tmp_path: Path, stop: str
) -> None:
    def script(items: Sequence[Item]) -> Sequence[Outcome]:
        refused = Never("ItemTooLarge", "more than it can hold")
        return [
            refused if b'"amount":5' in item.body.value or b'"amount":11' in item.body.value else None for item in items
        ]

    shelf.script = script
    if stop:
        with pytest.raises(Killed):
            await run_it(orders, tmp_path / "state", stop, 1)
    summary = await run_it(orders, tmp_path / "state")
    assert summary.dead_letters
    letters = [json.loads(line) for line in (tmp_path / "state.dead.jsonl").read_text().splitlines()]
    assert [(letter["topic"], letter["error"], letter["reason"]) for letter in letters] == [
        ("out", "ItemTooLarge", "more than it can hold")
    ] * 2
    assert len({row.id for row in shelf.rows}) == len(ORDERS) - 2


@pytest.mark.parametrize(("room", "kept"), [(30_000, True), (3_000, False), (0, None)])
async def test_a_letter_that_its_own_destination_refuses_is_sent_once_more_and_never_for_ever(
    shelf: Shelf, orders: str, tmp_path: Path, room: int, kept: bool | None
) -> None:
    def one(items: Sequence[Item]) -> Sequence[Outcome]:
        reason = "x" * (20_000 if kept is False else 10)
        return [Never("Bad", reason) if b'"amount":5' in item.body.value else None for item in items]

    def two(items: Sequence[Item]) -> Sequence[Outcome]:
        takes = [b"itself" in item.body.value and len(item.body.value) < room for item in items]
        return [None if each else Never("TooOld", "two weeks") for each in takes]

    shelf.script, letters = one, Shelf(two)
    Shelf.shelves["two"] = letters
    outputs = [("out", "shelf://one"), ("dead-letters", "shelf://two")]
    async with asyncio.timeout(20):
        summary = await run(app_of(), [("orders", orders)], outputs, state=tmp_path / "state")
    assert summary.counters.dead == 1
    found = [json.loads(value or b"") for _, _, value in letters.taken]
    assert [(letter["error"], letter["value"] is not None) for letter in found] == (
        [] if kept is None else [("Bad", kept)]
    )
    assert all("the letter itself was refused: TooOld (two weeks)" in letter["reason"] for letter in found)
    assert len(shelf.rows) == len(ORDERS) - 1


def test_an_unknown_scheme_and_credentials_in_a_url_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown scheme 'gopher'; there are a path"):
        destination("gopher://x", None)


def test_credentials_in_a_url_are_refused_and_not_shown(shelf: Shelf) -> None:
    with pytest.raises(ConfigError, match="credentials do not belong into a URL") as caught:
        destination("shelf://AKIA:geheim@one", None)
    assert "geheim" not in str(caught.value)
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        destination("shelf://one?items", None)


async def test_who_takes_over_keys_gives_numbers_after_those_of_all_before_whatever_the_clock_says() -> None:
    last = (10**12 << 16, 10**12 << 16 | 5)
    sink = RecordSink(Dispatch("x", _never_sent, Limits(1, 1)), _nothing_to_send, VirtualClock(1_000))
    await sink.open(sink.inherited([{"name": "a", "last": last[0]}, {"name": "b", "last": last[1]}]))
    staged = sink.stage([Outgoing(b"k", b"v", 0)], False)
    assert staged["from"] == last[1] + 1
    assert staged["name"] not in ("a", "b")


async def _never_sent(_items: Sequence[Item]) -> Sequence[Outcome]:
    raise AssertionError


def _nothing_to_send(_index: int, _row: Row) -> None:
    return None
