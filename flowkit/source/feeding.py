"""A broker's topic as those see it who only put records into it: no tasks, no leases, and no rights for them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from flowkit.clock import Clock
from flowkit.errors import ConfigError
from flowkit.source.brokers import open_broker
from flowkit.source.rules import KeyValueTime


class Feed(Protocol):
    """What takes records from outside. Every method may raise BrokerError."""

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 if it does not exist."""

    async def put(self, topic: str, records: Sequence[KeyValueTime]) -> None:
        """Append (key, value, time in ms), by key or spread; durable when it returns. Some may be there if it fails."""


@asynccontextmanager
async def open_feed(url: str, clock: Clock) -> AsyncIterator[Feed]:
    """The broker of `url` to be fed. Raises ConfigError, BrokerError."""
    if url.startswith("memory://"):
        raise ConfigError(f"broker {url!r}: lives in one process only; nobody else would see what is put there")
    if url.startswith("kinesis://"):
        async with _open_streams(url, clock) as feed:
            yield feed
        return
    broker = open_broker(url, clock)
    directory: Path | None = getattr(broker, "directory", None)
    if directory is not None and not (directory / "broker.sqlite3").exists():
        raise ConfigError(f"no broker at {url} yet: flowkit topics create NAME --broker {url}")
    async with broker:
        yield broker


@asynccontextmanager
async def _open_streams(url: str, clock: Clock) -> AsyncIterator[Feed]:
    from flowkit.source.kinesis import KinesisAddress
    from flowkit.source.kinesis_streams import KinesisStreams

    address = KinesisAddress.parse(url)
    streams = KinesisStreams(address.aws, clock, address.url)
    await streams.open()
    try:
        yield streams
    finally:
        await streams.close()
