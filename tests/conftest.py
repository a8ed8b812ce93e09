"""What every test gets: a mark by the directory that it lives in."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent

collect_ignore = ["typing/api.py"]  # read by type checkers; importing it would run its wrong uses


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "benchmarks"):
            item.add_marker(pytest.mark.benchmark)
            item.add_marker(pytest.mark.timeout(0))  # a benchmark under a debugger or a busy machine is only slow
        elif any(item.path.is_relative_to(HERE / room) for room in ("integration", "cli", "typing")):
            # The command line and the type checkers are other processes.
            item.add_marker(pytest.mark.integration)
