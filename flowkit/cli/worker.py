"""`flowkit worker`: takes its share of an app's live tasks until it is told to stop."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowkit.cli.arguments import Broker, Http, LogLevel, Module, State, pairs
from flowkit.cli.load import load_app
from flowkit.cli.logging import set_up_logs
from flowkit.cli.loop import run_loop
from flowkit.cli.outcome import MOVED, OK
from flowkit.options import WorkerOptions
from flowkit.stopping import PARENT

if TYPE_CHECKING:
    from flowkit.cli.log_shipping import Shipper
    from flowkit.worker import Worker

HELP = """Run an app live: join the other workers of the app and take a share of its tasks.

Topics are on the broker; --bind leads sinks (and topics that should not be there, and the dead letters) to files or
services: s3://, dynamodb://, kinesis://, firehose://, lambda://, opensearch://, redshift://, sqs://, sns://, events://,
cloudwatch://, logs:// (see README). On SIGTERM or Ctrl-C it finishes what it has taken in, commits, and leaves within
FLOWKIT_GRACE ms (25000). In a container nothing needs to be said: FLOWKIT_APP, FLOWKIT_BROKER and FLOWKIT_STATE are
taken from the environment. With FLOWKIT_STORE_KEY_FILE (a file with a key of 32 bytes; or FLOWKIT_STORE_KEY, the key in
hex or base64; or FLOWKIT_STORE_KMS_KEY, a key of AWS KMS as alias/NAME, id or ARN) the state is encrypted at rest.
`flowkit iam` prints the rights that a worker needs on AWS.

A topic with a pattern is all topics of the broker that match, which is looked at every FLOWKIT_TOPIC_REFRESH ms (5000):
what comes is read, what goes is left, with a word in the log. While none matches, the worker waits.

