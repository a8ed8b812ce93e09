"""The health file: STATE/health.json, written by a worker about once a second, read by `flowkit health`."""

import os
import time
from pathlib import Path

import msgspec

from flowkit.errors import ConfigError

NAME = "health.json"


class Health(msgspec.Struct):
    """`at_ms`: when it was written. `ready`: it has its share, and all its tasks are open.

    `stalled`: tasks without progress. `failing`: by task, why it could not be opened or run the last time; it is tried
    again. `broker`: why the broker does not answer; '' while it does. `waiting`: by task, which sink it waits for, and
    since when, if that takes a second or more: its input waits with it, and to start it again would not help.
    """

    pid: int
    at_ms: int
    ready: bool
    stalled: list[str] = []
    tasks: list[str] = []
    failing: dict[str, str] = {}
    broker: str = ""
    waiting: dict[str, str] = {}


def write_health(state: Path, health: Health) -> None:
    """Replace the file in one step, so that a reader never sees half of it. Raises OSError."""
    draft = state / f".{NAME}.{os.getpid()}"
    try:
        draft.write_bytes(msgspec.json.encode(health))
        draft.replace(state / NAME)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def read_health(state: Path, max_age_ms: int = 10_000) -> Health:
    """What the worker last said. Raises ConfigError, saying why, if there is none, it is dead, or it is silent."""
    path = state / NAME
    try:
        health = msgspec.json.decode(path.read_bytes(), type=Health)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not there: no worker runs with this state directory") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        os.kill(health.pid, 0)
    except ProcessLookupError:
        raise ConfigError(f"worker {health.pid} is dead") from None
    except PermissionError:
        pass
    age = time.time_ns() // 1_000_000 - health.at_ms
    if age > max_age_ms:
        raise ConfigError(f"worker {health.pid} has been silent for {age / 1000:.0f} s")
    return health
