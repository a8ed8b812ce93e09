"""A bounded run that is killed, again and again, leaves the files of one that was not."""

import json
import random
import signal
from pathlib import Path

import pytest

from tests.integration.processes import Crew, Process, files_in, until

APP = str(Path(__file__).with_name("orders_app.py"))
ORDERS = 40_000


def write_inputs(directory: Path, seed: int) -> None:
    """Orders in two files, some out of order, late, refused by the agent, or broken; and notices that fall silent."""
    chance = random.Random(seed)
    with (directory / "a.jsonl").open("wb") as a, (directory / "b.jsonl").open("wb") as b:
        for n in range(ORDERS):
            at = n // 4 - (chance.randrange(1_000) if chance.random() < 0.01 else chance.randrange(50))
            order = {"shop": f"shop {chance.randrange(30)}", "at": at, "amount": chance.randrange(1, 10_000)}
            line = json.dumps(order).encode() if chance.random() > 0.002 else b'{"shop": broken \xff'
            (a if chance.random() < 0.6 else b).write(line + b"\n")
    with (directory / "notices.jsonl").open("w") as file:
        for at in (*range(0, 2_000, 100), *range(6_000, 10_000, 500)):
            file.write(json.dumps({"at": at}) + "\n")


def words(out: Path, *, state: Path | None = None) -> list[str]:
    inputs = ["orders=a.jsonl", "orders=b.jsonl", "notices=notices.jsonl"]
    outputs = {
        "windows": "windows.csv",
        "running": "running.jsonl.gz",
        "batches": "batches.jsonl",
        "late": "late.jsonl",
    }
    outputs["dead-letters"] = "dead.jsonl"
    out.mkdir(exist_ok=True)
    return [
        *("run", APP, "--commit-every", "300"),
        *(word for name in inputs for word in ("--input", name)),
        *(word for name, file in outputs.items() for word in ("--output", f"{name}={out / file}")),
        *(() if state is None else ("--state", str(state))),
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A directory with inputs, and what an unbroken run without state makes of them."""
    directory = tmp_path_factory.mktemp("run")
    write_inputs(directory, seed=3)
    whole = Crew(directory).flowkit("whole", *words(directory / "whole"))
    assert whole.wait() == 0, whole.said()
    files = files_in(directory / "whole")
    assert {len(data) > 200 for data in files.values()} == {True}
    letters = [json.loads(line) for line in files["dead.jsonl"].splitlines()]
    assert {letter["error"] for letter in letters} == {"DecodeError", "Refused"}
    return directory, files


def log_bytes(state: Path) -> int:
    return sum(path.stat().st_size for path in (state / "run").glob("log-*")) if (state / "run").exists() else 0


def wait_for_log(state: Path, size: int, run: Process) -> None:
    until(lambda: run.popen.poll() is not None or log_bytes(state) >= size, "commits")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_random_moments_leaves_the_files_of_an_unbroken_one(
    unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path, seed: int
) -> None:
    directory, expected = unbroken
    chance = random.Random(seed)
    crew, state, out = Crew(directory), tmp_path / "state", tmp_path / "out"
    kills = 0
    while kills < 7:
        run = crew.flowkit(f"killed{seed}", *words(out, state=state))
        enough = log_bytes(state) + chance.randrange(1, 60_000)
        wait_for_log(state, enough, run)
        run.kill()
        if run.popen.returncode == 0:
            break
        kills += 1
        assert run.popen.returncode == -signal.SIGKILL, run.said()
    assert kills >= 4
    last = crew.flowkit(f"killed{seed}", *words(out, state=state))
    assert last.wait() == 0, last.said()
    assert_same(files_in(out), expected)
    assert leftovers(out, state) == []


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, name


def leftovers(*directories: Path) -> list[str]:
    """Files that look temporary."""
    names = [name for directory in directories for name in files_in(directory)]
    return [name for name in names if Path(name).name.startswith(".") or name.endswith(("~", ".tmp"))]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_commits_and_goes_on_later(
    unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    directory, expected = unbroken
    crew, state, out = Crew(directory), tmp_path / "state", tmp_path / "out"
    run = crew.flowkit(f"stopped{code}", *words(out, state=state))
    until(lambda: log_bytes(state) > 20_000, "some commits")
    run.send(number)
    assert run.wait() == code, run.said()
    assert "Traceback" not in run.said()
    again = crew.flowkit(f"stopped{code}", *words(out, state=state))
    assert again.wait() == 0, again.said()
    assert_same(files_in(out), expected)


def test_a_run_that_is_done_does_nothing_when_it_is_started_again(
    unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    directory, expected = unbroken
    crew, state, out = Crew(directory), tmp_path / "state", tmp_path / "out"
    for _ in range(2):
        run = crew.flowkit("twice", *words(out, state=state))
        assert run.wait() == 0, run.said()
        assert_same(files_in(out), expected)


def test_standard_input_that_was_used_already_is_refused(
    unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    directory, _ = unbroken
    command = [
        "run",
        APP,
        "--input",
        "orders=-",
        "--output",
        f"late={tmp_path / 'late.jsonl'}",
        "--commit-every",
        "300",
    ]
    command += ["--state", str(tmp_path / "state")]
    crew = Crew(directory)
    with (directory / "a.jsonl").open("rb") as lines:
        run = crew.flowkit("stdin", *command, stdin=lines)
        until(lambda: log_bytes(tmp_path / "state") > 20_000, "some commits")
        run.kill()
    with (directory / "a.jsonl").open("rb") as lines:
        again = crew.flowkit("stdin", *command, stdin=lines)
        assert again.wait() == 2
    assert "standard input cannot be resumed" in again.said()
    assert "Traceback" not in again.said()
