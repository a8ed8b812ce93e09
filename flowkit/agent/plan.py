"""From declarations to tasks: which agents, tables and topics belong together, in which order, and what is wrong.

Agents that share a table, or read the same topic, form one *group*: partition p of everything that a group reads is
one task. The agent that writes a broadcast table runs in every group that reads it, over all partitions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowkit.agent.spec import AgentSpec
from flowkit.agent.topic import Outlet, Topic
from flowkit.errors import ConfigError
from flowkit.record import Events
from flowkit.table import AnyTable, TableEvents


@dataclass
class Group:
    """What one task runs. Agents are in order of registration, tables upstream first."""

    name: str
    agents: list[AgentSpec] = field(default_factory=list)
    tables: list[AnyTable[Any, Any]] = field(default_factory=list)
    topics: list[Topic[Any]] = field(default_factory=list)
    broadcast_topics: list[Topic[Any]] = field(default_factory=list)

    @property
    def inputs(self) -> list[Topic[Any]]:
        return [*self.topics, *self.broadcast_topics]

    @property
    def outlets(self) -> list[Outlet[Any]]:
        found: dict[str, Outlet[Any]] = {sink.name: sink for agent in self.agents for sink in agent.sinks}
        return list(found.values())

    @property
    def close_after_idle(self) -> int | None:
        """How long (ms) all inputs must be quiet before the watermark goes on by the clock."""
        given = [topic.close_after_idle for topic in self.inputs] + [table.close_after_idle for table in self.tables]
        return min((ms for ms in given if ms is not None), default=None)


@dataclass
class Plan:
    """All groups of an app, in the order in which data passes them where there is one."""

    groups: list[Group]

    def readers(self, topic: str) -> list[Group]:
        return [group for group in self.groups if any(t.name == topic for t in group.inputs)]


def make_plan(agents: Sequence[AgentSpec], tables: Sequence[AnyTable[Any, Any]]) -> Plan:
    """The plan of an app. Raises ConfigError with all problems at once."""
    problems = [problem for agent in agents for problem in agent.problems()]
    problems += _table_problems(agents, tables)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    depths = _depths(agents, tables)
    broadcast_writers = [agent for agent in agents if any(table.broadcast for table in agent.tables)]
    joined = _Joined()
    for agent in agents:
        if agent not in broadcast_writers:
            joined.join([_node(agent), *map(_root, agent.sources)])
            for table in (*agent.tables, *(t for t in agent.reads if not t.broadcast)):
                joined.join([_node(agent), ("table", table.name)])
    for table in tables:
        if table.source is not None:
            joined.join([("table", table.name), _root(table.source)])
    groups: dict[Any, Group] = {}
    for agent in agents:
        if agent not in broadcast_writers:
            groups.setdefault(joined.find(_node(agent)), Group("")).agents.append(agent)
    for table in tables:
        key = joined.find(("table", table.name))
        if not table.broadcast and (key in groups or table.source is not None):
            groups.setdefault(key, Group("")).tables.append(table)
    for group in groups.values():
        _complete(group, broadcast_writers, agents, depths)
    alone = [writer for writer in broadcast_writers if not any(writer in group.agents for group in groups.values())]
    for writer in alone:
        group = groups[_node(writer)] = Group("", [writer], list(writer.tables))
        _inputs(group, {writer})
        group.name = writer.name
    return Plan(_in_order(list(groups.values())))


def _node(agent: AgentSpec) -> tuple[str, str]:
    return ("agent", agent.name)


def _root(source: Events[Any]) -> tuple[str, str]:
    return ("table", source.table.name) if isinstance(source, TableEvents) else ("topic", source.name)


class _Joined:
    """Sets that grow together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def find(self, node: Any) -> Any:
        while self._parent.setdefault(node, node) != node:
            node = self._parent[node]
        return node

    def join(self, nodes: Iterable[Any]) -> None:
        first, *rest = map(self.find, nodes)
        for node in rest:
            self._parent[self.find(node)] = self.find(first)


