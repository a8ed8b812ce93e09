"""Awaiting what must not be broken off: disk and broker operations, which go on in a thread whoever waits for them.

To cancel a coroutine that waits for a thread leaves the thread at work: on a file that may be closed beneath it, by a
number that the next opened file gets.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def whole(work: Awaitable[T]) -> T:
    """Await `work` to its end. If the caller is cancelled meanwhile, that is raised once the work is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, or asyncio complains that nobody did
        raise cancelled
    return task.result()
