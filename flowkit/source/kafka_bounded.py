"""Topics of a cluster as an input of a bounded run: from their beginning to where they ended when they were opened."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from flowkit.aws import Right
from flowkit.errors import ConfigError
from flowkit.options import Start
from flowkit.source.internal import is_internal, may_be_internal
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_batch import KafkaBatch
from flowkit.source.kafka_reader import KafkaReader, KafkaReaders, KafkaSource
from flowkit.source.kafka_rights import input_rights
from flowkit.source.kafka_topics import KafkaTopics
from flowkit.source.rules import listed

LOOK_MS = 1_000


class BoundedTopics:
    """`kafka://HOST:PORT/TOPIC?option=value`; without TOPIC, all topics that `pattern` matches.

    Raises ConfigError for what is no such URL.
    """

    def __init__(self, url: str, start: Start = "earliest", pattern: "re.Pattern[str] | None" = None) -> None:
        rest, mark, query = url.partition("?")
        servers, _, self.topic = rest.removeprefix("kafka://").partition("/")
        if "/" in self.topic or not (self.topic or pattern is not None):
            raise ConfigError(f"{rest}: names no topic: use kafka://HOST:PORT/TOPIC")
        self.address = KafkaAddress.parse(f"kafka://{servers}{mark}{query}")
        self._start, self._pattern = start, pattern
        self._topics = KafkaTopics(self.address)
        self._readers = KafkaReaders(self._topics)
        self._names: list[str] | None = None

    def rights(self) -> Sequence[Right]:
        """What a role has to be allowed to read them, if the cluster asks IAM."""
        return input_rights(self.address, self.topic, self._pattern)

    async def sources(self) -> "list[tuple[str, BoundedTopic]]":
        """Names and topics, by name. Raises ConfigError if there is none, BrokerError if the cluster is away."""
        if self._names is None:
            await self._topics.open()
            await self._readers.open()
            self._names = [self.topic] if self.topic else await self._matching()
        return [
            (
                name,
                BoundedTopic(self._readers, self._readers.source(name, start=self._start, until_end=True, shared=True)),
            )
            for name in self._names
        ]

    async def _matching(self) -> list[str]:
        assert self._pattern is not None
        there = await self._topics.topics()
        matching = [name for name, count in sorted(there.items()) if count and self._pattern.fullmatch(name)]
        found = [name for name in matching if not (name.startswith("__") or await self._is_internal(name, there))]
        if not found:
            known = listed(there)
            raise ConfigError(f"no topic at {self.address.url} matches {self._pattern.pattern!r} (topics: {known})")
        return found

    async def _is_internal(self, name: str, there: Iterable[str]) -> bool:
        return name == "dead-letters" or (may_be_internal(name, there) and bool(await is_internal(self._topics, name)))

    async def close(self) -> None:
        """Let go of the cluster."""
        await self._readers.close()
        await self._topics.close()


class BoundedTopic:
    """One of the topics. Each partition is a split."""

    codec: str | None = None

    def __init__(self, readers: KafkaReaders, source: KafkaSource) -> None:
        self._readers, self._source = readers, source

    async def splits(self) -> Sequence[int]:
        """The partitions. Raises ConfigError if there is no such topic, BrokerError if the cluster is away."""
        return await self._source.splits()

    async def open(self, split: int, position: Any) -> "BoundedReader":
        """A reader from offset `position` (None: from where the topic starts) to the end that the split has now."""
        return BoundedReader(self._readers, await self._source.open(split, position))


class BoundedReader:
    """Reads one partition to its end; a fetch waits until there is something."""

    fields: tuple[str, ...] | None = None

    def __init__(self, readers: KafkaReaders, reader: KafkaReader) -> None:
        self._readers, self._reader = readers, reader
        self.at_end = reader.at_end

    async def fetch(self, max_records: int) -> KafkaBatch | None:
        """The next records; None at the end."""
        seen: int | None = None
        while not self.at_end:
            batch = await self._reader.fetch(max_records)
            self.at_end = self._reader.at_end
            if batch is not None:
                return batch
            if not self.at_end:
                seen = await self._readers.wait(LOOK_MS, seen)
        return None

    async def close(self) -> None:
        """Let go of the partition."""
        await self._reader.close()
