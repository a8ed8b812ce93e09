"""`flowkit worker --reload`: a worker in a process of its own, started again when a source file changes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from flowkit.cli.outcome import say, shown_path
from flowkit.stopping import Stop

POLL_SECONDS = 0.3
SKIPPED = {"__pycache__", "node_modules", "site-packages"}


def run_reloading(module: str) -> int:
    """Run this command line without --reload, again and again, until told to stop; the last exit code."""
    words = [word for word in sys.argv[1:] if word != "--reload"]
    stop = Stop()
    seen = sources(module)
    while True:
        child = subprocess.Popen([sys.executable, "-m", "flowkit.cli", *words])  # noqa: S603  our own command line
        told = False
        while not stop() and (now := sources(module)) == seen:
            time.sleep(POLL_SECONDS)
            if child.poll() is not None and not told:
                told = True
                say("the worker has ended: it is started again when a file changes")
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        if stop():
            return code
        changed = [path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path)]
        say(f"{shown_path(min(changed))} has changed: starting again")
        seen = now


def sources(module: str) -> dict[str, int]:
    """The .py files here and beside the app, with the times of their last change."""
    roots = {Path.cwd()}
    file = module[: module.find(".py") + 3]
    if file.endswith(".py"):
        roots.add(Path(file).resolve().parent)
    found: dict[str, int] = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            names[:] = [name for name in names if name not in SKIPPED and not name.startswith(".")]
            if (Path(directory) / "pyvenv.cfg").exists():
                names.clear()
                continue
            for file in files:
                if file.endswith(".py"):
                    path = Path(directory, file)
                    with contextlib.suppress(FileNotFoundError):
                        found[str(path)] = path.stat().st_mtime_ns
    return found
