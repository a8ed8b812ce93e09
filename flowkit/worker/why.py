"""Why a window is not out: what a task knows of its inputs, its watermark and the open windows of a table.

Facts only, from committed state: of a running worker's stores, or of a state directory. What they mean is said in words
by `flowkit why`.
"""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

import msgspec

from flowkit.agent import Group
from flowkit.app import App
from flowkit.errors import ConfigError
from flowkit.options import parse_text
from flowkit.record import MIN_TIME
from flowkit.store import Look, Reading
from flowkit.table import AlignedState, AnyTable, Held, look, look_up
from flowkit.window import IDLE, Count, Splits
from flowkit.worker.calls import hold_of
from flowkit.worker.looking import NO_KEY, state_in
from flowkit.worker.tally import counts_of

SHOWN = 10
"""So many open windows of a task are told, the next to close first; all are counted."""

LIMIT = 20_000
"""So many entries of a task are looked at."""


class SplitFacts(msgspec.Struct):
    """An input split. Times in ms; None: no event yet, or not known.

    `holds`: the watermark waits for this one. `heard` is when (by the clock) it last sent something, `idle_after` how
    long it may be silent before the watermark no longer waits for it.
    """

    name: str
    high: int | None
    out_of_order: int
    idle: bool
    ended: bool
    holds: bool = False
    idle_after: int | None = None
    heard: int | None = None

    @property
    def watermark(self) -> int | None:
        """How far event time has come in it."""
        return None if self.high is None else self.high - self.out_of_order - 1


class WindowFacts(msgspec.Struct):
    """An open window `[start, end)` (ms) with so many keys. `fired`: it is kept for late records only."""

    start: int
    end: int
    keys: int
    fired: bool = False


class TaskFacts(msgspec.Struct):
    """One task. `watermark` in ms (None: none yet). `complete` is False if not all entries were looked at."""

    task: str
    commit: int
    watermark: int | None
    splits: list[SplitFacts]
    windows: list[WindowFacts] = []
    open: int = 0
    complete: bool = True
    records: int = 0
    late: int = 0
    results: int = 0
    fired: int = 0

    @property
    def next(self) -> WindowFacts | None:
        """The window that closes next."""
        return next((window for window in self.windows if not window.fired), None)


class Facts(msgspec.Struct):
    """What is known of a windowed table. `now` is the clock (ms), `key` the one that was asked for.

    `kind` is its window as declared, such as `Tumbling(size=60000, offset=0)`.
    """

    app: str
    table: str
    kind: str
    lateness: int
    close_after_idle: int | None
    now: int
    tasks: list[TaskFacts]
    key: str | None = None
    running: bool = False


