"""What a worker on an embedded broker has committed is the same, stopped and killed or in one go.

Promised: for the same records in the same order in each partition, and topics that are read together taken in the same
turns, outputs are the same by partition, in order, to the byte, and so are the tables. Not promised: in which order a
task takes records of two topics that arrive at once, nor in which partition an output without a key goes after a
restart.
"""

from pathlib import Path

import pytest

from flowkit.clock import SystemClock
from flowkit.source.embedded import EmbeddedBroker
from tests.integration.determined import Left, Run, check_rich, differences
from tests.integration.processes import crew_in


async def left_by(path: Path, stops: int, seed: int) -> Left:
    with crew_in(path) as crew:
        async with EmbeddedBroker(path / "topics", SystemClock()) as broker:
            return await Run(broker, broker.url, "determined", crew, path).play(stops, seed, ("clean", "kill"))


@pytest.mark.parametrize("seed", [1, 2])
async def test_stops_and_kills_change_nothing(seed: int, tmp_path: Path) -> None:
    whole = await left_by(tmp_path / "whole", 0, seed)
    check_rich(whole)
    assert differences(whole, await left_by(tmp_path / "broken", 3, seed)) == []
