"""What the server shows of a worker or a run, as JSON: the running flow, and rows of its tables. Times are in ms."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from flowkit.agent import Group
from flowkit.codec import Codec, type_name
from flowkit.errors import ConfigError
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.store import Reading
from flowkit.table import AnyTable
from flowkit.worker import (
    NO_KEY,
    Entry,
    Facts,
    TaskView,
    Watched,
    behind,
    counts_of,
    entries,
    key_of,
    table_facts,
    watermark_of,
    windowed_table,
)

DEFAULT_ROWS, MOST_ROWS = 100, 1_000
"""Rows of a table in one answer: a thousand take some milliseconds, in which no task goes on."""

WHY_ENTRIES = 5_000
"""So many entries of a task are looked at for `/why`."""

DECIDED_SECONDS = 2.0
_JSON = Codec("json", Any)


def flow(watched: Watched, ends: Mapping[str, int]) -> dict[str, Any]:
    """The running flow: groups with what they read, keep and send, and the tasks of this process."""
    reason = watched.unready()
    return {
        "app": watched.app.name,
        "now": watched.clock.now_ms(),
        "ready": not reason,
        "reason": reason,
        "groups": [_group(group) for group in watched.app.plan(rekey=True).groups],
        "tasks": [_task(view, watched, ends) for view in watched.tasks()],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "agents": [agent.name for agent in group.agents],
        "topics": [topic.name for topic in group.topics],
        "broadcast_topics": [topic.name for topic in group.broadcast_topics],
        "tables": [_table(table) for table in group.tables],
        "sinks": [outlet.name for outlet in group.outlets],
    }


def _table(table: AnyTable[Any, Any]) -> dict[str, Any]:
    return {
        "name": table.name,
        "key": type_name(table.key_type),
        "value": type_name(table.value_type),
        "window": None if table.windowing is None else repr(table.windowing),
        "ttl": table.ttl,
        "broadcast": table.broadcast,
    }


def _task(view: TaskView, watched: Watched, ends: Mapping[str, int]) -> dict[str, Any]:
    meter, now = view.meter, watched.clock.now_ms()
    idle, busy, held = meter.per_second()
    told: dict[str, Any] = {
        "name": view.name,
        "groups": [group.name for group in view.groups],
        "partition": view.partition,
        "ready": view.ready,
        "failing": view.failing,
        "stalled": view.stalled,
        "restarts": max(0, meter.opened - 1),
        "rollbacks": meter.rollbacks,
        "records_per_second": round(meter.rate(), 3),
        "busy_ms_per_second": round(busy, 1),
        "idle_ms_per_second": round(idle, 1),
        "back_pressured_ms_per_second": round(held, 1),
    }
    if view.store is None:
        return told
    mark = min((watermark_of(engine.splits) for engine in view.engines), default=MIN_TIME)
    counts = view.meta.get("counts", {})
    return told | {
        "watermark": None if mark == MIN_TIME else mark,
        "watermark_lag": now - mark if MIN_TIME < mark < END_OF_TIME else None,
        "source_lag": behind(view, ends),
        "source_lag_ms": {split.name: late for split, late in view.late_splits()},
        "splits": [
            {"name": s.name, "high": None if s.high == MIN_TIME else s.high, "idle": s.idle, "ended": s.ended}
            for engine in view.engines
            for s in engine.splits.by_name.values()
        ],
        "commit": {"number": view.store.number, "at": meter.committed_at},
        "records": counts_of(counts, "records"),
        "late": counts_of(counts, "late"),
        "emitted": counts_of(counts, "emitted"),
        "dead_letters": sum(n for *_, n in counts.get("dead", ())),
    }


# Tables


def tables(watched: Watched) -> list[dict[str, Any]]:
    """The app's tables."""
    return [_table(table) for table in watched.app.tables.values()]


class Unknown(ConfigError):
    """There is no such thing: 404, where other mistakes are 400."""


async def rows(watched: Watched, name: str, key: str | None, limit: int) -> bytes:
    """Rows of a table in this process's tasks, as of their last commits: JSON with `rows` and `more`."""
    table = watched.app.tables.get(name)
    if table is None:
        known = ", ".join(sorted(watched.app.tables)) or "none"
        raise Unknown(f"app {watched.app.name!r} has no table {name!r} (it has {known})")
    wanted = NO_KEY if key is None else key_of(table, key)
    found: list[Entry] = []
    async for task, store, _ in decided(watched):
        found += islice(entries(watched.app, table, {task: store}, wanted), limit + 1 - len(found))
        if len(found) > limit or (table.broadcast and found):  # every task has the whole of a broadcast table
            break
    shown = []
    for row in found[:limit]:
        told = {"task": row.task, "key": row.key, "value": row.value}
        if row.start > MIN_TIME or row.end < END_OF_TIME:
            told |= {"start": row.start, "end": row.end}
        shown.append(_encoded(told))
    return msgspec.json.encode({"table": name, "rows": shown, "more": len(found) > limit})


def _encoded(row: dict[str, Any]) -> msgspec.Raw:
    """A row as JSON; what JSON cannot say, as Python shows it."""
    try:
        return msgspec.Raw(_JSON.encode(row))
    except (TypeError, ValueError, NotImplementedError):
        return msgspec.Raw(_JSON.encode(row | {"key": repr(row["key"]), "value": repr(row["value"])}))


async def decided(watched: Watched) -> AsyncIterator[tuple[str, Reading, TaskView]]:
    """The stores of all open tasks, each when it is not amid a commit: what it holds then is what counts."""
    for name in [view.name for view in watched.tasks()]:
        view = await _at_rest(watched, name)
        if view is not None and view.store is not None:
            yield name.removeprefix(f"{watched.app.name}/"), view.store, view


async def _at_rest(watched: Watched, name: str) -> TaskView | None:
    """An open task that is not amid a commit; None if it has gone. Raises TimeoutError."""
    async with asyncio.timeout(DECIDED_SECONDS):
        while (view := _open_task(watched, name)) is not None and view.store is not None:
            if view.store.undecided is None:
                return view
            await asyncio.sleep(0.002)
    return None


def _open_task(watched: Watched, name: str) -> TaskView | None:
    return next((view for view in watched.tasks() if view.name == name), None)


async def why(watched: Watched, name: str, key: str | None) -> Facts:
    """What is known of a windowed table. Raises ConfigError."""
    if name not in watched.app.tables:
        try:
            windowed_table(watched.app, name)
        except ConfigError as error:
            raise Unknown(*error.problems) from None
    now = watched.clock.now_ms()
    facts = table_facts(watched.app, name, {}, now, key=key, running=True)
    async for task, store, view in decided(watched):
        its_own = len(view.engines) == 1 and any(table.name == name for table in view.groups[0].tables)
        live = {task: (view.engines[0].splits, view.heard)} if its_own else {}
        found = table_facts(watched.app, name, {task: store}, now, key=key, running=True, limit=WHY_ENTRIES, live=live)
        facts.tasks += found.tasks
    return facts
