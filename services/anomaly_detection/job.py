"""Running the app over a file of metrics and following its alerts while it runs.

The app runs as anyone would run it, by `flowkit run` in a process of its own; what is shown comes from the file that
its alerts are written to.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.anomaly_detection.records import Alert

APP = "services.anomaly_detection.app"
ROOT = Path(__file__).parents[2]
LOOK_EVERY = 0.1
"""Seconds between two looks at the alerts."""


class JobFailed(Exception):
    """The run came to no good end; the text is what it had to say."""


class Finished(NamedTuple):
    """How a run went: its alerts, its seconds from start to end, and how many records went to the dead letters."""

    alerts: list[Alert]
    seconds: float
    dead: int


def command(metrics: Path, directory: Path) -> list[str]:
    """The arguments for `flowkit` to run the app over a file, with what comes out in a directory."""
    outputs = {name: directory / f"{name}.jsonl" for name in ("scores", "alerts", "dead-letters")}
    arguments = ["run", APP, "--input", f"metrics={metrics}"]
    return [*arguments, *(part for name, path in outputs.items() for part in ("--output", f"{name}={path}"))]


def run_job(
    metrics: Path,
    directory: Path,
    *,
    threshold: float | None = None,
    on_alerts: Callable[[Sequence[Alert]], None] = lambda _: None,
) -> Finished:
    """Run the app to the end of its input; `on_alerts` gets new alerts a few times a second. Raises JobFailed."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]))
    if threshold is not None:
        environment["ANOMALY_THRESHOLD"] = str(threshold)
    started = time.monotonic()
    follower = _Follower(directory / "alerts.jsonl")
    with subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", "flowkit", *command(metrics, directory)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while process.poll() is None:
                on_alerts(follower.new())
                time.sleep(LOOK_EVERY)
        except BaseException:
            process.terminate()
            raise
        _, said = process.communicate()
    if process.returncode:
        raise JobFailed(said.strip() or f"flowkit run ended with {process.returncode}")
    on_alerts(follower.new())
    dead = directory / "dead-letters.jsonl"
    return Finished(follower.seen, time.monotonic() - started, dead.read_bytes().count(b"\n") if dead.exists() else 0)


class _Follower:
    """Reads a growing file of alerts. Only whole lines count: the last one may be half written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decoder = msgspec.json.Decoder(Alert)
        self.seen: list[Alert] = []

    def new(self) -> list[Alert]:
        """The alerts that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = self._decoder.decode_lines(whole)
        self.seen += found
        return found
