"""`flowkit topics list|create|put|tail`: what a broker without a server holds, looked at and fed by hand."""

import heapq
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer

from flowkit.cli.arguments import Broker, Json
from flowkit.cli.loop import run_loop
from flowkit.cli.outcome import EXIT_CODES, OK, out, say
from flowkit.cli.show import columns, count, iso, record_value, text
from flowkit.clock import SystemClock
from flowkit.codec import EventTime, decode_mark, encode_key, enveloped
from flowkit.errors import ConfigError, InputError, TimeError
from flowkit.options import WorkerOptions
from flowkit.stopping import Stop

HELP = """Look at and feed the topics of a broker.

Topics named APP.STREAM are internal: a worker makes and writes them. Read them, but write nothing there.
"""

PUT_RECORDS = 1_000
"""Records written in one transaction."""

POLL_MS = 500

Row = tuple[int, int, int, bytes | None, bytes | None]
"""Time (ms), partition, offset, key, value."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(help=HELP, no_args_is_help=True)
    group.command("list", epilog=EXIT_CODES)(list_)
    group.command("create", epilog=EXIT_CODES)(create)
    group.command("put", epilog=EXIT_CODES)(put)
    group.command("tail", epilog=EXIT_CODES)(tail)
    app.add_typer(group, name="topics")


@asynccontextmanager
async def opened(url: str, *, make: bool = False) -> AsyncIterator[Any]:
    """The broker of `url`. Raises ConfigError if there is none yet, unless `make`."""
    from pathlib import Path

    from flowkit.source import open_broker

    broker = open_broker(url, SystemClock())
    if url.startswith("memory://"):
        raise ConfigError(f"broker {url!r}: lives in one process only; its topics cannot be seen from another")
    directory: Path | None = getattr(broker, "directory", None)
    if directory is not None and not make and not (directory / "broker.sqlite3").exists():
        raise ConfigError(f"no broker at {url} yet: flowkit topics create NAME --broker {url}")
    async with broker:
        yield broker


def list_(broker: Broker, json: Json = False) -> int:
    """List topics with their partitions and how many records they hold.

    Internal ones, named APP.STREAM, are those through which a worker's group_by sends events, with marks between them
    that tell how far the senders are; on kafka:// also APP-GROUP-changelog, the tasks' frames. A topic of the app with
    a pattern is none of these: it stands for all that match, but for internal ones. The records of a stream of Kinesis
    are not counted: null as JSON.
    """
    from flowkit.source import Sharded

    async def work() -> list[tuple[str, int, int | None, bool]]:
        async with opened(broker) as it:
            rows: list[tuple[str, int, int | None, bool]] = []
            for name, partitions in (await it.topics()).items():
                numbers = range(0 if isinstance(it, Sharded) else partitions)
                bounds = [await it.bounds(name, number) for number in numbers]
                records = sum(end - start for start, end in bounds) if bounds else None
                rows.append((name, partitions, records, await _is_internal(it, name)))
            return rows

    rows = run_loop(work())
    if json:
        _print_json(
            [
                {"topic": name, "partitions": partitions, "records": n, "internal": internal}
                for name, partitions, n, internal in rows
            ]
        )
    else:
        shown = [
            (name, partitions, f"{'-' if n is None else n}{' (internal)' if internal else ''}")
            for name, partitions, n, internal in rows
        ]
        out(columns(("TOPIC", "PARTITIONS", "RECORDS"), shown))
    return OK


def create(
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC …", help="Names of topics.", show_default=False)],
    broker: Broker,
    partitions: Annotated[
        int,
        typer.Option(
            "--partitions", "-p", metavar="N", envvar="FLOWKIT_PARTITIONS", help="The most workers that can share it."
        ),
    ] = WorkerOptions().partitions,
) -> int:
    """Make topics; one that exists already with as many partitions is left as it is.

    Topics whose agents share a table need equal numbers of partitions.
    """

    async def work() -> None:
        async with opened(broker, make=True) as it:
            for name in topics:
                await it.create(name, partitions)

    run_loop(work())
    return OK


def put(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    broker: Broker,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="JSON lines; - is standard input.")] = "-",
    key: Annotated[str | None, typer.Option("--key", metavar="FIELD", help="The field that is the key.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="FIELD", help="The field that is the time; else it is now.")
    ] = None,
    time_unit: Annotated[str, typer.Option("--time-unit", help="Of times that are numbers: s, ms, us or ns.")] = "ms",
    raw: Annotated[bool, typer.Option("--raw", help="Put lines as they are, JSON or not.")] = False,
) -> int:
    """Put the lines of a file, or of standard input, into a topic.

    Records of one key go to one partition; those without are spread. A line that is no JSON ends it, with what was put
    before it in place; --raw takes every line, to see what an app makes of it.
    """
    if raw and (key or time):
        raise ConfigError("--raw: a line that is not looked into has no --key and no --time")
    event_time = EventTime(time_unit)
    clock = SystemClock()

    def record(line: bytes, where: str) -> tuple[bytes | None, bytes | None, int]:
        now = clock.now_ms()
        if raw:
            return None, line, now
        import msgspec

        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: not JSON: {error}") from None
        fields = value if isinstance(value, dict) else {}
        for field in (key, time):
            if field is not None and fields.get(field) is None:
                raise InputError(f"{where}: there is no {field!r} in {text(line, 80)}")
        try:
            at = now if time is None else event_time.one(fields[time])
        except TimeError as error:
            raise InputError(f"{where}: {time}: {error}") from None
        return None if key is None else encode_key(fields[key]), line, at

    async def work() -> int:
        done = 0
        async with opened(broker) as it:
            # Before standard input is waited for: an unknown topic is told, too.
            if await _is_internal(it, topic):
                raise ConfigError(
                    f"topic {topic!r} is internal: flowkit alone writes it; put records into the topics of the app"
                )
            try:
                async for records in _lines(file, record):
                    await it.put(topic, records)
                    done += len(records)
            finally:
                say(f"{count(done, 'record')} put into {topic}")
        return done

    run_loop(work())
    return OK


async def _is_internal(broker: Any, topic: str) -> bool:
    from flowkit.source import Sharded, is_internal

    # The first record of a stream cannot be asked for.
    return not isinstance(broker, Sharded) and bool(await is_internal(broker, topic))


async def _lines(file: str, record: Any) -> AsyncIterator[list[Any]]:
    """Records of a file's lines, in lists; what stood before a wrong line is given before it is told."""
    from flowkit.source import FileSource

    reader = await FileSource([file]).open(0, None)
    try:
        if reader.fields is not None:
            raise ConfigError(f"{file}: is CSV; put takes JSON lines")
        while not reader.at_end:
            batch = await reader.fetch(PUT_RECORDS)
            if batch is None:
                continue
            found = []
            try:
                for index, value in enumerate(batch.values):
                    found.append(record(value, batch.where(index)))
            except InputError:
                yield found
                raise
            yield found
    finally:
        await reader.close()


