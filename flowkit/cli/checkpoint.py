"""`flowkit checkpoint …`: what workers have published of an app's state, whether it is sound, and getting it back."""

import asyncio
import json as json_
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from flowkit.cli.arguments import Json
from flowkit.cli.logging import set_up_logs
from flowkit.cli.outcome import EXIT_CODES, FAILED, OK, out, say
from flowkit.cli.show import columns, count, iso, size
from flowkit.cli.store import KeyFile, Target, keys_of
from flowkit.errors import ConfigError, StoreCorrupt
from flowkit.source import open_storage
from flowkit.store import (
    CURRENT,
    Checkpoint,
    Checkpoints,
    KeyProvider,
    Listing,
    Problem,
    Storage,
    folder_of,
    tasks_in,
)

T = TypeVar("T")

HELP = """Look at the checkpoints that workers publish with --checkpoints, check them, and get state back.

A worker publishes the state of each of its tasks every minute (--checkpoint-interval), only what is new of it, and
keeps the last two. A worker that finds no state of a task on its own disk begins with the newest and applies the frames
that the broker has kept from after it; nothing needs to be done for that. These commands are for looking, for alarms
(`verify` ends with 1 if anything is wrong), and for having the state of one task as a store in a directory, which
`flowkit store` reads. All may be used while workers run; none changes anything there.

Encrypted ones are opened by --key-file, or by FLOWKIT_STORE_KEY_FILE, FLOWKIT_STORE_KEY or
FLOWKIT_STORE_KMS_KEY.

\b
Examples:
  flowkit checkpoint list --checkpoints s3://states/prod
  flowkit checkpoint verify --checkpoints s3://states/prod --app shop
  flowkit checkpoint list --checkpoints kafka://one:9092,two:9092/states
  flowkit checkpoint restore shop/orders/0 restored --checkpoints s3://states/prod
"""

Url = Annotated[
    str,
    typer.Option(
        "--checkpoints",
        metavar="URL",
        envvar="FLOWKIT_CHECKPOINTS",
        show_default=False,
        help="Where they are: file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC.",
    ),
]
App = Annotated[str | None, typer.Option("--app", metavar="NAME", help="Of this app only.")]
OneTask = Annotated[str | None, typer.Option("--task", "-t", metavar="TASK", help="Of this task only.")]
Task = Annotated[str, typer.Argument(metavar="TASK", show_default=False, help="APP/GROUP/PARTITION, as `list` shows.")]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", show_default=False, help="This one, not the newest.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    group.callback(help=HELP)(_set_up)
    for name, command in (("list", list_), ("inspect", inspect), ("verify", verify), ("restore", restore)):
        group.command(name, epilog=EXIT_CODES)(command)
    app.add_typer(group, name="checkpoint")


def _set_up() -> None:
    set_up_logs(None, "warning")


def list_(checkpoints: Url, app: App = None, task: OneTask = None, key_file: KeyFile = None, json: Json = False) -> int:
    """List the checkpoints of all tasks, the newest of each first."""
    keys = keys_of(key_file)

    async def work(storage: Storage) -> list[tuple[str, Checkpoint]]:
        tasks = await _tasks(storage, app, task)
        return [(name, kept) for name in tasks for kept in await _of(storage, name, keys).kept()]

    found = _run(checkpoints, work)
    if json:
        for name, kept in found:
            out(json_.dumps({"task": name, **kept._asdict()}))
        return OK
    rows = [
        (name, kept.name, iso(kept.at), kept.commit, kept.files, size(kept.bytes), "yes" if kept.encrypted else "no")
        for name, kept in found
    ]
    out(columns(("TASK", "NAME", "MADE", "COMMIT", "FILES", "BYTES", "ENCRYPTED"), rows))
    return OK


