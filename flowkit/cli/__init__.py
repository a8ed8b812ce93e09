"""What people type: `flowkit COMMAND …`. A file a command, loaded when it is its turn: starting fast is a feature."""

import io
import sys
from collections.abc import Sequence

from flowkit.cli.outcome import finish, tell

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default); the exit code. Never raises, never shows a traceback of ours."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal cannot show is escaped, as on stderr
        from flowkit.cli.commands import run_command

        code = run_command(words)
    except BaseException as error:  # noqa: BLE001  the last stop: whatever it is, it is told
        code = tell(error)
    return finish(code)
