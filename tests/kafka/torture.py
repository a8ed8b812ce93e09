"""The torture test: workers on Apache Kafka under a seeded nemesis, and outputs that must be a sequential model's.

    python -m tests.kafka.torture --seconds 60 --seed 7
    python -m tests.kafka.torture --hours 1 --seed 3 --workers 4
    python -m tests.kafka.torture --seconds 30 --deeds kill,pause --sabotage no_fence     must end with a difference

A generator writes numbered events all the while. The nemesis takes the deeds in an order, and upon workers, drawn from
the seed. Then everything is drained, the workers are stopped, and what a reader of committed records finds, the
changelogs, the files and the final state are compared with the model. Exit code 0: they are the same, nothing was
lost, nothing came twice. 1: they differ, or somebody hung; the directory with all logs is kept, and named.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from tests.integration.processes import crew_in
from tests.kafka.proxy import Wire, WiredKafka
from tests.kafka.real import Kafka
from tests.kafka.sabotage import MISFORTUNES, MISTAKES
from tests.kafka.torture_deeds import DEEDS, Nemesis
from tests.kafka.torture_model import Book, Outside, differences, is_drained
from tests.kafka.torture_state import changelog_differences, state_differences

PARTITIONS = 3
RATE = 150
"""Events a second."""
PATIENCE = 60.0
"""For so many seconds nothing at all may come out while there is something to drain."""

Say = Callable[[str], None]


class Generator:
    """Writes the events of a book to a topic, at a steady rate, whatever becomes of the broker.

    Its producer is idempotent and tries again for ever: each event is there once.
    """

    def __init__(self, bootstrap: str, topic: str, book: Book, rate: int = RATE) -> None:
        self.bootstrap, self.topic, self.book, self.rate = bootstrap, topic, book, rate
        self.error: BaseException | None = None
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End with one event in each partition that closes all windows. Raises what went wrong in its thread."""
        self._enough.set()
        self._thread.join(120)
        if self._thread.is_alive():
            raise AssertionError("the generator does not end")
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """No more events: the run has failed."""
        self._enough.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._write())
        except BaseException as error:
            self.error = error

    async def _write(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, enable_idempotence=True, request_timeout_ms=180_000, linger_ms=10
        )
        await producer.start()
        try:
            while not self._enough.is_set():
                began = time.monotonic()
                sent = [await self._send(producer, self.book.make()) for _ in range(max(1, self.rate // 20))]
                for each in sent:
                    await each
                await asyncio.sleep(max(0.0, 0.05 - (time.monotonic() - began)))
            for user in _one_in_each(PARTITIONS):
                await (await self._send(producer, self.book.make_last(user)))
        finally:
            await producer.stop()

    async def _send(self, producer: Any, event: Any) -> Any:
        value = json.dumps(event._asdict()).encode()
        return await producer.send(self.topic, value, key=event.user.encode(), timestamp_ms=event.at)


def _one_in_each(partitions: int) -> list[str]:
    """A user for each partition."""
    from flowkit.source import partition_of

    found: dict[int, str] = {}
    for n in range(1_000):
        found.setdefault(partition_of(f"last {n}".encode(), partitions), f"last {n}")
    return [found[partition] for partition in range(partitions)]


def torture(
    directory: Path,
    *,
    seconds: float,
    seed: int,
    workers: int = 3,
    deeds: Sequence[str] = (),
    sabotage: Sequence[str] = (),
    supervisor: bool | None = None,
    checkpoints: bool | None = None,
    say: Say = print,
    patience: float = PATIENCE,
    kafka: Kafka | None = None,
    app: str = "torture",
) -> dict[str, Any]:
    """One run; what was done. Raises AssertionError with every difference. `directory` must be empty.

    With `kafka` the cluster is others' too: then no deed may be done to it, nor to the network, and `app` is a name
    that nobody else has there.

    What is None is the seed's: with an even one the last worker is a supervisor of two, with one that three does not
    divide the workers publish checkpoints, and so trim their changelogs.
    """
    book = Book(seed)
    started = time.monotonic()
    with ExitStack() as stack:
        wires: list[Wire] = []
        if kafka is None:
            kafka = wired = stack.enter_context(WiredKafka(directory / "kafka", workers + 1))
            wires = wired.wires
        crew = stack.enter_context(crew_in(directory))
        make_topics(kafka.bootstrap, app)
        outside = Outside(kafka.bootstrap, app)
        generator = Generator(kafka.bootstrap, f"{app}-events", book)
        nemesis = Nemesis(
            crew,
            kafka,
            random.Random(seed),
            app=app,
            workers=workers,
            wires=wires,
            sabotage=sabotage,
            supervisor=seed % 2 == 0 if supervisor is None else supervisor,
            checkpoints=seed % 3 > 0 if checkpoints is None else checkpoints,
            say=say,
        )
        try:
            generator.start()
            nemesis.rage(seconds, deeds or DEEDS)
            generator.stop()
            say(f"{book.n} events are written; draining")
            drain(book, outside, nemesis, say, patience)
            nemesis.stop_all()
            for path in sorted(directory.glob("ledger-*.jsonl")):
                outside.rows["ledger"] += [json.loads(line) for line in path.read_text().splitlines()]
            found = differences(book, outside.rows)
            log, commits = changelog_differences(kafka.bootstrap, app)
            found += log
            if not found:  # else there is no telling which state is the last
                found += state_differences(kafka.bootstrap, app, book, nemesis.states)
            found += nemesis.complaints
            if found:
                raise AssertionError("\n".join(["not what the model has:", *found, f"(logs: {directory})"]))
        finally:
            generator.abandon()
            nemesis.close()
            outside.close()
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "events": book.n,
        "commits": commits,
        "deeds": dict(Counter(nemesis.done)),
    }


def make_topics(bootstrap: str, app: str) -> None:
    """The topics that the app does not make, and those that must be there to be read."""
    from flowkit.source.kafka_address import KafkaAddress
    from flowkit.source.kafka_topics import KafkaTopics

    async def make() -> None:
        async with KafkaTopics(KafkaAddress.parse(f"kafka://{bootstrap}", {})) as topics:
            for kind, count in (("events", PARTITIONS), ("users", 3), ("items", 2), ("shops", 2), ("sizes", 1)):
                await topics.create(f"{app}-{kind}", count)
            await topics.create("dead-letters", 1)

    asyncio.run(make())


def drain(book: Book, outside: Outside, nemesis: Nemesis, say: Say, patience: float) -> None:
    """Until as much has come out as must. Raises AssertionError, with what is missing, if no more comes."""
    moved, told = time.monotonic(), 0.0
    before: dict[str, int] = {}
    while True:
        outside.read()
        if is_drained(book, outside):
            return
        counts = {kind: len(rows) for kind, rows in outside.rows.items()}
        now = time.monotonic()
        if counts != before:
            moved, before = now, counts
        if now - moved > patience:
            found = "\n".join(differences(book, outside.rows))
            raise AssertionError(
                f"nothing came out for {patience:g} s: {counts}, of {book.n} events, {len(book.closed)} and "
                f"{len(book.sizes)} windows\nnot what the model has:\n{found}\n{nemesis.report()}"
            )
        if now - told > 5:
            told = now
            say(f"  so far {counts}")
        time.sleep(0.2)


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kafka.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="deeds:\n"
        + "\n".join(f"  {name:15} {(deed.__doc__ or '').splitlines()[0]}" for name, deed in _deeds())
        + "\n\nsabotage (several by commas):\n"
        + "\n".join(f"  {n:21} {(f.__doc__ or '').splitlines()[0]}" for n, f in (MISTAKES | MISFORTUNES).items()),
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long the nemesis rages [60]")
    parser.add_argument("--minutes", type=float, default=0, help="… in minutes")
    parser.add_argument("--hours", type=float, default=0, help="… in hours")
    parser.add_argument("--seed", type=int, default=None, help="of all that is drawn [by the clock; it is told]")
    parser.add_argument(
        "--workers",
        type=int,
        default=3,
        help="worker processes [3]; with an even seed the last one is a supervisor of two",
    )
    parser.add_argument("--deeds", default="", metavar="A,B", help="only these [all]")
    parser.add_argument("--sabotage", default="", metavar="A,B", help="start workers with these mistakes in them")
    parser.add_argument("--directory", default=None, help="where everything is kept [a new one below the temporary]")
    given = parser.parse_args(words)
    deeds = [deed for deed in given.deeds.split(",") if deed]
    sabotage = [name for name in given.sabotage.split(",") if name]
    if unknown := [*set(deeds).difference(DEEDS), *set(sabotage).difference(MISTAKES | MISFORTUNES)]:
        parser.error(f"there is no {', '.join(unknown)}; see --help")
    seed = given.seed if given.seed is not None else time.time_ns() % 1_000_000
    directory = Path(given.directory or tempfile.mkdtemp(prefix="torture-"))
    directory.mkdir(parents=True, exist_ok=True)
    seconds = given.hours * 3600 + given.minutes * 60 or given.seconds
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that a broker is away is no news here
    print(f"seed {seed}, {seconds:g} s, everything is in {directory}", flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    try:
        done = torture(
            directory, seconds=seconds, seed=seed, workers=given.workers, deeds=deeds, sabotage=sabotage, say=say
        )
    except AssertionError as error:
        print(f"FAILED with seed {seed}\n{error}", flush=True)
        return 1
    print(f"nothing lost, nothing twice: {json.dumps(done)}", flush=True)
    return 0


def _deeds() -> list[tuple[str, Callable[..., object]]]:
    return [(name, getattr(Nemesis, name)) for name in DEEDS]


if __name__ == "__main__":
    sys.exit(main())
