"""What one task reads of the topics that match a pattern: joined when they are found, left when they are gone.

found    a reader from the split's position, or (it is new) from its first record, or the time that is `start`
gone     its position stays, should it come again; its split holds the watermark no longer
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from flowkit.agent import Group, Topic
from flowkit.errors import BrokerError, ConfigError, TopicGone
from flowkit.options import Start
from flowkit.source import Broker, Reader, Source
from flowkit.window import FoundSplit, Split
from flowkit.worker.build import make_inlet
from flowkit.worker.engine import Engine
from flowkit.worker.feed import Found, Idle
from flowkit.worker.live_feed import LiveFeed

log = structlog.get_logger("flowkit.task")

GONE = (TopicGone, ConfigError)
"""What a reader says whose topic is not there: while it is read, or when it is opened."""
AGAIN_SECONDS = 1.0
"""A topic that cannot be opened since the broker is away is tried again so much later."""


class Finder(Protocol):
    """What is asked of who looks for topics."""

    version: int
    found: dict[str, dict[str, int]]

    def lost(self, topic: str, name: str) -> None: ...


class Matched:
    """The readers of a group's patterns in one task, which are among `readers`."""

    def __init__(
        self,
        group: Group,
        task: str,
        partition: int,
        finder: Finder,
        broker: Broker,
        readers: list[tuple[str, Split, Reader]],
        later: Callable[[Reader], None],
    ) -> None:
        self.group, self.task, self.partition, self.finder, self.broker = group, task, partition, finder, broker
        self.readers, self._close_later = readers, later
        self.engine: Engine
        self.feed: LiveFeed
        self._sources: dict[str, Topic[Any]] = {}
        """By split: the pattern for which it is read."""
        self._catching_up: dict[str, int] = {}
        """By split that was found late: where its topic ended then, until that has been read."""
        self._seen = -1
        self._again = 0.0

    async def open(self, engine: Engine, feed: LiveFeed, meta: Mapping[str, Any]) -> list[Found]:
        """Read what matches now. The answer: pieces to give out once the task has started."""
        self.engine, self.feed = engine, feed
        before = set(meta.get("patterns", ()))
        saved = meta.get("groups", {}).get(self.group.name, {}).get("splits", {}).get("splits", {})
        for topic in self.group.patterns:
            if topic in self.group.topics:  # what was saved of a topic that is gone must be read, too
                make_inlet(engine, topic, self.partition)
        self._seen = self.finder.version
        return [
            found
            for topic, name, number in self._wanted()
            if (found := await self._join(topic, name, number, topic.name in before, saved)) is not None
        ]

    async def look(self) -> bool:
        """Join what was found, and leave what is gone, if anything has changed. True if it has."""
        now = asyncio.get_running_loop().time()
        if self._seen == self.finder.version or now < self._again:
            return False
        self._seen, self._again = self.finder.version, 0.0
        wanted = self._wanted()
        splits = {_split_name(name, number) for _, name, number in wanted}
        for split in [split for split in self._sources if split not in splits]:
            await self._leave(split)
        try:
            for topic, name, number in wanted:
                if _split_name(name, number) not in self._sources:
                    found = await self._join(topic, name, number, True, {})
                    if found is not None:
                        self.feed.give(found)
        except BrokerError as error:
            log.warning("topic not read yet; trying again", task=self.task, error=str(error))
            self._seen, self._again = -1, now + AGAIN_SECONDS
        return True

    async def gone(self, split: Split) -> bool:
        """Its reader says that the topic is not there: leave it. False if it is no pattern for which it is read."""
        topic = self._sources.get(split.name)
        if topic is None:
            return False
        await self._leave(split.name)
        self.finder.lost(topic.name, split.topic)
        return True

    def looked(self, split: Split, reader: Any, events: int) -> None:
        """So many events came of a split. If it was waited for, and held nothing for us, it is not any more."""
        end = self._catching_up.get(split.name)
        if end is not None and (events or reader.offset >= end):
            del self._catching_up[split.name]
            if not events:
                self.feed.give(Idle(self.engine, split))

    def _wanted(self) -> list[tuple[Topic[Any], str, int]]:
        """Patterns, the topics that match them, and the partitions that this task reads of those."""
        wanted = []
        for topic in self.group.patterns:
            for name, count in sorted(self.finder.found[topic.name].items()):
                numbers = [self.partition] if topic in self.group.topics else range(count)
                wanted += [(topic, name, number) for number in numbers]
        return wanted

    async def _join(
        self, topic: Topic[Any], name: str, number: int, known: bool, saved: Mapping[str, Any]
    ) -> Found | None:
        """Begin to read a split. If the pattern was `known` before, and the split has not been saved, it is new."""
        split_name = _split_name(name, number)
        start: Start = "earliest" if known and topic.start == "latest" else topic.start
        shared = topic not in self.group.topics
        source: Source = self.broker.source(name, start=start, out_of_range=topic.out_of_range, shared=shared)
        try:
            end = (await self.broker.end_offsets(name))[number]
            reader: Any = await source.open(number, self.feed.positions.get(split_name))
        except GONE as error:
            log.warning("topic that was found is not there", task=self.task, found=name, error=str(error))
            self.finder.lost(topic.name, name)
            return None
        self._close_later(reader)
        if (topic.name, number) not in self.engine.inlets:
            make_inlet(self.engine, topic, number, source.codec)
        late = known and split_name not in saved
        splits = self.engine.splits
        split = (
            splits.by_name.get(split_name) or splits.follow(FoundSplit(split_name, number, topic.out_of_order))
            if late
            else splits.add(split_name, topic.out_of_order, number)
        )
        self._sources[split_name] = topic
        self.readers.append((topic.name, split, reader))
        if start == "latest":
            self.feed.begin(split_name, reader.offset)
        if late:
            log.info("topic joined", task=self.task, found=name, partition=number, offset=reader.offset)
            if reader.offset < end:
                self._catching_up[split_name] = end
                return Found(self.engine, split)
        return None

    async def _leave(self, split_name: str) -> None:
        del self._sources[split_name]
        self._catching_up.pop(split_name, None)
        at = next(n for n, (_, split, _) in enumerate(self.readers) if split.name == split_name)
        _, split, reader = self.readers.pop(at)
        await reader.close()
        if not split.idle:
            self.feed.give(Idle(self.engine, split))
        log.warning(
            "topic is not read any more: its position stays",
            task=self.task,
            split=split_name,
            position=self.feed.positions.get(split_name),
        )


def _split_name(name: str, number: int) -> str:
    return f"{name}[{number}]"
