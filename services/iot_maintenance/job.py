"""Running the app over files and following how far it has come.

The app runs as anyone would run it, by `flowkit run` in a process of its own; what is shown comes from the file that
its alerts are written to.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.iot_maintenance.measure import read_alerts
from services.iot_maintenance.records import Alert

APP = "services.iot_maintenance.app"
ROOT = Path(__file__).parents[2]
LOOK_EVERY = 0.2
"""Seconds between two looks at the alerts."""


class JobFailed(Exception):
    """The run came to no good end; the text is what it had to say."""


class Finished(NamedTuple):
    """How a run went: `seconds` is its time from start to end, `unusable` how many records could not be used."""

    alerts: list[Alert]
    recoveries: int
    unusable: int
    seconds: float


def command(directory: Path) -> list[str]:
    """The arguments for `flowkit` to run the app over a directory's readings and registry."""
    inputs = [f"--input={name}={directory / name}.jsonl" for name in ("readings", "registry")]
    outputs = [f"--output={name}={directory / name}.jsonl" for name in ("alerts", "recoveries", "dead-letters")]
    return ["run", APP, *inputs, *outputs]


def run_job(directory: Path, on_alerts: Callable[[list[Alert]], None] = lambda _: None) -> Finished:
    """Run the app to the end of its inputs; `on_alerts` gets new alerts a few times a second, or an empty list.

    Raises JobFailed.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]))
    started, path, offset = time.monotonic(), directory / "alerts.jsonl", 0
    with subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", "flowkit", *command(directory)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while process.poll() is None:
                new, offset = _new_alerts(path, offset)
                on_alerts(new)
                time.sleep(LOOK_EVERY)
        except BaseException:
            process.terminate()
            raise
        _, said = process.communicate()
    if process.returncode:
        raise JobFailed(said.strip() or f"flowkit run ended with {process.returncode}")
    seconds = time.monotonic() - started
    on_alerts(_new_alerts(path, offset)[0])
    return Finished(read_alerts(path), _lines(directory, "recoveries"), _lines(directory, "dead-letters"), seconds)


def _new_alerts(path: Path, offset: int) -> tuple[list[Alert], int]:
    """What a growing file has more than before. Only whole lines count: the last one may be half written."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return msgspec.json.Decoder(Alert).decode_lines(whole), offset + len(whole)


def _lines(directory: Path, name: str) -> int:
    path = directory / f"{name}.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
