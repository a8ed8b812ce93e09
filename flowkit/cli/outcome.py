"""How a command ends: its exit code, and errors told in the user's terms.

    0    all is well
    1    the app failed, or a check found something
    2    wrong usage, configuration or input
    3    state, output or broker cannot be used: in use, full, damaged, taken over; what was committed is safe
    130  stopped by SIGINT (Ctrl-C), a run after committing; 143: by SIGTERM
    141  nobody reads the output any more (flowkit … | head)

What is told names the thing and the cure, and shows lines of the user's own files only.
"""

import contextlib
import errno
import os
import signal
import sys
import sysconfig
import traceback
from pathlib import Path

from flowkit.errors import BrokerError, CommitError, ConfigError, FlowkitError, InputError, Stalled, StoreError
from flowkit.sink import OutputClosed

OK, FAILED, WRONG, UNUSABLE = 0, 1, 2, 3
BROKEN_PIPE = 128 + signal.SIGPIPE
MOVED = 4
"""How a worker process tells its supervisor that all are to stop, after a savepoint."""

EXIT_CODES = """\b
Exit codes:
  0         all is well
  1         the app failed, or a check found something
  2         wrong usage, configuration or input
  3         state, output or broker cannot be used (in use, full, damaged);
            what was committed is safe
  130, 143  stopped by Ctrl-C, SIGTERM, after committing
"""

OURS = str(Path(__file__).resolve().parent.parent) + os.sep
own_directories: set[str] = set()
"""Where the loaded app lies: the user's even if it is installed among the libraries."""

LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def tell(error: BaseException) -> int:
    """Say on stderr what went wrong, in terms of what the user wrote; the exit code that it means."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else OK if error.code is None else FAILED
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
        case BrokenPipeError() | OutputClosed():
            return BROKEN_PIPE
        case FlowkitError():
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            complain(*problems, where=user_frames(error)[-1:])
            return code_of(error)
        case OSError() if not user_frames(error):
            complain(_system_error(error))
            return UNUSABLE
    if frames := user_frames(error):
        complain(f"the app failed: {described(error)}", where=frames)
        return FAILED
    complain(
        f"flowkit itself failed: {described(error)}. This is a mistake of ours, please report it; "
        "with FLOWKIT_LOG_LEVEL=debug it shows where"
    )
    if os.environ.get("FLOWKIT_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    return FAILED


def code_of(error: FlowkitError) -> int:
    """The exit code that an error of ours means."""
    if isinstance(error, ConfigError | InputError):
        return WRONG
    return UNUSABLE if isinstance(error, StoreError | BrokerError | CommitError | Stalled) else FAILED


def complain(*problems: str, where: list[traceback.FrameSummary] | None = None) -> None:
    """Print problems on stderr: one as a line, several as a list; then the user's own lines that led there."""
    if len(problems) == 1:
        say(f"error: {problems[0]}")
    else:
        say(f"error: {len(problems)} problems")
        for problem in problems:
            say(f"  - {problem}")
    for frame in where or []:
        say(f"  {shown_path(frame.filename)}:{frame.lineno} in {frame.name}")
        if frame.line:
            say(f"    {frame.line}")


def say(text: str) -> None:
    """A line on stderr; nobody listening is no error."""
    stream = sys.stderr
    if stream is None or stream.closed:
        return
    with contextlib.suppress(OSError):
        stream.write(text + "\n")
        stream.flush()


def out(text: str) -> None:
    """A line on stdout. Raises StoreError if it cannot be written."""
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"standard output cannot be written: {error.strerror}") from None


def finish(code: int) -> int:
    """Bring out what is left of standard output; the exit code, another one if that fails.

    Without this the interpreter would try at its exit, and complain in its own words.
    """
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        if code == OK:
            if isinstance(error, BrokenPipeError):
                return BROKEN_PIPE
            complain(f"standard output cannot be written: {error.strerror}")
            return UNUSABLE
    return code


def described(error: BaseException) -> str:
    """Type and message in one line."""
    lines = traceback.format_exception_only(error)
    return lines[-1].strip() if lines else type(error).__name__


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The lines of the user's own files in an error's traceback, outermost first."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]


def _is_own(path: str) -> bool:
    # Compiled modules give paths of where they were made, which are not absolute.
    if path.startswith((OURS, "<")) or not Path(path).is_absolute():
        return False
    if not path.startswith(LIBRARIES):
        return True
    # An environment may lie beside the app: what it holds is no more the user's for that.
    installed = tuple(own for own in own_directories if f"{own.rstrip(os.sep)}{os.sep}".startswith(LIBRARIES))
    return path.startswith(installed)


def shown_path(path: str) -> str:
    """A path as a person would type it from here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path
    return path if relative.startswith("..") else relative


def _system_error(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename else ""
    cure = ": make room and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{name}{error.strerror or error}{cure}"
