"""A place to type commands in, and this process as it was when they are done."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowkit.cli import main
from tests.cli.place import Done, Place

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Place]:
    """An empty directory, where commands run in this process or in one of their own."""
    for name in [name for name in os.environ if name.startswith("FLOWKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def call(words: list[str]) -> Done:
        capsysbinary.readouterr()
        code = main(words)
        out, err = capsysbinary.readouterr()
        return Done(code, out.decode(), err.decode())

    yield Place(tmp_path, call)
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
