"""What only the embedded broker promises: it outlives its processes, shares a directory, and says what is wrong."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from flowkit.clock import SystemClock, VirtualClock
from flowkit.errors import ConfigError, OutcomeUnknown, StoreCorrupt, StoreError, StoreLocked
from flowkit.source.embedded import EmbeddedBroker
from flowkit.source.embedded_file import BrokerFile
from tests.source.committer import OUTPUTS, Out

ROOT = Path(__file__).parent.parent.parent
COMMITTER = Path(__file__).with_name("committer.py")


def broker_at(directory: Path, wait_ms: int = 30_000) -> EmbeddedBroker:
    return EmbeddedBroker(directory, VirtualClock(), wait_ms=wait_ms)


async def all_values(broker: EmbeddedBroker, topic: str, partition: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    reader = await broker.source(topic).open(partition, None)
    while (batch := await reader.fetch(5_000)) is not None:
        found += batch.values
    return found


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@contextmanager
def on_the_file(directory: Path) -> Iterator[sqlite3.Connection]:
    sql = sqlite3.connect(directory / "broker.sqlite3", isolation_level=None)
    try:
        yield sql
    finally:
        sql.close()


async def test_what_was_written_is_there_after_closing(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "on the way?#%41"
    async with broker_at(directory) as broker:
        await broker.create("t", 2)
        await broker.claim("app/0", "/state")
        await broker.commit("app/0", 1, 1, b"id", {"t": 7}, [Out(1, b"x", "t")])
    assert names_in(directory) == ["broker.lock", "broker.sqlite3"]
    async with broker_at(directory) as broker:
        assert (await broker.topics(), await broker.end_offsets("t")) == ({"t": 2}, [0, 1])
        assert (await broker.last_commit("app/0"), await broker.positions("app/0")) == ((1, b"id"), {"t": 7})


async def test_sync_is_full_unless_asked_otherwise(tmp_path: Path) -> None:
    def synchronous(file: BrokerFile) -> tuple[int, str]:
        return (
            file.sql.execute("PRAGMA synchronous").fetchone()[0],
            file.sql.execute("PRAGMA journal_mode").fetchone()[0],
        )

    async with broker_at(tmp_path) as broker, EmbeddedBroker(tmp_path, VirtualClock(), sync="normal") as quick:
        assert await broker._writer.run(synchronous) == (2, "wal")
        assert await quick._writer.run(synchronous) == (1, "wal")


async def test_big_records_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        await broker.put("t", [(None, bytes([n]) * 5_000_000, n) for n in range(5)])
        reader = await broker.source("t").open(0, None)
        sizes = []
        while (batch := await reader.fetch(5_000)) is not None:
            assert all(value == bytes([batch.offset(i)]) * 5_000_000 for i, value in enumerate(batch.values))
            sizes.append(len(batch))
        assert sizes == [2, 2, 1]


async def test_the_wal_is_copied_into_the_file_as_it_grows(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        for _ in range(12):
            await broker.put("t", [(None, b"x" * 4_000_000, 0)])
        assert (tmp_path / "broker.sqlite3-wal").stat().st_size < 20_000_000


async def test_the_room_of_deleted_records_is_used_again(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        for n in range(20):
            await broker.put("t", [(None, b"x" * 1_000_000, 0)] * 2)
            await broker.delete_before("t", 0, 2 * n)
    assert (tmp_path / "broker.sqlite3").stat().st_size < 12_000_000


async def test_the_event_loop_runs_while_a_write_waits_for_another_process(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker, broker_at(tmp_path) as other:
        await broker.create("t", 1)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                with other_writer(tmp_path):
                    tasks.start_soon(broker.put, "t", [(None, b"waits", 0)])
                    for _ in range(100):
                        assert await other.end_offsets("t") == [0]
        assert await all_values(other, "t", 0) == [b"waits"]


@contextmanager
def other_writer(directory: Path) -> Iterator[None]:
    file = BrokerFile(directory)
    try:
        with file.transaction():
            yield
    finally:
        file.close()


async def test_who_waits_too_long_for_the_others_is_told(tmp_path: Path) -> None:
    async with broker_at(tmp_path, wait_ms=20) as broker:
        await broker.create("t", 1)
        with other_writer(tmp_path), pytest.raises(StoreLocked, match="another process has been writing for 20 ms"):
            await broker.put("t", [(None, b"x", 0)])
        with on_the_file(tmp_path) as sql:  # a stranger with SQLite's own lock only
            sql.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreLocked, match=r"broker\.sqlite3: another process keeps it locked"):
                await broker.put("t", [(None, b"x", 0)])
        await broker.put("t", [(None, b"now", 0)])
        assert await all_values(broker, "t", 0) == [b"now"]


async def test_a_broker_that_is_not_open_says_so(tmp_path: Path) -> None:
    broker = broker_at(tmp_path)
    with pytest.raises(StoreError, match="not open: use it within 'async with'"):
        await broker.topics()
    async with broker:
        pass
    with pytest.raises(StoreError, match="not open"):
        await broker.put("t", [])
    await broker.close()


# --- what is wrong with the directory or the disk ---------------------------------------------------------------------


async def opening(directory: Path) -> None:
    async with broker_at(directory, wait_ms=1_000):
        pass


async def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("no directory")
    for directory in (path, path / "below"):
        with pytest.raises(ConfigError, match=f"{directory}: is a file; a broker needs a directory"):
            await opening(directory)


async def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "broker.sqlite3").mkdir()
    with pytest.raises(ConfigError, match=r"broker\.sqlite3: is a directory"):
        await opening(tmp_path)


async def test_a_newer_format(tmp_path: Path) -> None:
    await opening(tmp_path)
    with on_the_file(tmp_path) as sql:
        sql.execute("UPDATE meta SET value = 99 WHERE key = 'format'")
    with pytest.raises(
        ConfigError, match=r"broker\.sqlite3: written by a newer flowkit \(format 99; .* upgrade flowkit"
    ):
        await opening(tmp_path)


@pytest.mark.parametrize("value", [None, "one"])
async def test_a_format_that_is_none(tmp_path: Path, value: str | None) -> None:
    await opening(tmp_path)
    with on_the_file(tmp_path) as sql:
        sql.execute("UPDATE meta SET value = ?", (value,))
    with pytest.raises(StoreCorrupt, match=r"broker\.sqlite3: damaged: its format version is"):
        await opening(tmp_path)


async def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "broker.sqlite3").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"broker\.sqlite3: is no broker of flowkit"):
        await opening(tmp_path)
    (tmp_path / "broker.sqlite3").write_bytes(b"an old diary, longer than a header of SQLite. " * 40)
    with pytest.raises(StoreCorrupt, match=r"broker\.sqlite3: damaged: file is not a database"):
        await opening(tmp_path)


async def test_a_bit_that_flipped_inside_a_record(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        await broker.put("t", [(None, b"good", 0)])
        await broker.put("t", [(None, b"needle" * 100, 0)])
    path = tmp_path / "broker.sqlite3"
    path.write_bytes(path.read_bytes().replace(b"needle", b"meedle", 1))
    async with broker_at(tmp_path) as broker:
        with pytest.raises(StoreCorrupt, match=r"broker\.sqlite3: t\[0\] is damaged at offset 1: the checksum"):
            await broker.read("t", 0, 0, 10)


@pytest.mark.parametrize("offset", [0, 1, 2])
async def test_a_chunk_that_is_gone(tmp_path: Path, offset: int) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        for n in range(3):
            await broker.put("t", [(None, b"%d" % n, 0)])
        with on_the_file(tmp_path) as sql:
            sql.execute("DELETE FROM chunks WHERE id & ? = ?", ((1 << 40) - 1, offset))
        with pytest.raises(StoreCorrupt, match=rf"t\[0\] is damaged at offset {offset}: the next chunk is missing"):
            await broker.read("t", 0, 0, 10)


async def test_pages_that_were_overwritten(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        await broker.put("t", [(None, b"x" * 1_000, 0)] * 50)
    path = tmp_path / "broker.sqlite3"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StoreCorrupt, match=r"broker\.sqlite3: damaged: database disk image is malformed"):
        async with broker_at(tmp_path) as broker:
            await broker.read("t", 0, 0, 10)


async def test_a_full_disk_loses_nothing_that_counted(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        await broker.put("t", [(None, b"before", 0)])

        def shrink(file: BrokerFile) -> None:
            (pages,) = file.sql.execute("PRAGMA page_count").fetchone()
            file.sql.execute(f"PRAGMA max_page_count = {pages}")

        await broker._writer.run(shrink)
        with pytest.raises(StoreError, match=r"broker\.sqlite3: the disk is full: make room"):
            await broker.put("t", [(None, b"x" * 1_000_000, 0)])
        assert await all_values(broker, "t", 0) == [b"before"]


async def test_a_commit_that_fails_while_it_is_written_has_an_unknown_outcome(tmp_path: Path) -> None:
    async with broker_at(tmp_path) as broker:
        await broker.create("t", 1)
        await broker.claim("task", "")
        wal = (tmp_path / "broker.sqlite3-wal").stat().st_size
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal + 100, limits[1]))  # the next write to the WAL fails half-way
        try:
            with pytest.raises(OutcomeUnknown, match=r"broker\.sqlite3: nobody knows whether the commit counts"):
                await broker.commit("task", 1, 1, b"id", None, [Out(0, b"x", "t")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        # Opening the task again decides it: the claim is written where the unknown commit was.
        claim = await broker.claim("task", "")
        assert (claim.epoch, claim.number) == (2, 0)
        await broker.commit("task", 2, 1, b"id", None, [Out(0, b"x", "t")])
        assert await all_values(broker, "t", 0) == [b"x"]


OPEN = """
import anyio, os, sys
from flowkit.clock import SystemClock
from flowkit.errors import ConfigError
from flowkit.source.embedded import EmbeddedBroker

