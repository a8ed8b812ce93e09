"""The README's example is an app that runs, and does what the text beside it says."""

import re
import sys
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowkit import minutes
from flowkit.testing import harness

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]
    module = types.ModuleType("readme_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where annotations are resolved
    exec(compile(code, "README.md", "exec"), module.__dict__)
    return module


async def test_the_example_alerts_and_sends_features_when_windows_close(example: Any) -> None:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    async with harness(example.app, seed=7) as h:
        for n in range(22):
            await h.send(example.transactions, example.Transaction("4711", 0.5, "DE", at + timedelta(seconds=n)))
        assert h.sent(example.alerts) == [example.Alert("4711", "velocity")] * 2
        assert h.sent(example.features) == []
        await h.advance(minutes(10))
        assert h.sent(example.features) == [example.Feature("4711", 1_704_067_800_000, 11.0)]


def test_there_are_exactly_two_commands() -> None:
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) == 1 for block in blocks)
