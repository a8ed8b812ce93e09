"""When keys expire: a table's `ttl`, and which keys may have to go next.

A key is expired once `ttl` ms have passed since its last use. Both times are the event's or the watermark's, whichever
is later: so what an event sees never depends on when the key is physically removed, and what it has used itself is
there until it is done. At the end of all input nothing expires.
"""

from collections.abc import Iterator

from flowkit.record import END_OF_TIME, MIN_TIME
from flowkit.table.stored import Stored
from flowkit.table.timers import Timers


class Expiry:
    """The keys that have a last use, by the time when they may expire. Times in ms.

    A key's timer is set with its first use, and once more whenever it comes too early: not with every use.
    """

    def __init__(self, ttl: int, store: Stored, space: str) -> None:
        self.ttl = ttl
        self.timers = Timers(store, f"{space}!ttl", max(1_000, ttl // 16))

    def over(self, last: int, now: int) -> bool:
        """True if what was last used at `last` (MIN_TIME: never yet) is expired at `now`."""
        return last != MIN_TIME and last + self.ttl <= now

    def expect(self, last: int, key: bytes) -> None:
        """Come back for a key that was used at `last`, for which nothing is arranged yet."""
        self.timers.arm(last + self.ttl, key)

    @property
    def due(self) -> int:
        """The least watermark at which a key may have to go."""
        return self.timers.due

    def passed(self, watermark: int) -> Iterator[bytes]:
        """The keys to look at, now that the watermark is here: expired ones go, for others `expect` is called again."""
        if watermark < END_OF_TIME:
            yield from self.timers.passed(watermark)
