"""`flowkit tables list|get|scan`: what the tables hold, from the committed state, whether the worker runs or not."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flowkit.app import App
from flowkit.cli.arguments import Json, Module, State
from flowkit.cli.load import load_app
from flowkit.cli.outcome import EXIT_CODES, FAILED, OK, out, say
from flowkit.cli.show import columns, iso, text, type_name, window_words
from flowkit.errors import ConfigError

TableName = Annotated[str, typer.Argument(metavar="TABLE", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(help="Look into the tables of an app, as last committed.", no_args_is_help=True)
    group.command("list", epilog=EXIT_CODES)(list_)
    group.command("get", epilog=EXIT_CODES)(get)
    group.command("scan", epilog=EXIT_CODES)(scan)
    app.add_typer(group, name="tables")


def list_(module: Module, state: State, json: Json = False) -> int:
    """List the app's tables, their keys and windows, and how many values they hold."""
    from flowkit.worker import read_table, read_tasks

    app = load_app(module)
    tasks = read_tasks(Path(state), app)
    rows = []
    for table in app.tables.values():
        entries = asyncio.run(read_table(app, table, tasks))
        spread = len({entry.task for entry in entries})
        rows.append((table.name, type_name(table.key_type), window_words(table.windowing), len(entries), spread))
    if json:
        _print_json([dict(zip(("table", "key", "window", "entries", "tasks"), row, strict=True)) for row in rows])
    else:
        out(columns(("TABLE", "KEY", "WINDOW", "ENTRIES", "TASKS"), rows))
    return OK


def get(
    module: Module,
    table: TableName,
    key: Annotated[str, typer.Argument(metavar="KEY", help="As text, or as JSON for keys that are no text.")],
    state: State,
    json: Json = False,
) -> int:
    """Print the value of a key, or the values of its open windows. Exit code 1 if there are none."""
    from flowkit.options import parse_text

    app = load_app(module)
    definition = _table(app, table)
    try:
        wanted = parse_text(key, definition.key_type)
    except ValueError as error:
        raise ConfigError(f"{key!r} is no key of table {table!r}: {error}") from None
    rows = [entry for entry in _read(app, table, state) if entry.key == wanted]
    if not rows:
        say(f"table {table!r} has nothing for {key!r}")
        return FAILED
    _print(rows, json)
    return OK


def scan(
    module: Module,
    table: TableName,
    state: State,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="N", help="The first N only.")] = None,
    json: Json = False,
) -> int:
    """Print everything that a table holds: key, window and value, by task, window end and key."""
    app = load_app(module)
    _print(_read(app, table, state)[:limit], json)
    return OK


def _read(app: App, table: str, state: str) -> list[Any]:
    from flowkit.worker import read_table, read_tasks

    return asyncio.run(read_table(app, _table(app, table), read_tasks(Path(state), app)))


def _table(app: App, name: str) -> Any:
    if name not in app.tables:
        raise ConfigError(f"app {app.name!r} has no table {name!r} (it has {', '.join(sorted(app.tables)) or 'none'})")
    return app.tables[name]


def _print(rows: Sequence[Any], as_json: bool) -> None:
    from flowkit.record import END_OF_TIME, MIN_TIME

    if as_json:
        shown = []
        for row in rows:
            fields = {"task": row.task, "key": row.key, "value": row.value}
            if row.start > MIN_TIME or row.end < END_OF_TIME:
                fields |= {"start": iso(row.start), "end": iso(row.end)}
            shown.append(fields)
        _print_json(shown)
        return
    if any(row.start > MIN_TIME or row.end < END_OF_TIME for row in rows):
        cells = [(_key(row.key), iso(row.start), iso(row.end), _encoded(row.value)) for row in rows]
        out(columns(("KEY", "START", "END", "VALUE"), cells))
    else:
        out(columns(("KEY", "VALUE"), [(_key(row.key), _encoded(row.value)) for row in rows]))


def _key(key: Any) -> str:
    from flowkit.codec import encode_key

    return text(encode_key(key))


def _encoded(value: Any) -> str:
    """A value as JSON; as Python shows it if JSON cannot."""
    from flowkit.codec import Codec

    try:
        return Codec("json", Any).encode(value).decode()
    except (TypeError, ValueError, NotImplementedError):
        return repr(value)


def _print_json(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        out(_encoded(row))
