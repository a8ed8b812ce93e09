"""An interval join of two streams, in flowkit and in what else Python has: rows a second, files in to files out.

    python tests/benchmarks/join_rivals.py [--rows 100000] [--keys 1000] [--venv DIR]

Bytewax and Pathway come from PyPI into a virtual environment that is removed afterwards (or stays, in DIR); one that
has no wheel for this Python is left out, and said to be. Each reads the same two files of JSON lines, writes a line a
pair, and runs in a process of its own with one worker; the time is from the start of the run to its end, without
imports.

Pathway has `interval_join`. It reads both files as one batch, so it keeps no watermark and forgets nothing: the least
that it could do. Bytewax has no interval join: one row is a stateful operator with the semantic written in Python, as
its users would have to; the other is its own join of tumbling windows, whose pairs are others.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import venv
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

OUT_OF_ORDER = 1_000
RIVALS = {"bytewax": "bytewax", "bytewax windows": "bytewax", "pathway": "pathway"}
"""Which package each needs."""
OTHER_PAIRS = {"bytewax windows"}


class Job(NamedTuple):
    """`left` and `right` are joined within `within` ms either way."""

    left: Path
    right: Path
    out: Path
    within: int


class Took(NamedTuple):
    """Seconds of a run: by the clock, and of all processors together."""

    wall: float
    cpu: float


# --- the flow, once for each -----------------------------------------------------------------------------------------


def flowkit_rate(job: Job) -> Took:
    """`left.join(right, on="key", within=…)` in a bounded run, event time and late records and all."""
    import asyncio

    from flowkit import App, Joined, Record, seconds
    from flowkit.worker import run

    class Row(Record):
        key: str
        t: int
        n: int

    class Pair(Record):
        left: int
        right: int

    app = App("join")
    left = app.topic("left", Row, key="key", time="t", out_of_order=seconds(1))
    right = app.topic("right", Row, key="key", time="t", out_of_order=seconds(1))
    out = app.sink("out", Pair)

    @app.each(left.join(right, on="key", within=(-job.within, job.within)), sinks=[out])
    def pair(row: Joined[Row, Row]) -> Pair:
        return Pair(row.left.n, row.right.n)

    inputs = [("left", str(job.left)), ("right", str(job.right))]
    return timed(lambda: asyncio.run(run(app, inputs, [("out", str(job.out))])))


def bytewax_rate(job: Job) -> Took:
    """Two files merged, and a stateful operator that keeps two sorted lists a key."""
    import bytewax.operators as op  # type: ignore[import-not-found,unused-ignore]
    from bytewax.connectors.files import FileSink, FileSource  # type: ignore[import-not-found,unused-ignore]
    from bytewax.dataflow import Dataflow  # type: ignore[import-not-found,unused-ignore]
    from bytewax.testing import run_main  # type: ignore[import-not-found,unused-ignore]

    def parse(side: int) -> Callable[[str], tuple[str, tuple[int, int, int]]]:
        def one(line: str) -> tuple[str, tuple[int, int, int]]:
            row = json.loads(line)
            return row["key"], (side, row["t"], row["n"])

        return one

    def step(kept: Any, row: tuple[int, int, int]) -> tuple[Any, list[str]]:
        if kept is None:
            kept = (([], []), ([], []))
        side, t, n = row
        times, numbers = kept[side]
        others, partners = kept[1 - side]
        place = bisect_right(times, t)
        times.insert(place, t)
        numbers.insert(place, n)
        start, stop = bisect_left(others, t - job.within), bisect_right(others, t + job.within)
        out = [
            json.dumps({"left": n, "right": m} if side == 0 else {"left": m, "right": n}) for m in partners[start:stop]
        ]
        # No watermark reaches an operator: what this side has seen of its key stands for it.
        if gone := bisect_left(others, times[-1] - OUT_OF_ORDER - job.within):
            del others[:gone], partners[:gone]
        return kept, out

    flow = Dataflow("join")
    sides = [
        op.map(f"parse{side}", op.input(f"read{side}", flow, FileSource(path)), parse(side))
        for side, path in enumerate((job.left, job.right))
    ]
    joined = op.stateful_flat_map("join", op.merge("both", *sides), step)
    op.output("write", joined, FileSink(job.out))
    return timed(lambda: run_main(flow))


def bytewax_windows_rate(job: Job) -> Took:
    """Its own join of tumbling windows: all pairs of a window when it closes."""
    from datetime import UTC, datetime, timedelta

    import bytewax.operators as op  # type: ignore[import-not-found,unused-ignore]
    from bytewax.connectors.files import FileSink, FileSource  # type: ignore[import-not-found,unused-ignore]
    from bytewax.dataflow import Dataflow  # type: ignore[import-not-found,unused-ignore]
    from bytewax.operators import windowing  # type: ignore[import-not-found,unused-ignore]
    from bytewax.testing import run_main  # type: ignore[import-not-found,unused-ignore]

    def parse(line: str) -> tuple[str, tuple[datetime, int]]:
        row = json.loads(line)
        return row["key"], (datetime.fromtimestamp(row["t"] / 1000, UTC), row["n"])

    def write(item: tuple[str, tuple[int, tuple[Any, Any]]]) -> tuple[str, str] | None:
        key, (_, (left, right)) = item
        return (key, json.dumps({"left": left[1], "right": right[1]})) if left and right else None

    flow = Dataflow("join")
    sides = [
        op.map(f"parse{side}", op.input(f"read{side}", flow, FileSource(path)), parse)
        for side, path in enumerate((job.left, job.right))
    ]
    # The files' batches come in turn, so that one may be ahead by a batch of 1,000 rows, 10 s.
    clock = windowing.EventClock(lambda row: row[0], wait_for_system_duration=timedelta(seconds=20))
    windows = windowing.TumblingWindower(timedelta(milliseconds=job.within), datetime(2023, 1, 1, tzinfo=UTC))
    joined = windowing.join_window("join", clock, windows, *sides, insert_mode="product", emit_mode="final")
    op.output("write", op.filter_map("line", joined.down, write), FileSink(job.out))
    return timed(lambda: run_main(flow))


def pathway_rate(job: Job) -> Took:
    """Its own `interval_join` of two tables read at once."""
    import pathway as pw  # type: ignore[import-not-found,unused-ignore]

    class Row(pw.Schema):  # type: ignore[misc,name-defined,unused-ignore]
        key: str
        t: int
        n: int

    left, right = (pw.io.jsonlines.read(str(path), schema=Row, mode="static") for path in (job.left, job.right))
    within = pw.temporal.interval(-job.within, job.within)
    joined = left.interval_join(right, left.t, right.t, within, left.key == right.key)
    pw.io.jsonlines.write(joined.select(left=left.n, right=right.n), str(job.out))
    return timed(lambda: pw.run(monitoring_level=pw.MonitoringLevel.NONE))


def hand_rate(job: Job) -> Took:
    """What the rivals' figures are to be read beside: one loop over both files in turn."""

    def loop() -> None:
        kept: dict[str, tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]] = {}
        with job.left.open() as left, job.right.open() as right, job.out.open("w") as out:
            for lines in zip(left, right, strict=True):
                for side, line in enumerate(lines):
                    row = json.loads(line)
                    t, n = row["t"], row["n"]
                    both = kept.setdefault(row["key"], (([], []), ([], [])))
                    times, numbers = both[side]
                    others, partners = both[1 - side]
                    place = bisect_right(times, t)
                    times.insert(place, t)
                    numbers.insert(place, n)
                    first = bisect_left(others, t - job.within)
                    for m in partners[first : bisect_right(others, t + job.within)]:
                        pair = {"left": n, "right": m} if side == 0 else {"left": m, "right": n}
                        out.write(json.dumps(pair) + "\n")
                    if gone := bisect_left(others, t - 2 * OUT_OF_ORDER - job.within):
                        del others[:gone], partners[:gone]

    return timed(loop)


