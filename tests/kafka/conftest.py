"""The broker that a session of tests shares: Apache Kafka started here, or the one that FLOWKIT_TEST_KAFKA names."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kafka.jars import need_kafka
from tests.kafka.real import Kafka
from tests.kafka.security import Security

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
async def _closes_its_connections() -> AsyncIterator[None]:
    """A connection that fails while it signs in is closed by aiokafka, but not waited for: TLS takes some turns."""
    yield
    sockets: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    until = time.monotonic() + 2
    while len(sockets.get_map()) > 1 and time.monotonic() < until:  # noqa: ASYNC110  one is the loop's own
        await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a broker that is up; topics of other tests are on it too."""
    given = os.environ.get("FLOWKIT_TEST_KAFKA")
    if given:
        yield given
        return
    need_kafka()
    with Kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka.bootstrap


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Callable[..., Kafka]]:
    """Makes and starts clusters that belong to one test, which may stop and kill their nodes."""
    need_kafka()
    made: list[Kafka] = []

    def make(*, nodes: int = 1, properties: dict[str, str] | None = None) -> Kafka:
        kafka = Kafka(tmp_path / f"kafka-{len(made)}", nodes=nodes, properties=properties)
        made.append(kafka)
        kafka.start()
        return kafka

    yield make
    for kafka in made:
        kafka.kill()


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker with a listener for every kind of security."""
    need_kafka()
    directory = tmp_path_factory.mktemp("secure-kafka")
    with Kafka(directory, security=Security(directory / "pem")) as kafka:
        yield kafka


@pytest.fixture
def name() -> str:
    """A name for a topic that no other test has."""
    return f"t-{uuid.uuid4().hex[:12]}"
