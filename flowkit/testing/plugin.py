"""The pytest plugin: fixtures for users' suites.

    async def test_alerts(flowkit_harness):
        async with flowkit_harness(app) as h:
            await h.send(transactions, tx)
            assert h.sent(alerts) == [...]

The same tests on a real broker: `pytest --flowkit-broker kafka://localhost:9092` (or FLOWKIT_TEST_BROKER).

pytest loads it wherever flowkit is installed; it imports the framework when a test asks for a fixture.
"""

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from flowkit.app import App
    from flowkit.testing.harness_app import Harness


class MakeHarness(Protocol):
    """`flowkit.testing.harness` with the test's own seed and the broker of the run, unless others are given."""

    def __call__(self, app: "App", **options: Any) -> "AbstractAsyncContextManager[Harness]": ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options (a hook of pytest)."""
    group = parser.getgroup("flowkit")
    group.addoption(
        "--flowkit-broker",
        metavar="URL",
        help="Broker of every harness in this run: kafka://HOST:PORT or embedded://DIR (default: FLOWKIT_TEST_BROKER, "
        "else one in memory).",
    )
    group.addoption(
        "--flowkit-seed",
        type=int,
        metavar="N",
        help="Seed of every harness in this run, to see a failure again (a test that fails shows its seed).",
    )


@pytest.fixture
def flowkit_seed(request: pytest.FixtureRequest) -> int:
    """The test's seed: always the same for the same test, unless `--flowkit-seed` is given."""
    given = request.config.getoption("--flowkit-seed")
    seed = crc32(request.node.nodeid.encode()) if given is None else int(given)
    request.node.add_report_section("call", "flowkit", f"to see it again: --flowkit-seed={seed}")
    return seed


@pytest.fixture
def flowkit_harness(flowkit_seed: int, request: pytest.FixtureRequest) -> MakeHarness:
    """Makes harnesses with the test's seed, on the broker of this run. Options: see `flowkit.testing.harness`."""
    broker = request.config.getoption("--flowkit-broker")

    def make(app: "App", **options: Any) -> "AbstractAsyncContextManager[Harness]":
        from flowkit.testing import harness

        return harness(app, **{"seed": flowkit_seed, "broker": broker, **options})

    return make
