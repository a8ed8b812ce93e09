"""The torture test: workers on Apache Kafka under a seeded nemesis, and outputs that must be a sequential model's.

    python -m tests.kafka.torture --seconds 60 --seed 7
    python -m tests.kafka.torture --minutes 5 --nodes 3 --guarantee at-least-once --workers 2
    python -m tests.kafka.torture --hours 1                  runs of five minutes, seed by seed, in all variants
    python -m tests.kafka.torture --seconds 30 --deeds kill,pause --sabotage no_fence     must end with a difference

A generator writes numbered events all the while. The nemesis takes the deeds in an order, and upon workers and nodes,
drawn from the seed. Then everything is drained, the workers are stopped, and what a reader of committed records finds,
the changelogs, the files and the final state are compared with the model. Exit code 0: they are the same, nothing was
lost, nothing came twice; at least once: nothing was lost, and what came twice is what may (`torture_loose`). 1: they
differ, or somebody hung; the directory with all logs is kept, and named, and so is the command that does it again.
"""

import argparse
import json
import logging
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flowkit.options import Guarantee
from tests.integration.processes import crew_in
from tests.kafka import namespaces
from tests.kafka.namespaces import LanedKafka
from tests.kafka.proxy import Way, WiredKafka
from tests.kafka.real import Kafka
from tests.kafka.sabotage import MISFORTUNES, MISTAKES
from tests.kafka.torture_deeds import DEEDS, DEEDS_OF_THREE, Nemesis
from tests.kafka.torture_events import Generator, make_topics
from tests.kafka.torture_loose import is_drained_loosely, items_sent, loose_differences
from tests.kafka.torture_model import Book, Outside, differences, is_drained
from tests.kafka.torture_nodes import NODE_DEEDS, Nodes
from tests.kafka.torture_state import changelog_differences, state_differences

PATIENCE = 60.0
"""For so many seconds nothing at all may come out while there is something to drain."""

Say = Callable[[str], None]
Network = Literal["namespaces", "proxy"]


class Variant(NamedTuple):
    """What is tortured."""

    nodes: int = 1
    guarantee: Guarantee = "exactly once"
    workers: int = 3


VARIANTS = (
    Variant(),
    Variant(nodes=3),
    Variant(guarantee="at least once"),
    Variant(workers=4),
    Variant(nodes=3, guarantee="at least once", workers=2),
)
"""An hour goes through them again and again."""


