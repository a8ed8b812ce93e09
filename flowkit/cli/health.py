"""`flowkit health`: is the worker of this container alive and moving? For health checks, which want an exit code."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from flowkit.cli.arguments import OptionalState
from flowkit.cli.outcome import FAILED, OK, WRONG, complain

HELP = """Tell whether the worker that uses a state directory is alive, ready and not stalled.

Reads STATE/health.json, which the worker writes a few times a second. In a container FLOWKIT_STATE is set, so that it
needs no arguments: HEALTHCHECK CMD ["flowkit", "health"].

\b
Exit codes:
  0  alive, ready and not stalled
  1  not (yet): the reason is printed
  2  no state directory is named
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("health", help=HELP)(health)


def health(
    state: OptionalState = None,
    max_age: Annotated[
        float, typer.Option("--max-age", metavar="SECONDS", help="How old its last sign of life may be.")
    ] = 10.0,
) -> int:
    """Print how the worker is; the exit code."""
    if state is None:
        complain("which worker? give --state DIR, or set FLOWKIT_STATE")
        return WRONG
    problem = what_is_wrong(Path(state) / "health.json", time.time_ns() // 1_000_000, round(max_age * 1000))
    print(problem or "healthy")
    return FAILED if problem else OK


def what_is_wrong(file: Path, now_ms: int, max_age_ms: int) -> str:
    """Why the worker that writes `file` is not healthy at `now_ms`; '' if it is."""
    try:
        found = json.loads(file.read_bytes())
        pid, at_ms, ready, stalled = (found[name] for name in ("pid", "at_ms", "ready", "stalled"))
    except FileNotFoundError:
        return f"no worker has run here: there is no {file}"
    except OSError as error:
        return f"{file}: cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{file}: is not what a worker writes"
    age_ms = now_ms - int(at_ms)
    if not _is_alive(pid):
        return f"the worker (process {pid}) is gone, its last sign of life is {age_ms / 1000:.0f} s old"
    if age_ms > max_age_ms:
        return f"the worker (process {pid}) has given no sign of life for {age_ms / 1000:.0f} s"
    if stalled:
        return f"the worker (process {pid}) has stalled: {stalled}" if isinstance(stalled, str) else "the worker has stalled"
    return "" if ready else f"the worker (process {pid}) is not ready yet"


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's, but there
    return True
