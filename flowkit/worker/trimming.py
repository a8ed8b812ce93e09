"""Forgetting what has been read of internal topics: nobody else reads them, and recovery never goes back."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from flowkit.agent import Internal, Topic
from flowkit.errors import FlowkitError

log = structlog.get_logger("flowkit.task")

EVERY = 30.0
"""Seconds from one time to the next."""
WORTH = 10_000
"""So many records must have been read since."""


class Deletes(Protocol):
    """What is asked of a broker here."""

    async def delete_before(self, topic: str, partition: int, offset: int) -> None: ...


class Trimmer:
    """Deletes behind one task. What every task reads, from topics that are broadcast, is left alone."""

    def __init__(self, broker: Deletes, topics: Sequence[Topic[Any]], partition: int) -> None:
        self.broker, self.partition = broker, partition
        self.topics = [topic.name for topic in topics if isinstance(topic, Internal)]
        self._deleted: dict[str, int] = {}
        self._due = time.monotonic() + EVERY
        self._job: asyncio.Task[None] | None = None

    def look(self, positions: Mapping[str, Any]) -> None:
        """If it is time, delete beside everything else what lies before the positions of a commit that counts."""
        now = time.monotonic()
        if not self.topics or now < self._due or (self._job is not None and not self._job.done()):
            return
        self._due = now + EVERY
        read = {topic: positions.get(f"{topic}[{self.partition}]", 0) for topic in self.topics}
        numbers = {topic: at for topic, at in read.items() if isinstance(at, int)}
        enough = {topic: at for topic, at in numbers.items() if at - self._deleted.get(topic, 0) >= WORTH}
        if enough:
            self._job = asyncio.create_task(self._delete(enough), name="trim")

    async def _delete(self, before: Mapping[str, int]) -> None:
        for topic, offset in before.items():
            try:
                await self.broker.delete_before(topic, self.partition, offset)
            except FlowkitError as error:
                log.warning("internal topic not trimmed; trying again", topic=topic, error=str(error))
            else:
                self._deleted[topic] = offset

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._job is not None:
            await asyncio.wait([self._job])
