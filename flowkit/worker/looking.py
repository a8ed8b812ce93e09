"""What lies in a state directory, whether its worker runs or not: the newest committed state of each task, decoded.

    STATE/run/log-…                    a bounded run
    STATE/tasks/TASK/OWNERSHIP/log-…   a worker's tasks; the ownership that committed last is the task's state
    STATE/process-N/tasks/…            the same of workers that share the directory

Nothing is locked or written.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from flowkit.app import App
from flowkit.errors import ConfigError
from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.store import (
    Frame,
    Look,
    Reading,
    SpaceChange,
    check_directory,
    keys_from_environment,
    parts_of,
    read_store,
)
from flowkit.table import AnyTable, Cursor, Mode, State, check_schema, look, look_up, make_state, migrate_cell


class Entry(NamedTuple):
    """One value of a table: of a window `[start, end)` (ms), or of all time."""

    task: str
    key: Any
    start: int
    end: int
    value: Any


def read_tasks(root: Path, app: App) -> dict[str, Look]:
    """The state of every task under `root`, by name. Raises ConfigError if that is not the app's, StoreCorrupt."""
    check_directory(root, app.name)
    found: dict[str, Look] = {}
    keys = keys_from_environment(app=app.name)
    if (root / "run").is_dir():
        found["run"] = read_store(root / "run", keys)
    homes = [home for part in parts_of(root) if (part / "tasks").is_dir() for home in (part / "tasks").iterdir()]
    for home in sorted(homes, key=lambda home: home.name):
        name = unquote(home.name).removeprefix(f"{app.name}/")
        for place in home.iterdir():
            if place.is_dir():
                store = read_store(place, keys)
                if name not in found or store.number > found[name].number:
                    found[name] = store
    return {name: store for name, store in found.items() if store.number}


async def read_table(app: App, table: AnyTable[Any, Any], tasks: dict[str, Look]) -> list[Entry]:
    """Everything that a table holds, by task, window and key bytes. Raises SchemaChanged if it cannot be read."""
    for store in tasks.values():
        await _migrate(table, store)
    return list(entries(app, table, tasks))


NO_KEY: Any = object()


def entries(
    app: App, table: AnyTable[Any, Any], tasks: "dict[str, Look] | dict[str, Reading]", key: Any = NO_KEY
) -> Iterator[Entry]:
    """What a table holds (of one key), by task, window and key bytes; read as it is taken. Stores are up to date."""
    # A bounded run and a worker share out what group_by sends on differently.
    plans = [app.plan()]
    with contextlib.suppress(ConfigError):
        plans.append(app.plan(rekey=True))
    groups = dict.fromkeys(group.name for plan in plans for group in plan.groups if table in group.tables)
    seen: set[Any] = set()
    for name, store in tasks.items():
        for group in groups:
            if table.name in store.meta.get("groups", {}).get(group, {}).get("tables", {}):
                state = state_in(table, group, store)
                for held in look(state) if key is NO_KEY else look_up(state, key):
                    # Every task has the whole of a broadcast table.
                    place = (repr(held.key), held.start, held.end)
                    if not table.broadcast or place not in seen:
                        if table.broadcast:
                            seen.add(place)
                        yield Entry(name, *held)


def state_in(table: AnyTable[Any, Any], group: str, store: Reading) -> State:
    """A table's state as of a store's last commit, to be read only."""
    saved = store.meta["groups"][group]
    meta = saved["tables"][table.name]
    cursor = Cursor()
    cursor.watermark = cursor.time = meta.get("watermark", MIN_TIME)
    if cursor.time >= END_OF_TIME - 1:  # after a whole run: as of its last event, or everything with a ttl were gone
        highs = [high for high, *_ in saved["splits"]["splits"].values()]
        cursor.watermark = cursor.time = max(highs, default=MIN_TIME)
    state = make_state(table, cursor, store)
    state.open(meta)
    state.set_mode(Mode.READ)
    return state


async def _migrate(table: AnyTable[Any, Any], store: Look) -> None:
    """Bring this copy's values of an older version to the declared one, as a worker would at its start."""
    stored = store.meta.get("schemas", {}).get(table.name)
    if stored is None or not check_schema(table, stored):
        return
    changes = []
    for end in [None, *store.ends(table.name)]:
        rows = list(store.scan((table.name, end)))
        values: list[bytes | None] = [migrate_cell(table, data, stored["version"]) for _, data in rows]
        changes.append(SpaceChange(table.name, end, [key for key, _ in rows], values))
    frame = Frame(store.number + 1, b"migrated", store.commit_id, 0, store.meta, changes)
    await store.prepare(frame)
    await store.resolve(frame.commit_id, applied=True)
