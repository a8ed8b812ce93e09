"""`flowkit why`: why is my window not out? Which split holds the watermark, since when, and what would help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowkit.cli.arguments import Json, OptionalState
from flowkit.cli.load import load_app
from flowkit.cli.outcome import EXIT_CODES, OK, out
from flowkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from flowkit.worker import Facts

HELP = """Tell why the windows of a table are not out (yet): which split holds the watermark and since when, the open
windows and what the next to close needs, late records, and what would help.

Looks into a state directory, whether its worker runs or not; or asks a running worker that was started with --http, by
--url (with FLOWKIT_HTTP_TOKEN, if it needs one). With --url no MODULE is needed.

\b
Examples:
  flowkit why app.py --window spend --state data/state
  flowkit why --window spend --key 4711 --url http://127.0.0.1:8080
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("why", help=HELP, epilog=EXIT_CODES)(why)


def why(
    window: Annotated[str, typer.Option("--window", "-w", metavar="TABLE", help="The table with the windows.")],
    module: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE[:APP]]", envvar="FLOWKIT_APP", show_default=False, help="pkg.mod or dir/app.py"
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Windows of this key only; as text, or as JSON.")
    ] = None,
    state: OptionalState = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Ask a running worker: http://HOST:PORT.")
    ] = None,
    json: Json = False,
) -> int:
    """Look, and say what was found; the exit code."""
    import msgspec

    from flowkit.cli.why_words import say_why

    if url is not None:
        facts = _asked(url, window, key)
    elif module is None or state is None:
        missing = "which app? give MODULE" if module is None else "which state? give --state DIR, or --url http://…"
        raise ConfigError(f"{missing} (or set FLOWKIT_APP and FLOWKIT_STATE)")
    else:
        facts = _looked(module, Path(state), window, key)
    out(msgspec.json.encode(facts).decode() if json else say_why(facts))
    return OK


def _looked(module: str, state: Path, window: str, key: str | None) -> "Facts":
    """From the committed state."""
    from flowkit.clock import SystemClock
    from flowkit.worker import read_health, read_tasks, table_facts

    app = load_app(module)
    now = SystemClock().now_ms()
    table_facts(app, window, {}, now, key=key)  # a wrong name is told whatever the state
    try:
        running = read_health(state) is not None
    except ConfigError:
        running = False
    return table_facts(app, window, read_tasks(state, app), now, key=key, running=running)


def _asked(url: str, window: str, key: str | None) -> "Facts":
    """From a running worker."""
    import os
    from urllib.error import HTTPError, URLError
    from urllib.parse import quote, urlencode
    from urllib.request import Request, urlopen

    import msgspec

    from flowkit.worker import Facts

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url}: write http://HOST:PORT")
    query = "" if key is None else "?" + urlencode({"key": key})
    request = Request(f"{url.rstrip('/')}/why/{quote(window, safe='')}{query}")  # noqa: S310  its scheme was checked
    if token := os.environ.get("FLOWKIT_HTTP_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310
            return msgspec.json.decode(answer.read(), type=Facts)
    except HTTPError as error:
        with error:
            raise _refused(url, error.code, error.read()) from None
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise InputError(f"{url}: does not answer: {why}: is the worker running with --http?") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"{url}: is no worker of this flowkit ({error})") from None


def _refused(url: str, status: int, body: bytes) -> ConfigError:
    import msgspec

    try:
        told = msgspec.json.decode(body, type=dict[str, str])["error"]
    except (msgspec.MsgspecError, KeyError):
        told = f"answers {status}: is it a worker of flowkit?"
    hint = ": set FLOWKIT_HTTP_TOKEN to the worker's" if status == 401 else ""
    return ConfigError(f"{url}: {told}{hint}")
