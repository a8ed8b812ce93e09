"""The harness, as users use it: an app in a test, on a clock of its own, with crashes that change nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import flowkit
from flowkit import (
    App,
    Closed,
    Count,
    DeadLetter,
    Record,
    Retry,
    Session,
    Sink,
    Stream,
    Topic,
    Tumbling,
    UnsavedChange,
    hours,
    minutes,
    seconds,
)
from flowkit.testing import Harness, harness
from tests.matrix import matrix

SEEDS = matrix(range(12), quick=lambda seed: seed < 4)


# --- the example of the README ----------------------------------------------------------------------------------------

fraud = flowkit.App("fraud-detection")


class Transaction(flowkit.Record):
    card: str
    amount: float
    country: str
    at: datetime


class Spend(flowkit.Record):
    count: int = 0
    total: float = 0.0


class Alert(flowkit.Record):
    card: str
    reason: str


class Feature(flowkit.Record):
    card: str
    until: int
    spent: float


transactions = fraud.topic("transactions", Transaction, key="card", time="at", out_of_order=seconds(5))
alerts = fraud.topic("alerts", Alert, key="card")
spend = fraud.table("spend", str, Spend, window=Tumbling(minutes(10)), ttl=hours(1))
features = fraud.sink("features", Feature)


@fraud.agent(transactions, tables=[spend], sinks=[alerts])
async def detect(stream: Stream[Transaction]) -> AsyncIterator[Alert]:
    async for tx in stream:
        recent = spend[tx.card]
        recent.count += 1
        recent.total += tx.amount
        if recent.count > 20:
            yield Alert(card=tx.card, reason="velocity")


@fraud.each(spend.closed, sinks=[features])
async def feature(w: Closed[str, Spend]) -> Feature | None:
    return Feature(card=w.key, until=w.end, spent=w.value.total)


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)


@pytest.mark.parametrize("seed", [None, *SEEDS])
async def test_the_example(seed: int | None) -> None:
    async with harness(fraud, seed=seed) as h:
        for n in range(22):
            await h.send(transactions, Transaction("a", 2.5, "NL", NOON + timedelta(seconds=n)))
        await h.send(transactions, Transaction("b", 1.0, "NL", NOON))
        assert h.sent(alerts) == [Alert("a", "velocity"), Alert("a", "velocity")]
        assert h.table(spend) == {
            ("a", NOON_MS, NOON_MS + minutes(10)): Spend(22, 55.0),
            ("b", NOON_MS, NOON_MS + minutes(10)): Spend(1, 1.0),
        }
        assert h.sent(features) == []
        await h.advance(minutes(10))
        assert h.sent(features) == [
            Feature("a", NOON_MS + minutes(10), 55.0),
            Feature("b", NOON_MS + minutes(10), 1.0),
        ]
        assert h.table(spend) == {}
        await h.send(transactions, Transaction("a", 9.0, "NL", NOON))
        assert (h.late, h.sent(alerts)[2:]) == (1, [])


# --- crashes ----------------------------------------------------------------------------------------------------------


class Event(Record):
    key: str
    at: int = 0
    value: int = 0


class Total(Record):
    key: str
    total: int


class Everything:
    """An app with a chain, sessions, batches, failures, several sinks, and a topic that falls idle."""

    def __init__(self) -> None:
        app = self.app = App("everything")
        self.events = app.topic("events", Event, key="key", time="at", out_of_order=3)
        self.quiet = app.topic("quiet", Event, key="key", time="at", idle_after=50)
        self.totals: Topic[Total] = app.topic("totals", Total, key="key")
        self.closed: Sink[Total] = app.sink("closed", Total)
        self.late: Sink[Event] = app.sink("late", Event)
        self.batched: Sink[list[int]] = app.sink("batched", list[int])
        self.running: Sink[Total] = app.sink("running", Total)
        self.sums = app.table("sums", str, int, window=Tumbling(10))
        self.sessions = app.table("sessions", str, int, window=Session(7), merge=int.__add__)
        self.grand = app.table("grand", str, int)
        self._agents()

    def _agents(self) -> None:
        app, sums, sessions, grand = self.app, self.sums, self.sessions, self.grand

        @app.agent(self.events, self.quiet, tables=[sums], sinks=[self.totals], retry=Retry(attempts=2, backoff=10))
        async def add(stream: Stream[Event]) -> AsyncIterator[Total]:
            async for event in stream:
                sums[event.key] += event.value
                await asyncio.sleep(0)
                if event.value % 7 == 0:
                    raise ValueError(f"{event.value} is divisible")
                yield Total(event.key, sums[event.key])

        @app.each(self.events, tables=[sessions])
        def session(event: Event) -> None:
            sessions[event.key] += event.value

        @app.each(sums.closed, sessions.closed, sinks=[self.closed])
        def closed(w: Closed[str, int]) -> Total:
            return Total(w.key, w.value)

        @app.each(sums.late, sinks=[self.late])
        def late(event: Event) -> Event:
            return event

        @app.agent(self.totals, tables=[grand], sinks=[self.running])
        async def again(stream: Stream[Total]) -> None:
            async for total in stream:
                grand[total.key] += total.total
                self.running.emit(Total(total.key, grand[total.key]))

        @app.agent(self.events, sinks=[self.batched])
        async def batch(stream: Stream[Event]) -> AsyncIterator[list[int]]:
            async for events in stream.batches(3, within=40):
                yield [event.value for event in events]

    async def play(self, h: Harness) -> dict[str, Any]:
        """What comes of some events, bad input, and time."""
        await h.send(self.quiet, Event("q", 1, 5))
        for n in range(1, 40):
            await h.send(self.events, Event(f"k{n % 3}", n + n % 5, n))
        await h.send(self.events, b'{"key": 1}', b"\xff", *(Event("k1", n, n) for n in range(41, 60)))
        await h.advance(60, event_time=False)
        await h.send(self.events, Event("k0", 2, 100), Event("k0", 70, 3))
        await h.advance(5)
        await h.finish()
        return {
            "totals": h.sent(self.totals),
            "closed": h.sent(self.closed),
            "late": h.sent(self.late),
            "batched": h.sent(self.batched),
            "running": h.sent(self.running),
            "grand": h.table(self.grand),
            "letters": [(x.topic, x.offset, x.error, x.agent, x.attempts) for x in h.sent(self.app.dead_letters)],
            "late count": h.late,
        }


async def smooth() -> dict[str, Any]:
    everything = Everything()
    async with harness(everything.app) as h:
        return await everything.play(h)


async def test_without_a_seed_everything_happens() -> None:
    found = await smooth()
    assert all(found.values()), found
    assert {error for _, _, error, _, _ in found["letters"]} == {"DecodeError", "ValueError"}


@pytest.mark.parametrize("seed", SEEDS)
async def test_crashes_and_cuts_change_nothing(seed: int) -> None:
    everything = Everything()
    async with harness(everything.app, seed=seed, crashes=0.1) as h:
        assert await everything.play(h) == await smooth()
        assert h.crashed > 0


async def test_the_same_seed_goes_the_same_way() -> None:
    crashed = []
    for _ in range(2):
        everything = Everything()
        async with harness(everything.app, seed=3) as h:
            await everything.play(h)
            crashed.append(h.crashed)
    assert crashed[0] == crashed[1] > 0


async def test_a_plug_pulled_by_hand_loses_nothing() -> None:
    async with harness(fraud) as h:
        await h.send(transactions, Transaction("a", 1.0, "NL", NOON))
        await h.crash()
        await h.send(transactions, Transaction("a", 1.0, "NL", NOON))
        assert list(h.table(spend).values()) == [Spend(2, 2.0)]
        assert h.crashed == 1


async def test_an_app_that_depends_on_what_a_crash_takes_is_found_out() -> None:
    app = App("forgetful")
    events, out = app.topic("events", Event), app.sink("out", Total)

    @app.agent(events, sinks=[out])
    async def count(stream: Stream[Event]) -> AsyncIterator[Total]:
        n = 0
        async for event in stream:
            n += 1
            yield Total(event.key, n)

    found = []
    for seed in (None, *range(12)):
        async with harness(app, seed=seed) as h:
            for _ in range(30):
                await h.send(events, Event("k"))
            found.append([total.total for total in h.sent(out)])
    assert found[0] == list(range(1, 31))
    assert any(other != found[0] for other in found)


# --- mistakes ---------------------------------------------------------------------------------------------------------


async def test_an_object_kept_from_an_earlier_event_and_changed_is_found() -> None:
    app = App("keeping")
    events = app.topic("events", Event)
    table = app.table("table", str, Spend)
    kept: list[Spend] = []

    @app.each(events, tables=[table])
    def keep(event: Event) -> None:
        if not kept:
            kept.append(table[event.key])
        kept[0].count += 1

    async with harness(app) as h:
        await h.send(events, Event("k"))
        with pytest.raises(UnsavedChange, match="table 'table': the object of key 'k' was changed after its event"):
            await h.send(events, Event("k"))


async def test_objects_taken_anew_in_each_event_are_no_mistake() -> None:
    app = App("taking")
    events = app.topic("events", Event)
    table = app.table("table", str, Spend)

    @app.each(events, tables=[table])
    def take(event: Event) -> None:
        table[event.key].count += 1
        copy = table.get(event.key)
        assert copy is not None
        copy.count = 1_000

    async with harness(app) as h:
        for _ in range(3):
            await h.send(events, Event("k"))
        assert h.table(table) == {"k": Spend(3)}


async def test_bad_bytes_go_to_the_dead_letters() -> None:
    async with harness(fraud) as h:
        await h.send(transactions, b"no JSON", b'{"card": "a"}', Transaction("a", 1.0, "NL", NOON))
        first, second = h.sent(fraud.dead_letters)
        assert isinstance(first, DeadLetter)
        assert (first.topic, first.offset, first.value, first.error) == ("transactions", 0, b"no JSON", "DecodeError")
        assert "missing required field" in second.reason
        assert list(h.table(spend).values()) == [Spend(1, 1.0)]


async def test_bytes_of_a_bytes_topic_are_values() -> None:
    app = App("raw")
    raw, out = app.topic("raw", bytes, codec="bytes"), app.topic("out", bytes, codec="bytes")

    @app.each(raw, sinks=[out])
    def forward(data: bytes) -> bytes:
        return data[::-1]

    async with harness(app) as h:
        await h.send(raw, b"abc")
        assert h.sent(out) == [b"cba"]


# --- partitions, sinks, resources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, *SEEDS])
async def test_several_partitions_have_a_task_each(seed: int | None) -> None:
    async with harness(fraud, seed=seed, partitions=4) as h:
        cards = [f"card {n}" for n in range(20)]
        for card in cards:
            await h.send(transactions, *[Transaction(card, 1.0, "NL", NOON)] * 21)
        assert sorted(alert.card for alert in h.sent(alerts)) == sorted(cards)
        assert {key[0] for key in h.table(spend)} == set(cards)
        await h.finish()
        assert sorted(feature.card for feature in h.sent(features)) == sorted(cards)
        assert {feature.spent for feature in h.sent(features)} == {21.0}


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize("partitions", [1, 3])
async def test_what_is_sent_on_by_another_key_comes_together(seed: int | None, partitions: int) -> None:
    """Whatever the number of tasks, and as event time goes on, the end of it and crashes have it."""
    app = App("two-keys")
    events = app.topic("events", Event, key="key", time="at", out_of_order=5)
    out = app.sink("out", Total)
    by_value = app.table("by-value", of=events.group_by("value"), by="value", window=Tumbling(10), n=Count())

    @app.each(by_value.closed, sinks=[out])
    def closed(w: Closed[int, Any]) -> Total:
        return Total(f"{w.key} {w.start}", w.value.n)

    async with harness(app, seed=seed, partitions=partitions) as h:
        for n in range(12):
            await h.send(events, *[Event(f"key {m}", n, m % 2) for m in range(9)])
        await h.advance(12)
        assert sorted((t.key, t.total) for t in h.sent(out)) == [("0 0", 50), ("1 0", 40)]
        await h.finish()
        assert sorted((t.key, t.total) for t in h.sent(out)) == [("0 0", 50), ("0 10", 10), ("1 0", 40), ("1 10", 8)]
        assert h.sent(app.dead_letters) == []
        assert h.late == 0


@pytest.mark.parametrize("seed", [None, *SEEDS])
async def test_a_sink_may_be_written_by_several_groups(seed: int | None) -> None:
    app = App("two")
    a, b, out = app.topic("a", Event), app.topic("b", Event), app.sink("out", Event)

    @app.each(a, sinks=[out])
    def from_a(event: Event) -> Event:
        return event

    @app.each(b, sinks=[out])
    def from_b(event: Event) -> Event:
        return event

    async with harness(app, seed=seed, partitions=2) as h:
        for n in range(10):
            await h.send(a, Event("a", value=n))
            await h.send(b, Event("b", value=n))
        assert sorted((e.key, e.value) for e in h.sent(out)) == [(key, n) for key in "ab" for n in range(10)]


async def test_a_record_has_the_time_and_key_that_it_is_given() -> None:
    app = App("timed")
    events, out = app.topic("events", Event), app.sink("out", Total)
    table = app.table("table", str, int, window=Tumbling(10))

    @app.each(events, tables=[table])
    def count(event: Event) -> None:
        table[event.key] += 1

    @app.each(table.closed, sinks=[out])
    def closed(w: Closed[str, int]) -> Total:
        return Total(w.key, w.start)

    async with harness(app, start_ms=100) as h:
        await h.send(events, Event("k"))  # at the clock's time
        await h.send(events, Event("k"), key="k", time=115)
        assert list(h.table(table)) == [("k", 110, 120)]
        assert h.sent(out) == [Total("k", 100)]
        assert h.watermark() == 114


async def test_resources_are_made_and_closed() -> None:
    app = App("resources")
    events = app.topic("events", Event)
    happened: list[str] = []

    @app.resource
    async def client() -> AsyncIterator[str]:
        happened.append("made")
        yield "client"
        happened.append("closed")

    @app.each(events)
    def use(_: Event) -> None:
        happened.append(client())

    async with harness(app, seed=1, crashes=0.0) as h:
        await h.send(events, Event("k"))
        await h.crash()
    assert happened == ["made", "client", "closed"]


async def test_two_harnesses_of_one_app_do_not_meet() -> None:
    async with harness(fraud) as one, harness(fraud) as other:
        await one.send(transactions, Transaction("a", 1.0, "NL", NOON))
        await other.send(transactions, Transaction("b", 2.0, "NL", NOON))
        await one.send(transactions, Transaction("a", 1.0, "NL", NOON))
        assert [(key[0], value) for key, value in one.table(spend).items()] == [("a", Spend(2, 2.0))]
        assert [(key[0], value) for key, value in other.table(spend).items()] == [("b", Spend(1, 2.0))]


# --- time -------------------------------------------------------------------------------------------------------------


async def test_what_one_group_sends_is_in_time_for_the_next() -> None:
    app = App("chain")
    events = app.topic("events", Event, key="key", time="at")
    middle = app.topic("middle", Event, key="key", time="at")
    out = app.sink("out", Total)
    first = app.table("first", str, int, window=Tumbling(10))
    second = app.table("second", str, int, window=Tumbling(100))

    @app.each(events, tables=[first])
    def count(event: Event) -> None:
        first[event.key] += 1

    @app.each(first.closed, sinks=[middle])
    def closed(w: Closed[str, int]) -> Event:
        return Event(w.key, w.end - 1, w.value)

    @app.each(middle, tables=[second])
    def add(event: Event) -> None:
        second[event.key] += event.value

    @app.each(second.closed, sinks=[out])
    def closed_again(w: Closed[str, int]) -> Total:
        return Total(w.key, w.value)

    async with harness(app) as h:
        for at in (1, 11, 21, 31):
            await h.send(events, Event("k", at))
        await h.advance(200)  # the last of the first windows closes, and is counted by the second before it closes
        assert (h.sent(out), h.late) == ([Total("k", 4)], 0)


async def test_the_clock_alone_brings_idleness_and_batches() -> None:
    app = App("clock")
    busy = app.topic("busy", Event, key="key", time="at")
    quiet = app.topic("quiet", Event, key="key", time="at", idle_after=100)
    out, batched = app.sink("out", Total), app.sink("batched", int)
    table = app.table("table", str, int, window=Tumbling(10))

    @app.each(busy, quiet, tables=[table])
    def count(event: Event) -> None:
        table[event.key] += 1

    @app.each(table.closed, sinks=[out])
    def closed(w: Closed[str, int]) -> Total:
        return Total(w.key, w.value)

    @app.agent(busy, sinks=[batched])
    async def batch(stream: Stream[Event]) -> AsyncIterator[int]:
        async for events in stream.batches(10, within=50):
            yield len(events)

    async with harness(app) as h:
        await h.send(quiet, Event("k", 1))
        await h.send(busy, Event("k", 1), Event("k", 30))
        await h.advance(49, event_time=False)
        assert (h.sent(batched), h.sent(out)) == ([], [])
        await h.advance(1, event_time=False)
        assert (h.sent(batched), h.sent(out)) == ([2], [])
        await h.advance(50, event_time=False)
        assert h.sent(out) == [Total("k", 2)]
