"""One test, virtual and real: scenarios of the harness give the same on Kafka as in memory, to the last record."""

from uuid import uuid4

import pytest

from flowkit import App, Record
from flowkit.errors import BrokerError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.testing import harness
from tests.testing.test_harness import Everything, smooth
from tests.testing.test_places import Event, Rekeyed, in_memory


@pytest.mark.parametrize(("seed", "crashes"), [(None, 0.0), (1, 0.02)])
async def test_an_app_of_several_tasks_does_the_same(seed: int | None, crashes: float, kafka_address: str) -> None:
    rekeyed = Rekeyed()
    async with harness(rekeyed.app, partitions=3, seed=seed, crashes=crashes, broker=f"kafka://{kafka_address}") as h:
        assert await rekeyed.play(h) == await in_memory()
        assert (h.crashed > 0) == (seed is not None)


@pytest.mark.parametrize(("seed", "crashes"), [(None, 0.0), (1, 0.02)])
async def test_everything_does_the_same(seed: int | None, crashes: float, kafka_address: str) -> None:
    everything = Everything()
    async with harness(everything.app, seed=seed, crashes=crashes, broker=f"kafka://{kafka_address}") as h:
        assert await everything.play(h) == await smooth()
        assert (h.crashed > 0) == (seed is not None)


async def test_at_least_once_without_crashes_nothing_comes_twice(kafka_address: str) -> None:
    class Total(Record):
        key: str
        n: int

    app = App("loose", guarantee="at least once")
    events, totals = app.topic("events", Event, key="key", time="at"), app.topic("totals", Total, key="key")
    counts = app.table("counts", str, int)

    @app.each(events, tables=[counts], sinks=[totals])
    def count(event: Event) -> Total:
        counts[event.key] += 1
        return Total(event.key, counts[event.key])

    async with harness(app, broker=f"kafka://{kafka_address}") as h:
        await h.send(events, Event("k", 1, 1), Event("k", 2, 1), b"no JSON")
        assert h.sent(totals) == [Total("k", 1), Total("k", 2)]
        assert h.table(counts) == {"k": 2}
        assert [letter.error for letter in h.sent(app.dead_letters)] == ["DecodeError"]


async def test_nothing_of_it_is_left_on_the_cluster(kafka_address: str) -> None:
    app, name = App("passing"), f"t-{uuid4().hex[:12]}"
    events = app.topic(name, Event)

    @app.each(events)
    def take(event: Event) -> None:
        return None

    async with KafkaTopics(KafkaAddress.parse(f"kafka://{kafka_address}", {})) as topics:
        async with harness(app, broker=f"kafka://{kafka_address}") as h:
            await h.send(events, Event("k", 1, 1))
            (made,) = [topic for topic in await topics.topics() if topic.endswith(name)]
            prefix = made.removesuffix(name)
            assert prefix.startswith("flowkit-test-")
        assert [topic for topic in await topics.topics() if topic.startswith(prefix)] == []


async def test_a_cluster_that_is_away_is_told() -> None:
    with pytest.raises(BrokerError, match=r"kafka://127\.0\.0\.1:1"):
        async with harness(Rekeyed().app, broker="kafka://127.0.0.1:1?timeout_ms=1000"):
            pass
