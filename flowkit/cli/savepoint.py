"""`flowkit savepoint`: asks the running workers of an app for a savepoint, and waits for it."""

import asyncio
import contextlib
import json as json_
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from flowkit.cli.arguments import Json, LogLevel, Module
from flowkit.cli.load import load_app
from flowkit.cli.logging import set_up_logs
from flowkit.cli.outcome import OK, out, say
from flowkit.cli.show import count, size
from flowkit.clock import SystemClock
from flowkit.errors import ConfigError, FlowkitError, StoreError
from flowkit.source import check_storage_url, open_storage
from flowkit.store import Storage
from flowkit.worker import Manifest, Parts, Request, Requests, check_place, read_manifest

LOOK_SECONDS = 0.3

HELP = """Take a savepoint of a running app: all of its state at one moment, to start it from elsewhere, or later.

All workers stop reading, finish what is on its way between them, save the state of every task under --to, and go on
(or, with --stop, end). It takes as long as writing all of the state does; meanwhile nothing is processed. If it cannot
be done within --timeout, or a worker dies in between, nothing is left of it and the app goes on: ask again.

Workers must run with --checkpoints: that is where they are asked. --to is a place of its own for each savepoint, which
all of them can write. Then, on another broker or under another name:

  flowkit worker app.py --broker … --state … --from SAVEPOINT

begins every task with its state, and reads its topics on from there: they must be the same, with as many partitions,
or copies that keep the offsets. `flowkit checkpoint list|inspect|verify --checkpoints SAVEPOINT` look into one.

\b
Example:
  flowkit savepoint app.py --checkpoints s3://states/prod --to s3://states/before-upgrade
"""

CODES = """\b
Exit codes:
  0         the savepoint is there
  2         wrong usage or configuration
  3         it could not be taken, or storage cannot be used; the app goes on
  130       Ctrl-C: given up, the app goes on
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("savepoint", help=HELP, epilog=CODES)(savepoint)


def savepoint(
    module: Module,
    checkpoints: Annotated[
        str,
        typer.Option(
            "--checkpoints",
            metavar="URL",
            envvar="FLOWKIT_CHECKPOINTS",
            show_default=False,
            help="Where the workers' checkpoints go.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="URL",
            show_default=False,
            help="Where to: file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC/PREFIX.",
        ),
    ],
    stop: Annotated[bool, typer.Option("--stop", help="The workers end once it is taken.")] = False,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up if it is not there by then.")
    ] = 300,
    json: Json = False,
    log_level: LogLevel = None,
) -> int:
    """Ask and wait; the exit code."""
    set_up_logs(log_level, "warning")
    to, checkpoints = _absolute(to), _absolute(checkpoints)
    check_storage_url(checkpoints)
    check_storage_url(to)
    check_place(to, checkpoints)
    app = load_app(module)
    manifest = asyncio.run(_take(app.name, checkpoints, to, stop, timeout))
    if json:
        out(json_.dumps(msgspec.to_builtins(manifest)))
    tasks = count(len(manifest.seals), "task")
    say(f"{app.name}: savepoint {manifest.id} of {tasks}, {size(manifest.bytes)}, is in {to}")
    return OK


def _absolute(url: str) -> str:
    """Workers run elsewhere: a path is to mean the same to them."""
    return url if "://" in url or not url else str(Path(url).expanduser().absolute())


async def _take(app: str, checkpoints: str, to: str, stop: bool, seconds: int) -> Manifest:
    async with open_storage(checkpoints) as asked, open_storage(to) as target:
        await target.check()
        before = await read_manifest(target)
        if before is not None:
            raise ConfigError(f"--to {to}: a savepoint of app {before.app!r} is there already: name another place")
        requests = Requests(asked, app, SystemClock())
        asking = asyncio.create_task(requests.ask(to, stop=stop, within=seconds * 1000))
        try:
            request = await asyncio.shield(asking)  # what may have been asked for can only be taken back by its id
            async with asyncio.timeout(seconds):
                ended = await _wait(requests, request, Parts(target, request.id))
        except TimeoutError:
            ended = await requests.end(request, "failed", await _late(target, request, checkpoints, seconds))
        except BaseException:
            with contextlib.suppress(FlowkitError):
                await requests.end(await asking, "failed", "given up by who asked for it")
            raise
        manifest = await read_manifest(target)
        if manifest is not None and manifest.id == request.id:
            return manifest
        raise StoreError(f"no savepoint: {ended.why or 'it is not there'}; the app goes on")


async def _wait(requests: Requests, request: Request, parts: Parts) -> Request:
    told, tasks = -1, None
    while True:
        now = await requests.last()
        if now is None or now.id != request.id:
            raise StoreError(f"app {request.app!r}: the request for a savepoint was replaced by another one")
        if now.state != "asked":
            return now
        tasks = tasks or await parts.plan()
        sealed = 0 if tasks is None else len(await parts.sealed(tasks))
        if tasks is not None and sealed != told:
            told = sealed
            say(f"{request.app}: {sealed} of {count(len(tasks), 'task')} saved")
        await asyncio.sleep(LOOK_SECONDS)


async def _late(target: Storage, request: Request, checkpoints: str, seconds: int) -> str:
    """What to tell about one that is not there in time."""
    parts = Parts(target, request.id)
    tasks = await parts.plan()
    if tasks is None:
        return (
            f"no worker of app {request.app!r} has answered within {seconds} s: they must be running, with "
            f"--checkpoints {checkpoints}"
        )
    missing = sorted(set(tasks) - await parts.sealed(tasks))
    if not missing:
        return f"all tasks were saved within {seconds} s, but no worker said that they are the last of each: ask again"
    left = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    return f"{len(missing)} of {count(len(tasks), 'task')} not saved within {seconds} s: {left}; give it more --timeout"
