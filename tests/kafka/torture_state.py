"""What is left of a torture in changelogs and state directories, and how it differs from the model."""

import asyncio
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from flowkit.errors import FlowkitError
from flowkit.store import Look, read_store
from tests.kafka.torture_model import Book

PARTITIONS = 3
GROUPS = ("by-user", "by-item", "by-shop", "by-size")

Commit = tuple[int, bytes, bytes]
"""Number, id, and the id of the one before."""


def changelog_differences(bootstrap: str, app: str) -> tuple[list[str], int]:
    """Whether the committed frames of each task follow one another, and how many there are.

    Exactly one owner at a time has committed, if they do. At least once, who has been succeeded may have written one
    more frame, which does not count; by that he has to notice.
    """
    found, commits = [], 0
    for task, (log, late) in asyncio.run(_changelogs(bootstrap, app)).items():
        commits += log[-1][0] if log else 0
        found += [
            f"changelog of {task}: the owner of epoch {epoch} wrote {count} frames that do not follow its successor's "
            "claim"
            for epoch, count in late.items()
            if count > 1
        ]
        for before, after in itertools.pairwise(log):
            if after[0] != before[0] + 1 or after[2] != before[1]:
                found.append(f"changelog of {task}: commit {after[0]} does not follow commit {before[0]}")
                break
    return found, commits


def state_differences(
    bootstrap: str, app: str, book: Book, states: list[Path], items: dict[str, tuple[int, int]] | None = None
) -> list[str]:
    """Whether the tables, as the last owners left them on their disks, hold what the model has.

    `items` is what the table of items has to hold, if that is not the model's.
    """
    os.environ["TORTURE_APP"] = app
    from flowkit.worker.looking import read_table
    from tests.kafka import torture_app

    logs = asyncio.run(_changelogs(bootstrap, app))
    tasks: dict[str, Look] = {}
    found = []
    for task, (log, _) in logs.items():
        if log:
            look = _store_at(states, f"{app}/{task}", log[-1])
            if look is None:
                found.append(f"state of {task}: no worker has commit {log[-1][0]}, the last one, on its disk")
            else:
                tasks[task] = look

    async def read() -> tuple[dict[Any, Any], dict[Any, Any]]:
        users = await read_table(torture_app.app, torture_app.by_user, tasks)
        items = await read_table(torture_app.app, torture_app.by_item, tasks)
        return ({e.key: (e.value.count, e.value.total) for e in part} for part in (users, items))  # type: ignore[return-value]

    users, found_items = asyncio.run(read())
    users_of_book = {user: rows[-1][1:] for user, rows in book.users.items()}
    items_of_book = items or {item: (len(ns), sum(ns.values())) for item, ns in book.items.items()}
    for name, ours, theirs in (("by-user", users_of_book, users), ("by-item", items_of_book, found_items)):
        wrong = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if wrong:
            told = [f"{key}: {ours.get(key)}, not {theirs.get(key)}" for key in wrong[:3]]
            found.append(f"table {name}: {len(wrong)} keys are not the model's: {'; '.join(told)}")
    return found


def _store_at(states: list[Path], task: str, last: Commit) -> Look | None:
    from urllib.parse import quote

    for state in states:
        for place in (state / "tasks" / quote(task, safe="")).glob("*"):
            try:
                look = read_store(place, until=last[1])
            except (FlowkitError, OSError):
                continue  # half of a directory, of one who was killed while he made it
            if (look.number, look.commit_id) == last[:2]:
                return look
    return None


async def _changelogs(bootstrap: str, app: str) -> dict[str, tuple[list[Commit], Counter[int]]]:
    """By task its committed frames, and by epoch how many frames were written behind a later owner's claim."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 2**20,
    )
    await consumer.start()
    try:
        names = {
            TopicPartition(f"{app}-{group}-changelog", p): f"{group}/{p}" for group in GROUPS for p in range(PARTITIONS)
        }
        consumer.assign(list(names))
        logs: dict[str, tuple[list[Commit], Counter[int]]] = {name: ([], Counter()) for name in names.values()}
        highest = dict.fromkeys(names, 0)
        for part, end in (await consumer.end_offsets(list(names))).items():
            while await consumer.position(part) < end:
                for records in (await consumer.getmany(part, timeout_ms=200)).values():
                    for record in records:
                        epoch, number, commit_id, parent, _, piece, parts, _ = msgspec.msgpack.decode(record.value)
                        highest[part] = max(highest[part], epoch)
                        if parts and piece == 0:
                            log, late = logs[names[part]]
                            if epoch == highest[part]:
                                log.append((number, commit_id, parent))
                            else:
                                late[epoch] += 1
        return logs
    finally:
        await consumer.stop()
