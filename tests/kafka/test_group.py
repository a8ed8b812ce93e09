"""Membership of a group: what the consumer does in its background harms neither leaving nor coming again."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.errors import BrokerError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_group import Assigned, KafkaGroup
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.worker.state_home import StateHome

TASKS = ["app/group/0", "app/group/1"]


@pytest.fixture(params=["dynamic", "static"])
async def group(
    kafka_address: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[KafkaGroup]:
    address = KafkaAddress.parse(f"kafka://{kafka_address}", {})
    async with KafkaTopics(address) as topics:
        await topics.create(name, 2)
    home = StateHome(tmp_path) if request.param == "static" else None
    group = KafkaGroup(address, name, f"{name}/ada", [name], 3_000, home)
    await group.start(TASKS)
    yield group
    await group.stop()


async def given(group: KafkaGroup) -> list[str]:
    """The tasks that it is to claim, once there are any."""
    async with asyncio.timeout(30):
        while True:
            try:
                claims = (await group.place(TASKS, set())).claims
            except BrokerError:
                continue
            if claims:
                return list(claims)
            await asyncio.sleep(0.05)


async def test_a_round_that_ends_after_leaving_is_nothing_to_it(group: KafkaGroup) -> None:
    assert await given(group) == TASKS
    await group.stop()
    group.gave(Assigned(TASKS))
    assert group.assigned is None
    assert (await group.place(TASKS, set())).claims == {}


async def test_a_membership_that_has_died_begins_anew(group: KafkaGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await given(group) == TASKS
    before = group.generation
    gave = group.gave

    def fails(_: Any) -> None:
        monkeypatch.setattr(group, "gave", gave)
        raise RuntimeError("of the consumer's own")

    monkeypatch.setattr(group, "gave", fails)
    consumer = group._consumer
    consumer._coordinator.request_rejoin()

    async def work() -> None:
        async with asyncio.timeout(30):
            while True:
                await group.place(TASKS, set(TASKS))
                await asyncio.sleep(0.05)

    with pytest.raises(BrokerError, match="of the consumer's own"):
        await work()
    assert group._consumer is not consumer
    assert await given(group) == TASKS
    assert group.generation > before


async def test_one_who_leaves_in_the_middle_of_a_round_keeps_nobody_waiting(group: KafkaGroup) -> None:
    assert await given(group) == TASKS
    other = KafkaGroup(group.address, group.group, f"{group.group}/bob", group.topics, 3_000)
    await other.start(TASKS)
    group._consumer._coordinator.request_rejoin()
    await group.stop()
    began = time.monotonic()
    assert await given(other) == TASKS
    assert time.monotonic() - began < 10
    await other.stop()
