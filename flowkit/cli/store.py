"""`flowkit store …`: what lies in stores, whether it is sound, and what is to be done with it."""

import asyncio
import base64
import itertools
import json as json_
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flowkit.cli.arguments import Json
from flowkit.cli.logging import set_up_logs
from flowkit.cli.outcome import EXIT_CODES, FAILED, OK, out, say
from flowkit.cli.show import columns, count, iso, size, text
from flowkit.errors import ConfigError, StoreError
from flowkit.store import FileKey, KeyProvider, LsmStore, keys_from_environment

HELP = """Look into the stores of a state directory, check them, and copy them.

DIR is a state directory (what --state names: all stores of its tasks) or one store in it. An encrypted store is opened
by --key-file, or by FLOWKIT_STORE_KEY_FILE, FLOWKIT_STORE_KEY or FLOWKIT_STORE_KMS_KEY (alias/NAME, id or ARN of a key
of AWS KMS). inspect, verify, dump, copy and rotate may be used while the owner runs; compact, snapshot and checkpoint
need the store for themselves.
"""
Directory = Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A state directory, or one store.")]
OneStore = Annotated[Path, typer.Argument(metavar="STORE", show_default=False, help="The directory of one store.")]
Target = Annotated[Path, typer.Argument(metavar="NEW", show_default=False, help="An empty directory, or a new one.")]
BlobsPath = Annotated[
    Path, typer.Argument(metavar="CHECKPOINTS", show_default=False, help="The directory of its checkpoints.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", show_default=False, help="The key: 32 bytes, raw, hex or base64."),
]
ToKeyFile = Annotated[
    Path | None, typer.Option("--to-key-file", metavar="FILE", show_default=False, help="The key of the copy.")
]

