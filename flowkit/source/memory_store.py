"""What the in-memory brokers of one name share: topics, leases and workers as plain Python objects."""

from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import anyio

from flowkit.source.rules import Columns, Lease


@dataclass(slots=True)
class Log:
    """One partition. `start` is the offset of the oldest record that is left."""

    start: int = 0
    columns: Columns = field(default_factory=lambda: ([], [], []))

    @property
    def end(self) -> int:
        """The offset of the next record."""
        return self.start + len(self.columns[1])

    def extend(self, columns: Columns) -> None:
        """Append records."""
        self.columns[0].extend(columns[0])
        self.columns[1].extend(columns[1])
        self.columns[2].extend(columns[2])


@dataclass(slots=True)
class Member:
    """A worker that has joined."""

    ttl_ms: int
    expires_ms: int


class MemoryStore:
    """What the brokers of one name share."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Log]] = {}
        self.leases: dict[str, Lease] = {}
        self.positions: dict[str, bytes] = {}
        self.workers: dict[str, Member] = {}
        self.version = 0
        self.waiting: set[anyio.Event] = set()

    def changed(self) -> None:
        """Wake whoever waits."""
        self.version += 1
        for event in self.waiting:
            event.set()


_named: WeakValueDictionary[str, MemoryStore] = WeakValueDictionary()


def store_named(name: str) -> MemoryStore:
    """The store of this name in this process; it lives as long as any broker on it."""
    return _named.setdefault(name, MemoryStore())
