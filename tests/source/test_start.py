"""Where a topic is read from: its ends, a time, offsets; and positions that are not there any more."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

import flowkit
from flowkit.clock import VirtualClock
from flowkit.errors import ConfigError, InputError
from flowkit.source.memory import MemoryBroker
from flowkit.source.memory_store import MemoryStore


class Event(flowkit.Record):
    at: int


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    async with MemoryBroker(VirtualClock(0), MemoryStore()) as broker:
        await broker.create("t", 2)
        await broker.put("t", [(None, b"%d" % n, 100 * n) for n in range(12_000)], 0)
        await broker.put("t", [(None, b"x", 0)] * 3, 1)
        await broker.delete_before("t", 0, 10)
        yield broker


async def first(broker: MemoryBroker, split: int = 0, position: Any = None, **how: Any) -> bytes | None:
    reader = await broker.source("t", **how).open(split, position)
    batch = await reader.fetch(10) or await reader.fetch(10)
    return None if batch is None else batch.values[0]


@pytest.mark.parametrize(
    ("start", "found"),
    [
        ("earliest", b"10"),
        ("latest", None),
        (0, b"10"),
        (1_001, b"11"),
        (1_100, b"11"),
        (1_150_000, b"11500"),
        (10**9, None),
        ({0: 20, 1: 1}, b"20"),
        ({1: 1}, b"10"),
    ],
)
async def test_a_reader_without_a_position_begins_where_it_is_told(
    broker: MemoryBroker, start: Any, found: bytes | None
) -> None:
    assert await first(broker, start=start) == found
    assert await first(broker, position=50, start=start) == b"50", "a position goes before all that"


async def test_a_position_that_is_gone_is_an_error_unless_one_may_go_on(broker: MemoryBroker) -> None:
    with pytest.raises(InputError, match=r"t\[0\].* holds offsets 10 to 11999, but the reader is at 3"):
        await first(broker, position=3)
    assert await first(broker, position=3, out_of_range="earliest") == b"10"
    assert await first(broker, position=3, out_of_range="latest") is None
    with pytest.raises(InputError):
        await first(broker, position=12_001)
    assert await first(broker, position=12_001, out_of_range="earliest") == b"10"


async def test_records_that_are_deleted_under_a_reader_are_such_a_position(broker: MemoryBroker) -> None:
    careful = await broker.source("t").open(0, None)
    careless = await broker.source("t", out_of_range="earliest").open(0, None)
    await broker.delete_before("t", 0, 30)
    with pytest.raises(InputError):
        await careful.fetch(10)
    assert await careless.fetch(10) is None
    batch = await careless.fetch(10)
    assert batch is not None
    assert batch.values[0] == b"30"


def test_a_topic_says_where_it_begins() -> None:
    app = flowkit.App("x")
    when = datetime(2026, 11, 26, tzinfo=UTC)
    assert app.topic("a", Event, start=when).start == 1_795_651_200_000
    assert app.topic("b", Event, start={0: 5}, out_of_range="latest").start == {0: 5}


@pytest.mark.parametrize("start", ["soon", datetime(2026, 1, 1), {0: "x"}, {-1: 0}, True, 1.5, None])  # noqa: DTZ001
def test_what_is_no_place_to_begin_is_refused(start: Any) -> None:
    with pytest.raises(ConfigError, match=r"'a': start=.*: give 'earliest', 'latest', a datetime with a zone"):
        flowkit.App("x").topic("a", Event, start=start)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a': out_of_range='skip': give 'fail', 'earliest' or 'latest'"):
        flowkit.App("x").topic("a", Event, out_of_range="skip")  # type: ignore[arg-type]
