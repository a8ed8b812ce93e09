"""Savepoints beside Kafka: an app ends with one and goes on under another name, whatever is killed meanwhile."""

import asyncio
import shutil
from pathlib import Path

import pytest

from flowkit.source import open_storage
from flowkit.source.kafka import KafkaBroker
from flowkit.source.kafka_address import KafkaAddress
from flowkit.worker.savepoint import need_manifest
from tests.integration.processes import Process, crew_in
from tests.kafka.test_checkpoints import APP, Outside


@pytest.mark.parametrize("hop, kind", [(False, "files"), (True, "files"), (True, "kafka")])
def test_an_app_goes_on_from_a_savepoint_under_another_name(
    kafka_address: str, tmp_path: Path, name: str, hop: bool, kind: str
) -> None:
    """The running count of each key goes on without a gap and without a repetition, also with an empty disk."""
    url = f"kafka://{kafka_address}"
    where = (tmp_path / "states").as_uri() if kind == "files" else f"{url}/{name}-states"
    kept, saved = f"{where}/kept", f"{where}/saved"
    env = {"CHECKPOINT_APP": name, "FLOWKIT_COMMIT_INTERVAL": "50", "FLOWKIT_LEASE_TTL": "6000"}
    env |= {"CHECKPOINT_APP_HOP": "1"} if hop else {}
    with crew_in(tmp_path) as crew:

        def start(number: int, *words: str, state: str = "state", **more: str) -> Process:
            given = ["worker", APP, "--broker", url, "--state", state, *words]
            return crew.flowkit(f"w{number}", *given, env={**env, **more})

        def begin(number: int) -> Process:
            """The app under another name."""
            return start(number, "--from", saved, state="again", CHECKPOINT_APP_AS=f"{name}-again")

        async def story() -> None:
            async with KafkaBroker(KafkaAddress.parse(url, {})) as broker:
                await broker.create(f"{name}-in", 2)
                await broker.create(f"{name}-out", 2)
                outside = Outside(broker, name)
                first = start(0, "--checkpoints", kept)
                second = start(1, "--checkpoints", kept, state="second")
                await outside.feed(300)
                await outside.all_is_counted(first)
                words = ["savepoint", APP, "--checkpoints", kept, "--to", saved, "--stop", "--timeout", "60"]
                asked = crew.flowkit("asks", *words, env=env)
                for _ in range(5):  # some are in the savepoint, the others are for who comes after
                    await outside.feed(100)
                assert await asyncio.to_thread(asked.wait) == 0, asked.said() + first.said()
                assert [await asyncio.to_thread(each.wait) for each in (first, second)] == [0, 0]
                async with open_storage(saved) as storage:
                    assert bool((await need_manifest(storage)).internal) == hop
                await outside.feed(100)
                killed = begin(2)
                await asyncio.to_thread(killed.heard, "task begins with a savepoint")
                killed.kill()
                third = begin(3)
                await outside.all_is_counted(third)
                third.kill()
                shutil.rmtree(tmp_path / "again")
                await outside.feed(100)
                fourth = begin(4)
                await outside.all_is_counted(fourth)
                assert {e["began_with"] for e in fourth.logs("state restored from frames")} == {"a savepoint"}
                own = start(5, "--from", saved, state="own")
                assert await asyncio.to_thread(own.wait) == 2
                assert "has commits of its own on this broker" in own.said()

        asyncio.run(story())
