"""How far event time had come for some keys before their task took them over, while the task itself is not so far yet.

    shards a and b are merged     a was at 100, b at 60: the task that takes over both goes on from 60
    a key of a                    what is older than 100 is late for it; its windows up to there have fired already
    a key of b                    goes on as if nothing had happened

Once the task has come so far, nothing is left of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flowkit.record import MIN_TIME

Owns = Callable[[bytes], bool]


class Floors:
    """By span of keys: a watermark (ms). `keys_in` tells which keys a span has; None: there are never any spans."""

    def __init__(self, keys_in: Callable[[str], Owns] | None = None) -> None:
        self._keys_in = keys_in
        self._rows: list[tuple[str, int, Owns]] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    @property
    def highest(self) -> int:
        """Nothing that is later is a concern of any."""
        return max((at for _, at, _ in self._rows), default=MIN_TIME)

    def of(self, key: bytes | None) -> int:
        """How far event time had come for a key; MIN_TIME: not farther than the task."""
        if key is None:
            return MIN_TIME
        return max((at for _, at, owns in self._rows if owns(key)), default=MIN_TIME)

    def load(self, saved: Sequence[Any]) -> None:
        """Go on with what `save` gave."""
        if self._keys_in is not None:
            self._rows = [(span, at, self._keys_in(span)) for span, at in saved]

    def save(self, watermark: int) -> list[list[Any]]:
        """What is left now that the task has come to `watermark` (ms), and all that was due has fired."""
        self._rows = [row for row in self._rows if row[1] > watermark]
        return [[span, at] for span, at, _ in self._rows]
