"""Records of one shard as the worker takes them, and how those who wait learn that there are some."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

_LOW = 2**63 - 1


class KinesisBatch:
    """Consecutive records of one shard: `rows` are (sequence number, how many of that record are done after it).

    `before` is the position before the first. In a stream of flowkit's own `heard` has (sender, next number) after
    each.
    """

    __slots__ = ("_before", "_heard", "_rows", "_shard", "_stream", "keys", "times", "values")

    def __init__(
        self,
        stream: str,
        shard: str,
        before: Any,
        rows: list[tuple[str, int]],
        keys: list[bytes | None],
        values: list[bytes | None],
        times: list[int],
        heard: list[tuple[str, int]],
    ) -> None:
        self._stream, self._shard, self._before, self._rows, self._heard = stream, shard, before, rows, heard
        self.keys: Sequence[bytes | None] | None = keys
        self.values: Sequence[bytes | None] = values
        self.times: Sequence[int] | None = times

    def __len__(self) -> int:
        return len(self._rows)

    def position(self, count: int) -> Any:
        """Where to go on after the first `count` records."""
        if not count:
            return self._before
        if not self._heard:
            return list(self._rows[count - 1])
        known = self._before[2] if self._before is not None and len(self._before) > 2 else {}
        return [*self._rows[count - 1], {**known, **dict(self._heard[:count])}]

    def offset(self, index: int) -> int:
        """A number of the record, from its sequence number, of which it has not all digits."""
        return int(self._rows[index][0]) & _LOW

    def where(self, index: int) -> str:
        """Stream, shard and sequence number, for a person."""
        sequence, part = self._rows[index]
        return f"{self._stream} {self._shard} {sequence}" + (f" part {part}" if part else "")

    def part(self, start: int, stop: int) -> "KinesisBatch":
        """The records from `start` up to `stop`."""
        assert self.keys is not None
        assert self.times is not None
        return KinesisBatch(
            self._stream,
            self._shard,
            self.position(start),
            self._rows[start:stop],
            list(self.keys[start:stop]),
            list(self.values[start:stop]),
            list(self.times[start:stop]),
            self._heard[start:stop],
        )


class Arrivals:
    """Tells those who wait that some reader has records."""

    def __init__(self) -> None:
        self.mark = 0
        self._event = asyncio.Event()

    def came(self) -> None:
        """There is something new."""
        self.mark += 1
        self._event.set()

    async def wait(self, timeout_ms: float, seen: int | None) -> int:
        """Return once there is, or after the time; the mark to give as `seen` the next time."""
        seen = self.mark if seen is None else seen
        if self.mark == seen:
            self._event.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event.wait(), timeout_ms / 1000)
        return self.mark