def inspect(task: Task, checkpoints: Url, name: Name = None, key_file: KeyFile = None, json: Json = False) -> int:
    """Show what the newest checkpoint of a task (or the one --name) consists of: commit, positions, tables, files."""
    keys = keys_of(key_file)

    async def work(storage: Storage) -> tuple[Checkpoint, Listing]:
        (only,) = await _tasks(storage, None, task)
        return await _of(storage, only, keys).look(name)

    found, listing = _run(checkpoints, work)
    positions = {str(split): at for split, at in listing.base[2].get("positions", {}).items()}
    tables: dict[str, list[int]] = {}
    for stored in listing.files:
        for space in stored.meta.spaces:
            tables.setdefault(space.table, [0])[0] += space.records
    if json:
        files = [
            {"object": each.object, "level": each.meta.level, "records": each.meta.records, "bytes": each.meta.bytes}
            for each in listing.files
        ]
        records = {table: total for table, (total,) in tables.items()}
        shown = {"task": task, **found._asdict(), "positions": positions, "records": records, "files": files}
        out(json_.dumps(shown, default=repr))
        return OK
    under = "encrypted" if found.encrypted else "not encrypted"
    out(f"{task}: {found.name}, made {iso(found.at)} under epoch {found.epoch}, {under}")
    out(f"commit {found.commit} ({found.commit_id}), {count(found.files, 'file')}, {size(found.bytes)}")
    if positions:
        out(columns(("SPLIT", "POSITION"), [(split, str(at)) for split, at in sorted(positions.items())]))
    if tables:
        out(columns(("TABLE", "RECORDS"), [(table, f"{total:,}") for table, (total,) in sorted(tables.items())]))
    if listing.files:
        rows = [
            (each.object, each.meta.level, f"{each.meta.records:,}", size(each.meta.bytes)) for each in listing.files
        ]
        out(columns(("OBJECT", "LEVEL", "RECORDS", "BYTES"), rows))
    return OK


def verify(
    checkpoints: Url, app: App = None, task: OneTask = None, key_file: KeyFile = None, json: Json = False
) -> int:
    """Fetch every byte of every checkpoint; tell all that is wrong. Exit code 1 if anything is."""
    keys = keys_of(key_file)

    async def work(storage: Storage) -> int:
        code = OK
        for name in await _tasks(storage, app, task):
            problems = await _problems(_of(storage, name, keys), name)
            code = FAILED if problems else code
            if json:
                out(json_.dumps({"task": name, "problems": [problem._asdict() for problem in problems]}))
                continue
            for problem in problems:
                out(f"{name}: {problem}")
            say(f"{name}: " + (count(len(problems), "problem") if problems else "sound"))
        return code

    return _run(checkpoints, work)


async def _problems(checkpoints: Checkpoints, task: str) -> list[Problem]:
    from flowkit.cli.steps import StepBar

    with StepBar(f"verify {task}") as bar:
        try:
            return await checkpoints.verify(progress=bar)
        except StoreCorrupt as error:  # what tells which checkpoints there are
            return [Problem.of(error, CURRENT)]


def restore(task: Task, new: Target, checkpoints: Url, name: Name = None, key_file: KeyFile = None) -> int:
    """Make a store in NEW of the newest checkpoint of TASK (or of the one --name), as of its commit."""
    from flowkit.cli.steps import StepBar

    keys = keys_of(key_file)

    async def work(storage: Storage) -> Checkpoint:
        (only,) = await _tasks(storage, None, task)
        with StepBar("restore") as bar:
            return await _of(storage, only, keys).restore(new, name, bar)

    done = _run(checkpoints, work)
    say(f"{new}: restored from {done.name}, commit {done.commit}, {size(done.bytes)}")
    return OK


def _run(url: str, work: Callable[[Storage], Awaitable[T]]) -> T:
    async def all_of_it() -> T:
        async with open_storage(url) as storage:
            return await work(storage)

    return asyncio.run(all_of_it())


async def _tasks(storage: Storage, app: str | None, task: str | None) -> list[str]:
    """The tasks that are asked for. Raises ConfigError, naming those that there are, if there is none."""
    found = await tasks_in(storage, app)
    wanted = [name for name in found if task in (None, name)]
    if not wanted:
        of = f"task {task!r}" if task is not None else "any task" if app is None else f"app {app!r}"
        there = await tasks_in(storage)
        told = f"; there are those of {', '.join(there[:10])}{', …' if len(there) > 10 else ''}" if there else ""
        raise ConfigError(f"{storage.url}: no checkpoints of {of}{told}")
    return wanted


def _of(storage: Storage, task: str, keys: KeyProvider | None) -> Checkpoints:
    return Checkpoints(storage.blobs(*folder_of(task)), keys=keys)
