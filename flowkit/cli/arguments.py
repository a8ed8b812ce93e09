"""Arguments that several commands take, and how NAME=VALUE is read."""

from collections.abc import Sequence
from typing import Annotated

import typer

from flowkit.errors import ConfigError

Module = Annotated[
    str,
    typer.Argument(metavar="MODULE[:APP]", envvar="FLOWKIT_APP", show_default=False, help="pkg.mod or dir/app.py"),
]
State = Annotated[
    str,
    typer.Option("--state", metavar="DIR", envvar="FLOWKIT_STATE", show_default=False, help="The state directory."),
]
OptionalState = Annotated[
    str | None,
    typer.Option("--state", metavar="DIR", envvar="FLOWKIT_STATE", show_default=False, help="The state directory."),
]
BROKER_HELP = "Where the topics are, such as kafka://HOST:PORT or embedded://DIR."
Broker = Annotated[
    str, typer.Option("--broker", metavar="URL", envvar="FLOWKIT_BROKER", show_default=False, help=BROKER_HELP)
]
OptionalBroker = Annotated[
    str | None,
    typer.Option("--broker", metavar="URL", envvar="FLOWKIT_BROKER", show_default=False, help=BROKER_HELP),
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        metavar="LEVEL",
        envvar="FLOWKIT_LOG_LEVEL",
        show_default=False,
        help="debug, info, warning or error. SIGUSR1 makes a running process say more, SIGUSR2 takes it back.",
    ),
]
Http = Annotated[
    str | None,
    typer.Option(
        "--http",
        metavar="[HOST:]PORT",
        envvar="FLOWKIT_HTTP",
        show_default=False,
        help="Serve health, /metrics, /flow and /tables there. Off unless given.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for other programs.")]


def pairs(option: str, words: Sequence[str], what: str) -> list[tuple[str, str]]:
    """`NAME=VALUE` words as pairs. Raises ConfigError with all that are none; `what` says how they should look."""
    problems = []
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            problems.append(f"{option} {word}: write {option} {what}")
        found.append((name, value))
    if problems:
        raise ConfigError(*problems)
    return found
