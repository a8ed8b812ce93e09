"""State that does not fit, is gone, has moved, or finds no room on its disk."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flowkit import App
from flowkit.errors import SchemaChanged, StoreCorrupt
from tests.integration.workers import (
    Event,
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


async def count_some(directory: Path, values: list[int], app: App | None = None) -> None:
    """Run a worker over some events; its state is left behind."""
    async with (
        topics_in(directory, events=1) as broker,
        working(app or adding_up(), directory, binds=out_in(directory)),
    ):
        before = len(totals(directory))
        await put(broker, "events", *map(an_event, values))
        await eventually(lambda: len(totals(directory)) == before + len(values), "all events are counted")


async def test_state_that_has_vanished_is_no_state_to_go_on_from(tmp_path: Path) -> None:
    await count_some(tmp_path, [1, 2])
    shutil.move(tmp_path / "state", tmp_path / "lost")
    with pytest.raises(StoreCorrupt, match=r"task adding/totals/0: its state at commit \d+ was looked for in .*state"):
        await refused(new_worker(adding_up(), tmp_path, binds=out_in(tmp_path)))
    assert totals(tmp_path) == [1, 3]


async def test_a_state_directory_may_be_moved(tmp_path: Path) -> None:
    await count_some(tmp_path, [1, 2])
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    moved = working(adding_up(), tmp_path, state="elsewhere", binds=out_in(tmp_path))
    async with topics_in(tmp_path) as broker, moved:
        await put(broker, "events", an_event(10))
        await eventually(lambda: totals(tmp_path) == [1, 3, 13], "going on where it stopped")


async def test_a_relative_state_directory_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    async with topics_in(tmp_path, events=1) as broker:
        relative = new_worker(adding_up(), tmp_path, binds=out_in(tmp_path))
        relative.state = Path("state")
        job = asyncio.create_task(relative.run())
        await put(broker, "events", an_event(1))
        await eventually(lambda: totals(tmp_path) == [1], "an event is counted")
        relative.stop()
        await job
        monkeypatch.chdir(tmp_path)
        async with working(adding_up(), tmp_path, state="other", binds=out_in(tmp_path)):
            await put(broker, "events", an_event(10))
            await eventually(lambda: totals(tmp_path) == [1, 11], "another worker goes on from its state")


def with_values_of(type_: Any, version: int = 1) -> tuple[App, list[Any]]:
    """An app whose table holds values of a type, and what its agent has seen in it."""
    app = App("typed")
    events = app.topic("events", Event, key="key", time="at")
    table = app.table("table", str, type_, version=version)
    seen: list[Any] = []

    @app.each(events, tables=[table])
    def look(event: Event) -> None:
        seen.append(table[event.key])
        if type_ is int:
            table[event.key] += event.value

    return app, seen


async def typed_state(directory: Path) -> None:
    """Key "k" is 3, an int."""
    app, seen = with_values_of(int)
    async with topics_in(directory, events=1) as broker, working(app, directory):
        await put(broker, "events", an_event(3))
        await eventually(lambda: seen == [0], "an event is handled")


async def test_another_type_of_value_is_refused_before_anything_is_processed(tmp_path: Path) -> None:
    await typed_state(tmp_path)
    app, seen = with_values_of(str)
    async with topics_in(tmp_path) as broker:
        await put(broker, "events", an_event(4))
        with pytest.raises(
            SchemaChanged, match=r"table 'table'.*declare version=2 and say how with @table\.migrate\(1\)"
        ):
            await refused(new_worker(app, tmp_path))
    assert seen == []


async def test_stored_values_are_migrated(tmp_path: Path) -> None:
    await typed_state(tmp_path)
    app, seen = with_values_of(str, version=2)
    app.tables["table"].migrate(1)(lambda n: f"it was {n}")
    async with topics_in(tmp_path) as broker:
        with capture_logs() as logs:
            async with working(app, tmp_path):
                await put(broker, "events", an_event(4))
                await eventually(lambda: seen == ["it was 3"], "the migrated value")
        assert [log for log in logs if log["event"] == "table migrated"]
        again, seen = with_values_of(str, version=2)
        again.tables["table"].migrate(1)(lambda n: f"twice {n}")
        async with working(again, tmp_path):
            await put(broker, "events", an_event(5))
            await eventually(lambda: seen == ["it was 3"], "migrated once")


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


async def test_a_full_disk_is_told_and_the_worker_goes_on_once_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    async with topics_in(tmp_path, events=1) as broker:
        with capture_logs() as logs:
            async with working(adding_up(), tmp_path, state="small/state", binds=out_in(tmp_path)) as worker:
                await put(broker, "events", an_event(1))
                await eventually(lambda: totals(tmp_path) == [1], "the first event")
                fill(ballast)
                await put(broker, "events", *(an_event(1, key=f"key {n}") for n in range(2_000)))
                failed = await eventually(
                    lambda: [log for log in logs if log["event"].startswith("task failed")], "the disk is full"
                )
                assert "No space left on device" in failed[0]["error"]
                assert "make room" in failed[0]["error"]
                assert failed[0]["exc_info"] is False
                await eventually(
                    lambda: len([log for log in logs if "task failed" in log["event"]]) >= 2, "another try"
                )
                assert worker.owned
                ballast.unlink()
                await eventually(lambda: len(totals(tmp_path)) == 2_001, "it goes on", 30)
        assert totals(tmp_path) == [1] * 2_001


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1_000)
        except OSError:
            return
