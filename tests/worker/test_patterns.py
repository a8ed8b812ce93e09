"""Topics by pattern: what matches, what a task joins and leaves, and what that does to its watermark and positions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from flowkit import App, Closed, ConfigError, Record, Sink, Topic, Tumbling
from flowkit.clock import VirtualClock
from flowkit.options import WorkerOptions
from flowkit.source import MemoryBroker
from flowkit.source.internal import changelog_of
from flowkit.store import open_store
from flowkit.testing import harness
from flowkit.worker import LiveTask, TopicFinder, random_ids
from flowkit.worker.wiring import Wiring
from tests.matrix import matrix

SEEDS = matrix(range(12), quick=lambda seed: seed < 4)


class Order(Record):
    key: str
    at: int = 0


class Total(Record):
    key: str
    end: int
    n: int


def counting(pattern: str = r"orders\..*", name: str = "shop", **options: object) -> tuple[App, Topic[Order]]:
    """Counts orders by key and second; what is late is told with -1."""
    app = App(name)
    orders = app.topic("orders", Order, key="key", time="at", pattern=pattern, **options)  # type: ignore[arg-type]
    out = app.topic("totals", Total, key="key")
    counts = app.table("counts", str, int, window=Tumbling(1_000))

    @app.each(orders, tables=[counts])
    def count(order: Order) -> None:
        if order.key == "bad":
            raise ValueError("no such thing")
        counts[order.key] += 1

    @app.each(counts.closed, sinks=[out])
    def tell(w: Closed[str, int]) -> Total:
        return Total(w.key, w.end, w.value)

    @app.each(counts.late, sinks=[out])
    def late(order: Order) -> Total:
        return Total(order.key, order.at, -1)

    return app, orders


def row(key: str, at: int) -> tuple[bytes, bytes, int]:
    return key.encode(), b'{"key":"%s","at":%d}' % (key.encode(), at), at


# --- what is declared -------------------------------------------------------------------------------------------------


def test_a_pattern_that_cannot_be_is_told() -> None:
    app = App("shop")
    with pytest.raises(ConfigError, match=r"'orders': pattern='\(' is no regular expression: missing \), unterminated"):
        app.topic("orders", Order, pattern="(")
    with pytest.raises(ConfigError, match="offsets are those of one topic"):
        app.topic("orders", Order, pattern=".*", start={0: 1})
    app.topic("orders.bad", Order)
    with pytest.raises(
        ConfigError, match=r"'orders.bad' matches the pattern 'orders.*' of 'orders', so its records would"
    ):
        app.topic("orders", Order, pattern="orders.*")
    app.topic("orders", Order, pattern=r"(?!orders\.bad$)orders.*")
    with pytest.raises(ConfigError, match=r"'orders.eu' matches the pattern"):
        app.topic("orders.eu", Order)


def test_the_whole_name_must_match() -> None:
    orders = App("shop").topic("orders", Order, pattern=r"orders\.(eu|us)")
    for name in ("orders.eu", "orders.us", "orders", "orders.eus", "my.orders.eu"):
        assert orders.stands_for(name) == (name in ("orders.eu", "orders.us"))


async def test_nothing_can_be_sent_to_a_pattern() -> None:
    app, orders = counting()
    with pytest.raises(ConfigError, match="nothing can be sent to it: declare the topic that you mean"):

        @app.each(orders, sinks=[orders])
        def again(order: Order) -> Order:
            return order

    with pytest.raises(ConfigError, match="nothing can be sent to it"):
        orders.emit(Order("a"))


# --- what matches -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def broker_with(**topics: int) -> AsyncIterator[MemoryBroker]:
    async with MemoryBroker(VirtualClock()) as broker:
        for name, count in topics.items():
            await broker.create(name.replace("__", "."), count)
        yield broker


async def test_own_topics_never_match() -> None:
    app = App("shop")
    every = app.topic("every", Order, key="key", pattern=".*")
    counts = app.table("counts", str, int)

    @app.each(every.group_by("at"), tables=[counts])
    def count(order: Order) -> None: ...

    plan = app.plan(rekey=True)
    async with broker_with(users=2) as broker:
        logs = [changelog_of(f"shop/{group.name}/0")[0] for group in plan.groups]
        for name in ["dead-letters", "__consumer_offsets", *(topic.name for topic in plan.internals), *logs]:
            await broker.create(name, 2)
        finder = TopicFinder(app, plan)
        assert await finder.begin(broker) == []
        assert finder.found == {"every": {"users": 2}}


async def test_internal_topics_of_others_are_known_by_their_records() -> None:
    app, _ = counting(pattern="(?!totals$).*")
    async with broker_with(users=1, other__by_user=1, **{"users-log-changelog": 1, "other-g-changelog": 1}) as broker:
        await broker.put("other.by_user", [(b"k", b"\x91\xa1x", 0)])
        await broker.put("other-g-changelog", [(None, b"\x98\x01\x02\xc4\x01a\xc4\x01b\xa0\x00\x01\xc4\x01d", 0)])
        await broker.put("users-log-changelog", [(None, b'{"key":"a","at":1}', 0)])
        await broker.create("empty-g-changelog", 1)
        finder = TopicFinder(app, app.plan(rekey=True))
        await finder.begin(broker)
        assert finder.found == {"orders": {"users": 1, "users-log-changelog": 1}}
        await broker.put("empty-g-changelog", [(None, b"text", 0)])  # a user's, after all
        await finder.look(broker)
        assert "empty-g-changelog" in finder.found["orders"]


async def test_what_matches_twice_is_an_error_at_the_start_and_left_alone_later() -> None:
    app, _ = counting()
    app.topic("eu", Order, pattern=r".*\.eu")

    @app.each(app.topics["eu"])
    def look(order: Order) -> None: ...

    wiring = Wiring(app, app.plan(rekey=True), {}, 1)
    async with broker_with(orders__eu=1) as broker:
        with pytest.raises(ConfigError, match=r"topic 'orders.eu' matches the patterns of 'orders' and 'eu', so its"):
            await wiring.connect(broker)
    async with broker_with(orders__us=1, more__eu=1) as broker:
        assert await wiring.connect(broker)
        await broker.create("orders.eu", 1)
        with capture_logs() as logs:
            await wiring.finder.look(broker)
            await wiring.finder.look(broker)
        assert [(line["event"], line["log_level"]) for line in logs] == [
            ("topic not read: it matches several patterns", "error")
        ]
        assert wiring.finder.found == {"orders": {"orders.us": 1}, "eu": {"more.eu": 1}}


async def test_unequal_partitions_are_an_error_before_anything_starts() -> None:
    app, _ = counting()
    wiring = Wiring(app, app.plan(rekey=True), {}, 1)
    async with broker_with(orders__eu=2, orders__us=3) as broker:
        with pytest.raises(
            ConfigError, match=r"match 'orders\\\\\.\.\*' .*: orders\.eu has 2, orders\.us has 3: make them"
        ):
            await wiring.connect(broker)
        assert await broker.partitions("totals") == 0


async def test_an_app_that_has_run_is_started_whatever_others_have_made_meanwhile() -> None:
    app, _ = counting()
    async with broker_with(orders__eu=2, orders__us=3) as broker:
        for number in range(2):
            await broker.claim(f"shop/counts/{number}", "")
        wiring = Wiring(app, app.plan(rekey=True), {}, 1)
        with capture_logs() as logs:
            assert await wiring.connect(broker)
        assert wiring.finder.found == {"orders": {"orders.eu": 2}}
        (refused,) = [line for line in logs if line["log_level"] == "error"]
        assert (refused["found"], refused["partitions"], refused["wanted"]) == ("orders.us", 3, 2)


async def test_without_a_match_nothing_tells_how_many_tasks_there_are() -> None:
    app, _ = counting()
    wiring = Wiring(app, app.plan(rekey=True), {}, 1)
    async with broker_with() as broker:
        assert not await wiring.connect(broker)
        assert await broker.topics() == {}
        await broker.create("orders.eu", 3)
        assert await wiring.connect(broker)
        assert len(wiring.slices) == 3


# --- a task -----------------------------------------------------------------------------------------------------------


class World:
    """One task over a broker whose topics come and go."""

    def __init__(self, app: App, broker: MemoryBroker) -> None:
        self.app, self.broker, self.disk = app, broker, list[bytes]()
        self.wiring = Wiring(app, app.plan(rekey=True), {}, 1)
        self.live: LiveTask

    async def open(self) -> None:
        (part,) = self.wiring.slices.values()
        claim = await self.broker.claim(f"{self.app.name}/{part.group.name}/0", "")
        self.live = LiveTask(
            self.app,
            part.group,
            0,
            1,
            broker=self.broker,
            topics=self.wiring.topics,
            sinks={},
            store=open_store(None, disk=self.disk),
            epoch=claim.epoch,
            clock=VirtualClock(),
            options=WorkerOptions(),
            new_id=random_ids(claim.epoch),
            finder=self.wiring.finder,
        )
        await self.live.open()

    async def handle(self) -> None:
        """All that there is."""
        await self.live.fetch(100)
        while await self.live.step() or await self.live.fetch(100):
            pass

    async def work(self) -> None:
        """All that there is, and a commit."""
        await self.handle()
        await self.live.task.commit()
        await self.live.task.settled()

    async def make(self, name: str, *rows: tuple[bytes, bytes, int]) -> None:
        await self.broker.create(name, 1)
        await self.broker.put(name, rows)
        await self.wiring.finder.look(self.broker)

    async def again(self) -> None:
        """As another worker would: it looks for itself."""
        await self.live.close()
        self.wiring = Wiring(self.app, self.app.plan(rekey=True), {}, 1)
        await self.wiring.connect(self.broker)
        await self.open()

    async def told(self) -> list[tuple[str, int, int]]:
        import msgspec

        found = [
            msgspec.json.decode(value, type=Total)
            for value in self.broker.store.topics["totals"][0].columns[1]
            if value
        ]
        return [(total.key, total.end, total.n) for total in found]

    @property
    def watermark(self) -> int:
        return self.live.engine.watermark()


@asynccontextmanager
async def a_world(**options: object) -> AsyncIterator[World]:
    app, _ = counting(**options)  # type: ignore[arg-type]
    async with broker_with(orders__eu=1) as broker:
        world = World(app, broker)
        await world.wiring.connect(broker)
        await world.open()
        yield world
        await world.live.close()


async def test_a_topic_that_comes_later_is_read_from_its_first_record_and_holds_the_watermark_from_then_on() -> None:
    async with a_world() as world:
        await world.broker.put("orders.eu", [row("a", 100), row("a", 5_200)])
        await world.work()
        assert world.watermark == 5_199
        await world.make("orders.us", row("a", 5_400), row("b", 5_600))
        await world.work()
        assert world.watermark == 5_199  # not back
        await world.broker.put("orders.eu", [row("a", 9_000)])
        await world.work()
        assert world.watermark == 5_599  # the new one counts
        await world.broker.put("orders.us", [row("b", 9_000)])
        await world.work()
        assert await world.told() == [("a", 1_000, 1), ("a", 6_000, 2), ("b", 6_000, 1)]
        assert await world.broker.positions("shop/counts/0") == {"orders.eu[0]": 3, "orders.us[0]": 3}


async def test_what_a_new_topic_holds_is_waited_for_before_the_others_go_on() -> None:
    async with a_world() as world:
        await world.broker.put("orders.eu", [row("a", 100)])
        await world.work()
        await world.make("orders.us", row("a", 200))
        await world.broker.put("orders.eu", [row("a", 5_000)])  # read first
        await world.work()
        assert await world.told() == []
        await world.broker.put("orders.us", [row("a", 5_000)])
        await world.work()
        assert await world.told() == [("a", 1_000, 2)]


async def test_a_new_topic_that_stays_empty_holds_up_nobody() -> None:
    async with a_world() as world:
        await world.broker.put("orders.eu", [row("a", 100)])
        await world.work()
        await world.make("orders.us")
        await world.broker.put("orders.eu", [row("a", 2_000)])
        await world.work()
        assert await world.told() == [("a", 1_000, 1)]
        await world.again()
        await world.broker.put("orders.eu", [row("a", 3_000)])
        await world.work()
        assert await world.told() == [("a", 1_000, 1), ("a", 3_000, 1)]
        await world.broker.put("orders.us", [row("a", 3_100)])  # now it speaks
        await world.work()
        await world.broker.put("orders.eu", [row("a", 9_000)])
        await world.work()
        assert world.watermark == 3_099


async def test_a_failure_replays_the_joining_too() -> None:
    """The event that fails makes the task go back to before the topic was joined; what fires must not differ."""
    async with a_world() as world:
        await world.broker.put("orders.eu", [row("a", 100)])
        await world.work()
        await world.make("orders.us", row("b", 1_500))
        await world.broker.put("orders.eu", [row("a", 1_200), row("bad", 1_300), row("a", 1_400)])
        await world.work()
        await world.broker.put("orders.us", [row("b", 9_000)])
        await world.broker.put("orders.eu", [row("a", 9_000)])
        await world.work()
        assert await world.told() == [("a", 1_000, 1), ("a", 2_000, 2), ("b", 2_000, 1)]
        assert world.live.counters.dead == 1


async def test_what_was_late_before_a_topic_was_joined_is_late_when_it_comes_again() -> None:
    async with a_world() as world:
        await world.broker.put("orders.eu", [row("a", 100)])
        await world.work()
        await world.broker.put("orders.eu", [row("a", 1_200), row("a", 500)])
        await world.handle()
        await world.make("orders.us")
        await world.broker.put("orders.eu", [row("bad", 1_300)])
        await world.handle()
        await world.work()
        assert await world.told() == [("a", 1_000, 1), ("a", 500, -1)]
        assert world.live.counters.dead == 1


async def test_a_topic_that_is_gone_is_left_and_its_position_stays() -> None:
    async with a_world() as world:
        await world.make("orders.us", row("a", 100), row("a", 200))
        await world.broker.put("orders.eu", [row("a", 100)])
        await world.work()
        gone = world.broker.store.topics.pop("orders.us")
        await world.broker.put("orders.eu", [row("a", 5_000)])
        with capture_logs() as logs:
            await world.work()
        told = [(line["event"], line.get("position")) for line in logs if line["log_level"] == "warning"]
        assert told == [
            ("topic is not read any more: its position stays", 2),
            ("topic is gone: going on without it", None),
        ]
        assert await world.told() == [("a", 1_000, 3)]  # it holds the watermark no longer
        await world.again()
        await world.broker.put("orders.eu", [row("a", 5_100)])
        await world.work()
        assert (await world.broker.positions("shop/counts/0"))["orders.us[0]"] == 2
        world.broker.store.topics["orders.us"] = gone
        await world.broker.put("orders.us", [row("a", 6_000)])
        await world.wiring.finder.look(world.broker)
        await world.work()
        assert (await world.broker.positions("shop/counts/0"))["orders.us[0]"] == 3
        assert await world.told() == [("a", 1_000, 3)]
        assert world.live.engine.counters.late == 0


async def test_it_is_left_as_well_if_the_finder_is_the_first_to_see_it() -> None:
    async with a_world() as world:
        await world.make("orders.us", row("a", 100))
        await world.work()
        del world.broker.store.topics["orders.us"]
        await world.wiring.finder.look(world.broker)
        await world.work()
        assert [split.name for _, split, _ in world.live.readers] == ["orders.eu[0]"]


async def test_a_later_topic_with_another_partition_count_is_refused_and_told_once() -> None:
    async with a_world() as world:
        await world.broker.create("orders.us", 4)
        with capture_logs() as logs:
            for _ in range(3):
                await world.wiring.finder.look(world.broker)
        (refused,) = logs
        assert refused["log_level"] == "error"
        assert (refused["found"], refused["partitions"], refused["wanted"]) == ("orders.us", 4, 1)
        await world.work()
        assert [split.name for _, split, _ in world.live.readers] == ["orders.eu[0]"]


async def test_latest_is_for_what_was_there_at_the_beginning() -> None:
    app, _ = counting(start="latest")
    async with broker_with(orders__eu=1) as broker:
        await broker.put("orders.eu", [row("old", 100)])
        world = World(app, broker)
        await world.wiring.connect(broker)
        await world.open()
        await world.again()  # before anything has come: what it began with is remembered
        await broker.put("orders.eu", [row("a", 1_100)])
        await world.again()
        await world.work()
        await world.make("orders.us", row("a", 1_200))  # all of it came after the beginning
        await world.again()
        await world.work()
        for topic in ("orders.us", "orders.eu"):
            await broker.put(topic, [row("a", 9_000)])
        await world.work()
        assert await world.told() == [("a", 2_000, 2)]
        await world.live.close()


async def test_a_dead_letter_names_the_real_topic() -> None:
    async with a_world() as world:
        await world.broker.put("orders.eu", [row("a", 1), row("bad", 2)])
        await world.broker.put("orders.eu", [(b"k", b"no json", 3)])
        with capture_logs() as logs:
            await world.work()
        letters = [line for line in logs if line["event"] == "dead letter"]
        assert [(line["topic"], line["position"]) for line in letters] == [
            ("orders.eu", "orders.eu[0] offset 1"),
            ("orders.eu", "orders.eu[0] offset 2"),
        ]


# --- in the harness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
async def test_topics_that_come_meanwhile_change_no_result(seed: int) -> None:
    app, orders = counting(name="shop")
    out: Topic[Total] | Sink[Total] = app.topics["totals"]
    async with harness(app, seed=seed, partitions=2) as h:
        for n in range(8):
            await h.send(orders, *(Order(key, 300 * n) for key in "abc"), name=f"orders.{n % 3}")
        await h.finish()
        found = sorted((t.key, t.end, t.n) for t in h.sent(out))
    assert found == sorted((key, end, n) for key in "abc" for end, n in ((1_000, 4), (2_000, 3), (3_000, 1)))


async def test_the_harness_wants_a_name_that_matches() -> None:
    app, orders = counting()
    async with harness(app) as h:
        with pytest.raises(
            ConfigError, match=r"'orders' is no topic that 'orders' stands for \(pattern .*\): give name="
        ):
            await h.send(orders, Order("a"))