ToKmsKey = Annotated[
    str | None,
    typer.Option("--to-kms-key", metavar="KEY", show_default=False, help="A key of AWS KMS: alias/NAME, id or ARN."),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    group.callback(help=HELP)(_set_up)
    commands = (inspect, verify, dump, compact, snapshot, copy, rotate, checkpoint, checkpoints, restore)
    for command in commands:
        group.command(command.__name__, epilog=EXIT_CODES)(command)
    app.add_typer(group, name="store")


def _set_up() -> None:
    set_up_logs(None, "warning")


def keys_of(path: Path | None) -> KeyProvider | None:
    """The key in a file, or that of the environment."""
    return FileKey(path) if path is not None else keys_from_environment()


def _target_keys(path: Path | None, kms_key: str | None, place: Path) -> KeyProvider | None:
    if path is not None and kms_key is not None:
        raise ConfigError("--to-key-file and --to-kms-key: a store has one key: keep one of them")
    if kms_key is not None:
        from flowkit.store import KmsKey, app_of

        return KmsKey(kms_key, app=app_of(place))
    return None if path is None else FileKey(path)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def inspect(directory: Directory, key_file: KeyFile = None, json: Json = False) -> int:
    """Show what stores consist of: their commit, tables, files by level, logs, and encryption."""
    from msgspec import to_builtins

    from flowkit.store import inspect as look
    from flowkit.store import stores_in

    keys = keys_of(key_file)
    for number, path in enumerate(stores_in(directory)):
        found = look(path, keys)
        if json:
            out(json_.dumps(to_builtins(found)))
            continue
        if number:
            out("")
        under = f"encrypted under {found.encrypted_under}" if found.encrypted_under else "not encrypted"
        out(f"{found.path}: format {found.format}, commit {found.commit}, {under}")
        sizes = sum(log.bytes for log in found.logs)
        out(f"{count(len(found.logs), 'log')} of {size(sizes)}, {count(found.in_logs, 'key')} in them")
        if found.spaces:
            rows = [(space.table, _end(space.end), f"{space.records:,}", size(space.bytes)) for space in found.spaces]
            out(columns(("TABLE", "END", "RECORDS", "BYTES"), rows))
        if found.files:
            files = [
                (f.level, f.run or "-", f.name, f"{f.records:,}", f"{f.deletes:,}", size(f.bytes)) for f in found.files
            ]
            out(columns(("LEVEL", "RUN", "FILE", "RECORDS", "DELETES", "BYTES"), files))
    return OK


def verify(directory: Directory, key_file: KeyFile = None, json: Json = False) -> int:
    """Read every byte of every file; tell all that is wrong. Exit code 1 if anything is."""
    from flowkit.cli.steps import StepBar
    from flowkit.store import stores_in
    from flowkit.store import verify as check

    keys, code = keys_of(key_file), OK
    for path in stores_in(directory):
        with StepBar(f"verify {path.name}") as bar:
            report = check(path, keys, bar)
        code = FAILED if report.problems else code
        if json:
            problems = [problem._asdict() for problem in report.problems]
            facts = {"files": report.files, "bytes": report.bytes, "records": report.records, "commits": report.commits}
            out(json_.dumps({"path": str(path), "problems": problems, **facts}))
            continue
        for problem in report.problems:
            out(str(problem))
        what = count(len(report.problems), "problem") if report.problems else "sound"
        read = f"{count(report.files, 'file')}, {size(report.bytes)}, {count(report.records, 'record')}"
        say(f"{path}: {what} ({read}, {count(report.commits, 'commit')} in logs)")
    return code


def dump(
    directory: Directory,
    table: Annotated[str | None, typer.Option("--table", "-t", metavar="NAME", help="This table only.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="The first N of each store only.")
    ] = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> int:
    """Print all keys and values as stored, by table, window end and key, as of the last commit.

    Bytes that are no text are escaped; with --json they are {"base64": …}. `flowkit tables scan` shows them decoded.
    """
    from flowkit.store import read_store, stores_in

    keys = keys_of(key_file)
    for path in stores_in(directory):
        rows = itertools.islice(_rows(read_store(path, keys), table), limit)
        if json:
            for name, end, key, value in rows:
                shown = {"store": str(path), "table": name, "end": end, "key": _json(key), "value": _json(value)}
                out(json_.dumps(shown, ensure_ascii=False))
        else:
            for name, end, key, value in rows:
                out(f"{name}\t{_end(end)}\t{text(key)}\t{text(value)}")
    return OK


def _rows(store: Any, table: str | None) -> Iterator[tuple[str, int | None, bytes, bytes]]:
    for name in store.tables():
        if table is None or name == table:
            for end in [None, *store.ends(name)]:
                for key, value in store.scan((name, end)):
                    yield name, end, key, value


def compact(directory: Directory, key_file: KeyFile = None) -> int:
    """Merge each store's files into one level: what was deleted, dropped or has expired frees its space."""
    from flowkit.cli.steps import StepBar
    from flowkit.store import Host, Inline, open_store, stores_in

    async def one(path: Path) -> None:
        with StepBar(f"compact {path.name}") as bar:
            host = Host(runner=Inline(progress=bar))
            async with open_store(path, host=host, keys=keys_of(key_file)) as store:
                assert isinstance(store, LsmStore)
                before = store.stats().table_bytes
                await store.compact(flush=store.undecided is None)
                after = store.stats().table_bytes
        say(f"{path}: {size(before)} before, {size(after)} now")

    for path in stores_in(directory):
        _run(one(path))
    return OK


def snapshot(store: OneStore, new: Target, key_file: KeyFile = None) -> int:
    """Make a store of its own of STORE as it is, by hard links: quick, and shares the space until either changes."""
    from flowkit.cli.steps import StepBar

    async def work() -> None:
        with StepBar("snapshot") as bar:
            async with _owned(store, key_file) as owned:
                await owned.snapshot(new, bar)
                say(f"{new}: a snapshot of {store} at commit {owned.number}")

    _run(work())
    return OK


def copy(
    store: OneStore,
    new: Target,
    key_file: KeyFile = None,
    to_key_file: ToKeyFile = None,
    to_kms_key: ToKmsKey = None,
) -> int:
    """Write STORE anew in NEW: encrypted under --to-key-file or --to-kms-key, or plain without either.

    So is encryption turned on or off.
    """
    from flowkit.cli.steps import StepBar
    from flowkit.store import copy_store

    to = _target_keys(to_key_file, to_kms_key, store)
    with StepBar("copy") as bar:
        _run(copy_store(_one(store), new, keys=keys_of(key_file), to=to, progress=bar))
    say(f"{new}: a copy of {store}, " + ("not encrypted" if to is None else f"encrypted under {to.name}"))
    return OK


def rotate(
    directory: Directory,
    to_key_file: Annotated[
        Path | None, typer.Option("--to-key-file", metavar="FILE", show_default=False, help="The new key.")
    ] = None,
    to_kms_key: ToKmsKey = None,
    key_file: KeyFile = None,
) -> int:
    """Turn to another key, without writing any data anew: from then on only the new one opens the stores."""
    from flowkit.store import rotate as turn
    from flowkit.store import stores_in

    old, new = keys_of(key_file), _target_keys(to_key_file, to_kms_key, directory)
    if new is None:
        raise ConfigError("which key is it to be? give --to-key-file FILE, or --to-kms-key KEY")
    if old is None:
        raise ConfigError("which key is it under now? give --key-file FILE, or set FLOWKIT_STORE_KEY_FILE or _KMS_KEY")
    for path in stores_in(directory):
        _run(turn(path, old, new))
        say(f"{path}: now under {new.name}")
    return OK


def checkpoint(store: OneStore, checkpoints: BlobsPath, key_file: KeyFile = None) -> int:
    """Add a checkpoint of STORE to CHECKPOINTS, uploading only what the last one lacks."""
    from flowkit.cli.steps import StepBar
    from flowkit.store import Checkpoints, DirectoryBlobs

    async def work() -> None:
        made = Checkpoints(DirectoryBlobs(checkpoints), keys=keys_of(key_file))
        with StepBar("checkpoint") as bar:
            async with _owned(store, key_file) as owned:
                await made.claim()
                done = await made.publish(owned, bar)
        say(f"{done.name}: commit {done.commit}, {size(done.bytes)}, of which {size(done.uploaded_bytes)} are new")

    _run(work())
    return OK


def checkpoints(
    checkpoints: BlobsPath,
    key_file: KeyFile = None,
    check: Annotated[bool, typer.Option("--verify", help="Read them all; exit code 1 if anything is wrong.")] = False,
    json: Json = False,
) -> int:
    """List the checkpoints in CHECKPOINTS, the newest first."""
    from flowkit.cli.steps import StepBar
    from flowkit.store import Checkpoints, DirectoryBlobs

    found = Checkpoints(DirectoryBlobs(checkpoints), keys=keys_of(key_file))
    if check:
        with StepBar("verify") as bar:
            problems = _run(found.verify(progress=bar))
        for problem in problems:
            out(json_.dumps(problem._asdict()) if json else str(problem))
        say(f"{checkpoints}: " + (count(len(problems), "problem") if problems else "sound"))
        return FAILED if problems else OK
    rows = _run(found.kept())
    if json:
        for row in rows:
            out(json_.dumps(row._asdict()))
    else:
        shown = [(row.name, iso(row.at), row.epoch, row.commit, row.files, size(row.bytes)) for row in rows]
        out(columns(("NAME", "MADE", "EPOCH", "COMMIT", "FILES", "BYTES"), shown))
    return OK


def restore(
    checkpoints: BlobsPath,
    new: Target,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="This one, not the newest.")] = None,
    key_file: KeyFile = None,
) -> int:
    """Make a store in NEW from the newest checkpoint in CHECKPOINTS."""
    from flowkit.cli.steps import StepBar
    from flowkit.store import Checkpoints, DirectoryBlobs

    found = Checkpoints(DirectoryBlobs(checkpoints), keys=keys_of(key_file))
    with StepBar("restore") as bar:
        done = _run(found.restore(new, name, bar))
    say(f"{new}: restored from {done.name}, commit {done.commit}, {size(done.bytes)}")
    return OK


def _one(path: Path) -> Path:
    from flowkit.store import stores_in

    found = stores_in(path)
    if found != [path]:
        raise ConfigError(f"{path}: holds {count(len(found), 'store')}: name one of them, such as {found[0]}")
    return path


@asynccontextmanager
async def _owned(path: Path, key_file: Path | None) -> AsyncIterator[LsmStore]:
    from flowkit.store import Host, Inline, open_store

    async with open_store(_one(path), host=Host(runner=Inline()), keys=keys_of(key_file)) as store:
        assert isinstance(store, LsmStore)
        if store.undecided is not None:
            raise StoreError(
                f"{path}: commit {store.undecided.number} is undecided: its app knows whether it counts, once it runs "
                f"again; or take it to count: flowkit store copy {path} NEW"
            )
        yield store


def _end(end: int | None) -> str:
    return "-" if end is None else iso(end)


def _json(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
