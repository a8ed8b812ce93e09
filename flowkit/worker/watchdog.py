"""Never stall in silence: what a task waits for, told while it waits.

Two watches: one in the event loop, for tasks that have work and make no progress (the worker asks `waiting_for`); one
in a thread, for an event loop that does not turn at all because some code blocks it.
"""

import asyncio
import gc
import inspect
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any

import structlog

log = structlog.get_logger("flowkit.watchdog")

DEEPEST = 50


def waiting_for(task: "asyncio.Task[Any]") -> list[str]:
    """Where an asyncio task stands, from its own code down to what it awaits: `function (file:line)`.

    Where the engine drives an agent by hand, the agent's own lines follow.
    """
    places: list[str] = []
    awaited: Any = None if task.done() else task.get_coro()
    while awaited is not None and len(places) < DEEPEST:
        frame, following = _frame_of(awaited), _awaited_by(awaited)
        if frame is not None:
            places.append(f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
            following = following or _driven_by(frame)
        elif following is None:
            following = _inside(awaited)
            if following is None or asyncio.isfuture(following):
                places.append(repr(awaited if following is None else following))
                following = None
        awaited = following
    return places


def _frame_of(awaited: Any) -> FrameType | None:
    frames = (getattr(awaited, name, None) for name in ("cr_frame", "gi_frame", "ag_frame"))
    return next((frame for frame in frames if frame is not None), None)


def _awaited_by(awaited: Any) -> Any:
    deeper = (getattr(awaited, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await"))
    return next((found for found in deeper if found is not None), None)


def _inside(awaited: Any) -> Any:
    """What a wrapper that tells nothing of itself is around: a step of an async generator, an awaited future."""
    for inner in gc.get_referents(awaited):
        if inspect.isasyncgen(inner) or inspect.iscoroutine(inner) or inspect.isgenerator(inner):
            return inner
        if asyncio.isfuture(inner):
            return inner
    return None


def _driven_by(frame: FrameType) -> Any:
    """The agent's code that a driver (flowkit.worker.drivers) follows in this frame, or None."""
    if frame.f_code.co_name != "_follow":
        return None
    driver = frame.f_locals.get("self")
    return frame.f_locals.get("coro") or getattr(driver, "_agen", None) or getattr(driver, "_coro", None)


def dump_tasks() -> list[dict[str, Any]]:
    """All asyncio tasks of this loop with where they stand."""
    return [{"task": task.get_name(), "waits_for": waiting_for(task)} for task in asyncio.all_tasks()]


@asynccontextmanager
async def told_stalls(signs: Callable[[], object], limit_ms: int) -> AsyncIterator[None]:
    """Tell what the present asyncio task waits for each time that `signs` have stood still for `limit_ms`.

    `signs` gives None where there is nothing to be said against waiting.
    """
    watched = asyncio.current_task()
    assert watched is not None
    watch = asyncio.create_task(_tell_stalls(watched, signs, limit_ms / 1000), name="flowkit watchdog")
    try:
        with LoopWatch(limit_ms).running():
            yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def _tell_stalls(watched: "asyncio.Task[Any]", signs: Callable[[], object], limit: float) -> None:
    pause = min(limit / 4, 1.0)
    last, since = signs(), time.monotonic()
    while True:
        before = time.monotonic()
        await asyncio.sleep(pause)
        now, found = time.monotonic(), signs()
        if found is None or found != last or now - before > pause + limit / 2:
            last, since = found, now
        elif now - since >= limit:
            since = now
            log.error(
                "no progress: an agent may wait for something that does not come",
                seconds=round(limit, 1),
                waits_for=waiting_for(watched),
            )


class LoopWatch:
    """Tells, from a thread, when the event loop has not turned for `limit_ms`, and where it hangs."""

    def __init__(self, limit_ms: int) -> None:
        self.limit = limit_ms / 1000
        self.turned = time.monotonic()
        self.longest = 0.0
        """The longest (seconds) that it has been blocked, as far as it was seen. A process that was stopped is not."""
        self._stop = threading.Event()
        self._told = 0.0

    def turn(self) -> None:
        """The loop is alive."""
        self.turned = time.monotonic()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        pause = min(self.limit / 4, 1.0)
        before = time.monotonic()
        while not self._stop.wait(pause):
            now = time.monotonic()
            if now - before > pause + self.limit / 2:
                self.turned = now  # this thread stood still as well: the process was stopped, not the loop
            before = now
            loop.call_soon_threadsafe(self.turn)
            silent = now - self.turned
            self.longest = max(self.longest, silent)
            if silent >= self.limit and self._told != self.turned:
                self._told = self.turned
                frame = sys._current_frames().get(thread_id)  # noqa: SLF001  there is no other way
                stack = traceback.format_stack(frame) if frame is not None else []
                log.error(
                    "the event loop is blocked: some code does not give way (use async calls, or a thread)",
                    seconds=round(silent, 1),
                    stack="".join(stack),
                )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the event loop that runs in this thread."""
        self.turn()
        thread = threading.Thread(
            target=self._watch,
            args=(asyncio.get_running_loop(), threading.get_ident()),
            name="flowkit-watchdog",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
