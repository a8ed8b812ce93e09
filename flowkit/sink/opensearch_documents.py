"""Records as the lines of a bulk request to OpenSearch: their documents' ids, their indexes, their versions."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import structlog

from flowkit.sink.dispatch import Item, Never
from flowkit.sink.records import Row

log = structlog.get_logger("flowkit.sink")

ID_BYTES = 512
PARTS = {"{yyyy}": "%Y", "{MM}": "%m", "{dd}": "%d", "{HH}": "%H"}
NAME = re.compile(r"[a-z0-9.][a-z0-9._-]{0,254}")


class Write(NamedTuple):
    """What a document's line in a request is: `version` None if it has none. Of two the greater version is newer."""

    document: tuple[str, str]
    version: int
    body: bytes


class Index:
    """An index's name, with the event's time in it.

    >>> Index("logs-{yyyy}.{MM}.{dd}").at(1_704_067_199_999), Index("x").at(0)
    ('logs-2023.12.31', 'x')
    """

    def __init__(self, pattern: str) -> None:
        self._format = pattern.replace("%", "%%")
        for part, directive in PARTS.items():
            self._format = self._format.replace(part, directive)
        self._dated = self._format != pattern.replace("%", "%%")
        self._name, self._hour, self._last = pattern, -1, ""

    @property
    def is_right(self) -> bool:
        """True if an index may be called so."""
        return NAME.fullmatch(self.at(0)) is not None

    def at(self, time_ms: int) -> str:
        """The index of an event."""
        if not self._dated:
            return self._name
        hour = time_ms // 3_600_000
        if hour != self._hour:
            self._hour, self._last = hour, datetime.fromtimestamp(hour * 3600, UTC).strftime(self._format)
        return self._last


class Documents:
    """The lines of one destination. `version` is "order", "number" or "none" (opensearch.py)."""

    def __init__(self, index: Index, id_field: str | None, version: str, where: str) -> None:
        self.index, self.id_field, self.version, self.where = index, id_field, version, where
        self._kinds: set[bool] = set()

    def make(self, index: int, row: Row) -> Item | Never:
        """What is sent for a row."""
        value = None if row.value == b"null" else row.value
        name = self._tombstone_id(row) if value is None else self._id(row, value)
        if isinstance(name, Never):
            return name
        if len(name.encode()) > ID_BYTES:
            return Never("IdTooLong", f"{len(name.encode())} bytes, and a document's id may have {ID_BYTES}")
        version, how = row.number, b"external"
        if self.version == "order":
            self._tell_of_mixed(row.order)
            if row.order is not None:
                version, how = row.order, b"external_gte"
        document = (self.index.at(row.time), name)
        versioned = b"" if self.version == "none" else b',"version":%d,"version_type":"%b"' % (version, how)
        action = b'{"_index":"%b","_id":%b%b}' % (document[0].encode(), msgspec.json.encode(name), versioned)
        if value is None:
            body = b'{"delete":%b}\n' % action
        else:
            line = value.replace(b"\n", b" ")  # of JSON as a person writes it: a line is an entry here
            body = b'{"index":%b}\n%b\n' % (action, line)
        return Item(index, None, len(body), Write(document, version, body))

    def _id(self, row: Row, value: bytes) -> str | Never:
        if self.id_field is None:
            return row.id if row.key is None else _text(row.key)
        try:
            found = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return Never("NoJson", f"the value is no JSON: {error}")
        name = found.get(self.id_field) if isinstance(found, dict) else None
        if type(name) not in (str, int) or name == "":
            return Never("NoId", f"field {self.id_field!r} is the document's id, and is {name!r}")
        return str(name)

    def _tombstone_id(self, row: Row) -> str | Never:
        if row.key is None:
            return Never("NoKey", "a tombstone needs the key of what it removes")
        return _text(row.key)

    def _tell_of_mixed(self, order: int | None) -> None:
        if len(self._kinds) == 2 or (order is None) in self._kinds:
            return
        self._kinds.add(order is None)
        if len(self._kinds) == 2:
            log.warning(
                "results of windows and others go to one index, and their versions cannot be compared: "
                "if a document gets both, say version=number", sink=self.where,
            )  # fmt: skip


def _text(key: bytes) -> str | Never:
    try:
        found = key.decode()
    except UnicodeDecodeError:
        return Never("KeyNoText", "the key is the document's id, and is no text: name another by ?id=FIELD")
    return found or Never("NoKey", "the key is the document's id, and is empty")


def settled(items: Iterable[Item]) -> list[Item]:
    """Of the writes of one document the newest one."""
    newest: dict[tuple[str, str], Item] = {}
    for item in items:
        known = newest.get(item.body.document)
        if known is None or item.body.version >= known.body.version:
            newest[item.body.document] = item
    return sorted(newest.values(), key=lambda item: item.row)