def windowed_table(app: App, name: str) -> AnyTable[Any, Any]:
    """A table with windows, by name. Raises ConfigError with the names that there are."""
    table = app.tables.get(name)
    windowed = sorted(name for name, table in app.tables.items() if table.windowing is not None)
    if table is None:
        near = get_close_matches(name, list(app.tables), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"those with windows are: {', '.join(windowed) or 'none'}"
        raise ConfigError(f"app {app.name!r} has no table {name!r}; {hint}")
    if table.windowing is None:
        known = f" (tables with windows: {', '.join(windowed)})" if windowed else ""
        raise ConfigError(f"table {name!r} has no windows: its values are there as soon as they are written{known}")
    return table


def key_of(table: AnyTable[Any, Any], text: str) -> Any:
    """A key from text: as it is, or as JSON. Raises ConfigError if it is none of the table's."""
    try:
        return parse_text(text, table.key_type)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no key of table {table.name!r}: {error}") from None


def table_facts(
    app: App,
    name: str,
    stores: "Mapping[str, Look] | Mapping[str, Reading]",
    now: int,
    *,
    key: str | None = None,
    running: bool = False,
    limit: int = LIMIT,
    live: Mapping[str, tuple[Splits, dict[str, int]]] | None = None,
) -> Facts:
    """What is known of table `name` in the tasks whose `stores` are given. Raises ConfigError.

    `live` are the present splits of tasks that run in this process, and when they were heard (ms).
    """
    table = windowed_table(app, name)
    wanted = NO_KEY if key is None else key_of(table, key)
    plan = app.plan(rekey="run" not in stores)
    groups = [group for group in plan.groups if table in group.tables]
    close_after = min((ms for g in groups if (ms := g.close_after_idle) is not None), default=None)
    facts = Facts(app.name, name, repr(table.windowing), table.allowed_lateness, close_after, now, [], key, running)
    for task, store in stores.items():
        for group in groups:
            present = (live or {}).get(task)
            saved = store.meta.get("groups", {}).get(group.name)
            if present is None and (saved is None or name not in saved["tables"]):
                continue
            found = TaskFacts(task, store.number, None, [])
            found.watermark, found.splits = _splits(group, store.meta, saved, present)
            if saved is not None and name in saved["tables"]:
                _windows(found, table, group, store, wanted, limit)
            counts = store.meta.get("counts", {})
            found.records = sum(counts_of(counts, "records").values())
            for column in ("late", "results", "fired"):
                setattr(found, column, counts_of(counts, column).get(name, 0))
            facts.tasks.append(found)
    return facts


# Splits


def _splits(
    group: Group, meta: dict[str, Any], saved: dict[str, Any] | None, present: tuple[Splits, dict[str, int]] | None
) -> tuple[int | None, list[SplitFacts]]:
    """The task's watermark and its splits, as they are if it runs here, else as of the last commit."""
    heard = meta.get("heard", {}) if present is None else present[1]
    rows: Iterable[tuple[str, int, bool, bool, bool]]
    if present is not None:
        splits = present[0]
        floor, hold = splits.floor, splits.hold
        rows = [(s.name, *_told(s.save()), s.holds) for s in splits.by_name.values()]
    else:
        assert saved is not None
        floor, hold = saved["splits"]["floor"], hold_of(saved)
        rows = [(name, *_told(row), True) for name, row in saved["splits"]["splits"].items()]
    found, counting = [], []
    for name, high, idle, ended, holds in rows:
        of = name.rpartition("[")[0]
        # In a bounded run a pattern is read from files under its own name.
        topic = group.input_of(of) or next((topic for topic in group.patterns if topic.name == of), None)
        out_of_order = 0 if topic is None else topic.out_of_order
        split = SplitFacts(name, None if high == MIN_TIME else high, out_of_order, idle, ended, heard=heard.get(name))
        split.idle_after = None if topic is None else topic.idle_after
        found.append(split)
        if holds and not idle and not ended:
            counting.append(split)
    mark = min((_mark(split) for split in counting), default=MIN_TIME)
    watermark = min(max(floor, mark), hold)
    for split in counting:  # none does if calls under way do
        split.holds = _mark(split) == mark and hold >= max(floor, mark)
    return (None if watermark == MIN_TIME else watermark), found


def _told(row: list[Any]) -> tuple[int, bool, bool]:
    """What a split saves: high, idle, ended. One of an internal topic is as far as its senders say."""
    if len(row) == 3:
        return row[0], row[1], row[2]
    _, _, ended, floor, marks = row
    return (MIN_TIME if floor == MIN_TIME else floor + 1), all(mark[1] == IDLE for mark in marks.values()), ended


def _mark(split: SplitFacts) -> int:
    return MIN_TIME if split.watermark is None else split.watermark


# Windows


def _windows(found: TaskFacts, table: AnyTable[Any, Any], group: Group, store: Reading, key: Any, limit: int) -> None:
    state = state_in(table, group.name, store)
    if key is NO_KEY and type(state) is AlignedState:
        spans = {(state.starts[end], end): _count(store, (state.space, end), limit) for end in state.by_end}
    else:
        rows = look(state) if key is NO_KEY else look_up(state, key)
        spans, found.complete = _spans(islice(rows, limit + 1), limit)
    done = MIN_TIME if isinstance(table.windowing, Count) else state.watermark  # which ends at no time
    windows = [WindowFacts(start, end, keys, end - 1 <= done) for (start, end), keys in spans.items()]
    windows.sort(key=_unfired_by_end)
    found.open = sum(not window.fired for window in windows)
    found.windows = windows[:SHOWN]


def _spans(rows: Iterator[Held], limit: int) -> tuple[dict[tuple[int, int], int], bool]:
    spans: dict[tuple[int, int], int] = {}
    seen = 0
    for held in rows:
        seen += 1
        spans[held.start, held.end] = spans.get((held.start, held.end), 0) + 1
    return spans, seen <= limit


def _count(store: Reading, space: tuple[str, int | None], limit: int) -> int:
    """How many keys a space has, at most `limit`."""
    count = 0
    for keys, _ in store.scan_columns(space):
        count += len(keys)
        if count >= limit:
            return limit
    return count


def _unfired_by_end(window: WindowFacts) -> tuple[bool, int, int]:
    return window.fired, window.end, window.start
