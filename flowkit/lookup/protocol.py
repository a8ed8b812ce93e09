"""What a lookup is, and how a task begins to use one."""

import typing
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from flowkit.lookup.cache import Cache, Kept

K_contra = TypeVar("K_contra", contravariant=True)
U_co = TypeVar("U_co", covariant=True)


class Lookup(Protocol[K_contra, U_co]):
    """Finds what belongs to a key, or None. Raises what is worth another try.

    An async function is one. An object may have more, each optional: `type`, that of what it finds; `begin()`, which
    gives the lookup of one task; `aclose()`, called at that task's end; `many(keys)`, which finds several at once, as a
    mapping by key (what it leaves out is not there), and is used for the misses of one turn of the event loop.
    """

    def __call__(self, key: K_contra, /) -> Awaitable[U_co | None]: ...


def begin(lookup: Any, cache: Cache | None, now: Callable[[], int]) -> Any:
    """The lookup of one task, behind the cache if there is one. `now` gives the time (ms)."""
    own = lookup.begin() if hasattr(lookup, "begin") else lookup
    if cache is None and not hasattr(own, "many"):
        return own
    from flowkit.lookup.shared import Shared  # asyncio is not for who only declares

    return Shared(own, cache, now)


def cache_counts(own: Any) -> tuple[int, int] | None:
    """How often the cache before what `begin` gave had the answer, and how often not; None if there is no cache."""
    kept = getattr(own, "kept", None)
    return (kept.hits, kept.misses) if isinstance(kept, Kept) else None


def result_type(lookup: Any) -> Any:
    """The type of what a lookup finds, or Any."""
    known = getattr(lookup, "type", None)
    if known is not None:
        return known
    function = lookup if hasattr(lookup, "__code__") else getattr(type(lookup), "__call__", lookup)  # noqa: B004
    try:
        given = typing.get_type_hints(function, include_extras=True).get("return", Any)
    except Exception:  # noqa: BLE001  a name that is only there for type checkers, or an object without hints
        return Any
    if type(None) not in typing.get_args(given):
        return given
    arms = tuple(arm for arm in typing.get_args(given) if arm is not type(None))
    return typing.Union[arms]  # noqa: UP007  of types known at run time
