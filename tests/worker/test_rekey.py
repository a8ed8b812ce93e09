"""What passes between tasks when a stream is sent on by another key: events, marks, and what becomes of bad ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from flowkit import App, Closed, Count, Record, Tumbling
from flowkit.codec import decode_mark, enveloped
from flowkit.errors import ConfigError
from flowkit.record import MIN_TIME
from flowkit.source import partition_of
from flowkit.worker.wiring import Wiring
from tests.model.crowd import Crowd

TOPIC = "app.sales.by-shop"


class Sale(Record):
    user: str
    shop: str | None
    at: int
    value: int = 0


class Told(Record):
    shop: str
    end: int
    n: int


class Missed(Record):
    shop: str | None
    at: int


def selling(*, lateness: int = 0, table_closes: int | None = None, **options: Any) -> App:
    """How many sales a shop has in windows of 10 ms, from a topic that is keyed by user."""
    app = App("app")
    sales = app.topic("sales", Sale, key="user", time="at", **options)
    out, missed = app.topic("out", Told, key="shop"), app.topic("missed", Missed)
    table: Any = app.table(
        "counts",
        of=sales.group_by("shop"),
        by="shop",
        window=Tumbling(10),
        n=Count(),
        allowed_lateness=lateness,
        close_after_idle=table_closes,
    )

    @app.each(table.closed, sinks=[out])
    def tell(w: Closed[str, Any]) -> Told:
        return Told(w.key, w.end, w.value.n)

    @app.each(table.late, sinks=[missed])
    def miss(sale: Sale) -> Missed:
        return Missed(sale.shop, sale.at)

    return app


def user_of(partition: int, partitions: int = 2) -> str:
    names = (f"user {n}" for n in range(1_000))
    return next(name for name in names if partition_of(name.encode(), partitions) == partition)


A, B = user_of(0), user_of(1)
"""Users of partition 0 and of partition 1."""


@asynccontextmanager
async def at_work(app: App, partitions: int = 2) -> AsyncIterator[Crowd]:
    crowd = Crowd(app, {"sales": partitions}, Random(1))
    await crowd.open()
    yield crowd
    await crowd.close()


async def put(crowd: Crowd, *sales: tuple[str, str | None, int]) -> None:
    await crowd.put("sales", *(Sale(*sale) for sale in sales))
    await crowd.drain()


async def told(crowd: Crowd) -> list[tuple[str, int, int]]:
    return sorted((t.shop, t.end, t.n) for t in await crowd.sent("out", Told))


def log_of(crowd: Crowd, partition: int) -> list[str]:
    """A partition of the internal topic, drawn: `x@3` an event, `0:7` a mark of sender 0, `0:7i` one that is idle."""
    drawn = []
    for value in crowd.broker.store.topics[TOPIC][partition].columns[1]:
        mark = decode_mark(value)
        if mark is None:
            event = enveloped(value)
            drawn.append(f"{event['shop']}@{event['at']}")
        else:
            sender, watermark, standing = mark
            assert sender.startswith("from-sales/")
            drawn.append(f"{sender[-1]}:{'.' if watermark == MIN_TIME else watermark}{'-iq'[standing].strip('-')}")
    return drawn


# --- what lies in the topic -------------------------------------------------------------------------------------------


async def test_marks_lie_behind_the_events_of_their_commit_in_every_partition_and_only_when_something_changed() -> None:
    shops = [next(s for s in "abcdef" if partition_of(s.encode(), 2) == p) for p in (0, 1)]
    async with at_work(selling(out_of_order=2)) as crowd:
        await put(crowd, (A, shops[0], 5), (A, shops[1], 8), (A, shops[0], 6))
        await put(crowd, (A, shops[0], 7))  # no change: the watermark stays
        await put(crowd, (B, shops[1], 4))
        assert log_of(crowd, 0) == [f"{shops[0]}@5", f"{shops[0]}@6", "0:5", f"{shops[0]}@7", "1:1"]
        assert log_of(crowd, 1) == [f"{shops[1]}@8", "0:5", f"{shops[1]}@4", "1:1"]
        keys = [key for log in crowd.broker.store.topics[TOPIC] for key in log.columns[0]]
        assert set(keys) == {shops[0].encode(), shops[1].encode(), None}


async def test_a_sender_that_is_opened_again_does_not_repeat_itself() -> None:
    async with at_work(selling()) as crowd:
        await put(crowd, (A, "x", 5), (B, "x", 5))
        before = log_of(crowd, 0)
        for name in list(crowd.tasks):
            await crowd.move(name)
        await put(crowd, (A, "x", 5))
        await put(crowd, (A, "x", 6))
        more = ["x@5", "x@6", "0:5"] if partition_of(b"x", 2) == 0 else ["0:5"]
        assert log_of(crowd, 0) == [*before, *more]


async def test_a_clean_stop_tells_no_more_than_the_watermark() -> None:
    async with at_work(selling()) as crowd:
        await put(crowd, (A, "x", 5), (B, "x", 7))
        before = log_of(crowd, 0)
        for task in list(crowd.tasks.values()):
            await task.finish(1.0)
        assert log_of(crowd, 0) == before
        assert await told(crowd) == []


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_window_waits_for_every_sender_also_for_one_that_has_never_spoken() -> None:
    async with at_work(selling()) as crowd:
        await put(crowd, (A, "x", 5), (A, "x", 500))
        assert await told(crowd) == []
        await put(crowd, (B, "x", 3), (B, "y", 30))
        assert await told(crowd) == [("x", 10, 2)]
        assert await crowd.sent("missed", Missed) == []


async def test_a_receiver_that_is_moved_knows_what_the_senders_said() -> None:
    async with at_work(selling()) as crowd:
        await put(crowd, (A, "x", 5), (A, "x", 500))
        for name in list(crowd.tasks):
            await crowd.move(name)
        for partition in (0, 1):  # marks are behind it, too
            name, end = f"app/counts/{partition}", (await crowd.broker.end_offsets(TOPIC))[partition]
            assert await crowd.broker.positions(name) == {f"{TOPIC}[{partition}]": end}
        await put(crowd, (B, "x", 30))  # A says nothing new
        assert await told(crowd) == [("x", 10, 1)]


async def test_what_comes_too_late_for_the_receiver_goes_to_the_late_stream_there() -> None:
    async with at_work(selling()) as crowd:
        await put(crowd, (A, "x", 5), (A, "x", 50), (B, "y", 50))
        await put(crowd, (A, "x", 7))
        assert [(m.shop, m.at) for m in await crowd.sent("missed", Missed)] == [("x", 7)]
        assert await told(crowd) == [("x", 10, 1)]


async def test_a_late_record_still_counts_within_the_allowed_lateness_of_the_receiver() -> None:
    async with at_work(selling(lateness=100)) as crowd:
        await put(crowd, (A, "x", 5), (A, "x", 50), (B, "y", 50))
        await put(crowd, (A, "x", 7))
        assert await told(crowd) == [("x", 10, 1), ("x", 10, 2)]


async def test_a_partition_that_is_idle_at_the_source_holds_nobody() -> None:
    async with at_work(selling(idle_after=100)) as crowd:
        await put(crowd, (A, "x", 5), (A, "x", 50))
        await crowd.pass_time(50)
        assert await told(crowd) == []
        await put(crowd, (A, "x", 51))
        await crowd.pass_time(100)
        assert log_of(crowd, 0)[-1].endswith("i")
        assert await told(crowd) == [("x", 10, 1)]
        await put(crowd, (B, "z", 52))  # back again, and waited for
        await put(crowd, (A, "y", 70))
        assert await told(crowd) == [("x", 10, 1)]
        await put(crowd, (B, "y", 71))
        assert await told(crowd) == [("x", 10, 1), ("x", 60, 2), ("z", 60, 1)]


async def test_all_idle_holds_where_the_last_one_came_to() -> None:
    async with at_work(selling(idle_after=100)) as crowd:
        await put(crowd, (A, "x", 5), (A, "x", 50), (B, "x", 25))
        await crowd.pass_time(1_000)
        receiver = crowd.tasks[f"app/counts/{partition_of(b'x', 2)}"]
        assert receiver.engine.watermark() == 24
        assert await told(crowd) == [("x", 10, 1)]


@pytest.mark.parametrize("where", ["topic", "table"])
async def test_silence_at_the_source_closes_windows_by_the_clock(where: str) -> None:
    """Also those of a partition that never had anything, and wherever the silence is asked for."""
    app = selling(close_after_idle=200) if where == "topic" else selling(table_closes=200)
    async with at_work(app) as crowd:
        await put(crowd, (A, "x", 5), (A, "y", 8))
        await crowd.pass_time(150)
        assert await told(crowd) == []
        await crowd.pass_time(300)
        assert await told(crowd) == [("x", 10, 1), ("y", 10, 1)]
        assert "q" in log_of(crowd, 0)[-1]
        marks = len(log_of(crowd, 0))
        await crowd.pass_time(1_000)
        assert len(log_of(crowd, 0)) - marks <= 2 * 5  # each sender now and then, not at every look
        await put(crowd, (A, "x", 2_000))
        assert log_of(crowd, 0)[-1] == "0:1999"  # it goes on


async def test_one_that_comes_to_a_time_and_falls_idle_within_one_commit_has_come_so_far() -> None:
    async with at_work(selling(idle_after=100)) as crowd:
        await put(crowd, (A, "x", 1), (B, "x", 1))
        await crowd.put("sales", Sale(A, "x", 50), Sale(B, "x", 30))
        for name in ("app/from-sales/0", "app/from-sales/1"):
            task = crowd.tasks[name]
            await task.fetch(100)
            while await task.step():
                pass
            crowd.clock.advance(1_000)
            await task.fetch(100)
            crowd.clock.advance(1_000)
            await task.fetch(100)
            task.look_at_clock()
        await crowd.drain()
        assert sorted(mark for mark in log_of(crowd, 0) if mark.endswith("i")) == ["0:49i", "1:29i"]
        assert await told(crowd) == [("x", 10, 2)]


async def test_beside_a_topic_that_is_silent_the_clock_waits_for_those_that_send() -> None:
    app = selling(idle_after=None)
    app.topic("shops", Sale, key="shop", time="at", close_after_idle=200)

    @app.each(app.topics["shops"], reads=[app.tables["counts"]])
    def look(sale: Sale) -> None: ...

    crowd = Crowd(app, {"sales": 2, "shops": 2}, Random(1))
    await crowd.open()
    for partition in (0, 1):
        await crowd.put("shops", Sale("", "x", 4), partition=partition)
    await put(crowd, (A, "x", 5), (B, "x", 6))
    for n in range(10):  # the topic is silent for long, but sales come
        await crowd.pass_time(100)
        await put(crowd, (A, "x", 7), (B, "x", 7))
        assert await told(crowd) == [], n
    await crowd.pass_time(600)
    assert await told(crowd) == [("x", 10, 22)]
    assert await crowd.sent("missed", Missed) == []
    await crowd.close()


async def test_a_sender_that_is_away_is_no_silence() -> None:
    """A receiver's own silence closes nothing: its sender may be about to be opened elsewhere."""
    async with at_work(selling(close_after_idle=200)) as crowd:
        await put(crowd, (A, "x", 5), (B, "x", 6))
        away = [crowd.tasks.pop(name) for name in list(crowd.tasks) if "sales" in name]
        await crowd.pass_time(2_000)
        assert await told(crowd) == []
        for task in away:
            crowd.tasks[task.name] = task
        await put(crowd, (A, "x", 7), (A, "x", 11), (B, "x", 11))
        assert await told(crowd) == [("x", 10, 3)]


