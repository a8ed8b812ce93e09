"""Workers are killed while savepoints are taken and begun with: what is there in the end is right, or is not there."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.processes import Crew, Process, until
from tests.integration.test_rekey_kill import APP, PARTITIONS, Outside


def start(crew: Crew, name: str, *words: str, topics: str = "topics", app: str = "rekey") -> Process:
    given = ["worker", APP, "--broker", f"embedded://{crew.directory / topics}", "--state", f"state-{app}-{name}"]
    env = {"COMMIT_INTERVAL": "40", "COMMIT_EVERY": "100", "LEASE_TTL": "1500", "GRACE": "10000", "BATCH_SIZE": "200"}
    env = {f"FLOWKIT_{option}": value for option, value in env.items()} | {"REKEY_APP_AS": app}
    return crew.flowkit(f"{app}-{name}", *given, *words, env=env)


def ask(crew: Crew, to: str, *words: str) -> Process:
    return crew.flowkit(to, "savepoint", APP, "--checkpoints", "kept", "--to", to, "--timeout", "40", *words)


def right(outside: Outside, broker: Outside) -> set[tuple[str, int]]:
    """The windows that were sent to a broker: none twice, none other than in the book."""
    found = broker.sums("windows", "shop")
    for window, sums in found.items():
        assert sums == [outside.book.shops[window]], window
    return set(found)


def all_sent(outside: Outside, windows: set[tuple[str, int]], broker: Outside) -> None:
    until(lambda: windows <= set(broker.sums("windows", "shop")), "all windows", 60)


@pytest.mark.parametrize("seed", [1, 2])
def test_whoever_is_killed_a_savepoint_is_right_or_none(crew: Crew, seed: int) -> None:
    outside = Outside(crew.directory, seed)
    other: Outside | None = None
    try:
        alive = {name: start(crew, name, "--checkpoints", "kept") for name in ("ada", "bob")}
        outside.put(500)
        until(lambda: outside.count("windows") > 0, "the first windows", 60)
        whole: list[str] = []
        for number in range(5):
            asks = ask(crew, f"saved-{number}")
            outside.put(150)
            until((crew.directory / f"saved-{number}").exists, "a worker has heard")
            moment = outside.count("windows") + outside.chance.randrange(3)
            until(lambda moment=moment: outside.count("windows") >= moment or asks.popen.poll() is not None, "", 60)  # type: ignore[misc] # noqa: B023
            name = outside.chance.choice(sorted(alive))
            alive[name].kill()
            alive[name] = start(crew, name, "--checkpoints", "kept")
            code = asks.wait()
            assert code in (0, 3), asks.said()
            if code == 0:
                whole.append(f"saved-{number}")
        last = ask(crew, "last", "--stop")
        outside.put(150)
        assert last.wait() == 0, last.said()
        for process in alive.values():
            assert process.wait() == 0, process.said()
        early = right(outside, outside)
        # Elsewhere, with what others have put there.
        outside.put(150)
        outside.put_last()
        every = set(outside.book.shops)
        place = crew.directory / "elsewhere"
        place.mkdir()
        other = Outside(place, seed)
        copy(outside, other)
        from_ = (whole or ["last"])[0]
        elsewhere = start(crew, "eve", "--from", from_, topics="elsewhere/topics")
        high = high_of(outside, crew.directory / from_)
        later = {window for window in every if window[1] > high + 1}
        assert later
        all_sent(outside, later, other)
        right(outside, other)
        elsewhere.kill()
        # Here, under another name, and killed as it begins.
        for event in ("worker started", "state comes from", "task begins with", "task opened"):
            begins = start(crew, "begins", "--from", "last", app="again")
            begins.heard(event)
            begins.kill()
        again = start(crew, "begins", "--from", "last", app="again")
        all_sent(outside, every, outside)
        assert right(outside, outside) == every > early
        until(lambda: len(outside.sums("sizes", "size")) >= len(outside.book.sizes), "all sizes", 60)
        again.send(signal.SIGTERM)
        assert again.wait() == 0, again.said()
        assert outside.sums("sizes", "size") == {key: [sums] for key, sums in outside.book.sizes.items()}
        assert outside.count("dead-letters") == 0
    finally:
        outside.close()
        if other is not None:
            other.close()
        shutil.rmtree(crew.directory / "elsewhere", ignore_errors=True)


def copy(outside: Outside, other: Outside) -> None:
    """The sales, at the same offsets."""
    for partition, end in enumerate(outside.runner.run(outside.broker.end_offsets("sales"))):
        batch = outside.runner.run(outside.broker.read("sales", partition, 0, end))
        assert len(batch) == end
        keys, times = batch.keys or [], batch.times or []
        rows = list(zip(keys, batch.values, times, strict=True))
        other.runner.run(other.broker.put("sales", rows, partition))


def high_of(outside: Outside, place: Path) -> int:
    """The highest time that the savepoint has read: no window that ends later had been sent."""
    manifest = json.loads((place / "MANIFEST").read_text())
    read = {split: at for seal in manifest["seals"] for split, at in seal["positions"].items()}
    high = 0
    for partition in range(PARTITIONS):
        batch = outside.runner.run(outside.broker.read("sales", partition, 0, read[f"sales[{partition}]"]))
        high = max([high, *(json.loads(value)["at"] for value in batch.values if value is not None)])
    return high
