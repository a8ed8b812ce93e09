"""What a cache before a lookup keeps, for how long; and what it kept in one task."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from flowkit.errors import ConfigError

MISSING: Any = object()
"""Given for a key that is not in the cache."""


class Cache:
    """Keeps the answers for up to `size` keys, the least lately used going first. Durations in ms.

    `ttl`: an answer is asked for again after so long (None: never). `missing_ttl`: the same for keys that were not
    found (None: as `ttl`; 0: not kept). By the worker's clock. Each task has its own; `hits` and `misses` count all.
    """

    def __init__(self, size: int = 10_000, ttl: int | None = None, missing_ttl: int | None = None) -> None:
        problems = []
        if type(size) is not int or size < 1:
            problems.append(f"Cache: size={size!r}: give a whole number, 1 or more")
        if ttl is not None and (type(ttl) is not int or ttl < 1):
            problems.append(f"Cache: ttl={ttl!r}: give whole ms, 1 or more (minutes(…))")
        if missing_ttl is not None and (type(missing_ttl) is not int or missing_ttl < 0):
            problems.append(f"Cache: missing_ttl={missing_ttl!r}: give whole ms, 0 or more (minutes(…))")
        if problems:
            raise ConfigError(*problems)
        self.size, self.ttl = size, ttl
        self.missing_ttl = ttl if missing_ttl is None else missing_ttl
        self.hits = self.misses = 0

    def __repr__(self) -> str:
        return f"Cache(size={self.size}, ttl={self.ttl}, missing_ttl={self.missing_ttl})"


class Kept:
    """The answers that one task keeps."""

    def __init__(self, cache: Cache, now: Callable[[], int]) -> None:
        self.cache, self.now = cache, now
        self._rows: OrderedDict[Any, tuple[Any, int | None]] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: Any) -> Any:
        """The answer, or MISSING."""
        row = self._rows.get(key)
        if row is None or (row[1] is not None and row[1] <= self.now()):
            self.misses += 1
            self.cache.misses += 1
            return MISSING
        self._rows.move_to_end(key)
        self.hits += 1
        self.cache.hits += 1
        return row[0]

    def put(self, key: Any, value: Any) -> None:
        """Keep an answer."""
        ttl = self.cache.missing_ttl if value is None else self.cache.ttl
        if ttl == 0:
            return
        self._rows[key] = (value, None if ttl is None else self.now() + ttl)
        self._rows.move_to_end(key)
        if len(self._rows) > self.cache.size:
            self._rows.popitem(last=False)
