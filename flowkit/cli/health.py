"""`flowkit health`: is the worker of this container alive and moving? For health checks, which want an exit code."""

from pathlib import Path
from typing import Annotated

import typer

from flowkit.cli.arguments import OptionalState
from flowkit.cli.logging import set_up_logs
from flowkit.cli.outcome import FAILED, OK, WRONG, complain, out
from flowkit.errors import ConfigError

HELP = """Tell whether the worker that uses a state directory is alive, ready and not stalled.

Reads STATE/health.json, which the worker writes about once a second. In a container FLOWKIT_STATE is set, so that it
needs no arguments: HEALTHCHECK CMD ["flowkit", "health"]. A task that waits for a sink which takes nothing is told; it
is no reason to start the worker again.

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
    set_up_logs(None, "warning")
    problem = what_is_wrong(Path(state), round(max_age * 1000))
    # A sink that takes nothing is no reason to start the worker again, which is what comes of an exit code.
    out("; ".join([problem or "healthy", *what_waits(Path(state))]))
    return FAILED if problem else OK


def what_waits(state: Path) -> list[str]:
    """The tasks that a sink holds up, with what is known of that, as the worker that uses `state` last said."""
    from flowkit.worker import read_health

    try:
        return [f"task {task}: {why}" for task, why in read_health(state).waiting.items()]
    except ConfigError:
        return []


def what_is_wrong(state: Path, max_age_ms: int) -> str:
    """Why the worker that uses `state` is not healthy; '' if it is."""
    from flowkit.worker import read_health

    try:
        found = read_health(state, max_age_ms)
    except ConfigError as error:
        return str(error)
    if found.stalled:
        return f"worker {found.pid} makes no progress: {', '.join(found.stalled)}"
    if found.ready:
        return ""
    why = [f"task {task}: {why}" for task, why in found.failing.items()]
    if found.broker or why:
        return f"worker {found.pid} is not ready: {'; '.join(why) or found.broker}"
    return f"worker {found.pid} is not ready yet: tasks are being opened"
