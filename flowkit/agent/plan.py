"""From declarations to tasks: which agents, tables and topics belong together, in which order, and what is wrong.

Agents that share a table, or read the same topic, form one *group*: partition p of everything that a group reads is
one task. The agent that writes a broadcast table runs in every group that reads it, over all partitions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

from flowkit.agent.rekey import Hop, Internal, gathered, hops_of, make_cuts
from flowkit.agent.spec import AgentSpec
from flowkit.agent.topic import Outlet, Topic
from flowkit.errors import ConfigError
from flowkit.flow import Called, Cuts, Events, Path, paths_of, roots_of
from flowkit.table import AnyTable, TableEvents, Ticks, Timers


@dataclass
class Group:
    """What one task runs. Agents are in order of registration, tables upstream first."""

    name: str
    agents: list[AgentSpec] = field(default_factory=list)
    tables: list[AnyTable[Any, Any]] = field(default_factory=list)
    topics: list[Topic[Any]] = field(default_factory=list)
    broadcast_topics: list[Topic[Any]] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    """What it sends on by another key."""
    cuts: Cuts = field(default_factory=dict)
    """The internal topics of the whole plan, by the stream that goes through each."""
    close_for: int | None = None
    """What those who take its hops want of `close_after_idle` (ms)."""

    @property
    def inputs(self) -> list[Topic[Any]]:
        return [*self.topics, *self.broadcast_topics]

    @property
    def patterns(self) -> list[Topic[Any]]:
        """Those inputs that stand for all topics of the broker which match them."""
        return [topic for topic in self.inputs if topic.pattern is not None]

    def input_of(self, name: str) -> Topic[Any] | None:
        """The input that the broker's topic `name` is, or is a part of."""
        by_name = {topic.name: topic for topic in self.inputs if topic.pattern is None}
        return by_name.get(name) or next((topic for topic in self.patterns if topic.stands_for(name)), None)

    @property
    def outlets(self) -> list[Outlet[Any]]:
        found: dict[str, Outlet[Any]] = {sink.name: sink for agent in self.agents for sink in agent.sinks}
        found |= {hop.topic.name: hop.topic for hop in self.hops}
        return list(found.values())

    def paths_of(self, stream: Events[Any]) -> list[Path]:
        """The ways on which events come into `stream` in this group."""
        return paths_of(stream, self.cuts)

    def roots(self) -> list[Events[Any]]:
        """Where the events come from that anything in the group takes, each once."""
        streams = [source for table in self.tables for source in table.sources]
        streams += [source for agent in self.agents for source in agent.sources]
        found = {root.name: root for root in roots_of(streams, self.cuts)}
        found |= {root.name: root for hop in self.hops for root in hop.roots(self.cuts)}
        return list(found.values())

    @property
    def called(self) -> list[Called[Any]]:
        """The streams of results of calls, upstream first."""
        return [root for root in self.roots() if isinstance(root, Called)]

    @property
    def close_after_idle(self) -> int | None:
        """How long (ms) all inputs must be quiet before the watermark goes on by the clock."""
        given = [topic.close_after_idle for topic in self.inputs] + [table.close_after_idle for table in self.tables]
        given.append(self.close_for)
        return min((ms for ms in given if ms is not None), default=None)


@dataclass
class Plan:
    """All groups of an app, in the order in which data passes them where there is one."""

    groups: list[Group]

    def readers(self, topic: str) -> list[Group]:
        return [group for group in self.groups if any(t.name == topic for t in group.inputs)]

    def senders(self, topic: Internal) -> list[Group]:
        """The groups that send into an internal topic."""
        return [group for group in self.groups if any(hop.topic is topic for hop in group.hops)]

    @property
    def internals(self) -> list[Internal]:
        """The internal topics."""
        return list({hop.topic.name: hop.topic for group in self.groups for hop in group.hops}.values())


def make_plan(
    agents: Sequence[AgentSpec],
    tables: Sequence[AnyTable[Any, Any]],
    *,
    rekey: str | None = None,
    topics: Iterable[str] = (),
) -> Plan:
    """The plan of an app. Raises ConfigError with all problems at once.

    `rekey` is the app's name where there are several tasks a topic: what changes its key goes through an internal topic
    then, whose name must be none of `topics`. Without, every `group_by` lets events pass.
    """
    problems = [problem for agent in agents for problem in agent.problems()]
    problems += _table_problems(agents, tables)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    depths = _depths(agents, tables)
    taken = [source for agent in agents for source in agent.sources]
    taken += [source for table in tables for source in table.sources]
    cuts = {} if rekey is None else make_cuts(rekey, taken, topics)
    broadcast_writers = [agent for agent in agents if any(table.broadcast for table in agent.tables)]
    joined = _joined(agents, tables, broadcast_writers, cuts)
    made: dict[Any, Group] = {}

    def group_of(node: tuple[str, str]) -> Group:
        return made.setdefault(joined.find(node), Group("", cuts=cuts))

    for agent in agents:
        if agent not in broadcast_writers:
            group_of(_node(agent)).agents.append(agent)
    for table in tables:
        node = ("table", table.name)
        if not table.broadcast and (joined.find(node) in made or table.sources):
            group_of(node).tables.append(table)
    for hop in hops_of(cuts):
        group_of(_root(hop.paths[0].root)).hops.append(hop)
    groups = list(made.values())
    for group in groups:
        _complete(group, broadcast_writers, agents, depths)
    for writer in reversed(broadcast_writers):  # one that nobody reads still runs, somewhere
        if not any(writer in group.agents for group in groups):
            groups.append(group := Group("", [writer], cuts=cuts))
            _complete(group, broadcast_writers, agents, depths)
    _name(groups)
    _check_clocks(groups)
    plan = Plan(_in_order(groups))
    _check_hops(plan)
    return plan


