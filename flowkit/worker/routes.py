"""Who takes part in a group's steps: the states of its tables, the drivers of its agents, and who is given what."""

from collections.abc import Callable, Sequence
from typing import Any

from flowkit.agent import AgentSpec, Group
from flowkit.app import App
from flowkit.flow import Path
from flowkit.store import Store
from flowkit.table import AnyTable, Cursor, Mode, ProcessState, ProcessTable, State, compiled_of, make_state
from flowkit.worker.calling import CallDriver
from flowkit.worker.drivers import (
    AggregateDriver,
    Driver,
    EachDriver,
    ProcessDriver,
    StreamDriver,
    WindowFeedDriver,
)
from flowkit.worker.hops import HopDriver
from flowkit.worker.tap import Tap


def wanted_of(group: Group) -> set[str]:
    """The names of all streams from which events come that anything in the group takes."""
    return {root.name for root in group.roots()}


def make_states(
    app: App,
    group: Group,
    cursor: Cursor,
    store: Store,
    *,
    owns: Callable[[bytes], bool] | None,
    clean_limit: int,
    bounded: bool,
) -> dict[str, State]:
    """The states of the group's tables by name, in the order in which they fire."""
    wanted = wanted_of(group)
    return {
        table.name: make_state(
            table,
            cursor,
            store,
            owns=owns,
            wants_closed=f"{table.name}.closed" in wanted,
            clean_limit=clean_limit,
            space=_own_space(app, group, table) if bounded else None,
        )
        for table in group.tables
    }


def make_drivers(group: Group, states: dict[str, State], cursor: Cursor) -> list[Driver]:
    """The drivers of declared tables, of agents, and of what is sent on by another key."""
    drivers: list[Driver] = []
    for table in group.tables:
        if isinstance(table, ProcessTable):
            state = states[table.name]
            assert isinstance(state, ProcessState)
            drivers += [ProcessDriver(table, side, cursor, state) for side in range(len(table.feeds))]
        elif table.feeds:
            drivers += [WindowFeedDriver(table, side, cursor, states[table.name]) for side in range(len(table.feeds))]
        compiled = compiled_of(table)
        if compiled is not None:
            declared = AggregateDriver(table, compiled, cursor, states[table.name])
            if table.windowing is not None:
                declared.drops_late = declared.states
            drivers.append(declared)
    drivers += [CallDriver(stream, cursor) for stream in group.called]
    drivers += [_agent_driver(group, agent, states, cursor) for agent in group.agents]
    return drivers + [HopDriver(hop, cursor) for hop in group.hops]


def _agent_driver(group: Group, agent: AgentSpec, states: dict[str, State], cursor: Cursor) -> Driver:
    written = [states[table.name] for table in agent.tables]
    driver: Driver = (EachDriver if agent.per_event else StreamDriver)(agent, cursor, written)
    driver.sinks = frozenset(sink.name for sink in agent.sinks)
    driver.drops_late = [states[t.name] for t in agent.tables if t.windowing is not None and t.late_policy == "drop"]
    for table in group.tables:
        if table not in agent.tables:
            mode = Mode.READ if table in agent.reads else Mode.OUTSIDE
            driver.modes.append((states[table.name], mode))
    if isinstance(driver, StreamDriver):
        driver.watched = [*written, *(state for state, mode in driver.modes if mode is Mode.READ)]
    return driver


def make_routes(group: Group, drivers: list[Driver]) -> dict[str, list[Driver]]:
    """Who is given the events of which stream, in order."""
    routes: dict[str, list[Driver]] = {}
    for driver in drivers:
        for stream, paths in _ways(group, driver):
            by_root: dict[str, list[Path]] = {}
            for path in paths:
                by_root.setdefault(path.root.name, []).append(path)
            for root, ways in by_root.items():
                straight = len(ways) == 1 and not ways[0].steps
                routes.setdefault(root, []).append(driver if straight else Tap(driver, stream, ways))
    return {name: _writers_first(takers) for name, takers in routes.items()}


def _ways(group: Group, driver: Driver) -> list[tuple[str, Sequence[Path]]]:
    """The streams that a driver takes, each with the ways on which their events come in this group."""
    if isinstance(driver, HopDriver):
        return [(driver.name, driver.paths)]
    return [(source.name, group.paths_of(source)) for source in driver.sources]


def _writers_first(drivers: list[Driver]) -> list[Driver]:
    """Each before those who only read what it writes; otherwise, and in a circle, in order of registration."""
    done: list[Driver] = []
    left = list(drivers)
    while left:
        written = {id(state): driver for driver in left for state in driver.states}
        free = [d for d in left if not any(mode is Mode.READ and id(state) in written for state, mode in d.modes)]
        done.append((free or left)[0])
        left.remove(done[-1])
    return done


def _own_space(app: App, group: Group, table: AnyTable[Any, Any]) -> str | None:
    """Groups of one run keep copies of a broadcast table each, in one store: all but the first under another name."""
    if not table.broadcast:
        return None
    first = next(other for other in app.plan().groups if any(t is table for t in other.tables))
    return None if first.name == group.name else f"{table.name}@{group.name}"
