"""`flowkit savepoint`: what it refuses, what it says when nobody answers, and what is there when it is done."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.place import Place
from tests.integration.processes import Crew, crew_in, until

CHAIN = str(Path(__file__).parent.parent / "integration" / "rekey_app.py")


def test_what_cannot_be_is_told_before_anything_is_asked(place: Place) -> None:
    same = place.call("savepoint", "app.py", "--checkpoints", "kept", "--to", "kept/")
    assert same.code == 2
    assert "is where checkpoints go, which change: give the savepoint a place of its own" in same.err
    for words in (["--checkpoints", "ftp://x", "--to", "saved"], ["--checkpoints", "kept", "--to", "ftp://x"]):
        done = place.call("savepoint", "app.py", *words)
        assert (done.code, "unknown scheme 'ftp'" in done.err) == (2, True)
    assert not (place.path / "kept").exists()


def test_when_no_worker_answers_it_says_why_and_takes_the_request_back(place: Place) -> None:
    place.app()
    words = ["savepoint", "app.py", "--checkpoints", "kept", "--to", "saved", "--timeout", "1"]
    for _ in range(2):
        done = place.call(*words)
        assert done.code == 3
        assert "no worker of app 'shop' has answered within 1 s: they must be running, with --checkpoints" in done.err
    request = json.loads((place.path / "kept" / "shop" / "SAVEPOINT").read_text())
    assert (request["state"], request["to"]) == ("failed", str(place.path / "saved"))


def start_workers(crew: Crew, directory: Path, *words: str) -> None:
    crew.flowkit(
        "worker",
        *["worker", CHAIN, "--broker", f"embedded://{directory}/topics", "--state", "state"],
        *["--checkpoints", "kept", *words],
    )


@pytest.mark.integration
def test_one_is_taken_of_running_workers_which_end(tmp_path: Path) -> None:
    """A supervisor starts nobody again whom a savepoint has ended."""
    with crew_in(tmp_path) as crew:
        start_workers(crew, tmp_path, "--processes", "2")
        words = ["savepoint", CHAIN, "--checkpoints", "kept", "--to", "saved"]
        taken = crew.flowkit("first", *words, "--json")
        assert taken.wait() == 0, taken.said()
        manifest = json.loads(taken.out.read_text())
        assert manifest["groups"] == {"from-sales": 1, "by-shop": 1, "by-size": 1}
        assert f"rekey: savepoint {manifest['id']} of 3 tasks" in taken.said()
        again = crew.flowkit("again", *words)
        assert (again.wait(), "a savepoint of app 'rekey' is there already" in again.said()) == (2, True)
        last = crew.flowkit("last", *words[:-1], "other", "--stop")
        assert last.wait() == 0, last.said()
        workers = crew.processes[0]
        assert workers.wait() == 0, workers.said()
        listed = crew.flowkit("listed", "checkpoint", "list", "--checkpoints", "saved", "--json")
        assert listed.wait() == 0
        tasks = [json.loads(line)["task"] for line in listed.out.read_text().splitlines()]
        assert sorted(tasks) == sorted(seal["task"] for seal in manifest["seals"])


@pytest.mark.integration
def test_who_gives_it_up_takes_it_back(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import flowkit\napp = flowkit.App('lonely')\n")
    with crew_in(tmp_path) as crew:
        asks = crew.start("asks", "-m", "flowkit", "savepoint", "app.py", "--checkpoints", "kept", "--to", "saved")
        path = tmp_path / "kept" / "lonely" / "SAVEPOINT"
        until(path.exists, "it is asked for")
        asks.send(signal.SIGINT)
        assert asks.wait() == 130
        assert json.loads(path.read_text())["why"] == "given up by who asked for it"
