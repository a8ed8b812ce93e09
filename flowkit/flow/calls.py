"""Calls of async functions as a part of a stream: what `map_async` and `map_async_batches` note down."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from flowkit.errors import ConfigError
from flowkit.flow.retry import Retry

AsyncFunction = Callable[[Any], Awaitable[Any]]

Now = Callable[[], int]
"""The time of day (ms)."""


@dataclass(frozen=True)
class CallSpec:
    """How an async function is called for each event, or for each batch of events (`size` is not None).

    Durations in ms. `begin` gives the function to one task, whose clock it is told. `retry` None: the app's.
    """

    begin: Callable[[Now], AsyncFunction]
    function: Any
    """What the user wrote, for people."""
    concurrency: int
    timeout: int | None = None
    ordered: bool = True
    retry: Retry | None = None
    size: int | None = None
    within: int | None = None


def check_calls(where: str, function: Any, spec: CallSpec) -> None:
    """Raise ConfigError with all that is wrong."""
    problems = []
    if not callable(function):
        problems.append(f"{where}: {function!r} is no function: give an async function of one argument")
    elif not _is_async(function):
        name = getattr(function, "__name__", type(function).__name__)
        problems.append(f"{where}: {name} is no async function: write `async def`, or use map")
    problems += _whole(where, "concurrency", spec.concurrency, optional=False)
    problems += _whole(where, "timeout", spec.timeout, optional=True, unit=" ms (seconds(…), minutes(…))")
    problems += _whole(where, "size", spec.size, optional=True)
    problems += _whole(where, "within", spec.within, optional=True, unit=" ms (seconds(…), minutes(…))")
    if spec.retry is not None and not isinstance(spec.retry, Retry):
        problems.append(f"{where}: retry={spec.retry!r}: give a flowkit.Retry(…)")
    if problems:
        raise ConfigError(*problems)


def _is_async(function: Any) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004  an object whose call is an async method
    inner = function
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(call)


def _whole(where: str, option: str, value: object, *, optional: bool, unit: str = "") -> list[str]:
    if optional and value is None:
        return []
    if type(value) is int and value >= 1:
        return []
    return [f"{where}: {option}={value!r}: give a whole number, 1 or more{unit}"]
