"""Tasks of an app whose topics are streams: one a shard, numbered as the shards are, coming and going with them.

    waiting    a shard of which some parent is not done: nothing of it may be read yet
    running    open, or closed and not read to its end
    done       closed, read, everything of it committed and delivered; its children take over its state: `inheriting`

Shards that were closed before the app began are read first, from the oldest, unless its topic starts at the latest.

A group may read several streams whose shards are the same: `common_shards`. Streams of flowkit's own must stay as they
were made.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import structlog

from flowkit.agent import Group, Internal, Plan, Topic
from flowkit.app import App
from flowkit.errors import ConfigError
from flowkit.source import Part, Sharded, is_end
from flowkit.worker.common_shards import Common, common_shards

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
        self._waiting: dict[str, Mapping[int, Sequence[str]]] = {}
        """By group: the shards that were told to wait."""

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
            if group.patterns:
                problems.append(f"group {group.name}: {_names(group.patterns)}: streams are not found by pattern yet")
            if group.broadcast_topics:
                problems.append(f"group {group.name}: {_names(group.broadcast_topics)}: no stream can be broadcast yet")
        if problems:
            raise ConfigError(*problems)
        for group in self.plan.groups:
            missing = [topic for topic in group.topics if isinstance(topic, Internal) and not shards[topic.name]]
            # As many as the streams have that are read together with it, else as those who send into it.
            counts = [_open(shards[topic.name]) for topic in group.topics if topic not in missing][:1] or [
                _open(shards[read.name])
                for topic in missing
                for sender in self.plan.senders(topic)
                for read in sender.topics
            ]
            for topic in missing:
                await self.broker.create(topic.name, max(counts, default=1), internal=True)
                shards[topic.name] = await self.broker.shards(topic.name)
        for group in self.plan.groups:
            self._common(group, shards)
        return shards

    def _common(self, group: Group, shards: Mapping[str, Sequence[Part]]) -> Common:
        """What a group's streams have in common. Raises ConfigError if they do not fit, or one must not be read."""
        for topic in group.topics:
            closed = [part.number for part in shards[topic.name] if part.closed]
            if isinstance(topic, Internal) and (closed or any(part.parents for part in shards[topic.name])):
                raise ConfigError(
                    f"stream {topic.name!r} is flowkit's own, and was resharded (closed shards: {closed}): nobody can "
                    "tell any more what of it was read already. Start the app under another name to begin anew, and "
                    "keep people and scaling policies away from its own streams"
                )
        return common_shards(group.name, {topic.name: shards[topic.name] for topic in group.topics})

    async def look(self) -> bool:
        """Find out which tasks may run now; True if that is not as it was. Raises ConfigError as `connect` does."""
        before, self.running = self.running, {}
        for group in self.plan.groups:
            if not group.topics:
                self.running[group.name] = [None]
                continue
            shards = {topic.name: await self.broker.shards(topic.name) for topic in group.topics}
            if gone := [name for name, found in shards.items() if not found]:
                raise ConfigError(
                    *(
                        f"stream {name!r} was deleted: what of it was not read is lost, and the app's positions are of "
                        "no other one. Start it under another name to begin anew"
                        for name in gone
                    )
                )
            common = self._common(group, shards)
            self._tell(group, common)
            self.all[group.name] = common.parts
            numbers = {shard.number for shard in common.parts}
            done = {number for number in common.closed if await self._is_done(group, number)}
            if lost := common.expired - done:
                raise ConfigError(
                    f"group {group.name}: shards {sorted(lost)} have expired in some of {_names(group.topics)} before "
                    "they were read to their end in all: records are lost. Start the app under another name"
                )
            self.running[group.name] = [
                shard
                for shard in common.parts
                if shard.number not in done and done.issuperset(numbers.intersection(shard.parents))
            ]
        return before != self.running

    def _tell(self, group: Group, common: Common) -> None:
        if common.waiting != self._waiting.get(group.name, {}):
            self._waiting[group.name] = common.waiting
            for number, having in common.waiting.items():
                others = [topic.name for topic in group.topics if topic.name not in having]
                log.warning(
                    "a shard waits until all streams that are read together have it: reshard the others likewise",
                    shard=number,
                    streams=having,
                    others=others,
                )

    async def _is_done(self, group: Group, number: int) -> bool:
        task = self.task(group, number)
        if task not in self._done:
            positions = await self.broker.positions(task)
            if positions is None:
                return all(topic.start == "latest" for topic in group.topics)  # the app began after it was closed
            if not all(is_end(positions.get(f"{topic.name}[{number}]")) for topic in group.topics):
                return False
            self._done.add(task)
        return True


def _open(shards: Sequence[Part]) -> int:
    return len([part for part in shards if not part.closed]) or 1


def _names(topics: Sequence[Topic[Any]]) -> str:
    return ", ".join(topic.name for topic in topics)