def _complete(group: Group, writers: list[AgentSpec], agents: Sequence[AgentSpec], depths: dict[str, int]) -> None:
    read = {table for agent in group.agents for table in agent.reads if table.broadcast}
    brought = [writer for writer in writers if read & set(writer.tables)]
    group.tables += [table for writer in brought for table in writer.tables]
    order = {agent: n for n, agent in enumerate(agents)}
    group.agents = sorted([*brought, *group.agents], key=lambda agent: order[agent])
    group.tables.sort(key=lambda table: depths[table.name])
    _inputs(group, set(brought))
    group.name = min([t.name for t in group.tables if not t.broadcast] or [agent.name for agent in group.agents])


def _inputs(group: Group, brought: set[AgentSpec]) -> None:
    everywhere = {s.name: s for a in group.agents if a in brought for s in a.sources if isinstance(s, Topic)}
    here = {s.name: s for a in group.agents if a not in brought for s in a.sources if isinstance(s, Topic)}
    here |= {t.source.name: t.source for t in group.tables if isinstance(t.source, Topic)}
    group.topics = list(here.values())
    group.broadcast_topics = [topic for name, topic in everywhere.items() if name not in here]


def _in_order(groups: list[Group]) -> list[Group]:
    """Groups that write a topic before those that read it; a cycle stays in order of registration."""
    done: list[Group] = []
    rest = list(groups)
    while rest:
        written = {outlet.name for group in rest for outlet in group.outlets}
        free = [
            group
            for group in rest
            if not any(topic.name in written - {o.name for o in group.outlets} for topic in group.inputs)
        ]
        step = free or rest[:1]
        done += step
        rest = [group for group in rest if group not in step]
    return done


def _depths(agents: Sequence[AgentSpec], tables: Sequence[AnyTable[Any, Any]]) -> dict[str, int]:
    """How many tables lie upstream of each table, through their own events. Raises ConfigError for a circle."""
    above: dict[str, set[str]] = {table.name: set() for table in tables}
    for agent in agents:
        for source in agent.sources:
            if isinstance(source, TableEvents) and source.kind == "closed":
                for table in agent.tables:
                    above[table.name].add(source.table.name)
    for table in tables:
        if isinstance(table.source, TableEvents):
            above[table.name].add(table.source.table.name)
    depths: dict[str, int] = {}

    def depth(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ConfigError(f"tables feed each other in a circle: {' -> '.join((*path[path.index(name) :], name))}")
        if name not in depths:
            depths[name] = max((depth(up, (*path, name)) + 1 for up in above[name]), default=0)
        return depths[name]

    for table in tables:
        depth(table.name, ())
    return depths


def _table_problems(agents: Sequence[AgentSpec], tables: Sequence[AnyTable[Any, Any]]) -> Iterable[str]:
    known = set(tables)
    for agent in agents:
        for table in (*agent.tables, *agent.reads):
            if table not in known:
                yield f"agent {agent.name!r}: table {table.name!r} belongs to another app"
    for table in tables:
        writers = [agent for agent in agents if table in agent.tables]
        if len(writers) > 1:
            names = ", ".join(repr(agent.name) for agent in writers)
            yield f"table {table.name!r} is written by {names}: one agent writes a table, others name it in reads="
        readers = [agent for agent in agents if table in agent.reads]
        if readers and not writers and table.source is None:
            yield f"table {table.name!r} is read by {readers[0].name!r}, but no agent writes it"
        if table.broadcast:
            for writer in writers:
                if writer.sinks or any(not t.broadcast for t in (*writer.tables, *writer.reads)):
                    yield (
                        f"agent {writer.name!r} writes the broadcast table {table.name!r} and so runs in every task: "
                        "it can have neither sinks nor tables of one partition"
                    )