With --checkpoints the state of each task goes there every minute, what is new of it, so that a worker on another
machine can go on from it, with the frames that the broker keeps (kafka://) from after it. For s3://BUCKET/PREFIX
credentials, region and endpoint come from where the AWS tools take them; ?sse=aws:kms&kms_key=ID encrypts there, and
?owner=ACCOUNT refuses a bucket of another account.
Where there is only Kafka, kafka://HOST:PORT/TOPIC takes the options and secrets that --broker takes; the topic is made,
compacted and without retention. Workers need the right to write to it, to read its settings, and to the transactional
ids flowkit-checkpoints/TOPIC/….

With --from it begins with a savepoint (`flowkit savepoint`): an app that has done nothing on this broker yet takes its
state and positions from there. The flag may stay: what has begun goes on, whatever broke off. All workers need it until
every task has begun. An app that has commits of its own, or another number of partitions, is refused. An output file
that is there goes on as of the savepoint, and what stands behind is cut off; one that is not begins empty.

A broker that is away at the start is waited for, FLOWKIT_BROKER_PATIENCE ms (60000); one that refuses the worker is
not. While it is away later, the worker says so, is not ready (`flowkit health`), and goes on by itself afterwards.

With --http it serves /healthz, /readyz, /metrics (Prometheus), /flow, /tables and /why as JSON. PORT alone is on
127.0.0.1; any other address needs a token in FLOWKIT_HTTP_TOKEN (Authorization: Bearer …), but for the first two. With
the extra `otel` installed and OTEL_EXPORTER_OTLP_ENDPOINT (or FLOWKIT_OTEL=1) set it sends traces.

With --emf WHERE it writes its metrics in CloudWatch's Embedded Metric Format, under the names of Managed Flink: to
stdout, stderr or a path, whence the awslogs driver, FireLens or the agent carry them, or to `logs`: where FLOWKIT_LOGS
leads. WHERE may end in ?namespace=NAME&every=60s&level=task. FLOWKIT_LOGS=logs://GROUP/STREAM?create=yes sends log
lines to CloudWatch Logs, beside stderr; {host} and {pid} in it are filled in. A container needs that not: its log
driver carries stderr.

With --processes N it runs N workers in processes of their own, each with a part of the state directory
(DIR/process-0 …) and, with --http, the next port. One that dies is started again, after 1, 2, 4 … 30 s.

\b
Example:
  flowkit worker app.py --broker embedded://data/topics --bind alerts=alerts.jsonl --state data/state
"""

CODES = """\b
Exit codes:
  0  stopped by SIGTERM, Ctrl-C or `flowkit savepoint --stop`,
     everything committed
  1  the app failed
  2  wrong usage or configuration
  3  state, output or broker cannot be used (in use, full, damaged);
     what was committed is safe
"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("worker", help=HELP, epilog=CODES)(worker)


def worker(
    module: Module,
    broker: Broker,
    state: State,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            "--bind",
            "-b",
            metavar="NAME=URL",
            help="Where a sink or topic leads; in a file's name {partition} is filled in.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", envvar="FLOWKIT_BATCH_SIZE", help="Records fetched at once [5000]."),
    ] = None,
    commit_every: Annotated[
        int | None,
        typer.Option("--commit-every", metavar="N", envvar="FLOWKIT_COMMIT_EVERY", help="Records a commit [5000]."),
    ] = None,
    commit_interval: Annotated[
        int | None,
        typer.Option("--commit-interval", metavar="MS", envvar="FLOWKIT_COMMIT_INTERVAL", help="Or so long [1000]."),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints",
            metavar="URL",
            envvar="FLOWKIT_CHECKPOINTS",
            show_default=False,
            help="Publish the state there: file:///DIR, a path, s3://BUCKET/PREFIX, or kafka://HOST:PORT/TOPIC.",
        ),
    ] = None,
    checkpoint_interval: Annotated[
        int | None,
        typer.Option(
            "--checkpoint-interval", metavar="MS", envvar="FLOWKIT_CHECKPOINT_INTERVAL", help="So often [60000]."
        ),
    ] = None,
    from_savepoint: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SAVEPOINT",
            envvar="FLOWKIT_FROM_SAVEPOINT",
            show_default=False,
            help="Begin with the savepoint in this place; once begun, go on.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            metavar="N",
            envvar="FLOWKIT_PROCESSES",
            min=1,
            help="Workers to run here, one a core; the dead are started again.",
        ),
    ] = 1,
    http: Http = None,
    emf: Annotated[
        str | None,
        typer.Option(
            "--emf",
            metavar="WHERE",
            envvar="FLOWKIT_EMF",
            show_default=False,
            help="Write metrics for CloudWatch there: stdout, a path, logs.",
        ),
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when a .py file changes.")] = False,
    log_level: LogLevel = None,
) -> int:
    """Work until told to stop; the exit code."""
    if reload:
        from flowkit.cli.reload import run_reloading

        return run_reloading(module)
    binds = dict(pairs("--bind", bind or [], "NAME=FILE"))
    options = WorkerOptions.from_environment(
        batch_size=batch_size,
        commit_every=commit_every,
        commit_interval=commit_interval,
        checkpoints=checkpoints,
        checkpoint_interval=checkpoint_interval,
        from_savepoint=from_savepoint,
    )
    with _logs(log_level) as shipper:
        beside = beside_worker(http, emf, shipper)
        app = load_app(module)
        if processes > 1:
            from flowkit.cli.supervisor import supervise

            return supervise(app.name, Path(state), processes, options.grace / 1000, http)
        from flowkit.worker import serve

        supervised = PARENT in os.environ
        moved = run_loop(serve(app, broker, binds, state=state, options=options, beside=beside))
        return MOVED if moved and supervised else OK


@contextmanager
def _logs(level: str | None) -> "Iterator[Shipper | None]":
    """Set up logs, and send them to where FLOWKIT_LOGS leads. Raises ConfigError."""
    url = os.environ.get("FLOWKIT_LOGS")
    if not url:
        set_up_logs(level, "info")
        yield None
        return
    from flowkit.cli.log_shipping import Shipper

    shipper = Shipper(url)
    set_up_logs(level, "info", also=shipper.processor)
    shipper.start()
    try:
        yield shipper
    finally:
        shipper.stop()


def beside_worker(
    http: str | None, emf: str | None = None, shipper: "Shipper | None" = None
) -> "Callable[[Worker], AbstractAsyncContextManager[object]] | None":
    """What goes on as long as a worker runs: the server that shows it, and its metrics for CloudWatch.

    Raises ConfigError for an address, or a place, that cannot be.
    """
    beside: list[Callable[[Worker], AbstractAsyncContextManager[object]]] = []
    if http:
        from flowkit.web import address_of, serve_http
        from flowkit.worker import WorkerView

        address = address_of(http)
        beside.append(lambda worker: serve_http(WorkerView(worker), address))
    if emf:
        from flowkit.cli.emf import beside_emf

        beside.append(beside_emf(emf, shipper))
    if not beside:
        return None

    @asynccontextmanager
    async def all_of_them(worker: "Worker") -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for each in beside:
                await stack.enter_async_context(each(worker))
            yield

    return all_of_them
