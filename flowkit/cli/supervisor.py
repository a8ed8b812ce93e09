"""`flowkit worker --processes N`: N workers, each a process with a part of the state directory; the dead come again.

    STATE/process-0 …   the state of each; its name stays, so that it finds its tasks again after a restart
    STATE/health.json   how all of them are, together: `flowkit health` reads it as that of a single worker

Workers know nothing of each other here: they share the tasks as those on other machines do.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import structlog

from flowkit.cli.outcome import MOVED, OK, WRONG
from flowkit.errors import ConfigError
from flowkit.stopping import PARENT, Stop
from flowkit.store import claim_directory, open_directory
from flowkit.worker import Health, read_health, write_health

log = structlog.get_logger("flowkit.supervisor")

LOOK_SECONDS = 0.2
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""A worker that dies comes again after 1, 2, 4 … seconds, at most 30."""
LONG = 60.0
"""One that ran for so many seconds before begins with the first wait again."""
MARGIN = 10.0
"""Seconds beyond the grace after which a worker that has not left is killed."""


class Child:
    """One worker process, over all its lives."""

    def __init__(self, number: int, command: list[str], state: Path) -> None:
        self.number, self.command, self.state = number, command, state
        self.process: subprocess.Popen[bytes] | None = None
        self.started = self.due = 0.0
        self.wait = FIRST_WAIT
        self.restarts = -1

    def start(self, parent: int) -> None:
        """Begin a life. `parent` is the reading end of a pipe that closes when this process is gone."""
        env = {**os.environ, PARENT: str(parent), "FLOWKIT_PROCESSES": "1"}
        # A session of its own: Ctrl-C is the supervisor's to pass on, once.
        self.process = subprocess.Popen(  # noqa: S603  our own command line
            self.command, env=env, pass_fds=[parent], start_new_session=True
        )
        self.started = time.monotonic()
        self.restarts += 1
        log.info("worker process started", process=self.number, pid=self.process.pid, restarts=self.restarts)

    def look(self) -> int | None:
        """Its exit code if it has just died: it is due again after a while."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        if code == MOVED:  # as it was told to
            self.process = None
            return code
        now = time.monotonic()
        self.wait = FIRST_WAIT if now - self.started > LONG else self.wait
        self.process, self.due = None, now + self.wait
        log.error("worker process died", process=self.number, code=code, again_in=self.wait)
        self.wait = min(2 * self.wait, LONGEST_WAIT)
        return code

    def signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def supervise(app: str, state: Path, processes: int, grace: float, http: str | None) -> int:
    """Run this command line `processes` times until told to stop; the exit code.

    Raises StoreLocked if another supervisor, or a worker, uses the state directory; ConfigError if it is another app's.
    """
    open_directory(state, app)
    with claim_directory(state):
        stop = Stop()
        children = [Child(n, _command(state, n, http), state / f"process-{n}") for n in range(processes)]
        ours, end = os.pipe()
        try:
            return _watch(children, stop, ours, state)
        finally:
            _end(children, grace)
            os.close(ours)
            os.close(end)
            (state / "health.json").unlink(missing_ok=True)
            stop.over()


def _watch(children: list[Child], stop: Stop, parent: int, state: Path) -> int:
    told = 0.0
    while not stop():
        now = time.monotonic()
        for child in children:
            if child.process is None and now >= child.due:
                child.start(parent)
            code = child.look()
            if code == MOVED:
                log.info("a worker has stopped after a savepoint, as was asked for: all stop", process=child.number)
                return OK
            if code == WRONG:
                log.error("a worker says that it is configured wrongly: all stop", process=child.number)
                return WRONG
        if now - told >= 1.0:
            told = now
            _tell(children, state)
        time.sleep(LOOK_SECONDS)
    return OK


def _end(children: list[Child], grace: float) -> None:
    """Let them finish what they took in, commit, and leave; kill who has not after the grace."""
    for child in children:
        child.signal(signal.SIGTERM)
    until = time.monotonic() + grace + MARGIN
    for child in children:
        if child.process is not None:
            try:
                child.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker process killed: it did not end within the grace", process=child.number)  # noqa: TRY400
                child.process.kill()
                child.process.wait()


def _tell(children: list[Child], state: Path) -> None:
    """Write how all of them are."""
    all_of_them = Health(os.getpid(), time.time_ns() // 1_000_000, ready=True)
    for child in children:
        try:
            health = read_health(child.state)
        except ConfigError as error:
            all_of_them.ready = False
            all_of_them.failing[f"process {child.number}"] = str(error)
            continue
        all_of_them.ready = all_of_them.ready and health.ready
        all_of_them.stalled += health.stalled
        all_of_them.tasks += health.tasks
        all_of_them.failing |= health.failing
        all_of_them.broker = all_of_them.broker or health.broker
        all_of_them.waiting |= health.waiting
    try:
        write_health(state, all_of_them)
    except OSError as error:
        log.warning("health file not written", error=str(error))


def _command(state: Path, number: int, http: str | None) -> list[str]:
    """This command line for one of them: its own state directory, and its own port, the number added."""
    words: list[str] = []
    given = iter(sys.argv[1:])
    for word in given:
        option, equals, _ = word.partition("=")
        if option in ("--processes", "--state", "--http"):
            if not equals:
                next(given, None)
        else:
            words.append(word)
    words += [f"--state={state / f'process-{number}'}"]
    if http:
        host, colon, port = http.rpartition(":")
        words.append(f"--http={host}{colon}{int(port) + number}")
    return [sys.executable, "-m", "flowkit.cli", *words]
