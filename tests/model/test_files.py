"""`run` itself, with files and a state directory: broken off at any step of any commit, the files end up the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowkit.app import App
from flowkit.options import WorkerOptions
from flowkit.worker import run
from tests.matrix import matrix
from tests.model.apps import Trouble, records
from tests.model.test_engine import numbered
from tests.model.world import Crash, lines, play
from tests.model.zoo import Rate, zoo

OUTPUTS = {
    "middle": "middle.csv",
    "ends": "ends.jsonl.gz",
    "told": "told.jsonl",
    "told-too": "told-too.jsonl.zst",
    "dead-letters": "dead.jsonl",
}


def app() -> App:
    return zoo(Trouble(at=frozenset({4, 17}), once=frozenset({7, 9, 22})), out_of_order=5, lateness=10)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    home = tmp_path_factory.mktemp("inputs")
    one = numbered([("abc"[n % 3], n * 4 - 3 * (n % 5), 0) for n in range(30)])
    two = numbered([("bcd"[n % 3], n * 7 - 5 * (n % 2), 0) for n in range(20)], 100)
    written = {
        "one.jsonl": [*lines(records(one))[:9], b"nothing", *lines(records(one))[9:]],
        "two.jsonl": lines(records(two)),
        "rates.jsonl": lines([Rate("a", n * 20, n) for n in range(6)]),
    }
    for name, content in written.items():
        (home / name).write_bytes(b"".join(line + b"\n" for line in content))
    names = [("events", "one.jsonl"), ("events", "two.jsonl"), ("rates", "rates.jsonl")]
    return [(topic, str(home / name)) for topic, name in names]


async def run_until(
    inputs: list[tuple[str, str]], home: Path, state: Path | None, cut: tuple[int, int], steps: int | None
) -> None:
    """Run with a commit each `cut[0]` events and batches of `cut[1]`, and crash after so many steps of commits."""
    left = steps

    async def hook(step: str) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left < 0:
                raise Crash(step)

    os.makedirs(home, exist_ok=True)  # noqa: PTH103
    outputs = [(name, str(home / file)) for name, file in OUTPUTS.items()]
    options = WorkerOptions(commit_every=cut[0], batch_size=cut[1])
    await run(app(), inputs, outputs, state=state, options=options, hook=hook)


def files(home: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in home.iterdir()}


@pytest.fixture(scope="module")
def whole(inputs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that is not broken off writes."""
    home = tmp_path_factory.mktemp("whole")
    play(run_until(inputs, home, None, (5_000, 5_000), None))
    return files(home)


CUTS = [(7, 3), (20, 5_000)]


@pytest.mark.parametrize(
    "steps, cut",
    matrix([0, 1, 2, 3, 6, 11, 30], CUTS, quick=lambda *case: case in ((3, CUTS[0]), (11, CUTS[1]))),
)
def test_a_run_that_was_broken_off_goes_on_to_the_same_files(
    tmp_path: Path, inputs: list[tuple[str, str]], whole: dict[str, bytes], steps: int, cut: tuple[int, int]
) -> None:
    broken = tmp_path / "broken"
    for end, by in ((steps, cut), (steps + 5, cut[::-1]), (None, cut)):
        try:
            play(run_until(inputs, broken, tmp_path / "state", by, end))
        except Crash:
            continue
        break
    assert files(broken) == whole
    play(run_until(inputs, broken, tmp_path / "state", cut, None))  # there is nothing left to do
    assert files(broken) == whole
