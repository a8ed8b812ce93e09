"""Whose file a line of a traceback stands in: the user's, or that of a library, wherever both lie."""

import sysconfig
from pathlib import Path

import pytest

from flowkit.cli import outcome

LIBRARY = sysconfig.get_path("purelib")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    own: set[str] = set()
    monkeypatch.setattr(outcome, "own_directories", own)
    return own


def test_an_environment_beside_the_app_is_not_the_users(own: set[str]) -> None:
    own.add(str(Path(LIBRARY).parents[3]))  # the directory that holds .venv
    assert not outcome._is_own(f"{LIBRARY}/typer/main.py")
    assert outcome._is_own(str(Path(LIBRARY).parents[3] / "app.py"))


def test_an_app_that_is_installed_is_the_users(own: set[str]) -> None:
    assert not outcome._is_own(f"{LIBRARY}/shop/app.py")
    own.add(f"{LIBRARY}/shop")
    assert outcome._is_own(f"{LIBRARY}/shop/app.py")
    assert not outcome._is_own(f"{LIBRARY}/typer/main.py")
