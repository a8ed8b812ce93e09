"""`flowkit receive firehose`: an endpoint for Amazon Data Firehose that feeds a topic."""

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowkit.cli.arguments import Broker, LogLevel
from flowkit.cli.logging import set_up_logs
from flowkit.cli.loop import run_loop
from flowkit.cli.outcome import EXIT_CODES, OK
from flowkit.clock import SystemClock
from flowkit.errors import ConfigError
from flowkit.stopping import Stop

if TYPE_CHECKING:
    import ssl

HELP = "Take records in from services that push them, and put them into a topic."
FIREHOSE = """Be the HTTP endpoint that a delivery stream of Amazon Data Firehose posts to, and feed a topic.

A request is answered with success once all its records are in the topic, durably: they come at least once. One that is
tried again under its id is put once, unless this process was restarted meanwhile. What cannot be put now is refused:
Firehose tries again, as long as its RetryOptions say, then puts it into its error bucket.

It listens on 127.0.0.1 unless told otherwise; any other address needs --access-key-file: the key that the delivery
stream was given, in a file that only its owner may read; several, a line each, while one takes over from another.
Firehose speaks HTTPS to port 443 only: put a load balancer with a certificate before it, or give --certificate.

A record's time is the request's. --key is for topics whose agents keep state by it: records without the field, or that
are no JSON objects, are put without a key, and told. On kinesis:// a role needs kinesis:ListShards and PutRecords.

\b
Example:
  flowkit receive firehose --broker kafka://broker:9092 --topic orders \\
    --key customer --listen 0.0.0.0:8080 --access-key-file /run/secrets/firehose
"""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)
    group.callback()(_nothing)
    group.command("firehose", help=FIREHOSE, epilog=EXIT_CODES)(firehose)
    app.add_typer(group, name="receive")


def _nothing() -> None:
    """One command so far; with this it has a name all the same."""


def firehose(
    broker: Broker,
    topic: Annotated[str, typer.Option("--topic", metavar="NAME", show_default=False, help="Where records go.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="[HOST:]PORT", envvar="FLOWKIT_FIREHOSE_LISTEN", help="Where to listen.")
    ] = "127.0.0.1:8088",
    access_key_file: Annotated[
        Path | None,
        typer.Option(
            "--access-key-file",
            metavar="FILE",
            envvar="FLOWKIT_FIREHOSE_ACCESS_KEY_FILE",
            show_default=False,
            help="The delivery stream's access key.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="FIELD", show_default=False, help="The field that is the key.")
    ] = None,
    attributes: Annotated[
        str | None,
        typer.Option(
            "--attributes",
            metavar="FIELD",
            show_default=False,
            help="Add the delivery stream's common attributes under this name.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", show_default=False, help="Speak HTTPS with this (PEM)."),
    ] = None,
    certificate_key: Annotated[
        Path | None,
        typer.Option(
            "--certificate-key", metavar="FILE", show_default=False, help="Its private key, unless it is in there."
        ),
    ] = None,
    log_level: LogLevel = None,
) -> int:
    """Receive until told to stop; the exit code."""
    set_up_logs(log_level, "info")
    from flowkit.web import listen_at

    secrets = [] if access_key_file is None else _secrets(access_key_file)
    host, port, local = listen_at("--listen", listen)
    if not local and not secrets:
        raise ConfigError(
            f"--listen {listen}: others than this machine could put records there, so a key is needed: give "
            f"--access-key-file, or listen at 127.0.0.1 by --listen {port}"
        )
    tls = None if certificate is None else _tls(certificate, certificate_key)
    run_loop(_receive(broker, topic, key, attributes, secrets, host, port, tls))
    return OK


def _tls(certificate: Path, key: Path | None) -> "ssl.SSLContext":
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        named = f"--certificate {certificate}" + ("" if key is None else f" --certificate-key {key}")
        raise ConfigError(f"{named}: cannot be used: {error}") from None
    return context


def _secrets(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1 << 16).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--access-key-file {path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISREG(mode) and mode & 0o027:
        raise ConfigError(f"--access-key-file {path}: is open to others (mode {stat.S_IMODE(mode):04o}): chmod 0600 it")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ConfigError(f"--access-key-file {path}: holds no key: write one a line, such as `openssl rand -hex 32`")
    return found


async def _receive(
    url: str,
    topic: str,
    key: str | None,
    attributes: str | None,
    secrets: list[str],
    host: str,
    port: int,
    tls: "ssl.SSLContext | None",
) -> None:
    from flowkit.source import Endpoint, Target, open_feed, serve_firehose

    clock = SystemClock()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with open_feed(url, clock) as feed:
        if not await feed.partitions(topic):
            raise ConfigError(f"no topic {topic!r} at {url.partition('?')[0]}: make it first (flowkit topics create)")
        stop = Stop(30.0, lambda: loop.call_soon_threadsafe(stopping.set))
        try:
            endpoint = Endpoint(feed, Target(topic, key, attributes), clock, secrets)
            async with serve_firehose(endpoint, host, port, tls=tls):
                await stopping.wait()
        finally:
            stop.over()
