"""Structured logs on stderr: readable on a terminal, JSON elsewhere; their level can change while the process runs.

What libraries say by the standard library's `logging` (aiokafka, asyncio, botocore, …) comes the same way, from WARNING
on; from INFO on while everything is said. Never what they say for their own debugging: passwords and tokens are in it.
"""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from flowkit.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
Processor = Callable[[Any, str, dict[str, Any]], dict[str, Any]]
"""As structlog has them."""
NUMBERS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
PREFIXES = ("FLOWKIT_", "AWS_")
SECRETS = ("PASSWORD", "TOKEN", "SECRET", "STORE_KEY", "SECRET_ACCESS_KEY")
"""What the names of variables begin and end with that hold secrets; with _FILE behind it, the name of such a file."""


def set_up_logs(
    level: str | None, default: str, *, repeats: int | None = None, also: Processor | None = None
) -> "Logs":
    """Configure structlog for this process: `level` (or FLOWKIT_LOG_LEVEL), else `default`. Raises ConfigError.

    With `repeats` the same event is said so many times and no more: a bounded run over a bad file may have a million.
    `also` is given whatever is said.
    """
    wanted = (level or os.environ.get("FLOWKIT_LOG_LEVEL") or default).lower()
    if wanted not in LEVELS:
        raise ConfigError(f"log level {wanted!r}: use one of {', '.join(LEVELS)}")
    logs = Logs(wanted, repeats, also)
    logs.apply(wanted)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, logs.more)
        signal.signal(signal.SIGUSR2, logs.back)
    return logs


class Logs:
    """The level that was asked for, and the one that holds now."""

    def __init__(self, level: str, repeats: int | None = None, also: Processor | None = None) -> None:
        self.asked = self.level = level
        self._repeats, self._also = repeats, also
        self._said: dict[str, int] = {}

    def apply(self, level: str) -> None:
        """Let everything from `level` on be said, from the next word of every logger."""
        structlog = _structlog()
        self.level = level
        terminal = sys.stderr is not None and sys.stderr.isatty()
        processors: list[Any] = [
            *([self._spare] if self._repeats is not None else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
            *([self._also] if self._also is not None else []),
        ]
        if terminal:
            processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
        else:
            processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        # Loggers are not cached: each looks here when it speaks, which is what lets the level change.
        structlog.configure(
            processors=processors,
            wrapper_class=structlog.make_filtering_bound_logger(NUMBERS[level]),
            # Looked up with each word, for a progress bar puts another stream there while it is drawn.
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
            cache_logger_on_first_use=False,
        )
        self._take_in(level)

    def _take_in(self, level: str) -> None:
        """Let libraries speak through this, each of their words once."""
        least = max(NUMBERS[level], logging.INFO if level == "debug" else logging.WARNING)
        root = logging.getLogger()
        for handler in [handler for handler in root.handlers if isinstance(handler, Libraries)]:
            root.removeHandler(handler)
        root.addHandler(Libraries(least))
        root.setLevel(least)

    def _spare(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        assert self._repeats is not None
        name = str(event["event"])
        said = self._said[name] = self._said.get(name, 0) + 1
        if said > self._repeats:
            raise _structlog().DropEvent
        if said == self._repeats:
            event["event"] = f"{name} (more of these are counted, but not shown)"
        return event

    def more(self, _signal: int, _frame: FrameType | None) -> None:
        """SIGUSR1: one level more."""
        self.apply(LEVELS[max(LEVELS.index(self.level) - 1, 0)])

    def back(self, _signal: int, _frame: FrameType | None) -> None:
        """SIGUSR2: the level that was asked for."""
        self.apply(self.asked)


class Libraries(logging.Handler):
    """Says by structlog what libraries say by `logging`, without secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            words = record.getMessage()
        except Exception:  # noqa: BLE001  a library must not fail because it misspells what it says
            words = str(record.msg)
        facts: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            facts["exception"] = redacted("".join(traceback.format_exception(*record.exc_info)).rstrip())
        getattr(_structlog().get_logger(), _name_of(record.levelno))(redacted(words), **facts)


def _name_of(level: int) -> str:
    return next((name for name, number in reversed(NUMBERS.items()) if level >= number), "debug")


def redacted(text: str) -> str:
    """`text` without the secrets that this process was given by its environment, or by files that it names.

    They are read anew: a file may hold another token by now.
    """
    for name, value in os.environ.items():
        what = name.removesuffix("_FILE")
        if value and what.startswith(PREFIXES) and what.endswith(SECRETS):
            secret = value
            if what != name:
                try:
                    secret = Path(value).read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError):
                    continue
            if secret:
                text = text.replace(secret, "***")
    return text


def _structlog() -> Any:
    """structlog, kept from loading rich, which it does for coloured tracebacks: 60 ms at every start."""
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        try:
            import structlog
        finally:
            del sys.modules["rich"]
    import structlog

    return structlog
