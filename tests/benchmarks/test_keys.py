"""The cost of an event by the number of keys: where all keys exist already, and where events make new ones.

Each run has two stretches, told apart by counting commits: every key once in random order (`creating`), then events of
uniformly random keys (`warm`). A commit each 5,000 events saves 5,000
distinct keys of a million, and 1,000 of a thousand: that is a part of the cost.
"""

import asyncio
import gc
import random
import tempfile
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pytest
import uvloop

from flowkit import App, Tumbling, minutes
from flowkit.options import WorkerOptions
from flowkit.worker import run
from tests.benchmarks.workload import agent_app, bare_pass, declared_app, show

FEW, MANY = 1_000, 1_000_000
COMMIT_EVERY = WorkerOptions().commit_every
WARM = 500_000
WINDOWS = {"one window": Tumbling(minutes(1)), "no window": None}


def write_stretches(path: Path, keys: int) -> Path:
    """`keys` events of a key each, padded to whole commits, then `WARM` of random keys; all within a minute."""
    rng = random.Random(1)
    once = list(range(keys))
    rng.shuffle(once)
    padding = (rng.randrange(keys) for _ in range(-keys % COMMIT_EVERY))
    count = keys + -keys % COMMIT_EVERY + WARM
    with path.open("w") as file:
        for n, key in enumerate(chain(once, padding, (rng.randrange(keys) for _ in range(WARM)))):
            at = 1_700_000_040_000 + n * 50_000 // count
            file.write(
                f'{{"key":"k{key}","amount":{rng.random() * 100:.2f},"ts":{at},'
                f'"country":"DE","merchant":"m{rng.randrange(100)}"}}\n'
            )
    return path


def stretches(app: App, path: Path, keys: int) -> tuple[float, float]:
    """CPU seconds an event, of all threads: creating keys, and warm."""
    marks = [0.0]

    async def hook(step: str) -> None:
        if step == "cut":
            marks.append(time.process_time())

    async def measure(state: str) -> None:
        by_count = WorkerOptions(commit_interval=3_600_000)
        await run(app, [("events", str(path))], state=state, options=by_count, hook=hook)

    gc.collect()
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        marks[0] = time.process_time()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(f"{directory}/s"))
    commits = -(-keys // COMMIT_EVERY)
    ends = marks[1:]
    # A commit under way is carried on when the next one waits for it, so a mark may come one commit late. The first
    # interval of the warm stretch, and those beside the end, where the window is dropped, are left out.
    creating = (ends[commits - 1] - marks[0]) / commits / COMMIT_EVERY
    after = ends[commits + 1 : commits + WARM // COMMIT_EVERY - 2]
    warm = sum(b - a for a, b in pairwise(after)) / (len(after) - 1) / COMMIT_EVERY
    return creating, warm


def least(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return min(creating for creating, _ in pairs), min(warm for _, warm in pairs)


@pytest.mark.parametrize("window", WINDOWS)
def test_cost_by_number_of_keys(window: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 1e3 to 1e6 keys; beside it a bare loop, since memory itself is slower with more keys."""
    files = {keys: write_stretches(tmp_path / f"{keys}.jsonl", keys) for keys in (FEW, MANY)}
    forms: dict[str, Callable[[Path, int], tuple[float, float]]] = {
        "bare loop": bare_pass,
        "agent": lambda path, keys: stretches(agent_app(WINDOWS[window]), path, keys),
        "declared": lambda path, keys: stretches(declared_app(WINDOWS[window]), path, keys),
    }
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(3):
        for name, form in forms.items():
            for keys, path in files.items():
                found.setdefault((name, keys), []).append(form(path, keys))
    lines = []
    for name in forms:
        _, few = least(found[name, FEW])
        creating, many = least(found[name, MANY])
        lines.append(
            f"{window}, {name:9}  1e3 keys {few * 1e6:.2f} µs an event; 1e6 keys: warm {many * 1e6:.2f} "
            f"({many / few:.2f}x, at most 1.3x), creating them {creating * 1e6:.2f} ({creating / few:.2f}x)"
        )
    show(capsys, *lines)
