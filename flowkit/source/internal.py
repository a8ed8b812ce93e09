"""Topics of flowkit's own on a broker: what they are called, and what their records look like.

re-keyed     APP.STREAM               events in envelopes, and marks between them
changelog    APP-GROUP-changelog      frames, in parts
"""

import re
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from flowkit.codec import decode_mark, enveloped

CHANGELOG = "-changelog"
PART_BYTE = b"\x98"
"""A msgpack array of eight: no text or JSON begins with it."""

_part = msgspec.msgpack.Decoder(tuple[int, int, bytes, bytes, str, int, int, bytes])


class Logs(Protocol):
    """What is asked of a broker here."""

    async def end_offsets(self, topic: str) -> Any: ...
    async def bounds(self, topic: str, partition: int) -> tuple[int, int]: ...
    async def read(self, topic: str, partition: int, offset: int, limit: int) -> Any: ...


def changelog_of(task: str) -> tuple[str, int]:
    """The topic and partition of a task's frames."""
    group, _, partition = task.rpartition("/")
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{group}{CHANGELOG}"), int(partition)


async def is_internal(broker: Logs, topic: str) -> bool | None:
    """True if flowkit itself writes the topic, as its first record tells; None if there is no record."""
    for partition, end in enumerate(await broker.end_offsets(topic)):
        start, _ = await broker.bounds(topic, partition)
        if start < end:
            batch = await broker.read(topic, partition, start, 1)
            if len(batch):
                return any(map(_is_ours, batch.values))
    return None


def may_be_internal(topic: str, topics: Iterable[str]) -> bool:
    """True if the name of `topic` is like one of flowkit's own, of any app that has changelogs among `topics`.

    >>> may_be_internal("shop.by-user", {"shop-seen-changelog"}), may_be_internal("shop.by-user", {"shops"})
    (True, False)
    """
    if topic.endswith(CHANGELOG):
        return True
    logs = [name for name in topics if name.endswith(CHANGELOG)]
    return any(log.startswith(f"{topic[:at]}-") for at, char in enumerate(topic) if char == "." for log in logs)


def _is_ours(value: bytes | None) -> bool:
    return enveloped(value) is not None or decode_mark(value) is not None or _is_part(value)


def _is_part(value: bytes | None) -> bool:
    if value is None or value[:1] != PART_BYTE:
        return False
    try:
        _part.decode(value)
    except msgspec.MsgspecError:
        return False
    return True
