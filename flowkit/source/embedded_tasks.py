"""Tasks in an embedded broker's file: who owns them, what they have committed; and the workers that live."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from flowkit.errors import Fenced
from flowkit.source.embedded_file import BrokerFile
from flowkit.source.embedded_log import append, pack, size_of
from flowkit.source.rules import DEFAULT_TTL_MS, Claimed, Lease, claimed, group_outputs, must_apply
from flowkit.source.seam import Output

FORGET_MS = 86_400_000
"""A worker that has been dead for a day is forgotten: names are often made up anew at each start."""

COLUMNS = "task, owner, epoch, expires_ms, state, number, commit_id"


def claim(file: BrokerFile, task: str, owner: str, state: str, now: int, seen: int | None) -> Claimed:
    """Make `owner` the task's owner under the next epoch."""
    with file.transaction() as sql:
        before = lease_of(sql, task)
        lease = claimed(before, task, owner, state, now + _ttl(sql, owner), seen)
        sql.execute(
            "INSERT INTO tasks (task, owner, epoch, expires_ms, state) VALUES (?1, ?2, ?3, ?4, ?5) "
            "ON CONFLICT (task) DO UPDATE SET owner = ?2, epoch = ?3, expires_ms = ?4, state = ?5",
            (task, owner, lease.epoch, lease.expires_ms, state),
        )
    return Claimed(lease.epoch, lease.number, lease.commit_id, before.state if before is not None else "")


def commit(
    file: BrokerFile,
    url: str,
    task: str,
    epoch: int,
    number: int,
    commit_id: bytes,
    positions: Any,
    outputs: Sequence[Output],
) -> None:
    """Append the outputs and store positions and identity, if the epoch is still the task's."""
    packed = {at: pack(columns) for at, columns in group_outputs(outputs).items()}  # before anyone has to wait for us
    blob = msgspec.msgpack.encode(positions)
    with file.transaction(size_of(packed) + len(blob)) as sql:
        if must_apply(lease_of(sql, task), task, epoch, number, commit_id):
            append(file, sql, url, packed)
            sql.execute(
                "UPDATE tasks SET number = ?, commit_id = ?, positions = ? WHERE task = ?",
                (number, commit_id, blob, task),
            )


def last_commit(file: BrokerFile, task: str) -> tuple[int, bytes | None]:
    """Number and id of the last commit that counts; (0, None) if there is none."""
    lease = lease_of(file.sql, task)
    return (0, None) if lease is None else (lease.number, lease.commit_id)


def positions(file: BrokerFile, task: str) -> Any:
    """The positions in the last commit that counts; None if there is none."""
    (blob,) = file.sql.execute("SELECT positions FROM tasks WHERE task = ?", (task,)).fetchone() or (None,)
    return None if blob is None else msgspec.msgpack.decode(blob)


def lease_of(sql: sqlite3.Connection, task: str) -> Lease | None:
    """The task's row; None if it has never been claimed."""
    row = sql.execute(f"SELECT {COLUMNS} FROM tasks WHERE task = ?", (task,)).fetchone()  # noqa: S608  our own columns
    return None if row is None else Lease(*row)


def leases(file: BrokerFile, prefix: str) -> list[Lease]:
    """The rows of all tasks whose name begins with `prefix`, by name."""
    query = f"SELECT {COLUMNS} FROM tasks WHERE substr(task, 1, ?) = ? ORDER BY task"  # noqa: S608
    return [Lease(*row) for row in file.sql.execute(query, (len(prefix), prefix))]


def renew(file: BrokerFile, worker: str, tasks: Sequence[str], now: int) -> list[str]:
    """Prolong the leases on `tasks`, and tell which of them the worker does not own (any more)."""
    with file.transaction() as sql:
        expires = now + _ttl(sql, worker)
        query = "UPDATE tasks SET expires_ms = ? WHERE task = ? AND owner = ?"
        return [task for task in tasks if not sql.execute(query, (expires, task, worker)).rowcount]


def release(file: BrokerFile, task: str, epoch: int) -> None:
    """Give the task up, if `epoch` is still its epoch."""
    with file.transaction() as sql:
        sql.execute("UPDATE tasks SET owner = '' WHERE task = ? AND epoch = ?", (task, epoch))


# --- workers ----------------------------------------------------------------------------------------------------------


def join(file: BrokerFile, worker: str, ttl_ms: int, now: int) -> None:
    """Become a member for `ttl_ms` after each sign of life."""
    with file.transaction() as sql:
        sql.execute("DELETE FROM workers WHERE expires_ms < ?", (now - FORGET_MS,))
        sql.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", (worker, ttl_ms, now + ttl_ms))


def heartbeat(file: BrokerFile, worker: str, now: int) -> None:
    """A sign of life."""
    with file.transaction() as sql:
        query = "UPDATE workers SET expires_ms = ? + ttl_ms WHERE worker = ?"
        if not sql.execute(query, (now, worker)).rowcount:
            raise Fenced(f"worker {worker} is no member: join first")


def leave(file: BrokerFile, worker: str) -> None:
    """Be no member any more, and give all tasks up."""
    with file.transaction() as sql:
        sql.execute("DELETE FROM workers WHERE worker = ?", (worker,))
        sql.execute("UPDATE tasks SET owner = '' WHERE owner = ?", (worker,))


def members(file: BrokerFile, prefix: str, now: int) -> list[str]:
    """The living workers whose name begins with `prefix`, by name."""
    query = "SELECT worker FROM workers WHERE expires_ms > ? AND substr(worker, 1, ?) = ? ORDER BY worker"
    return [worker for (worker,) in file.sql.execute(query, (now, len(prefix), prefix))]


def _ttl(sql: sqlite3.Connection, worker: str) -> int:
    (ttl,) = sql.execute("SELECT ttl_ms FROM workers WHERE worker = ?", (worker,)).fetchone() or (DEFAULT_TTL_MS,)
    return int(ttl)