def torture(
    directory: Path,
    *,
    seconds: float,
    seed: int,
    variant: Variant = VARIANTS[0],
    deeds: Sequence[str] = (),
    sabotage: Sequence[str] = (),
    supervisor: bool | None = None,
    checkpoints: bool | None = None,
    network: Network = "proxy",
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
        ways: Sequence[Way] = []
        if kafka is None:
            make: type[WiredKafka | LanedKafka] = WiredKafka if network == "proxy" else LanedKafka
            own = make(directory / "kafka", variant.workers + 1, variant.nodes)
            kafka = stack.enter_context(own)
            ways = own.ways
        crew = stack.enter_context(crew_in(directory))
        make_topics(kafka.bootstrap, app)
        outside = Outside(kafka.bootstrap, app)
        generator = Generator(kafka.bootstrap, f"{app}-events", book)
        nemesis = Nemesis(
            crew,
            kafka,
            random.Random(seed),
            app=app,
            workers=variant.workers,
            ways=ways,
            env={"TORTURE_GUARANTEE": variant.guarantee},
            sabotage=sabotage,
            supervisor=seed % 2 == 0 if supervisor is None else supervisor,
            checkpoints=seed % 3 > 0 if checkpoints is None else checkpoints,
            say=say,
        )
        try:
            generator.start()
            nemesis.rage(seconds, deeds or (DEEDS if variant.nodes == 1 else DEEDS_OF_THREE))
            generator.stop()
            say(f"{book.n} events are written; draining")
            drain(book, outside, nemesis, say, patience, variant.guarantee)
            nemesis.stop_all()
            outside.read()
            commits = compare(directory, kafka, app, book, outside, nemesis, variant)
        finally:
            generator.abandon()
            nemesis.close()
            outside.close()
    return {
        "seed": seed,
        **variant._asdict(),
        "network": network,
        "seconds": round(time.monotonic() - started),
        "events": book.n,
        "copies": len(outside.rows["users"]) + len(outside.rows["items"]) - 2 * book.n,
        "commits": commits,
        "deeds": dict(Counter(nemesis.done)),
    }


def compare(
    directory: Path, kafka: Kafka, app: str, book: Book, outside: Outside, nemesis: Nemesis, variant: Variant
) -> int:
    """The number of commits. Raises AssertionError with every difference."""
    loosely = variant.guarantee == "at least once"
    for path in sorted(directory.glob("ledger-*.jsonl")):
        outside.rows["ledger"] += [json.loads(line) for line in path.read_text().splitlines()]
    found = loose_differences(book, outside.rows) if loosely else differences(book, outside.rows)
    log, commits = changelog_differences(kafka.bootstrap, app)
    found += log
    if not found:  # else there is no telling which state is the last
        items = items_sent(outside.rows["items"]) if loosely else None
        found += state_differences(kafka.bootstrap, app, book, nemesis.states, items)
    if variant.nodes > 1:
        found += nemesis.nodes.few_copies()
    found += nemesis.complaints
    if found:
        raise AssertionError("\n".join(["not what the model has:", *found, f"(logs: {directory})"]))
    return commits


def drain(
    book: Book,
    outside: Outside,
    nemesis: Nemesis,
    say: Say,
    patience: float,
    guarantee: Guarantee = "exactly once",
) -> None:
    """Until as much has come out as must. Raises AssertionError, with what is missing, if no more comes."""
    loosely = guarantee == "at least once"
    moved, told = time.monotonic(), 0.0
    before: dict[str, int] = {}
    while True:
        outside.read()
        if is_drained_loosely(book, outside.rows) if loosely else is_drained(book, outside):
            return
        counts = {kind: len(rows) for kind, rows in outside.rows.items()}
        now = time.monotonic()
        if counts != before:
            moved, before = now, counts
        if now - moved > patience:
            found = "\n".join((loose_differences if loosely else differences)(book, outside.rows))
            raise AssertionError(
                f"nothing came out for {patience:g} s: {counts}, of {book.n} events, {len(book.closed)} and "
                f"{len(book.sizes)} windows\nnot what the model has:\n{found}\n{nemesis.report()}"
            )
        if now - told > 5:
            told = now
            say(f"  so far {counts}")
        time.sleep(0.2)


# --- the command ------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """One run, or one after the other until the time is up."""
    parser = _parser()
    given = parser.parse_args(words)
    deeds = [deed for deed in given.deeds.split(",") if deed]
    sabotage = [name for name in given.sabotage.split(",") if name]
    known = {*DEEDS, *(DEEDS_OF_THREE if given.nodes == 3 else ())}
    if unknown := [*set(deeds).difference(known), *set(sabotage).difference(MISTAKES | MISFORTUNES)]:
        parser.error(f"there is no {', '.join(unknown)} (here); see --help")
    network: Network = given.network or ("namespaces" if namespaces.permitted() else "proxy")
    if network == "namespaces" and not namespaces.inside():
        namespaces.enter(["-m", "tests.kafka.torture", *(sys.argv[1:] if words is None else words)])
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that a broker is away is no news here
    seed = given.seed if given.seed is not None else time.time_ns() % 1_000_000
    seconds = given.minutes * 60 or given.seconds or (300 if given.hours else 60)
    until = time.monotonic() + given.hours * 3600
    for n in range(1_000_000):
        variant = VARIANTS[n % len(VARIANTS) if given.hours else 0]
        variant = Variant(
            given.nodes or variant.nodes,
            given.guarantee.replace("-", " ") if given.guarantee else variant.guarantee,
            given.workers or variant.workers,
        )
        if not _run(given.directory, seconds, seed + n, variant, deeds, sabotage, network):
            return 1
        if time.monotonic() > until:
            break
    return 0


def _run(
    directory: str | None,
    seconds: float,
    seed: int,
    variant: Variant,
    deeds: Sequence[str],
    sabotage: Sequence[str],
    network: Network,
) -> bool:
    kept = Path(directory or tempfile.mkdtemp(prefix=f"torture-{seed}-"))
    kept.mkdir(parents=True, exist_ok=True)
    again = f"python -m tests.kafka.torture --seconds {seconds:g} --seed {seed} --nodes {variant.nodes}"
    again += f" --guarantee {variant.guarantee.replace(' ', '-')} --workers {variant.workers} --network {network}"
    again += f" --deeds {','.join(deeds)}" if deeds else ""
    again += f" --sabotage {','.join(sabotage)}" if sabotage else ""
    print(f"{again}\neverything is in {shlex.quote(str(kept))}", flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    try:
        done = torture(
            kept, seconds=seconds, seed=seed, variant=variant, deeds=deeds, sabotage=sabotage, network=network, say=say
        )
    except AssertionError as error:
        print(f"FAILED with seed {seed}\n{error}\nThis does it again:\n    {again}", flush=True)
        return False
    told = "nothing lost, nothing twice" if variant.guarantee == "exactly once" else "nothing lost"
    print(f"{told}: {json.dumps(done)}", flush=True)
    if directory is None:
        shutil.rmtree(kept, ignore_errors=True)
    return True


def _parser() -> argparse.ArgumentParser:
    deeds = [(name, getattr(Nemesis, name)) for name in DEEDS] + [(name, getattr(Nodes, name)) for name in NODE_DEEDS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.kafka.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="deeds (those to single nodes with --nodes 3):\n"
        + "\n".join(f"  {name:17} {(deed.__doc__ or '').splitlines()[0]}" for name, deed in deeds)
        + "\n\nsabotage (several by commas):\n"
        + "\n".join(f"  {n:21} {(f.__doc__ or '').splitlines()[0]}" for n, f in (MISTAKES | MISFORTUNES).items()),
    )
    add = parser.add_argument
    add("--seconds", type=float, default=0, help="how long the nemesis rages [60; 300 with --hours]")
    add("--minutes", type=float, default=0, help="… in minutes")
    add("--hours", type=float, default=0, help="run after run, with the next seed each, until so much time is over")
    add("--seed", type=int, default=None, help="of all that is drawn [by the clock; it is told]")
    add("--nodes", type=int, choices=(1, 3), help="of the cluster [1; all variants in turn with --hours]")
    add("--guarantee", choices=("exactly-once", "at-least-once"), help="of the app [exactly-once; …]")
    add("--workers", type=int, help="worker processes [3; …]; with an even seed the last one is a supervisor of two")
    add("--network", choices=("namespaces", "proxy"), help="how it is cut [namespaces of Linux where permitted]")
    add("--deeds", default="", metavar="A,B", help="only these [all]")
    add("--sabotage", default="", metavar="A,B", help="start workers with these mistakes in them")
    add("--directory", default=None, help="where everything is kept [a new one below the temporary, if it fails]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
