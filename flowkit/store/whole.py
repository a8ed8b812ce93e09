"""Steps that are done whole: a cancellation that comes meanwhile is raised when they are over.

A thread cannot be stopped while it writes; to go on beside it would mix two writes in one file.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(step: Awaitable[T]) -> T:
    """What `step` gives. If it fails, that is raised, even if a cancellation came."""
    task = asyncio.ensure_future(step)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001 - raised below
            break
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run `work` in a thread, whole."""
    return await whole(asyncio.get_running_loop().run_in_executor(_threads(), work, *args))


@cache
def _threads() -> Executor:
    # Of our own: the loop's default has few, and stores that wait for a disk need no cores.
    return ThreadPoolExecutor(40, thread_name_prefix="flowkit store")
