"""`flowkit run`: a bounded run over files, to the end of the input and of time."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowkit.cli.arguments import Http, LogLevel, Module, pairs
from flowkit.cli.load import load_app
from flowkit.cli.logging import set_up_logs
from flowkit.cli.loop import run_loop
from flowkit.cli.outcome import EXIT_CODES, OK
from flowkit.errors import ConfigError
from flowkit.options import WorkerOptions
from flowkit.stopping import Stop

if TYPE_CHECKING:
    from flowkit.worker import Task

HELP = """Run an app over files to their end: all windows close, everything is written.

FILE is .jsonl, .csv or .txt, also with .gz or .zst; `-` is standard input or output (JSON lines). Several files for one
topic are merged by time. Outputs are made anew; what cannot be used goes to the dead letters (APP-dead-letters.jsonl,
or DIR/dead-letters.jsonl), see flowkit dlq. As an input, kafka://HOST:PORT/TOPIC is a topic of a cluster, from its
`start` to where it ends now: the same app over what has piled up there. A topic of the app with a pattern takes a file
or a topic as any other, and kafka://HOST:PORT for all topics there that match.

With --state a run that was stopped or killed goes on from its last commit when the same command is given again; the
outputs then equal those of an unbroken run, byte for byte. With FLOWKIT_STORE_KEY_FILE (a file with a key of 32 bytes;
or FLOWKIT_STORE_KEY, the key in hex or base64; or FLOWKIT_STORE_KMS_KEY, a key of AWS KMS) the state is encrypted at
rest. --http lets a long run be looked at
meanwhile, as a worker: see flowkit worker --help.

\b
Examples:
  flowkit run app.py --input transactions=day1.jsonl --output alerts=alerts.jsonl
  zcat big.gz | flowkit run pkg.app:app --input clicks=- --output counts=- | head
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("run", help=HELP, epilog=EXIT_CODES)(run)


def run(
    module: Module,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="TOPIC=FILE",
            help="What the topic holds; FILE may be kafka://HOST:PORT/TOPIC or s3://BUCKET/PREFIX.",
        ),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", "-o", metavar="NAME=FILE", help="Where a topic or sink is written to."),
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="DIR", help="Keep state here, to go on after a stop.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", envvar="FLOWKIT_BATCH_SIZE", help="Records read at once [5000]."),
    ] = None,
    commit_every: Annotated[
        int | None,
        typer.Option("--commit-every", metavar="N", envvar="FLOWKIT_COMMIT_EVERY", help="Records a commit [5000]."),
    ] = None,
    http: Http = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="FILE", help="Where to write Prometheus metrics at the end."),
    ] = None,
    log_level: LogLevel = None,
) -> int:
    """Run a bounded run and say how it went; the exit code."""
    import sys

    # Without a terminal only errors are logged: what a run has to say stands in its last line.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    set_up_logs(log_level, "warning" if terminal else "error", repeats=10)
    inputs = pairs("--input", input_ or [], "TOPIC=FILE")
    outputs = pairs("--output", output or [], "NAME=FILE")
    options = WorkerOptions.from_environment(batch_size=batch_size, commit_every=commit_every)
    beside = beside_run(http, metrics) if http or metrics else None
    app = load_app(module)
    from flowkit.cli.progress import Bar, say_summary
    from flowkit.worker import run as run_bounded

    stop = Stop(options.grace / 1000)
    with Bar() as bar:
        summary = run_loop(
            run_bounded(
                app,
                inputs,
                outputs,
                state=state,
                options=options,
                on_progress=bar if bar.shown else None,
                should_stop=stop,
                beside=beside,
            )
        )
    letters = {app.dead_letters.name}
    bound = {name for name, _ in outputs} - letters
    read = {topic.name for group in app.plan().groups for topic in group.inputs}
    unbound = summary.emitted.keys() - bound - read - letters
    empty = read - {name for name, _ in inputs} - summary.emitted.keys()
    stopped = signal.Signals(stop.signal).name if stop.signal is not None and summary.stopped else None
    say_summary(app.name, summary, bound, unbound, empty, stopped)
    return OK if stopped is None or stop.signal is None else 128 + stop.signal


def beside_run(http: str | None, metrics: str | None) -> "Callable[[Task], AbstractAsyncContextManager[object]]":
    """What goes on beside a run: the server that shows it, and its metrics in a file once it has ended."""
    from flowkit.clock import SystemClock
    from flowkit.worker import RunView, exposition

    address = None
    if http:
        from flowkit.web import address_of

        address = address_of(http)
    if metrics and not Path(metrics).absolute().parent.is_dir():
        raise ConfigError(f"--metrics {metrics}: the directory {Path(metrics).parent} does not exist")

    @asynccontextmanager
    async def beside(task: "Task") -> AsyncIterator[None]:
        view = RunView(task, SystemClock())
        async with AsyncExitStack() as stack:
            if address is not None:
                from flowkit.web import serve_http

                await stack.enter_async_context(serve_http(view, address))
            yield
            if metrics:
                _write(Path(metrics), exposition(view))

    return beside


def _write(path: Path, data: bytes) -> None:
    """Write a file in one step: whoever reads it sees all of it, or nothing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)
