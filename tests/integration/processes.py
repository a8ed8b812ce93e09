"""Processes to be watched, stopped and killed by a test; and waiting for what they do, never longer than a deadline."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent.parent

T = TypeVar("T")


def until(check: Callable[[], T | None], what: str, seconds: float = 30.0) -> T:
    """Ask `check` again and again until it gives something true, and return that. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what} (the last answer was {found!r})")
        time.sleep(0.01)


class Process:
    """A Python process of the test's own; what it says goes to `NAME.out` and `NAME.err` in `directory`."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        directory: Path,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.out, self.err = directory / f"{name}.out", directory / f"{name}.err"
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self._heard = err.tell()
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, *words],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **(env or {})},
                stdin=stdin if stdin is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        """End it by kill -9."""
        self.send(signal.SIGKILL)
        self.popen.wait(30)

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit code. Fails, with what it has said, if it does not end."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end within {seconds} s:\n{self.said()}") from None

    def said(self) -> str:
        """What it has said on stderr."""
        with self.err.open("rb") as file:
            file.seek(self._heard)
            return file.read().decode(errors="replace")

    def logs(self, event: str) -> list[dict[str, Any]]:
        """Its structured logs whose event begins with `event`."""
        lines = [line for line in self.said().splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry for entry in found if str(entry["event"]).startswith(event)]

    def heard(self, event: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for a structured log and return it. Fails at once if the process has ended without."""

        def look() -> dict[str, Any] | None:
            ended = self.popen.poll() is not None
            found = self.logs(event)
            assert found or not ended, f"ended without saying {event!r}:\n{self.said()}"
            return found[0] if found else None

        return until(look, f"{event!r} in the log", seconds)


class Crew:
    """The processes of one test: none outlives it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []

    def start(
        self,
        name: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        prefix: Sequence[str] = (),
    ) -> Process:
        """Start `python WORDS`, by way of `prefix`, which must become it."""
        process = Process(name, words, self.directory, env, stdin, prefix)
        self.processes.append(process)
        return process

    def flowkit(self, name: str, *words: str, env: Mapping[str, str] | None = None, stdin: Any = None) -> Process:
        """Start `flowkit WORDS`."""
        return self.start(name, "-m", "flowkit", *words, env=env, stdin=stdin)


@contextmanager
def crew_in(directory: Path) -> Iterator[Crew]:
    """Processes that end with the test, whatever becomes of it."""
    crew = Crew(directory)
    try:
        yield crew
    finally:
        for process in crew.processes:
            process.kill()


def files_in(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path there."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }
