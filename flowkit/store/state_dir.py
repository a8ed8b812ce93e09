"""A state directory belongs to one app and, while a process uses it, to that process.

DIR/flowkit.json     the app's name and the directory's format version
DIR/LOCK             held by the owner as long as it lives; its text is the owner's pid
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowkit.errors import ConfigError, FlowkitError, StoreError, StoreLocked

FORMAT = 1
DRAFT = ".flowkit.json."


def open_directory(path: Path, app: str) -> None:
    """Check that `path` is this app's state directory, or make it one.

    Raises ConfigError if it is another app's, of a newer format, not empty, not a directory or not writable; StoreError
    if the disk is full.
    """
    label = path / "flowkit.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not label.exists():
            ours = ("LOCK", "lost+found")  # the second is what a fresh volume holds
            strangers = [e.name for e in path.iterdir() if e.name not in ours and not e.name.startswith(DRAFT)]
            if strangers:
                raise ConfigError(f"{path}: not empty and not a flowkit state directory (it holds {strangers[0]!r})")
            draft = path / f"{DRAFT}{os.getpid()}"
            draft.write_text(json.dumps({"format": FORMAT, "app": app}) + "\n")
            draft.replace(label)
            sync_directory(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: is a file; the state needs a directory") from error
    except OSError as error:
        raise _unusable(path, error) from error
    check_directory(path, app)


def check_directory(path: Path, app: str) -> None:
    """Check that `path` is this app's state directory; changes nothing, needs no right to write, and its owner may run.

    Raises ConfigError if it is none, another app's, or of a newer format.
    """
    label = path / "flowkit.json"
    try:
        found = json.loads(label.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: is no state directory of flowkit (there is no {label.name} in it)") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be used as state directory: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{label}: damaged ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise ConfigError(f"{label}: damaged (no format version)")
    if found["format"] > FORMAT:
        raise ConfigError(
            f"{path}: written by a newer flowkit (format {found['format']}; this one reads up to {FORMAT}): "
            "upgrade flowkit"
        )
    if found.get("app") != app:
        raise ConfigError(
            f"{path}: belongs to the app {found.get('app')!r}, not to {app!r}: give each app its own --state"
        )


def parts_of(path: Path) -> list[Path]:
    """The state directory itself, and those of the worker processes that share it (`flowkit worker --processes N`)."""
    return [path, *sorted(place for place in path.glob("process-*") if (place / "flowkit.json").exists())]


def app_of(path: Path) -> str | None:
    """The app whose state directory `path` is, or lies in as one of its stores; None if that is not told there."""
    for place in [path.absolute(), *path.absolute().parents[:3]]:  # DIR/tasks/TASK/EPOCH
        try:
            found = json.loads((place / "flowkit.json").read_text())
        except (OSError, ValueError):
            continue
        app = found.get("app") if isinstance(found, dict) else None
        return app if isinstance(app, str) else None
    return None


@contextmanager
def claim_directory(path: Path) -> Iterator[None]:
    """Own `path` as long as this context lasts (or the process lives: kill -9 frees it).

    Raises StoreLocked with the owner's pid if another process owns it, StoreError if the disk is full.
    """
    try:
        fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from error
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            raise StoreLocked(
                f"{path}: in use by process {owner}{_standing_still(owner)}, or give this one its own --state"
            ) from None
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise _unusable(path, error) from error
        yield
    finally:
        os.close(fd)


def _unusable(path: Path, error: OSError) -> FlowkitError:
    """Of a disk that is full or fails, which may pass: nothing about the command is wrong."""
    text = f"{path}: cannot be used as state directory: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{text}: make room and start again")
    return StoreError(text) if error.errno == errno.EIO else ConfigError(text)


def _standing_still(owner: str) -> str:
    """What to do about the owner, who may look dead: a process that is stopped does nothing and keeps its locks."""
    try:
        # The name of its program comes before, in brackets, and may have any in it.
        state = Path(f"/proc/{int(owner)}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return ": stop it"
    return f", which stands still (SIGSTOP): kill -CONT {owner} or kill -9 {owner}" if state in "tT" else ": stop it"


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
