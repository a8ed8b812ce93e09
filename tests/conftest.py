"""What every test gets: a mark by the directory that it lives in, and the log as it was before the last one."""

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from tests.depth import SCALE

# Of properties that do not say how many examples they want.
settings.register_profile("flowkit", max_examples=round(100 * SCALE), deadline=None)
settings.load_profile("flowkit")

HERE = Path(__file__).parent

PROCESSES = (
    "services/test_anomaly_main.py",
    "services/test_fraud_main.py",
    "services/test_iot_app.py",
    "services/test_iot_main.py",
    "testing/test_plugin.py",
)
"""Tests elsewhere that start processes, or run whole services over days of their data."""

# Read by type checkers; importing them would run their wrong uses.
collect_ignore = ["typing/api.py", "typing/operators.py"]

# Programs that take their names from the environment of the process that starts them, some in other environments.
collect_ignore += ["benchmarks/kafka_app.py", "benchmarks/kafka_bare.py", "benchmarks/rivals"]
collect_ignore_glob = ["aws/*_app.py", "integration/determined_app.py", "kafka/*_app.py"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which takes up what stands here
def pytest_cmdline_main(config: pytest.Config) -> None:
    """All tests together run in two processes, unless it was said how many, or someone wants to see or stop them."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ:  # this is one of the two
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr != "benchmark"
    watched = option.capture == "no" or option.usepdb or option.collectonly
    if whole and not watched and getattr(option, "numprocesses", 0) is None:
        option.numprocesses, option.dist = 2, "loadfile"


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "benchmarks"):
            item.add_marker(pytest.mark.benchmark)
            item.add_marker(pytest.mark.timeout(0))  # a benchmark under a debugger or a busy machine is only slow
        elif any(item.path.is_relative_to(HERE / room) for room in ("integration", "cli", "typing", *PROCESSES)):
            # The command line and the type checkers are other processes.
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Commands that a test runs here set up the log of the process, and signals change its level: not for others."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    signals = [
        (number, signal.getsignal(number)) for number in (signal.SIGUSR1, signal.SIGUSR2)
    ]  # which change its level
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    if before is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**before)
    root.setLevel(level)
    root.handlers[:] = handlers
    for number, handler in signals:
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no collection need walk them again."""
    gc.collect()
    gc.freeze()
