"""Tasks of an app whose topics are streams: one a shard, numbered as the shards are, coming and going with them.

    waiting    a shard of which some parent is not done: nothing of it may be read yet
    running    open, or closed and not read to its end
    done       closed, read, everything of it committed and delivered; its children take over its state: `inheriting`

Shards that were closed before the app began are read first, from the oldest, unless its topic starts at the latest.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import structlog

from flowkit.agent import Group, Internal, Plan, Topic
from flowkit.app import App
from flowkit.errors import ConfigError
from flowkit.source import Part, Sharded, is_end

log = structlog.get_logger("flowkit.shards")


@runtime_checkable
class Streams(Sharded, Protocol):
    """What is asked of a broker here."""

    def create(self, topic: str, partitions: int, *, internal: bool = False) -> Awaitable[None]: ...
    def outdated(self, topic: str) -> None: ...
    async def positions(self, task: str) -> Any: ...
    async def came_from(self, task: str, shards: Sequence[int]) -> None: ...


class Shards:
    """Which tasks there are now. `running` is by group: the shards whose tasks may run, None for a group without."""

    def __init__(self, app: App, plan: Plan, broker: Streams) -> None:
        self.app, self.plan, self.broker = app, plan, broker
        self.running: dict[str, list[Part | None]] = {}
        self.all: dict[str, Sequence[Part]] = {}
        """By group: all shards that hold records."""
        self._done: set[str] = set()

    def task(self, group: Group, number: int) -> str:
        """The name of a task."""
        return f"{self.app.name}/{group.name}/{number}"

    async def connect(self, names: Sequence[str], letters: str | None) -> dict[str, Sequence[Part]]:
        """See that the streams `names` are there, and make those of flowkit's own; their shards.

        `letters` is where dead letters go, None if they are bound elsewhere. Raises ConfigError with all problems.
        """
        shards: dict[str, Sequence[Part]] = {name: await self.broker.shards(name) for name in names}
        internal = {topic.name for topic in self.plan.internals}
        problems = [
            f"no stream {name!r}: make it (it costs money, so flowkit does not), as with `aws kinesis create-stream`"
            for name, found in shards.items()
            if not found and name not in internal and name != letters
        ]
        if letters is not None and not shards.get(letters):
            problems.append(f"dead letters lead nowhere: --bind {letters}=URL, or make a stream {letters!r}")
        for group in self.plan.groups:
            if len(group.topics) > 1:
                problems.append(
                    f"group {group.name}: reads the streams {_names(group.topics)}, whose shards are split each on its "
                    "own, so that keys would not stay together: send them on by group_by"
                )
            if group.patterns:
                problems.append(f"group {group.name}: {_names(group.patterns)}: streams are not found by pattern yet")
            if group.broadcast_topics:
                problems.append(f"group {group.name}: {_names(group.broadcast_topics)}: no stream can be broadcast yet")
        if problems:
            raise ConfigError(*problems)
        for group in self.plan.groups:
            for topic in group.topics:
                if isinstance(topic, Internal) and not shards[topic.name]:
                    count = max(_open(shards, sender) for sender in self.plan.senders(topic))
                    await self.broker.create(topic.name, max(1, count), internal=True)
                    shards[topic.name] = await self.broker.shards(topic.name)
        return shards

    async def look(self) -> bool:
        """Find out which tasks may run now; True if that is not as it was."""
        before, self.running = self.running, {}
        for group in self.plan.groups:
            if not group.topics:
                self.running[group.name] = [None]
                continue
            (topic,) = group.topics
            shards = await self.broker.shards(topic.name)
            self.all[group.name] = shards
            numbers = {shard.number for shard in shards}
            done = {shard.number for shard in shards if await self._is_done(group, topic, shard)}
            self.running[group.name] = [
                shard
                for shard in shards
                if shard.number not in done and done.issuperset(numbers.intersection(shard.parents))
            ]
        return before != self.running

    async def _is_done(self, group: Group, topic: Topic[Any], shard: Part) -> bool:
        if not shard.closed:
            return False
        task = self.task(group, shard.number)
        if task not in self._done:
            positions = await self.broker.positions(task)
            if positions is None:
                return topic.start == "latest"  # the app began after it was closed
            if not is_end(positions.get(f"{topic.name}[{shard.number}]")):
                return False
            self._done.add(task)
        return True


def _open(shards: Mapping[str, Sequence[Part]], group: Group) -> int:
    return len([part for topic in group.topics for part in shards[topic.name] if not part.closed]) or 1


def _names(topics: Sequence[Topic[Any]]) -> str:
    return ", ".join(topic.name for topic in topics)
