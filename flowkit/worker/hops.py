"""The sender's side of what goes on by another key: events into an internal topic, as a part of the sender's commit."""

from collections.abc import Sequence
from typing import Any

from flowkit.agent import Hop, Retry
from flowkit.codec import field_getter
from flowkit.errors import RecordError
from flowkit.table import Cursor
from flowkit.worker.drivers import Done, Driver


class HopDriver(Driver):
    """Sends the events of a stream into an internal topic, by their new key."""

    def __init__(self, hop: Hop, cursor: Cursor) -> None:
        super().__init__(hop.topic.stream.name, cursor, [], Retry())
        self.topic, self.paths = hop.topic, hop.paths
        self.sinks = frozenset({hop.topic.name})
        by = self.by = hop.topic.stream.key
        self.key = field_getter(hop.topic.type, by) if isinstance(by, str) else by

    def feed(self, event: Any) -> Done:
        key = self.key(event)
        if key is None:
            raise RecordError(f"{self.name!r}: the key ({self.by!r}) is None")
        self.cursor.emit(self.topic, event, key, None)
        return None

    def keys(self, events: Sequence[Any]) -> list[Any]:
        """The new keys of many events. Raises what `feed` raises for one of them."""
        keys = list(map(self.key, events))
        if None in keys:
            raise RecordError(f"{self.name!r}: the key ({self.by!r}) is None")
        return keys