# --- bad ones ---------------------------------------------------------------------------------------------------------


async def test_an_event_without_a_key_is_a_dead_letter_of_the_sender() -> None:
    async with at_work(selling()) as crowd:
        await put(crowd, (A, "x", 5), (A, None, 6), (A, "x", 30), (B, "y", 30))
        (letter,) = await crowd.letters()
        assert (letter.topic, letter.position) == ("sales", "sales[0] offset 1")
        assert letter.reason == "'sales.by-shop': the key ('shop') is None"
        assert letter.value == b'{"user":"%s","shop":null,"at":6,"value":0}' % A.encode()
        assert await told(crowd) == [("x", 10, 1)]


async def test_what_others_write_into_the_topic_is_a_dead_letter_of_the_receiver() -> None:
    async with at_work(selling()) as crowd:
        strangers: list[bytes | None] = [b"{}", b"", None, b"\x93\x01", b"\x91\xc1"]
        await crowd.broker.put(TOPIC, [(b"x", value, 5) for value in strangers], partition_of(b"x", 2))
        await put(crowd, (A, "x", 5), (A, "x", 30), (B, "y", 30))
        assert [letter.value for letter in await crowd.letters()] == strangers
        assert {letter.topic for letter in await crowd.letters()} == {TOPIC}
        assert await told(crowd) == [("x", 10, 1)]


