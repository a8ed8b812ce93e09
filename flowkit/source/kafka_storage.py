"""Folders of blobs in a topic of Kafka, and the URL that names it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import unquote

from flowkit.aws import Right, Use
from flowkit.errors import ConfigError
from flowkit.source.kafka_address import KafkaAddress
from flowkit.source.kafka_blob_topic import BlobTopic
from flowkit.source.kafka_blobs import KafkaBlobs
from flowkit.source.kafka_rights import storage_rights
from flowkit.source.rules import check_topic


class KafkaPlace(NamedTuple):
    """Where in which topic: `kafka://HOST:PORT,HOST:PORT/TOPIC/PREFIX?option=value`, options as for a broker."""

    address: KafkaAddress
    topic: str
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "KafkaPlace":
        """Read a URL. Raises ConfigError with what is wrong, and no secret that may be in it."""
        rest, mark, query = url.partition("?")
        servers, _, path = rest.removeprefix("kafka://").partition("/")
        address = KafkaAddress.parse(f"kafka://{servers}{mark}{query}")
        topic, _, prefix = path.partition("/")
        if not topic:
            raise ConfigError(f"checkpoints {address.url}: names no topic: use kafka://HOST:PORT/TOPIC")
        check_topic(topic, 1)
        return cls(address, topic, unquote(prefix).strip("/"))

    def rights(self, *_folder: str, use: Use = "keep") -> Sequence[Right]:
        """What a role has to be allowed, if the cluster asks IAM: a topic is not divided by folders."""
        return storage_rights(self.address, self.topic, use)

    def __str__(self) -> str:
        servers, mark, query = self.address.url.partition("?")
        return "/".join(filter(None, (servers, self.topic, self.prefix))) + mark + query


@asynccontextmanager
async def open_kafka(place: KafkaPlace) -> AsyncIterator["KafkaStorage"]:
    """The storage at `place`. Nothing is asked or made before it is used."""
    storage = KafkaStorage(place)
    try:
        yield storage
    finally:
        await storage.topic.close()


class KafkaStorage:
    """The part of a topic below a prefix. Made by `open_kafka`."""

    def __init__(self, place: KafkaPlace) -> None:
        self.place, self.url = place, str(place)
        self.topic = BlobTopic(place.address, place.topic)

    def blobs(self, *folder: str) -> "KafkaBlobs":
        """The blobs of one folder."""
        return KafkaBlobs(self.topic, self._path(folder))

    def _path(self, folder: tuple[str, ...]) -> str:
        return "/".join([*filter(None, [self.place.prefix]), *folder])

    async def folders(self, *folder: str) -> list[str]:
        """The names of the folders in one, in order."""
        path = self._path(folder)
        start = f"{path}/" if path else ""

        async def look() -> list[str]:
            if (layout := await self.topic.layout(make=False)) is None:
                return []
            indexes = [self.topic.index(partition) for partition in layout.heads()]
            await asyncio.gather(*(index.refresh() for index in indexes))
            found = {name for index in indexes for name in index.folders if name.startswith(start)}
            return sorted({name.removeprefix(start).partition("/")[0] for name in found} - {""})

        return await self.topic.telling("listing folders", look)

    async def check(self) -> None:
        """Make the topic, if it is not there. Raises ConfigError if its settings would lose what is in it."""
        await self.topic.telling("opening", lambda: self.topic.layout(make=True), check=True)
