"""What a worker on Kafka has committed is the same: in one go, or stopped, killed, and robbed of its disk.

What is promised, and what is not: tests/integration/test_determinism.py.
"""

from pathlib import Path

import pytest

from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from tests.integration.determined import Left, Run, check_rich, differences
from tests.integration.processes import crew_in


async def left_by(kafka_address: str, name: str, path: Path, stops: int, seed: int) -> Left:
    url = f"kafka://{kafka_address}"
    with crew_in(path) as crew:
        async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
            return await Run(broker, url, name, crew, path).play(stops, seed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
async def test_stops_kills_and_lost_disks_change_nothing(
    seed: int, kafka_address: str, name: str, tmp_path: Path
) -> None:
    whole = await left_by(kafka_address, f"{name}-whole", tmp_path / "whole", 0, seed)
    check_rich(whole)
    assert differences(whole, await left_by(kafka_address, f"{name}-broken", tmp_path / "broken", 3, seed)) == []
