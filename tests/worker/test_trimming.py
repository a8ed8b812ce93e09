"""What has been read of internal topics is deleted, beside the work, and not too often."""

from typing import Any

import pytest

import flowkit
from flowkit import App, Stream
from flowkit.agent import Topic
from flowkit.clock import SystemClock
from flowkit.errors import StoreError
from flowkit.source.memory import MemoryBroker
from flowkit.worker.trimming import EVERY, WORTH, Trimmer


class Event(flowkit.Record):
    a: str
    b: str


def plan_of_a_rekeyed_app() -> Any:
    app = App("trim")
    events = app.topic("events", Event, key="a")
    counts = app.table("counts", str, int)

    @app.agent(events.group_by("b"), tables=[counts])
    async def count(stream: Stream[Event]) -> None:
        async for event in stream:
            counts[event.b] += 1

    return app.plan(rekey=True)


@pytest.fixture
def internal() -> Topic[Any]:
    (topic,) = plan_of_a_rekeyed_app().internals
    return topic  # type: ignore[no-any-return]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


async def test_what_a_commit_that_counts_has_read_is_deleted(internal: Topic[Any], clock: Clock) -> None:
    async with MemoryBroker(SystemClock()) as broker:
        await broker.create(internal.name, 2, internal=True)
        await broker.put(internal.name, [(None, b"", 0)] * (3 * WORTH), 1)
        split = f"{internal.name}[1]"
        trimmer = Trimmer(broker, [internal], 1)
        trimmer.look({split: 2 * WORTH})
        await trimmer.close()
        assert (await broker.bounds(internal.name, 1))[0] == 0, "not at once"
        clock.now += EVERY
        trimmer.look({split: WORTH - 1})
        await trimmer.close()
        assert (await broker.bounds(internal.name, 1))[0] == 0, "not for so little"
        clock.now += EVERY
        trimmer.look({split: 2 * WORTH + 1})
        await trimmer.close()
        assert (await broker.bounds(internal.name, 1))[0] == 2 * WORTH + 1
        assert (await broker.bounds(internal.name, 0))[0] == 0


async def test_topics_of_users_are_left_alone(internal: Topic[Any], clock: Clock) -> None:
    async with MemoryBroker(SystemClock()) as broker:
        await broker.create("events", 1)
        await broker.put("events", [(None, b"", 0)] * WORTH, 0)
        trimmer = Trimmer(broker, [App("x").topic("events", Event, key="a")], 0)
        clock.now += EVERY
        trimmer.look({"events[0]": WORTH})
        await trimmer.close()
        assert await broker.bounds("events", 0) == (0, WORTH)


async def test_a_failure_is_tried_again(internal: Topic[Any], clock: Clock) -> None:
    class Away:
        def __init__(self) -> None:
            self.asked: list[int] = []

        async def delete_before(self, topic: str, partition: int, offset: int) -> None:
            self.asked.append(offset)
            if len(self.asked) == 1:
                raise StoreError("away")

    broker = Away()
    trimmer = Trimmer(broker, [internal], 0)
    for _ in range(3):
        clock.now += EVERY
        trimmer.look({f"{internal.name}[0]": WORTH})
        await trimmer.close()
    assert broker.asked == [WORTH, WORTH], "again after the failure, and not once it is done"
