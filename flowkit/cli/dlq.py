"""`flowkit dlq list|show|replay`: records that could not be used, looked at and sent round again."""

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flowkit.cli.arguments import OptionalBroker, OptionalState, pairs
from flowkit.cli.loop import run_loop
from flowkit.cli.outcome import EXIT_CODES, OK, out, say
from flowkit.cli.show import columns, count, iso, record_value, text
from flowkit.codec import enveloped
from flowkit.errors import ConfigError, InputError
from flowkit.record import DeadLetter

Source = Annotated[
    str | None,
    typer.Argument(metavar="[FILE]", show_default=False, help="A file of dead letters, - for standard input."),
]
TOPIC = "dead-letters"
LETTER_BYTES = 1 << 30
"""A letter is longer than the record in it, which may be as long as a source takes."""

TABLE_EVENT = re.compile(r".+\.(closed|changes|late)")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(
        help="Dead letters: what could not be used, from a file, a state directory (--state) or a broker (--broker).",
        no_args_is_help=True,
    )
    group.command("list", epilog=EXIT_CODES)(list_)
    group.command("show", epilog=EXIT_CODES)(show)
    group.command("replay", help=REPLAY_HELP, epilog=EXIT_CODES)(replay)
    app.add_typer(group, name="dlq")


def list_(
    file: Source = None,
    state: OptionalState = None,
    broker: OptionalBroker = None,
    topic: Annotated[str | None, typer.Option("--topic", metavar="TOPIC", help="Of this topic only.")] = None,
) -> int:
    """List dead letters: number, topic, position, error and reason."""
    rows = [
        (number, letter.topic, letter.position, letter.error, text(letter.reason.encode(), 100))
        for number, letter in enumerate(read_letters(file, state, broker), 1)
        if topic in (None, letter.topic)
    ]
    out(columns(("N", "TOPIC", "POSITION", "ERROR", "REASON"), rows) if rows else "no dead letters")
    return OK


def show(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Its number in the list.")],
    file: Source = None,
    state: OptionalState = None,
    broker: OptionalBroker = None,
) -> int:
    """Show all of one dead letter: its key and value, the traceback of the agent that it made fail."""
    letter = pick(read_letters(file, state, broker), [number])[0]
    attempts = count(letter.attempts, "attempt") if letter.attempts else "no agent saw it"
    for name, value in (
        ("topic", letter.topic),
        ("partition", letter.partition),
        ("position", letter.position),
        ("time", "-" if letter.time is None else iso(letter.time)),
        ("agent", letter.agent or "-"),
        ("attempts", attempts),
        ("error", f"{letter.error}: {letter.reason}"),
        ("key", text(letter.key)),
        ("value", record_value(letter.value)),
    ):
        out(f"{name:<10} {value}")
    if letter.traceback:
        out(f"\n{letter.traceback.rstrip()}")
    return OK


REPLAY_HELP = """Send dead letters round again: all of them, or those with the numbers given by -N.

With --to a broker's URL their keys, values and times go back to their topics there. With --output TOPIC=FILE the
original lines are written to a file (or `-`), for flowkit run --input TOPIC=FILE. The dead letters themselves stay
where they are.

\b
Examples:
  flowkit dlq replay app-dead-letters.jsonl --output clicks=again.jsonl
  flowkit dlq replay --broker embedded://data -N 3 -N 4 --to embedded://data
"""


def replay(
    file: Source = None,
    state: OptionalState = None,
    broker: OptionalBroker = None,
    numbers: Annotated[
        list[int] | None, typer.Option("--number", "-N", metavar="N", min=1, help="Only this one; may be repeated.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="URL", help="The broker that gets them.")] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", "-o", metavar="TOPIC=FILE", help="The file that gets those of TOPIC."),
    ] = None,
    header: Annotated[
        str | None, typer.Option("--header", metavar="LINE", help="The first line of a .csv FILE: its columns.")
    ] = None,
) -> int:
    """Send dead letters round again."""
    if (to is None) == (not output):
        raise ConfigError("where should they go? give --to URL, or --output TOPIC=FILE")
    letters = read_letters(file, state, broker)
    if numbers:
        letters = pick(letters, numbers)
    events = [letter for letter in letters if letter.partition < 0 and TABLE_EVENT.fullmatch(letter.topic)]
    if events:
        names = ", ".join(sorted({letter.topic for letter in events}))
        say(f"{count(len(events), 'dead letter')} of {names} left out: what a table sends is no record of a topic")
    rest = [letter for letter in letters if letter not in events]
    if to is not None:
        run_loop(_put(to, rest))
    else:
        sent_on = [letter for letter in rest if enveloped(letter.value) is not None]
        if sent_on:
            names = ", ".join(sorted({letter.topic for letter in sent_on}))
            say(f"{count(len(sent_on), 'dead letter')} of {names} left out: an internal topic; use --to URL")
        rest = [letter for letter in rest if letter not in sent_on]
        _write(pairs("--output", output or [], "TOPIC=FILE"), rest, header)
    return OK


def pick(letters: Sequence[DeadLetter], numbers: Sequence[int]) -> list[DeadLetter]:
    """The letters with these numbers, which begin at 1. Raises ConfigError if there are not so many."""
    missing = [number for number in numbers if number > len(letters)]
    if missing:
        raise ConfigError(f"there is no dead letter {missing[0]}: there are {len(letters)}")
    return [letters[number - 1] for number in numbers]