def _joined(
    agents: Sequence[AgentSpec],
    tables: Sequence[AnyTable[Any, Any]],
    broadcast_writers: Sequence[AgentSpec],
    cuts: Cuts,
) -> "_Joined":
    """What must be in one group."""
    joined = _Joined()
    for agent in agents:
        if agent not in broadcast_writers:
            joined.join([_node(agent), *map(_root, roots_of(agent.sources, cuts))])
            for table in (*agent.tables, *(t for t in agent.reads if not t.broadcast)):
                joined.join([_node(agent), ("table", table.name)])
    for table in tables:
        joined.join([("table", table.name), *map(_root, roots_of(table.sources, cuts))])
    for hop in hops_of(cuts):
        joined.join(map(_root, hop.roots(cuts)))
    return joined


def _check_hops(plan: Plan) -> None:
    """Raise ConfigError if a group would wait for its own watermark; tell senders how their receivers go by the clock.

    Only hops carry watermarks, so only they make such a circle.
    """
    below = {group.name: {hop.topic.name: hop.topic for hop in group.hops} for group in plan.groups}
    takers = {name: {taker.name for topic in topics for taker in plan.readers(topic)} for name, topics in below.items()}
    by_name = {group.name: group for group in plan.groups}
    circle = _circle(takers)
    if circle:
        way = " <- ".join(_members(by_name[name]) for name in circle)
        raise ConfigError(
            f"what is sent on by another key comes back to where it is sent from: {way}: these would wait for their "
            "own watermark; let what reads both the stream and its group_by share no table, or send through a topic "
            "of your own"
        )
    for name in TopologicalSorter(takers).static_order():
        wanted = [by_name[taker].close_after_idle for taker in takers[name]]
        by_name[name].close_for = min((ms for ms in wanted if ms is not None), default=None)


def _members(group: Group) -> str:
    """What is in a group, for people."""
    names = [repr(agent.name) for agent in group.agents] + [repr(table.name) for table in group.tables]
    return " and ".join(names) or repr(group.name)


def _node(agent: AgentSpec) -> tuple[str, str]:
    return ("agent", agent.name)


def _root(source: Events[Any]) -> tuple[str, str]:
    if isinstance(source, TableEvents):
        return ("table", source.table.name)
    return ("stream" if isinstance(source, Called) else "topic", source.name)


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
    """Add the writers of the broadcast tables that the group reads, and of those that these read; then the inputs."""
    members = set(group.agents)
    while True:
        read = {table for agent in members for table in agent.reads if table.broadcast}
        more = {writer for writer in writers if read & set(writer.tables)} - members
        if not more:
            break
        members |= more
    group.agents = [agent for agent in agents if agent in members]
    brought = [agent for agent in group.agents if agent in writers]
    group.tables += [table for writer in brought for table in writer.tables]
    group.tables.sort(key=lambda table: depths[table.name])
    group.hops = gathered(group.hops)
    _inputs(group, set(brought))


def _check_clocks(groups: list[Group]) -> None:
    """Raise ConfigError for what goes by event time where nothing has any."""
    problems = [
        f"{table.what} {table.name!r} goes by event time, but its group reads no topic, so there is none: "
        'use clock="wall", or tables or streams that topics feed'
        for group in groups
        for table in group.tables
        if isinstance(table, Ticks | Timers) and table.clock == "event" and not group.inputs
    ]
    if problems:
        raise ConfigError(*problems)


def _name(groups: list[Group]) -> None:
    """Names by what does not change when an agent is added: tables. State is found by them, so they must differ."""
    for group in groups:
        kept = [t.name for t in group.tables if not t.broadcast and t.writers != "none"]
        group.name = min(kept, default="")
    taken = {group.name for group in groups}
    for group in groups:
        if not group.name:
            # What sends on is called after what it reads: under another name it would read, and send, it all again.
            # Not after calls: those may get another name, and are missed then, if they are found to have been there.
            roots = [
                f"from-{root.name}"
                for hop in group.hops
                for root in hop.roots(group.cuts)
                if not isinstance(root, Called)
            ]
            group.name = min(roots or [agent.name for agent in group.agents])
            while group.name in taken:
                group.name = f"agent-{group.name}"
            taken.add(group.name)


