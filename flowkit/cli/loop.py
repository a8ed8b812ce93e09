"""Runs a command's coroutine on uvloop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, on uvloop where there is one."""
    try:
        from uvloop import new_event_loop
    except ImportError:  # not made for every platform
        new_event_loop = None  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