# In


def read_letters(file: str | None, state: str | None, broker: str | None) -> list[DeadLetter]:
    """All dead letters of a file, else of a broker, else of a state directory. Raises ConfigError, InputError."""
    if file is not None:
        if Path(file).is_dir():
            return read_letters(None, file, None)
        return run_loop(_all(_from_file(file)))
    if broker is not None:
        return run_loop(_all(_from_broker(broker)))
    if state is None:
        raise ConfigError("which dead letters? name a file, or give --state DIR or --broker URL")
    path = Path(state) / f"{TOPIC}.jsonl"
    if not path.exists():
        if not Path(state).is_dir():
            raise ConfigError(f"{state}: no such directory")
        return []
    return run_loop(_all(_from_file(str(path))))


async def _all(letters: AsyncIterator[DeadLetter]) -> list[DeadLetter]:
    return [letter async for letter in letters]


async def _from_file(path: str) -> AsyncIterator[DeadLetter]:
    from flowkit.source import FileSource

    decode = _decoder()
    reader = await FileSource([path], max_record_bytes=LETTER_BYTES).open(0, None)
    try:
        while not reader.at_end:
            batch = await reader.fetch(1000)
            for index in range(len(batch) if batch is not None else 0):
                assert batch is not None
                yield decode(batch.values[index], batch.where(index))
    finally:
        await reader.close()


async def _from_broker(url: str) -> AsyncIterator[DeadLetter]:
    from flowkit.cli.topics import opened

    decode = _decoder()
    async with opened(url) as broker:
        if TOPIC not in await broker.topics():
            return
        for partition, end in enumerate(await broker.end_offsets(TOPIC)):
            at, _ = await broker.bounds(TOPIC, partition)
            while at < end:
                batch = await broker.read(TOPIC, partition, at, end - at)
                if not len(batch):
                    break
                for index in range(len(batch)):
                    yield decode(batch.values[index], batch.where(index))
                at = batch.position(len(batch))


def _decoder() -> Any:
    import msgspec

    decoder = msgspec.json.Decoder(DeadLetter)

    def decode(line: bytes | None, where: str) -> DeadLetter:
        try:
            return decoder.decode(line or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: is no dead letter: {error}") from None

    return decode


# Out


async def _put(url: str, letters: Sequence[DeadLetter]) -> None:
    from flowkit.cli.topics import opened
    from flowkit.clock import SystemClock

    now = SystemClock().now_ms()
    by_topic: dict[str, list[tuple[bytes | None, bytes | None, int]]] = {}
    for letter in letters:
        at = now if letter.time is None else letter.time
        by_topic.setdefault(letter.topic, []).append((letter.key, letter.value, at))
    async with opened(url) as broker:
        for topic in by_topic:
            await broker.end_offsets(topic)  # all topics are there, or nothing is put
        for topic, records in by_topic.items():
            await broker.put(topic, records)
            say(f"{count(len(records), 'record')} put back into {topic}")


def _write(outputs: Sequence[tuple[str, str]], letters: Sequence[DeadLetter], header: str | None) -> None:
    wanted = dict(outputs)
    for topic in {letter.topic for letter in letters} - wanted.keys():
        left = count(sum(letter.topic == topic for letter in letters), "dead letter")
        say(f"{left} of {topic} left out: there is no --output {topic}=FILE")
    for topic, path in wanted.items():
        lines = [_line(letter, path) for letter in letters if letter.topic == topic]
        written = count(len(lines), "record")
        if _is_csv(path):
            lines.insert(0, (header or _header_of(letters, topic, path)).encode())
        _write_lines(path, lines)
        say(f"{written} of {topic} written to {'standard output' if path == '-' else path}")


def _is_csv(path: str) -> bool:
    return ".csv" in Path(path).suffixes


def _line(letter: DeadLetter, path: str) -> bytes:
    """The record as a line: as it was, or its JSON without line ends."""
    import msgspec

    value = b"null" if letter.value is None else letter.value
    if b"\n" not in value or _is_csv(path):
        return value
    try:
        return msgspec.json.format(value, indent=-1)
    except msgspec.MsgspecError:
        raise ConfigError(
            f"{letter.position}: has several lines and is no JSON: a file of lines cannot hold it; use --to URL"
        ) from None


def _header_of(letters: Sequence[DeadLetter], topic: str, path: str) -> str:
    """The columns of the file that the letters came from."""
    for letter in letters:
        origin, colon, _ = letter.position.rpartition(":")
        if letter.topic == topic and colon and origin.endswith(".csv") and Path(origin).is_file():
            with Path(origin).open(encoding="utf-8-sig") as file:
                return file.readline().rstrip("\r\n")
    raise ConfigError(f"{path}: which columns? the file that they came from is not here: give --header LINE")


def _write_lines(path: str, lines: Sequence[bytes]) -> None:
    import asyncio

    from flowkit.sink import FileSink

    class Line:
        def __init__(self, value: bytes) -> None:
            self.key: bytes | None = None
            self.value: bytes | None = value
            self.time = 0
            self.order: int | None = None

    async def write() -> None:
        # As columns are only names to it, a CSV file's first line goes in like any other.
        sink = FileSink(path, [""])
        if sink.codec == "csv":
            sink.codec = "text"
        await sink.open(None)
        try:
            await sink.deliver(sink.stage([Line(line) for line in lines], final=True))
        finally:
            await sink.close()

    asyncio.run(write())
