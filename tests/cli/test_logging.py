"""Logs: what libraries say by the standard library's `logging` comes as ours does, once, and without secrets."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from flowkit.cli.logging import Libraries, Logs, set_up_logs

SECRET = "open-sesame"


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def set_up(level: str) -> Logs:
    logs = Logs(level)
    logs.apply(level)
    return logs


def test_a_librarys_warning_is_a_line_of_json_and_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):  # the level changes while a process runs
        set_up("info")
    logging.getLogger("aiokafka.consumer.fetcher").warning("Topic %s is not available", "orders")
    (line,) = said(capsys)
    assert (line["event"], line["level"], line["logger"]) == (
        "Topic orders is not available",
        "warning",
        "aiokafka.consumer.fetcher",
    )
    assert line["timestamp"].endswith("Z")


def test_how_much_libraries_say_follows_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("aiokafka.client")

    def levels(level: str) -> list[str]:
        logs = set_up(level)
        assert logs.level == level
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            library.log(number, "words")
        return [line["level"] for line in said(capsys)]

    assert levels("error") == ["error", "error"]
    assert levels("warning") == levels("info") == ["warning", "error", "error"]
    assert levels("debug") == ["info", "warning", "error", "error"]


def test_the_traceback_of_a_library_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info")
    try:
        raise OSError("the cable is out")
    except OSError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")
    (line,) = said(capsys)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("OSError: the cable is out")


@pytest.mark.parametrize("variable", ["FLOWKIT_KAFKA_PASSWORD", "FLOWKIT_KAFKA_TOKEN_FILE", "AWS_SECRET_ACCESS_KEY"])
def test_secrets_are_kept_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv(variable, str(tmp_path / "secret") if variable.endswith("_FILE") else SECRET)
    set_up("debug")
    library = logging.getLogger("aiokafka.conn")
    library.debug("Request SaslAuthenticate %s", SECRET)
    library.error("refused: user:%s@host", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError:
        library.warning("broken", exc_info=sys.exc_info())
    lines = said(capsys)
    assert [line["event"] for line in lines] == ["refused: user:***@host", "broken"]
    assert SECRET not in json.dumps(lines)


def test_a_word_that_cannot_be_said_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info")
    Libraries(logging.WARNING).emit(logging.LogRecord("library", 30, "here", 1, "%d of them", (SECRET,), None))
    assert [line["event"] for line in said(capsys)] == ["%d of them"]


def test_a_run_says_the_same_only_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("warning", "warning", repeats=2)
    for _ in range(5):
        logging.getLogger("library").warning("again")
    assert [line["event"] for line in said(capsys)] == ["again", "again (more of these are counted, but not shown)"]
