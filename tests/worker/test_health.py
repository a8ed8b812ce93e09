"""The health file: written whole, and read with a reason where a worker is not well."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowkit.errors import ConfigError
from flowkit.worker.health import NAME, Health, read_health, write_health


def now() -> int:
    return time.time_ns() // 1_000_000


def test_what_was_written_is_read(tmp_path: Path) -> None:
    health = Health(os.getpid(), now(), True, ["app/a/0"], ["app/a/0", "app/a/1"], {"app/a/1": "why"})
    write_health(tmp_path, health)
    assert read_health(tmp_path) == health
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_file_of_an_older_flowkit_is_read(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(f'{{"pid": {os.getpid()}, "at_ms": {now()}, "ready": false, "new": 1}}')
    assert read_health(tmp_path) == Health(os.getpid(), read_health(tmp_path).at_ms, False)


def test_a_silent_worker_is_told_with_how_long(tmp_path: Path) -> None:
    write_health(tmp_path, Health(os.getpid(), now() - 12_000, True))
    with pytest.raises(ConfigError, match=f"worker {os.getpid()} has been silent for 12 s"):
        read_health(tmp_path)
    assert read_health(tmp_path, max_age_ms=60_000).ready


def test_a_dead_worker_is_told(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_health(tmp_path, Health(child.pid, now(), True))
    with pytest.raises(ConfigError, match=f"worker {child.pid} is dead"):
        read_health(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "not there: no worker runs"), ("{", "cannot be read"), ('{"pid": "x"}', "cannot be read")],
)
def test_a_file_that_tells_nothing_is_told_by_name(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / NAME).write_text(text)
    with pytest.raises(ConfigError, match=rf"{tmp_path / NAME}: {reason}"):
        read_health(tmp_path)


def test_a_file_that_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match="directory"):
        write_health(tmp_path, Health(1, 2, True))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
