"""A bounded run that is killed while calls of async functions are under way leaves the files of one that was not."""

import json
import random
from pathlib import Path

import pytest

from tests.integration.processes import Crew, files_in
from tests.integration.test_run_kill import assert_same, leftovers, log_bytes, wait_for_log

APP = str(Path(__file__).with_name("calls_app.py"))
ORDERS = 20_000


def words(out: Path, *, state: Path | None = None) -> list[str]:
    out.mkdir(exist_ok=True)
    outputs = {"priced": "priced.jsonl", "windows": "windows.csv", "dead-letters": "dead.jsonl"}
    return [
        *("run", APP, "--commit-every", "200", "--input", "orders=orders.jsonl"),
        *(word for name, file in outputs.items() for word in ("--output", f"{name}={out / file}")),
        *(() if state is None else ("--state", str(state))),
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_with_calls_under_way_leaves_the_files_of_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with (tmp_path / "orders.jsonl").open("w") as file:
        for n in range(ORDERS):
            order = {"shop": f"shop {chance.randrange(20)}", "at": n - chance.randrange(50), "amount": n}
            file.write(json.dumps(order) + "\n")
    crew, state, out = Crew(tmp_path), tmp_path / "state", tmp_path / "out"
    whole = crew.flowkit("whole", *words(tmp_path / "whole"))
    assert whole.wait() == 0, whole.said()
    expected = files_in(tmp_path / "whole")
    priced = [json.loads(line) for line in expected["priced.jsonl"].splitlines()]
    refused = [json.loads(line) for line in expected["dead.jsonl"].splitlines()]
    assert len(priced) + len(refused) == ORDERS
    assert [letter["offset"] for letter in refused] == list(range(0, ORDERS, 997))
    assert {letter["attempts"] for letter in refused} == {2}
    kills = 0
    while kills < 6:
        run = crew.flowkit("killed", *words(out, state=state))
        wait_for_log(state, log_bytes(state) + chance.randrange(1, 200_000), run)
        run.kill()
        if run.popen.returncode == 0:
            break
        kills += 1
    assert kills >= 4
    last = crew.flowkit("killed", *words(out, state=state))
    assert last.wait() == 0, last.said()
    assert_same(files_in(out), expected)
    assert leftovers(out, state) == []
