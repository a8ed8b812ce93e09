"""Running the app over files and following its alerts while it runs.

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

from services.fraud_detection.records import Alert

APP = "services.fraud_detection.app"
ROOT = Path(__file__).parents[2]
LOOK_EVERY = 0.1
"""Seconds between two looks at the alerts."""


class JobFailed(Exception):
    """The run came to no good end; the text is what it had to say."""


class Inputs(NamedTuple):
    """What a run reads. There may be no chargebacks: then nothing is learned but what is ordinary."""

    transactions: Path
    chargebacks: Path | None


class Finished(NamedTuple):
    """How a run went; `line` is flowkit's own last word on it, `seconds` its time from start to end."""

    alerts: list[Alert]
    seconds: float
    line: str


def command(inputs: Inputs, alerts: Path) -> list[str]:
    """The arguments for `flowkit` to run the app over these files."""
    arguments = ["run", APP, "--input", f"transactions={inputs.transactions}"]
    if inputs.chargebacks is not None:
        arguments += ["--input", f"chargebacks={inputs.chargebacks}"]
    return [*arguments, "--output", f"alerts={alerts}", "--output", f"dead-letters={_dead_letters(alerts)}"]


def run_job(
    inputs: Inputs,
    alerts: Path,
    *,
    rules_only: bool = False,
    threshold: float | None = None,
    on_alerts: Callable[[list[Alert]], None] = lambda _: None,
) -> Finished:
    """Run the app to the end of its inputs; `on_alerts` gets new alerts a few times a second, or an empty list.

    Raises JobFailed.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]))
    environment["FRAUD_RULES_ONLY"] = "true" if rules_only else "false"
    if threshold is not None:
        environment["FRAUD_THRESHOLD"] = str(threshold)
    started = time.monotonic()
    with subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", "flowkit", *command(inputs, alerts)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        follower = Follower(alerts)
        try:
            while process.poll() is None:
                on_alerts(follower.new())
                time.sleep(LOOK_EVERY)
        except BaseException:
            process.terminate()
            raise
        _, said = process.communicate()
    on_alerts(follower.new())
    if process.returncode:
        raise JobFailed(said.strip() or f"flowkit run ended with {process.returncode}")
    return Finished(follower.seen, time.monotonic() - started, said.strip().rpartition("\n")[2])


class Follower:
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


def dead_letters(alerts: Path) -> int:
    """How many records of the run could not be used."""
    path = _dead_letters(alerts)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _dead_letters(alerts: Path) -> Path:
    return alerts.with_name("dead-letters.jsonl")
