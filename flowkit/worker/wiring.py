"""What a worker's tasks are joined to: topics on the broker, found or made, and where sinks lead.

Everything that is wrong is told at once, before anything is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from flowkit.agent import Group, Internal, Outlet, Plan, Topic
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.codec import fields_of
from flowkit.errors import ConfigError
from flowkit.sink import Destination, FileDestination, Sink, SinkTask, destination
from flowkit.source import Part, TopicUse
from flowkit.worker.finder import TopicFinder
from flowkit.worker.live import task_name
from flowkit.worker.shards import Shards, Streams

log = structlog.get_logger("flowkit.worker")


@dataclass(frozen=True)
class Slice:
    """What one task is of: partition `partition` of `count` of a group."""

    group: Group
    partition: int
    count: int
    owns: Callable[[bytes], bool] | None = None
    """True for the keys that are the task's own; None: by their hash among `count`, as Kafka has it."""
    shard: Part | None = None
    """Of a stream."""


class Topics(Protocol):
    """What is asked of a broker here."""

    async def topics(self) -> Mapping[str, int]: ...
    async def end_offsets(self, topic: str) -> Any: ...
    async def bounds(self, topic: str, partition: int) -> tuple[int, int]: ...
    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Any: ...
    async def ran(self, tasks: str) -> int: ...
    async def partitions(self, topic: str) -> int: ...
    async def create(self, topic: str, partitions: int, *, internal: bool = False) -> None: ...


