"""When keys expire: a table's `ttl`, and which keys may have to go next.

A key is expired once `ttl` ms have passed since its last use. Both times are the event's or the watermark's, whichever
is later: so what an event sees never depends on when the key is physically removed, and what it has used itself is
there until it is done. At the end of all input nothing expires.
"""

import heapq
from collections.abc import Iterable, Iterator

from flowkit.record import END_OF_TIME, MIN_TIME


class Expiry:
    """The keys that have a last use, each once, by the time when they may expire. Times in ms."""

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self._heap: list[tuple[int, bytes]] = []
        self._expected: set[bytes] = set()

    def over(self, last: int, now: int) -> bool:
        """True if what was last used at `last` (MIN_TIME: never yet) is expired at `now`."""
        return last != MIN_TIME and last + self.ttl <= now

    def expect(self, last: int, key: bytes) -> int:
        """Come back for a key that was used at `last`, unless that is arranged already; the earliest time to do so."""
        if key not in self._expected:
            self._expected.add(key)
            heapq.heappush(self._heap, (last + self.ttl, key))
        return self.due

    @property
    def due(self) -> int:
        """The least watermark at which a key may have to go."""
        return self._heap[0][0] if self._heap else END_OF_TIME + 1

    def passed(self, watermark: int) -> Iterator[bytes]:
        """The keys to look at, now that the watermark is here: expired ones go, for others `expect` is called again."""
        while self._heap and self._heap[0][0] <= watermark < END_OF_TIME:
            _, key = heapq.heappop(self._heap)
            self._expected.discard(key)
            yield key

    def reset(self, uses: Iterable[tuple[int, bytes]]) -> None:
        """Begin with these (last use, key)."""
        self._heap = [(last + self.ttl, key) for last, key in uses]
        self._expected = {key for _, key in self._heap}
        heapq.heapify(self._heap)