async def main():
    try:
        async with EmbeddedBroker(sys.argv[1], SystemClock(), wait_ms=1000):
            print("opened")
    except ConfigError as error:
        print(error)

async def nothing():
    pass

anyio.run(nothing)  # imports what it needs: the user that we become may not be able to read it
if os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid(65_534)
        os.setuid(65_534)
    except PermissionError:
        sys.exit(77)
anyio.run(main)
"""


def opened_by_a_user_without_rights(directory: Path) -> str:
    command = [sys.executable, "-c", OPEN, str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77:
        pytest.skip("this root is not bound by permissions and cannot become another user")
    assert not done.stderr
    return done.stdout


@pytest.mark.integration
def test_a_directory_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which others may not even enter
        directory = Path(name) / "broker"
        directory.mkdir()
        Path(name).chmod(0o755)
        directory.chmod(0o555)
        assert f"{directory}: cannot be used by a broker: Permission denied" in opened_by_a_user_without_rights(
            directory
        )
        anyio.run(opening, directory)
        directory.chmod(0o555)
        assert f"{directory}: cannot be used by a broker: Permission denied" in opened_by_a_user_without_rights(
            directory
        )
        (directory / "broker.lock").chmod(0o666)
        found = opened_by_a_user_without_rights(directory)
        assert f"{directory}/broker.sqlite3: cannot be written" in found
        directory.chmod(0o755)


# --- several processes, killed at any time ----------------------------------------------------------------------------


async def test_brokers_that_are_opened_at_once_make_one_file(tmp_path: Path) -> None:
    brokers = [broker_at(tmp_path) for _ in range(8)]
    async with anyio.create_task_group() as tasks:
        for broker in brokers:
            tasks.start_soon(broker.open)
    async with anyio.create_task_group() as tasks:
        for broker in brokers:
            tasks.start_soon(broker.create, "t", 2)
    async with anyio.create_task_group() as tasks:
        for n, broker in enumerate(brokers):
            for _ in range(5):
                tasks.start_soon(broker.put, "t", [(None, b"%d" % n, 0)], n % 2)
    assert await brokers[0].end_offsets("t") == [20, 20]
    for broker in brokers:
        await broker.close()
    assert names_in(tmp_path) == ["broker.lock", "broker.sqlite3"]


@pytest.mark.integration
async def test_outputs_are_gapless_and_not_doubled_after_twenty_kills(tmp_path: Path) -> None:
    chance = random.Random(20)
    told = {"a": 0, "b": 0}
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for kill in range(20):
            for task in told:
                if task not in running:
                    running[task] = start_committer(tmp_path, task)
            victim = chance.choice(sorted(told))
            told[victim] = lines_of(running[victim], chance.randint(1, 40)) or told[victim]
            running[victim].kill()
            told[victim] = max([told[victim], *finish(running.pop(victim))])
            if kill % 5 == 4:  # both at once: nobody is left who could have kept the shared memory alive
                for task, process in list(running.items()):
                    process.kill()
                    told[task] = max([told[task], *finish(running.pop(task))])
    finally:
        for process in running.values():
            process.kill()
            finish(process)

    async with EmbeddedBroker(tmp_path, SystemClock()) as broker:
        outputs = [await all_values(broker, "out", partition) for partition in range(2)]
        for task, last in told.items():
            number, _ = await broker.last_commit(task)
            assert number >= last > 0, "a commit that was told is lost"
            assert await broker.positions(task) == number
            for partition in range(2):
                mine = [value for value in outputs[partition] if value is not None and value.startswith(task.encode())]
                numbers = [n for n in range(1, number + 1) if n % 2 == partition]
                assert mine == [f"{task} {n} {index}".encode() for n in numbers for index in range(OUTPUTS)]
    with on_the_file(tmp_path) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def start_committer(directory: Path, task: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(COMMITTER), str(directory), task]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def lines_of(process: subprocess.Popen[str], count: int) -> int:
    """The number in the last of the next `count` lines."""
    assert process.stdout is not None
    last = 0
    for _ in range(count):
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr is not None else ""
        last = int(line)
    return last


def finish(process: subprocess.Popen[str]) -> list[int]:
    """The numbers that it told until it died."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        # Not communicate(): that reads past what readline() has buffered, and so begins amid a line.
        lines, err = process.stdout.readlines(), process.stderr.read()
    assert process.wait() == -signal.SIGKILL, err
    return [int(line) for line in lines if line.endswith("\n")]
