"""What `enrich` makes of a lookup: an async function of one event, with a cache of its own in each task."""

from collections.abc import Callable
from typing import Any

from flowkit.codec import field_getter
from flowkit.flow.calls import AsyncFunction, Now
from flowkit.lookup import Cache, begin, cache_counts
from flowkit.record import Enriched


class Enricher:
    """Looks up the key of each event. One task's."""

    def __init__(self, lookup: Any, cache: Cache | None, key: Callable[[Any], Any], now: Now) -> None:
        self.key, self.lookup = key, begin(lookup, cache, now)

    async def __call__(self, event: Any) -> Enriched[Any, Any]:
        key = self.key(event)
        return Enriched(event, None if key is None else await self.lookup(key))

    def cache_counts(self) -> tuple[int, int] | None:
        """Hits and misses of the cache since it was made; None without one."""
        return cache_counts(self.lookup)

    async def aclose(self) -> None:
        """Close what the lookup has open."""
        if hasattr(self.lookup, "aclose"):
            await self.lookup.aclose()


def enricher(lookup: Any, cache: Cache | None, key: Any, type_: Any) -> Callable[[Now], AsyncFunction]:
    """Makes the async function of a task."""
    get = field_getter(type_, key) if isinstance(key, str) else key
    return lambda now: Enricher(lookup, cache, get, now)
