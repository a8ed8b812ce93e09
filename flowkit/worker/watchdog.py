"""Never stall in silence: what a task waits for, told while it waits.

Two watches: one in the event loop, for tasks that have work and make no progress; one in a thread, for an event loop
that does not turn at all because some code blocks it.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

log = structlog.get_logger("flowkit.watchdog")


def waiting_for(task: "asyncio.Task[Any]") -> list[str]:
    """Where an asyncio task stands, from its own code down to what it awaits: `function (file:line)`."""
    places: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None and len(places) < 50:
        frame = next((f for n in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(awaited, n, None))), None)
        if frame is not None:
            places.append(f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
        following = None
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            following = following or getattr(awaited, name, None)
        if following is None and frame is None:
            places.append(repr(awaited))
        awaited = following
    return places


def dump_tasks() -> list[dict[str, Any]]:
    """All asyncio tasks of this loop with where they stand."""
    return [{"task": task.get_name(), "waits_for": waiting_for(task)} for task in asyncio.all_tasks()]


class LoopWatch:
    """Tells, from a thread, when the event loop has not turned for `limit_ms`, and where it hangs."""

    def __init__(self, limit_ms: int) -> None:
        self.limit = limit_ms / 1000
        self.turned = time.monotonic()
        self._stop = threading.Event()
        self._told = 0.0

    def turn(self) -> None:
        """The loop is alive. To be called about once a second."""
        self.turned = time.monotonic()

    def _watch(self, thread_id: int) -> None:
        while not self._stop.wait(min(self.limit / 4, 1.0)):
            silent = time.monotonic() - self.turned
            if silent >= self.limit and self._told != self.turned:
                self._told = self.turned
                frame = sys._current_frames().get(thread_id)  # noqa: SLF001  the only way to see another thread
                stack = traceback.format_stack(frame) if frame is not None else []
                log.error(
                    "the event loop is blocked: some code does not give way (use async calls, or a thread)",
                    seconds=round(silent, 1),
                    stack="".join(stack),
                )

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="flowkit-watchdog", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
