"""A running worker's checkpoints: published while it works, seen in its metrics, and what it begins with elsewhere."""

import asyncio
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flowkit.errors import StoreCorrupt
from flowkit.store import Checkpoints, DirectoryBlobs, folder_of
from flowkit.worker import Worker, WorkerView, exposition
from tests.integration.workers import (
    adding_up,
    an_event,
    eventually,
    new_worker,
    out_in,
    put,
    refused,
    topics_in,
    totals,
    working,
)

TASK = "adding/totals/0"


def checkpoints_in(directory: Path) -> Checkpoints:
    return Checkpoints(DirectoryBlobs(directory.joinpath("kept", *folder_of(TASK))))


def metric(worker: Worker, name: str) -> float:
    lines = exposition(WorkerView(worker)).decode().splitlines()
    found = [line for line in lines if line.startswith(f"flowkit_{name}{{")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def test_checkpoints_are_published_and_measured_while_events_are_counted(tmp_path: Path) -> None:
    options = {"checkpoints": str(tmp_path / "kept"), "checkpoint_interval": 50, "binds": out_in(tmp_path)}
    async with topics_in(tmp_path, events=1) as broker, working(adding_up(), tmp_path, **options) as worker:
        for n in range(1, 21):
            await put(broker, "events", an_event(1))
            await eventually(lambda n=n: len(totals(tmp_path)) == n, "the event is counted")  # type: ignore[misc]
        await eventually(lambda: metric(worker, "checkpoints_total") >= 3, "some checkpoints")
        assert metric(worker, "checkpoint_uploaded_bytes_total") > 0
        assert metric(worker, "checkpoint_seconds_total") > 0
        assert metric(worker, "checkpoint_failures_total") == 0
        assert metric(worker, "last_checkpoint_timestamp_seconds") > 1.7e9
    assert totals(tmp_path) == list(range(1, 21))
    kept = await checkpoints_in(tmp_path).kept()
    assert len(kept) == 2
    assert await checkpoints_in(tmp_path).verify() == []


async def test_after_a_clean_stop_the_checkpoint_alone_is_the_state(tmp_path: Path) -> None:
    """An embedded broker keeps no frames: the last commit of a clean stop is published, whatever the interval."""
    options = {"checkpoints": str(tmp_path / "kept"), "checkpoint_interval": 3_600_000, "binds": out_in(tmp_path)}
    async with topics_in(tmp_path, events=1) as broker:
        for life in range(3):
            with capture_logs() as logs:
                async with working(adding_up(), tmp_path, **options):
                    await put(broker, "events", an_event(10))
                    await eventually(lambda life=life: len(totals(tmp_path)) == life + 1, "counted")  # type: ignore[misc]
            assert bool([entry for entry in logs if entry["event"] == "checkpoint restored"]) == (life > 0)
            shutil.rmtree(tmp_path / "state")
    assert totals(tmp_path) == [10, 20, 30]


async def test_a_checkpoint_of_an_earlier_commit_is_not_gone_on_from_without_frames(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    async with topics_in(tmp_path, events=1) as broker:
        async with working(adding_up(), tmp_path, checkpoints=kept, binds=out_in(tmp_path)):
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(tmp_path) == [10], "counted")
        (published,) = await checkpoints_in(tmp_path).kept()
        async with working(adding_up(), tmp_path, binds=out_in(tmp_path)):
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(tmp_path) == [10, 20], "counted without checkpoints")
    shutil.rmtree(tmp_path / "state")
    told = rf"checkpoint {published.name} is of commit {published.commit}, and this broker keeps no frames to lead on"
    with pytest.raises(StoreCorrupt, match=told):
        await refused(new_worker(adding_up(), tmp_path, checkpoints=kept, binds=out_in(tmp_path)))


async def test_a_storage_that_fails_holds_up_no_event(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    options = {"checkpoints": str(kept), "checkpoint_interval": 20, "binds": out_in(tmp_path)}
    async with topics_in(tmp_path, events=1) as broker, working(adding_up(), tmp_path, **options) as worker:
        await put(broker, "events", an_event(1))
        await eventually(lambda: metric(worker, "checkpoints_total") >= 1, "a checkpoint")
        await asyncio.to_thread(shutil.rmtree, kept)
        kept.write_text("no directory")
        for n in range(2, 6):
            await put(broker, "events", an_event(1))
            await eventually(lambda n=n: len(totals(tmp_path)) == n, "the event is counted")  # type: ignore[misc]
        await eventually(lambda: metric(worker, "checkpoint_failures_total") >= 2, "it is tried again")
        before = metric(worker, "checkpoints_total")
        kept.unlink()
        await put(broker, "events", an_event(1))
        await eventually(lambda: metric(worker, "checkpoints_total") > before, "a checkpoint again")


async def test_another_owner_of_the_checkpoints_ends_the_task_which_is_then_opened_anew(tmp_path: Path) -> None:
    """Whoever claimed them is taken for the rightful owner; if the broker knows of none, the task comes back here."""
    options = {"checkpoints": str(tmp_path / "kept"), "checkpoint_interval": 20, "binds": out_in(tmp_path)}
    async with topics_in(tmp_path, events=1) as broker, working(adding_up(), tmp_path, **options) as worker:
        await put(broker, "events", an_event(1))
        await eventually(lambda: metric(worker, "checkpoints_total") >= 1, "a checkpoint")
        epoch = await checkpoints_in(tmp_path).claim()
        for n in range(2, 5):
            await put(broker, "events", an_event(1))
            await eventually(lambda n=n: len(totals(tmp_path)) == n, "the event is counted")  # type: ignore[misc]
        before = worker.meters[TASK].opened
        assert before >= 1
        await put(broker, "events", an_event(1))
        kept = checkpoints_in(tmp_path)

        async def newest() -> int:
            return (await kept.kept())[0].epoch

        async with asyncio.timeout(30):
            while await newest() <= epoch:
                await put(broker, "events", an_event(1))
                await asyncio.sleep(0.1)
    assert totals(tmp_path) == list(range(1, len(totals(tmp_path)) + 1))
