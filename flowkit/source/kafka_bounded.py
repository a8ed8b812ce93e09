"""A topic of a cluster as an input of a bounded run: from its beginning to where it ended when it was opened."""

from collections.abc import Sequence
from typing import Any

from flowkit.errors import ConfigError
from flowkit.options import Start
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_batch import KafkaBatch
from flowkit.source.kafka_reader import KafkaReader, KafkaReaders, KafkaSource
from flowkit.source.kafka_topics import KafkaTopics

LOOK_MS = 1_000


class BoundedTopic:
    """`kafka://HOST:PORT/TOPIC?option=value`. Each partition is a split. Raises ConfigError for what is no such URL."""

    codec: str | None = None

    def __init__(self, url: str, start: Start = "earliest") -> None:
        rest, mark, query = url.partition("?")
        servers, slash, self.topic = rest.removeprefix("kafka://").partition("/")
        if not slash or not self.topic or "/" in self.topic:
            raise ConfigError(f"{rest}: names no topic: use kafka://HOST:PORT/TOPIC")
        self.address = KafkaAddress.parse(f"kafka://{servers}{mark}{query}")
        self._start = start
        self._topics = KafkaTopics(self.address)
        self._readers = KafkaReaders(self._topics)
        self._source: KafkaSource | None = None

    async def splits(self) -> Sequence[int]:
        """The partitions. Raises ConfigError if there is no such topic, BrokerError if the cluster is away."""
        if self._source is None:
            await self._topics.open()
            await self._readers.open()
            self._source = self._readers.source(self.topic, start=self._start, until_end=True)
        return await self._source.splits()

    async def open(self, split: int, position: Any) -> "BoundedReader":
        """A reader from offset `position` (None: from where the topic starts) to the end that the split has now."""
        assert self._source is not None
        return BoundedReader(self._readers, await self._source.open(split, position))

    async def close(self) -> None:
        """Let go of the cluster."""
        await self._readers.close()
        await self._topics.close()


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
