"""One test, virtual and real: the same scenario on brokers in memory and on disk gives the same, to the last record.

On Kafka: tests/kafka/test_harness.py.
"""

from pathlib import Path
from typing import Any

import pytest

from flowkit import App, Count, Record, Tumbling
from flowkit.errors import ConfigError
from flowkit.testing import Harness, harness
from tests.testing.test_harness import Everything, smooth

SEEDS = [None, 1]


class Event(Record):
    key: str
    at: int
    value: int


class Sum(Record):
    value: int
    start: int
    n: int


class Rekeyed:
    """An app whose events go to others by another key, in three partitions."""

    def __init__(self) -> None:
        app = self.app = App("rekeyed")
        self.events = app.topic("events", Event, key="key", time="at", out_of_order=5)
        self.sums = app.topic("sums", Sum, key="value")
        self.plain = app.topic("plain", Event, key="key")
        self.loose = app.topic("loose", Event)  # without a key: round robin
        by_value = self.by_value = app.table(
            "by-value", of=self.events.group_by("value"), by="value", window=Tumbling(10), n=Count()
        )

        @app.each(by_value.closed, sinks=[self.sums])
        def close(w: Any) -> Sum:
            return Sum(w.key, w.start, w.value.n)

        @app.each(self.events, self.loose, sinks=[self.plain])
        def forward(event: Event) -> Event | None:
            return event if event.value else None

    async def play(self, h: Harness) -> list[Any]:
        """All that can be seen, after each of several deeds."""
        seen = []
        for n in range(4):
            await h.send(self.events, *(Event(f"k{m}", 8 * n + m, m % 3) for m in range(6)))
            seen.append(self._look(h))
        await h.advance(20)
        seen.append(self._look(h))
        await h.send(self.loose, Event("x", 0, 1), Event("y", 0, 1), Event("z", 0, 0), Event("w", 0, 1))
        await h.finish()
        return [*seen, self._look(h)]

    def _look(self, h: Harness) -> Any:
        windows = {key: value.n for key, value in h.table(self.by_value).items()}
        return h.sent(self.sums), h.sent(self.plain), windows, h.watermark(), h.late


async def in_memory() -> list[Any]:
    rekeyed = Rekeyed()
    async with harness(rekeyed.app, partitions=3, broker="memory://") as h:
        return await rekeyed.play(h)


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_app_of_several_tasks_does_the_same_on_a_real_broker(seed: int | None, tmp_path: Path) -> None:
    rekeyed = Rekeyed()
    async with harness(rekeyed.app, partitions=3, seed=seed, broker=f"embedded://{tmp_path}") as h:
        found = await rekeyed.play(h)
    expected = await in_memory()
    assert found == expected
    assert all(expected[-1][:2]), "nothing came out: that is the same everywhere"


@pytest.mark.parametrize("seed", SEEDS)
async def test_everything_does_the_same_on_a_real_broker(seed: int | None, tmp_path: Path) -> None:
    everything = Everything()
    async with harness(everything.app, seed=seed, broker=f"embedded://{tmp_path}") as h:
        assert await everything.play(h) == await smooth()
        assert (h.crashed > 0) == (seed is not None)


async def test_the_environment_names_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_TEST_BROKER", f"embedded://{tmp_path / 'there'}")
    async with harness(Rekeyed().app):
        assert (tmp_path / "there" / "broker.sqlite3").exists()


async def test_two_harnesses_on_one_broker_see_nothing_of_each_other(tmp_path: Path) -> None:
    one, two = Rekeyed(), Rekeyed()
    async with (
        harness(one.app, broker=f"embedded://{tmp_path}") as first,
        harness(two.app, broker=f"embedded://{tmp_path}") as second,
    ):
        await first.send(one.events, Event("k", 1, 1))
        await second.send(two.events, Event("k", 2, 2))
        assert first.sent(one.plain) == [Event("k", 1, 1)]
        assert second.sent(two.plain) == [Event("k", 2, 2)]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://shared", "a harness has a memory of its own: use memory://, without a name"),
        ("kinesis://eu-west-1", "not on streams"),
        ("localhost:9092", "this is no URL"),
    ],
)
async def test_what_is_no_broker_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        async with harness(Rekeyed().app, broker=url):
            pass
