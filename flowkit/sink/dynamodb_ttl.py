"""When an item expires: the attribute that a table's TTL looks at, in whole seconds since the epoch."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flowkit.sink.dynamodb_items import Unfit


class Expiry:
    """Attribute `name`: a record's own time of this name, else its event time, and `after_ms` (None: 0)."""

    def __init__(self, name: str, after_ms: int | None) -> None:
        self.name, self.after_ms = name, after_ms

    def stamp(self, item: dict[str, Any], value: Mapping[str, Any], time: int) -> int:
        """Write it into an item; how many bytes it takes. A record that names no time has none. Raises Unfit."""
        own = value.get(self.name)
        if own is not None:
            time = self._read(own)
        elif self.after_ms is None:
            item.pop(self.name, None)
            return 0
        item[self.name] = {"N": str((time + (self.after_ms or 0)) // 1000)}
        return len(self.name) + 7

    def _read(self, own: Any) -> int:
        if type(own) is int:
            return own
        try:
            at = datetime.fromisoformat(own)
        except (TypeError, ValueError):
            raise Unfit("NoTime", f"{self.name}: {own!r} is neither ISO 8601 nor ms since the epoch") from None
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)

    def problems(self, table: str, where: str, told: Mapping[str, Any]) -> list[str]:
        """What is wrong with the table's TTL, as DescribeTimeToLive tells it."""
        status, name = told.get("TimeToLiveStatus"), told.get("AttributeName")
        if status in ("ENABLED", "ENABLING") and name in (self.name, None):
            return []
        command = (
            f"aws dynamodb update-time-to-live --table-name {table} "
            f"--time-to-live-specification Enabled=true,AttributeName={self.name}"
        )
        if status in ("ENABLED", "ENABLING"):
            return [f"{where}: ttl={self.name}, and the table's TTL looks at {name!r}: say ttl={name}"]
        return [f"{where}: ttl={self.name}, and the table's TTL is off, so that nothing would expire: `{command}`"]
