"""The servers that a session of tests shares. Streams, tables and buckets of other tests are on them too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws import servers
from tests.aws.postgres import Postgres, postgres
from tests.aws.recording import Recorder, recorded
from tests.kafka.conftest import kafka_address  # a worker's input, where its sink is a service

__all__ = ["kafka_address"]

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))  # on a new machine the first one fetches its server


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The URL of moto's server."""
    with servers.moto() as url:
        yield url


@pytest.fixture(scope="session")
def ministack_url() -> Iterator[str]:
    """The URL of ministack's server."""
    with servers.ministack() as url:
        yield url


@pytest.fixture(scope="session")
def kinesalite_url() -> Iterator[str]:
    """The URL of kinesalite's server."""
    with servers.kinesalite() as url:
        yield url


@pytest.fixture(scope="session")
def dynamodb_url() -> Iterator[str]:
    """The URL of DynamoDB Local."""
    with servers.dynamodb() as url:
        yield url


@pytest.fixture(scope="session")
def osmem() -> Iterator[str]:
    """The URL of osmem's server."""
    with servers.osmem() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """PostgreSQL, which stands in for Redshift. Schemas of other tests are in it too."""
    with postgres() as running:
        yield running


def _go_to(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in servers.aws_environment(url).items():
        monkeypatch.setenv(name, value)
    return url


@pytest.fixture
def moto(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Moto, which every client of the test goes to."""
    return _go_to(moto_url, monkeypatch)


@pytest.fixture
def ministack(ministack_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ministack, which every client of the test goes to."""
    return _go_to(ministack_url, monkeypatch)


@pytest.fixture
def kinesalite(kinesalite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kinesalite, which every client of the test goes to."""
    return _go_to(kinesalite_url, monkeypatch)


@pytest.fixture
def dynamodb(dynamodb_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """DynamoDB Local, which every client of the test goes to."""
    return _go_to(dynamodb_url, monkeypatch)


@pytest.fixture
def resharding(kinesalite_url: str, ministack_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Streams on kinesalite, which splits shards as Kinesis does; all else on ministack."""
    environ = {**servers.aws_environment(ministack_url), "AWS_ENDPOINT_URL_KINESIS": kinesalite_url}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return environ


@pytest.fixture(autouse=True)
def recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """What is asked of proxies is allowed by the policies of what has asked; see recording.py."""
    with recorded(monkeypatch) as recorder:
        yield recorder
        if not request.path.name.startswith(("test_iam", "test_receive")):  # the first have gates, the last one no app
            recorder.check()