# --- a table that every task has whole --------------------------------------------------------------------------------


async def test_a_broadcast_table_is_written_from_all_partitions_of_the_internal_topic() -> None:
    app = App("app")
    sales, asked = app.topic("sales", Sale, key="user", time="at"), app.topic("asked", Sale, key="user", time="at")
    out = app.topic("out", Told, key="shop")
    latest = app.table("latest", str, int, broadcast=True)

    @app.each(sales.group_by("shop"), tables=[latest])
    def learn(sale: Sale) -> None:
        latest[str(sale.shop)] = sale.value

    @app.each(asked, reads=[latest], sinks=[out])
    def tell(sale: Sale) -> Told:
        return Told(str(sale.shop), sale.at, latest.get(str(sale.shop)) or 0)

    crowd = Crowd(app, {"sales": 3, "asked": 2}, Random(1))
    await crowd.open()
    assert (await crowd.broker.topics())[TOPIC] == 3
    shops = [f"shop {n}" for n in range(6)]
    await crowd.put("sales", *(Sale(f"user {n}", shop, n, n + 1) for n, shop in enumerate(shops)))
    await crowd.drain()
    await crowd.put("asked", *(Sale(user, shop, n) for n, shop in enumerate(shops) for user in (A, B)))
    await crowd.drain()
    assert await told(crowd) == sorted((shop, n, n + 1) for n, shop in enumerate(shops) for _ in (A, B))
    await crowd.close()


