"""How errors are told, and the exit codes that they mean."""

import errno
import signal
from pathlib import Path

import pytest

from flowkit.cli.outcome import tell
from flowkit.errors import (
    CommitError,
    ConfigError,
    Fenced,
    FlowkitError,
    InputError,
    SchemaChanged,
    StateError,
    StoreCorrupt,
    StoreLocked,
)
from flowkit.sink import OutputClosed


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigError("a"), 2),
        (SchemaChanged("a"), 2),
        (InputError("a"), 2),
        (StoreLocked("a"), 3),
        (StoreCorrupt("a"), 3),
        (Fenced("a"), 3),
        (CommitError("a"), 3),
        (StateError("a"), 1),
        (FlowkitError("a"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 3),
        (ValueError("a"), 1),
        (ExceptionGroup("tasks", [StoreLocked("a")]), 3),
    ],
)
def test_an_error_is_told_on_stderr_and_has_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error, code",
    [
        (KeyboardInterrupt(), 128 + signal.SIGINT),
        (BrokenPipeError(), 141),
        (OutputClosed("a"), 141),
        (SystemExit(5), 5),
        (SystemExit(), 0),
    ],
)
def test_some_ends_need_no_words(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(error) == code
    assert capsys.readouterr() == ("", "")


def test_a_mistake_of_ours_is_told_as_one_and_shows_where_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWKIT_LOG_LEVEL", raising=False)
    assert tell(AssertionError("odd")) == 1
    assert capsys.readouterr().err == (
        "error: flowkit itself failed: AssertionError: odd. This is a mistake of ours, please report it; with "
        "FLOWKIT_LOG_LEVEL=debug it shows where\n"
    )
    monkeypatch.setenv("FLOWKIT_LOG_LEVEL", "debug")
    tell(AssertionError("odd"))
    assert capsys.readouterr().err.endswith("AssertionError: odd\n")


def test_a_failure_in_users_code_shows_the_users_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "theirs.py"
    path.write_text("def f():\n    import json\n    json.loads('{')\n")
    space: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    function = space["f"]
    assert callable(function)
    with pytest.raises(ValueError) as caught:
        function()
    assert tell(caught.value) == 1
    err = capsys.readouterr().err
    assert "error: the app failed: json.decoder.JSONDecodeError: Expecting property name" in err
    assert "  theirs.py:3 in f\n    json.loads('{')\n" in err
    assert "json/decoder.py" not in err
