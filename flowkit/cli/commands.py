"""The commands, and which of them a command line needs: only that one's module is loaded, all of them for --help."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from flowkit.cli.outcome import BROKEN_PIPE, EXIT_CODES, WRONG, out

NAMES = (
    "run",
    "worker",
    "health",
    "topics",
    "tables",
    "store",
    "checkpoint",
    "savepoint",
    "why",
    "explain",
    "check",
    "iam",
    "dlq",
    "receive",
    "new",
)
"""In the order in which --help shows them. Each is a module of this room with `add_to(app)`."""

HELP = """Keyed, windowed, event-time stream processing with durable state and exactly-once results.

Try it: `flowkit new hello`, then what it prints. MODULE is a dotted name (pkg.mod) or a path (dir/app.py); with
several apps in it, MODULE:APP says which.
"""


class Commands(TyperGroup):
    """Commands in the order of NAMES, which may be cut short by who reads them: `flowkit … | head` is no error."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=NAMES.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None


def make_app(names: Sequence[str] = NAMES) -> typer.Typer:
    """The command line with the commands of `names`."""
    app = typer.Typer(
        cls=Commands,
        name="flowkit",
        help=HELP,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_common)
    for name in names:
        import_module(f"flowkit.cli.{name}").add_to(app)
    return app


def _tell_version(wanted: bool) -> None:
    if wanted:
        out(f"flowkit {sys.modules['flowkit'].__version__}")  # the roof is there, but no room imports it
        raise typer.Exit


def _common(
    version: bool = typer.Option(
        False, "--version", help="Print the version and leave.", is_eager=True, callback=_tell_version
    ),
) -> None:
    """Options before the command."""


def run_command(words: Sequence[str]) -> int:
    """Run one command line; its exit code. Raises what the command raises."""
    only = [words[0]] if words and words[0] in NAMES else NAMES
    command = typer.main.get_command(make_app(only))
    try:
        code = command.main(list(words), prog_name="flowkit", standalone_mode=False)
    except Exception as error:
        show = getattr(error, "show", None)  # typer's usage errors know how to show themselves
        if show is None:
            raise
        show()
        return getattr(error, "exit_code", WRONG)
    return code if isinstance(code, int) else 0