def _inputs(group: Group, brought: set[AgentSpec]) -> None:
    cuts = group.cuts
    everywhere = _topics((source for agent in group.agents if agent in brought for source in agent.sources), cuts)
    here = _topics((source for agent in group.agents if agent not in brought for source in agent.sources), cuts)
    here |= _topics((source for table in group.tables for source in table.sources), cuts)
    here |= _topics((root for hop in group.hops for root in hop.roots(cuts)), cuts)
    for name in sorted(everywhere.keys() & here.keys()):
        writers = ", ".join(repr(agent.name) for agent in group.agents if agent in brought)
        raise ConfigError(
            f"topic {name!r}: {writers} read all of it for a broadcast table, and others of the same task one "
            "partition: send it on to a topic of its own"
        )
    group.topics, group.broadcast_topics = list(here.values()), list(everywhere.values())


def _topics(streams: Iterable[Events[Any]], cuts: Cuts) -> dict[str, Topic[Any]]:
    """The topics from which the events of streams come, by name."""
    return {root.name: root for root in roots_of(streams, cuts) if isinstance(root, Topic)}


def _in_order(groups: list[Group]) -> list[Group]:
    """Groups that write a topic before those that read it; a cycle stays in order of registration."""
    done: list[Group] = []
    rest = list(groups)
    while rest:
        writers = [(outlet.name, group) for group in rest for outlet in group.outlets]
        free = [
            group
            for group in rest
            if not {topic.name for topic in group.inputs} & {name for name, writer in writers if writer is not group}
        ]
        step = free or rest[:1]
        done += step
        rest = [group for group in rest if group not in step]
    return done


def _depths(agents: Sequence[AgentSpec], tables: Sequence[AnyTable[Any, Any]]) -> dict[str, int]:
    """How many tables lie upstream of each table, through their closed windows. Raises ConfigError for a circle."""
    above: dict[str, dict[str, TableEvents[Any]]] = {table.name: {} for table in tables}
    windows: dict[str, set[str]] = {table.name: set() for table in tables}
    for sources, written in [
        *((agent.sources, agent.tables) for agent in agents),
        *((table.sources, (table,)) for table in tables),
    ]:
        for source in roots_of(sources):
            if isinstance(source, TableEvents):
                for table in written:
                    if table.writers == "any":
                        continue  # timers are set by whoever takes them: time goes on, so that it comes to an end
                    above[table.name].setdefault(source.table.name, source)
                    if source.kind != "changes":
                        windows[table.name].add(source.table.name)
    circle = _circle(above)
    if circle:
        way = " -> ".join(repr(above[low][high].name) for high, low in pairwise(circle))
        raise ConfigError(
            f"tables feed each other in a circle: {way} -> {circle[0]!r}: an event could go round without end"
        )
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = max((depth(up) + 1 for up in windows[name]), default=0)
        return depths[name]

    for table in tables:
        depth(table.name)
    return depths


def _circle(above: Mapping[str, Iterable[str]]) -> list[str]:
    """Names of which each lies above the next, the first again as the last; [] if there is no such circle."""
    try:
        TopologicalSorter(above).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def _broadcast_problem(where: str, source: TableEvents[Any]) -> Iterator[str]:
    if source.table.broadcast:
        yield (
            f"{where}: {source.name!r} would come once in every task, since table {source.table.name!r} is broadcast: "
            "name the table in reads="
        )


def _table_problems(agents: Sequence[AgentSpec], tables: Sequence[AnyTable[Any, Any]]) -> Iterable[str]:
    known = set(tables)
    for agent in agents:
        sources = [source for source in roots_of(agent.sources) if isinstance(source, TableEvents)]
        for table in dict.fromkeys((*agent.tables, *agent.reads, *(source.table for source in sources))):
            if table not in known:
                yield f"agent {agent.name!r}: table {table.name!r} belongs to another app"
        for source in sources:
            yield from _broadcast_problem(f"agent {agent.name!r}", source)
    for table in tables:
        writers = [agent for agent in agents if table in agent.tables]
        if len(writers) > 1 and table.writers == "one":
            names = ", ".join(repr(agent.name) for agent in writers)
            yield f"table {table.name!r} is written by {names}: one agent writes a table, others name it in reads="
        readers = [
            agent
            for agent in agents
            if table in agent.reads
            or any(isinstance(s, TableEvents) and s.table is table for s in roots_of(agent.sources))
        ]
        if readers and not writers and not table.sources and table.writers != "none":
            yield f"table {table.name!r} is read by {readers[0].name!r}, but no agent writes it"
        for root in roots_of(table.sources):
            if isinstance(root, TableEvents):
                yield from _broadcast_problem(f"table {table.name!r}", root)
                if root.table not in known:
                    yield f"table {table.name!r}: of={root.name!r} belongs to another app"
        if table.broadcast:
            for writer in writers:
                parts = [s for s in roots_of(writer.sources) if isinstance(s, TableEvents)]
                if writer.sinks or parts or any(not t.broadcast for t in (*writer.tables, *writer.reads)):
                    yield (
                        f"agent {writer.name!r} writes the broadcast table {table.name!r} and so runs in every task: "
                        "it can have neither sinks nor anything of tables of one partition"
                    )