RATES: dict[str, Callable[[Job], Took]] = {
    "flowkit": flowkit_rate,
    "hand": hand_rate,
    "bytewax": bytewax_rate,
    "bytewax windows": bytewax_windows_rate,
    "pathway": pathway_rate,
}


def timed(run: Callable[[], Any]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


# --- the race --------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: int, keys: int, seed: int) -> Path:
    """Rows of random keys, up to a second out of order, ten ms apart."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for n in range(rows):
            row = {
                "key": f"k{rng.randrange(keys)}",
                "t": 1_700_000_000_000 + n * 10 - rng.randrange(OUT_OF_ORDER),
                "n": n,
            }
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
    return path


def pairs(path: Path) -> list[tuple[int, int]]:
    found = (json.loads(line) for line in path.open())
    return sorted((row["left"], row["right"]) for row in found if row.get("diff", 1) == 1)


def install(directory: Path, name: str) -> str | None:
    """None if the rival can be imported from `directory` now, or what pip said last."""
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
    command = (str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", name)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def race(name: str, python: str, job: Job, rows: int, expected: list[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Run one in a process of its own, and print its row; the pairs that it found."""
    job = job._replace(out=job.out.with_name(f"{name}.jsonl"))
    command = (python, __file__, "--only", name, *(str(one) for one in job))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name:15} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return []
    took = Took(*json.loads(done.stdout.splitlines()[-1]))
    found = pairs(job.out)
    wrong = "" if expected is None or found == expected else f"  WRONG: {len(found)} pairs, not {len(expected)}"
    print(
        f"{name:15} {2 * rows / took.wall:>10,.0f} rows/s by the clock, {2 * rows / took.cpu:>10,.0f} a second of CPU"
        f"  ({took.wall:.2f} s, {took.cpu:.2f} s CPU, {len(found)} pairs){wrong}"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="of each stream")
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--venv", type=Path, help="keep the rivals installed here")
    parser.add_argument("--only", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        name, left, right, out, within = given.only
        print(json.dumps(RATES[name](Job(Path(left), Path(right), Path(out), int(within)))))
        return
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        left, right = (write_rows(directory / f"{side}.jsonl", given.rows, given.keys, side) for side in range(2))
        job = Job(left, right, directory / "out.jsonl", 5 * given.keys)
        environment = given.venv or directory / "venv"
        expected = race("hand", sys.executable, job, given.rows, None)
        race("flowkit", sys.executable, job, given.rows, expected)
        for name, package in RIVALS.items():
            if problem := install(environment, package):
                print(f"{name:15} left out, no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}: {problem}")
            else:
                race(
                    name,
                    str(environment / "bin" / "python"),
                    job,
                    given.rows,
                    None if name in OTHER_PAIRS else expected,
                )


if __name__ == "__main__":
    main()
