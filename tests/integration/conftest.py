"""What tests with processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Crew, crew_in


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """Starts processes in the test's directory; they end with it."""
    with crew_in(tmp_path) as crew:
        yield crew
