"""State many times larger than what is kept of it in memory: the same answers, and memory that does not grow."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec

APP = Path(__file__).with_name("big_app.py")


def run(path: Path, events: int, live_objects: int, store_memory: int) -> tuple[int, list[str]]:
    """Peak memory (KiB) of a run over `events` payments of nearly as many cards, and who paid three times, in order."""
    rng = random.Random(events)
    path.mkdir()
    cards = [f"card-{rng.randrange(events):08}" for _ in range(events)]
    rows = [b'{"card":"%s","amount":1.5,"at":%d}\n' % (card.encode(), n * 1000) for n, card in enumerate(cards)]
    (path / "payments.jsonl").write_bytes(b"".join(rows))
    environment = {"FLOWKIT_LIVE_OBJECTS": str(live_objects), "FLOWKIT_STORE_MEMORY": str(store_memory)}
    command = [sys.executable, "-m", "flowkit", "run", str(APP), "--input", f"payments={path / 'payments.jsonl'}"]
    command += ["--output", f"often={path / 'often.jsonl'}", "--state", str(path / "state")]
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, told.decode()
    counts: Counter[str] = Counter()
    expected = []
    for card in cards:
        counts[card] += 1
        if counts[card] == 3:
            expected.append(card)
    found = [msgspec.json.decode(line)["card"] for line in (path / "often.jsonl").read_bytes().splitlines()]
    assert found == expected
    return usage.ru_maxrss, found


def test_memory_does_not_grow_with_the_state(tmp_path: Path) -> None:
    small, _ = run(tmp_path / "small", 20_000, 2_000, 4 * 2**20)
    large, _ = run(tmp_path / "large", 160_000, 2_000, 4 * 2**20)
    # What may grow is bounded: a memtable, near timers. All of this state as live objects would be three times as much.
    assert large < 1.6 * small, f"{small} KiB with 20,000 payments, {large} KiB with 160,000"


def test_what_is_kept_in_memory_changes_no_answer(tmp_path: Path) -> None:
    _, few = run(tmp_path / "few", 20_001, 100, 2 * 2**20)
    _, all_ = run(tmp_path / "all", 20_001, 10**6, 256 * 2**20)
    assert few == all_