class Wiring:
    """The tasks of an app on a broker. `binds` say where sinks lead (name to URL or path)."""

    def __init__(self, app: App, plan: Plan, binds: Mapping[str, str], partitions: int) -> None:
        self.app, self.plan, self.binds, self.default = app, plan, dict(binds), partitions
        self.slices: dict[str, Slice] = {}
        """By task name."""
        self.topics: dict[str, int] = {}
        """The partition counts of the topics that the tasks write."""
        self.senders: dict[str, list[str]] = {}
        """By internal topic: the tasks that send into it, as they call themselves."""
        self.destinations: dict[str, Destination] = {}
        """By name, where outlets lead that are not on the broker: known from `check` on, opened by the worker."""
        self.shards: Shards | None = None
        """Which tasks there are, where topics are streams."""
        self.expected: Mapping[str, int] | None = None
        """How many partitions each group must have, if the app begins with a savepoint."""
        self.finder = TopicFinder(app, plan)
        """Which topics the app's patterns stand for."""

    def check(self) -> None:
        """Raise ConfigError with all that is wrong whatever the broker holds."""
        if not self.plan.groups:
            raise ConfigError(f"app {self.app.name!r} has no agents and no declared tables: there is nothing to run")
        problems = [problem for name, url in self.binds.items() for problem in self._bind_problems(name, url)]
        files: dict[Path, str] = {}
        for name, found in self.destinations.items():
            if isinstance(found, FileDestination) and found.path != "-":
                other = files.setdefault(Path(found.path).absolute(), name)
                if other != name:
                    problems.append(
                        f"--bind {name}={self.binds[name]}: {other!r} leads there, and a file has one writer"
                    )
        for name, outlet in self._written().items():
            if not isinstance(outlet, Topic) and name not in self.binds:
                problems.append(f"sink {name!r} leads nowhere: bind it with --bind {name}=FILE, or a URL")
        if problems:
            raise ConfigError(*problems)

    def _written(self) -> dict[str, Outlet[Any]]:
        return {outlet.name: outlet for group in self.plan.groups for outlet in group.outlets}

    def _bind_problems(self, name: str, url: str) -> list[str]:
        where, written = f"--bind {name}={url}", self._outlets()
        readers = [f"agent {a.name!r}" for a in self.app.agents.values() if name in {s.name for s in a.sources}]
        tables = self.app.tables.values()
        readers += [f"table {t.name!r}" for t in tables if t.source is not None and t.source.name == name]
        if name not in {**self.app.topics, **self.app.sinks} and name != self.app.dead_letters.name:
            return [f"{where}: app {self.app.name!r} has no topic or sink {name!r}"]
        if name not in written:
            return [f"{where}: no agent writes {name!r}; bounded inputs are for `flowkit run`"]
        if readers:
            return [f"{where}: {readers[0]} reads topic {name!r}, so it has to be on the broker"]
        try:
            element = written[name].element
            found = self.destinations[name] = destination(url, fields_of(element), element=element)
            found.check()
        except ConfigError as error:
            return [f"--bind {name}: {problem}" for problem in error.problems]
        return []

    async def connect(self, broker: Topics, *, again: bool = False) -> bool:
        """Find the topics, make those that are missing, and tell which tasks there are.

        False if it cannot be told yet how many tasks there are, since nothing matches a pattern; nothing is made then.
        Nor is it if partition counts do not fit each other, or a file would have several writers: raises ConfigError.
        """
        if isinstance(broker, Streams):
            await self._connect_to_shards(broker)
            return True
        found = {name: await broker.partitions(name) for name in sorted(self._names())}
        wanted: dict[str, int] = {}
        problems = list(await self.finder.begin(broker))
        counts: dict[str, int] = {}
        for group in self.plan.groups:
            given = await self._given(group, found, broker)
            if len(set(given.values())) > 1:
                problems.append(_unequal(group, given))
            counts[group.name] = max(given.values(), default=0)
        if not problems and any(self._is_open(group, counts) for group in self.plan.groups):
            return False
        for group in self.plan.groups:
            count = self._count(group, counts)
            counts[group.name] = count
            wanted |= {topic.name: count for topic in group.topics if topic.pattern is None}
            # One that every task reads all of, where nobody else reads it.
            wanted |= {
                topic.name: self._count_sent(topic, counts)
                for topic in group.broadcast_topics
                if isinstance(topic, Internal) and topic.name not in wanted
            }
        problems += self._writer_problems(counts) + self._shape_problems(counts)
        if problems:
            raise ConfigError(*problems)
        internal = {topic.name for topic in self.plan.internals}
        for name, count in found.items():
            if not count:
                found[name] = wanted.get(name, self.default)
                try:
                    await broker.create(name, found[name], internal=name in internal)
                except ConfigError:
                    if again or not await broker.partitions(name):
                        raise
                    # Someone else has made it, and who was asked had not heard of that yet: all is reckoned anew.
                    return await self.connect(broker, again=True)
                log.info("topic made", topic=name, partitions=found[name])
        self.topics = {name: found[name] for name in self._outlets() if name in found}
        self.senders = {
            topic.name: [f"{g.name}/{n}" for g in self.plan.senders(topic) for n in range(counts[g.name])]
            for topic in self.plan.internals
        }
        for group in self.plan.groups:
            for partition in range(counts[group.name]):
                part = Slice(group, partition, counts[group.name])
                self.slices[task_name(self.app, group, partition)] = part
        self.finder.fix({topic.name: counts[g.name] for g in self.plan.groups for topic in g.topics if topic.pattern})
        return True

    async def _given(self, group: Group, found: Mapping[str, int], broker: Topics) -> dict[str, int]:
        """The partitions of those of a group's topics that are there.

        If those that match are unequal, and the app has run before, those count that are as they were then: what
        others make must not keep an app from being started again.
        """
        given = {topic.name: found[topic.name] for topic in group.topics if found.get(topic.name)}
        matching: dict[str, int] = {}
        for topic in group.topics:
            matching |= self.finder.found.get(topic.name, {})
        if len({*given.values(), *matching.values()}) > 1:
            before = await broker.ran(f"{self.app.name}/{group.name}/")
            if before in matching.values():
                matching = {name: count for name, count in matching.items() if count == before}
        return given | matching

    def _is_open(self, group: Group, counts: Mapping[str, int]) -> bool:
        """True if a group reads a pattern, and nothing tells yet into how many tasks it is divided."""
        told = counts[group.name] or (self.expected is not None and group.name in self.expected)
        return not told and any(topic.pattern is not None for topic in group.topics)

    async def _connect_to_shards(self, broker: Streams) -> None:
        """The same for a broker whose topics are streams."""
        letters = None if self.app.dead_letters.name in self.binds else self.app.dead_letters.name
        self.shards = Shards(self.app, self.plan, broker)
        found = await self.shards.connect(sorted(self._names()), letters)
        internal = {topic.name for topic in self.plan.internals}
        for name, outlet in self._outlets().items():
            if name not in self.destinations and found.get(name):
                url = broker.output(name, internal=name in internal)
                self.destinations[name] = destination(url, fields_of(outlet.element))
        await self.refresh()

    async def refresh(self) -> bool:
        """Look which tasks there are now; True if that has changed, which it does only where topics are streams.

        Raises ConfigError if a file would have several writers by now, those included that are done with it.
        """
        if self.shards is None or not await self.shards.look():
            return False
        shards = self.shards.all
        if problems := self._writer_problems(
            {group.name: len(shards.get(group.name, [1])) for group in self.plan.groups}
        ):
            raise ConfigError(*problems)
        self.slices = {}
        for group in self.plan.groups:
            running = self.shards.running[group.name]
            for part in running:
                number = 0 if part is None else part.number
                owns = None if part is None or part.is_all else part.owns
                self.slices[task_name(self.app, group, number)] = Slice(group, number, len(running), owns, part)
        self.senders = {
            topic.name: [
                f"{part.group.name}/{part.partition}"
                for part in self.slices.values()
                if part.group in self.plan.senders(topic)
            ]
            for topic in self.plan.internals
        }
        return True

    def is_eldest(self, part: Slice) -> bool:
        """True if no other child of a shard's parents has a lower number, as far as they are there still."""
        assert self.shards is not None
        assert part.shard is not None
        parents = set(part.shard.parents)
        return part.partition == min(n.number for n in self.shards.all[part.group.name] if parents & set(n.parents))

    def _outlets(self) -> dict[str, Outlet[Any]]:
        """All that the tasks write, dead letters among them."""
        return self._written() | {self.app.dead_letters.name: self.app.dead_letters}

    def _count(self, group: Group, counts: Mapping[str, int]) -> int:
        """How many tasks a group has: as many as its topics have partitions, else as those have who send to it."""
        if counts[group.name]:
            return counts[group.name]
        sent = [self._count_sent(topic, counts) for topic in group.topics if isinstance(topic, Internal)]
        default = self.default if group.topics else 1
        return max(sent, default=default if self.expected is None else self.expected.get(group.name, default))

    def _count_sent(self, topic: Internal, counts: Mapping[str, int]) -> int:
        """As many partitions as the largest of the groups has that send into an internal topic."""
        return max(self._count(sender, counts) for sender in self.plan.senders(topic))

    def _names(self) -> set[str]:
        """All topics that have to be on the broker."""
        read = {topic.name for group in self.plan.groups for topic in group.inputs if topic.pattern is None}
        written = {name for name, outlet in self._written().items() if isinstance(outlet, Topic)}
        return read | ((written | {self.app.dead_letters.name}) - self.binds.keys())

    def use(self) -> TopicUse:
        """What the tasks do with the broker's topics."""
        internal = {topic.name for topic in self.plan.internals}
        inputs = [topic for group in self.plan.groups for topic in group.inputs]
        read = {topic.name for topic in inputs if topic.pattern is None} - internal
        patterns = {topic.pattern.pattern for topic in inputs if topic.pattern is not None}
        written = {
            name
            for name, outlet in self._outlets().items()
            if name not in self.binds and (isinstance(outlet, Topic) or name == self.app.dead_letters.name)
        }
        groups = [group.name for group in self.plan.groups]
        readers = sorted((g.name, t.name) for g in self.plan.groups for t in g.inputs if t.name in read)
        names = (sorted(read), sorted(written - internal), sorted(internal), sorted(patterns))
        return TopicUse(self.app.name, *names, groups, readers)

    def outlet(self, name: str) -> Outlet[Any]:
        """What the tasks write under this name."""
        return self._outlets()[name]

    def _shape_problems(self, counts: dict[str, int]) -> list[str]:
        """Where the app is not of the shape that a savepoint has."""
        if self.expected is None:
            return []
        problems = [
            f"{name}: {counts[name]} partitions here, {self.expected[name]} in the savepoint: make its topics with as "
            "many (a savepoint cannot be shared out among another number yet)"
            for name in counts
            if counts[name] != self.expected.get(name, counts[name])
        ]
        problems += [f"{name}: is not in the savepoint" for name in counts if name not in self.expected]
        return problems + [
            f"{name}: is in the savepoint, but not in the app: its state would be lost"
            for name in self.expected
            if name not in counts
        ]

    def _writer_problems(self, counts: dict[str, int]) -> list[str]:
        """Where more tasks would write than can."""
        problems = []
        for name, found in self.destinations.items():
            writers = [group.name for group in self.plan.groups if name in self._outlets_of(group)]
            tasks = sum(counts[group] for group in writers)
            why = found.writers(writers, tasks, max(counts[group] for group in writers))
            if why:
                problems.append(f"--bind {name}={self.binds[name]}: {why}")
        return problems

    def sinks(self, part: Slice, clock: Clock) -> dict[str, Sink]:
        """What one task sends to that is not on the broker."""
        task = SinkTask(self.app.name, part.group.name, part.partition, part.count, clock)
        names = [name for name in self._outlets_of(part.group) if name in self.destinations]
        return {name: self.destinations[name].sink(task) for name in names}

    def _outlets_of(self, group: Group) -> list[str]:
        return [*(outlet.name for outlet in group.outlets), self.app.dead_letters.name]


def _unequal(group: Group, counts: dict[str, int]) -> str:
    told = ", ".join(f"{name} has {count}" for name, count in counts.items())
    names = ", ".join(agent.name for agent in group.agents) or ", ".join(table.name for table in group.tables)
    patterns = [topic for topic in group.topics if topic.pattern is not None]
    if patterns:
        said = " and ".join(f"{topic.pattern.pattern!r} ({topic.name})" for topic in patterns if topic.pattern)
        return (
            f"{names}: task p reads partition p of all topics that match {said}, and of those beside them, so they "
            f"need equal partition counts: {told}: make them with as many, or let the pattern leave some out"
        )
    ours = [topic.name for topic in group.topics if isinstance(topic, Internal)]
    cure = f" ({', '.join(ours)}: made by flowkit itself, in an earlier shape of the app)" if ours else ""
    return f"agents {names} share state, so their topics need equal partition counts: {told}{cure}"
