"""Resident memory over a long run of a bounded key set: 20M events must not take more than 5M did."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.workload import show

SCRIPT = """
import asyncio, random, sys
from tests.benchmarks.workload import agent_app
from flowkit.worker import run
from flowkit.options import WorkerOptions

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

marks = [5_000_000, 20_000_000]
def progress(p):
    while marks and p.records >= marks[0]:
        print(marks.pop(0), resident(), flush=True)

asyncio.run(run(agent_app(), [("events", "-")], state=sys.argv[1], on_progress=progress))
"""

GENERATE = """
import random
rng = random.Random(1)
lines = ['{"key":"k%d","amount":%.2f,"ts":' % (rng.randrange(10000), rng.random() * 100) for _ in range(100_000)]
import sys
write = sys.stdout.write
at = 1_700_000_000_000
for start in range(0, 20_100_000, 100_000):
    write("".join([f'{line}{at + (start + n) * 2},"country":"DE","merchant":"m"}}\\n' for n, line in enumerate(lines)]))
"""


def test_resident_memory_stays_flat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", GENERATE], stdout=subprocess.PIPE) as source:
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "state")],
            stdin=source.stdout,
            capture_output=True,
            text=True,
            check=True,
            env=env,
            cwd=root,
        )
    rows = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    (_, early), (_, late) = rows
    show(
        capsys,
        f"resident after 5M events {early >> 20} MiB, after 20M {late >> 20} MiB: {late / early:.3f}x (at most 1.05)",
    )
    assert late / early <= 1.05