def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    broker: Broker,
    number: Annotated[int, typer.Option("--number", "-n", metavar="N", min=0, help="How many records.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones, until Ctrl-C.")] = False,
    json: Json = False,
) -> int:
    """Print the last records of a topic, by time: key, time and value, separated by tabs."""
    stop = Stop() if follow else None

    async def work() -> None:
        async with opened(broker) as it:
            ends = await it.end_offsets(topic)
            mark = await it.wait(0)
            last = [await _last(it, topic, partition, end, number) for partition, end in enumerate(ends)]
            _print_rows(heapq.nlargest(number, (row for rows, _ in last for row in rows))[::-1], json)
            positions = [position for _, position in last]
            while stop is not None and not stop():
                mark = await it.wait(POLL_MS, mark)
                for partition, end in enumerate(await it.end_offsets(topic)):
                    # What lies before the end may not be committed yet: it counts, and moves the end, when it is.
                    if end != ends[partition]:
                        rows, positions[partition] = await _read(it, topic, partition, positions[partition], end)
                        _print_rows(rows, json)
                        ends[partition] = end

    run_loop(work())
    return OK if stop is None or stop.signal is None else 128 + stop.signal


async def _last(broker: Any, topic: str, partition: int, end: int, number: int) -> tuple[list[Row], int]:
    """The last `number` records before `end`, and where to go on after them."""
    oldest, _ = await broker.bounds(topic, partition)
    # Twice as many offsets, for every other one may be the mark of a transaction; where transactions were aborted, or
    # records compacted, it takes more.
    span = 2 * number
    while True:
        start = max(end - span, oldest)
        rows, position = await _read(broker, topic, partition, start, end)
        if len(rows) >= number or start == oldest:
            return rows[max(len(rows) - number, 0) :], position
        span *= 8


async def _read(broker: Any, topic: str, partition: int, start: int, end: int) -> tuple[list[Row], int]:
    """The records from `start` to `end`, as far as they are committed, and where to go on after them."""
    rows: list[Row] = []
    while start < end:
        batch = await broker.read(topic, partition, start, end - start)
        if not len(batch):
            break
        offsets = map(batch.offset, range(len(batch)))  # with gaps where a cluster keeps marks of transactions
        rows += zip(batch.times, _same(partition), offsets, batch.keys, batch.values)  # noqa: B905
        start = batch.position(len(batch))
    return rows, start


def _same(number: int) -> Iterator[int]:
    while True:
        yield number


def _print_rows(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        _print_json(
            [
                {
                    "partition": partition,
                    "offset": offset,
                    "key": None if key is None else text(key),
                    "time": iso(at),
                    "value": _value(value),
                }
                for at, partition, offset, key, value in rows
            ]
        )
    else:
        for at, _, _, key, value in rows:
            out(f"{text(key)}\t{iso(at)}\t{record_value(value)}")
    sys.stdout.flush()


def _value(data: bytes | None) -> Any:
    """A value as JSON shows it best: itself if it is JSON, text otherwise."""
    import msgspec

    if data is None:
        return None
    if decode_mark(data) is not None or enveloped(data) is not None:
        event = enveloped(data)
        return record_value(data) if event is None else msgspec.Raw(record_value(data).encode())
    try:
        return msgspec.Raw(data) if msgspec.json.decode(data) is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return text(data)


def _print_json(rows: Sequence[Any]) -> None:
    import msgspec

    for row in rows:
        out(msgspec.json.encode(row).decode())
