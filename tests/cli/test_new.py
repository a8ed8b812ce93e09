"""`flowkit new`: a service whose test passes."""

import subprocess
import sys

import pytest

from tests.cli.place import Place


@pytest.fixture
def hello(place: Place) -> Place:
    assert place.call("new", "hello_world").code == 0
    return Place(place.path / "hello_world", place._call)


def test_its_test_passes(hello: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=hello.path,
        env=hello.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    assert b"2 passed" in done.stdout


def test_it_runs_on_its_sample(hello: Place) -> None:
    done = hello.run(
        "run", "app.py", "--input", "clicks=sample.jsonl", "--output", "alerts=-", "--output", "by_minute=-"
    )
    assert done.code == 0, done.err
    assert '{"user":"ann","clicks":3}' in done.out
    assert len(done.out.splitlines()) == 4


def test_nothing_is_found_in_it(hello: Place) -> None:
    assert hello.run("check", "app.py").out == "hello-world: nothing found\n"


@pytest.mark.parametrize("name", ["1st", "a b", "class", "a/../b c", ".hidden"])
def test_names_that_cannot_be_are_told(place: Place, name: str) -> None:
    done = place.call("new", name)
    assert done.code == 2
    assert "is no name for a service" in done.err


def test_what_is_there_is_not_overwritten(place: Place) -> None:
    place.write("hello/app.py", "precious")
    done = place.call("new", "hello")
    assert done.code == 2
    assert "hello: exists already" in done.err
    assert (place.path / "hello/app.py").read_text() == "precious"