# --- wiring -----------------------------------------------------------------------------------------------------------


async def wired(app: App, default: int = 5, **topics: int) -> tuple[Wiring, dict[str, int]]:
    crowd = Crowd(app, topics, Random(1))
    for topic, count in topics.items():
        await crowd.broker.create(topic, count)
    wiring = Wiring(app, app.plan(rekey=True), {}, default)
    wiring.check()
    await wiring.connect(crowd.broker)
    return wiring, await crowd.broker.topics()


async def test_an_internal_topic_has_as_many_partitions_as_its_source() -> None:
    wiring, topics = await wired(selling(), sales=3)
    assert topics[TOPIC] == 3
    assert wiring.senders == {TOPIC: [f"from-sales/{n}" for n in range(3)]}
    _, topics = await wired(selling())
    assert topics[TOPIC] == topics["sales"] == 5


async def test_it_has_as_many_as_the_other_topics_of_its_group() -> None:
    app = selling()
    app.topic("shops", Sale, key="shop", time="at")

    @app.each(app.topics["shops"], reads=[app.tables["counts"]])
    def look(sale: Sale) -> None: ...

    wiring, topics = await wired(app, sales=3, shops=2)
    assert topics[TOPIC] == 2
    assert wiring.topics[TOPIC] == 2
    assert len(wiring.senders[TOPIC]) == 3


async def test_one_of_another_number_is_told() -> None:
    app = selling()
    app.topic("shops", Sale, key="shop", time="at")

    @app.each(app.topics["shops"], reads=[app.tables["counts"]])
    def look(sale: Sale) -> None: ...

    with pytest.raises(ConfigError, match=r"need equal partition counts: .*app\.sales\.by-shop has 4.*flowkit itself"):
        await wired(app, **{"sales": 3, "shops": 2, TOPIC: 4})
