"""Calls under way: each an asyncio task that tries by the retry policy, within its time-out, to get results.

queued ── started ── done: a result or a failure for each event
             └─ fails ─ retry ─ in halves (a batch)
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

from flowkit.agent import Need
from flowkit.app import App
from flowkit.clock import Clock
from flowkit.errors import FlowkitError
from flowkit.flow import Called, Retry
from flowkit.table import Cursor
from flowkit.worker.drivers import Driver
from flowkit.worker.origin import Origin
from flowkit.worker.resources import lease_all


class Row:
    """One event on its way through a call. `hold` (ms) is how far the watermark may come meanwhile.

    `fired` is True if it came of a firing: then no more events come before the watermark goes on.
    """

    __slots__ = ("driver", "event", "fired", "gone", "hold", "origin", "t")

    def __init__(self, driver: "CallDriver", event: Any, t: int, hold: int, origin: Origin, fired: bool) -> None:
        self.driver, self.event, self.t, self.hold, self.origin, self.fired = driver, event, t, hold, origin, fired
        self.gone = False


class Failed:
    """What became of an event instead of a result."""

    __slots__ = ("attempts", "error")

    def __init__(self, error: Exception, attempts: int) -> None:
        self.error, self.attempts = error, attempts


class Call:
    """One call for one event, or for a batch of them."""

    __slots__ = (
        *("arrived", "begun", "calling", "dropped", "due", "expired"),
        *("kept", "results", "rows", "saved", "since", "task"),
    )

    def __init__(self, calling: "Calling", rows: list[Row]) -> None:
        self.calling, self.rows = calling, rows
        self.results: list[Any] | None = None
        """For each event its result or `Failed`, once the call is done."""
        self.saved: list[bytes | None] = []
        """The results as they were when they were handed over: whoever takes them may change them."""
        self.arrived = self.kept = False
        """True once the task has taken note that it is done; and whether it had at the last commit."""
        self.begun = False
        self.task: asyncio.Task[None] | None = None
        """While it is under way."""
        self.since = 0
        self.due: int | None = None
        """When (ms) the present try has taken too long."""
        self.expired = self.dropped = False


class Calling:
    """The calls of one stream in one task, of which at most `concurrency` are under way at once."""

    def __init__(
        self,
        app: App,
        stream: Called[Any],
        clock: Clock,
        now: Callable[[], int],
        fresh: Callable[[Origin], Any],
        finished: Callable[[Call], None],
    ) -> None:
        self.app, self.name, self.spec, self.clock, self.now = app, stream.name, stream.spec, clock, now
        self.fresh, self.finished = fresh, finished
        self.retry: Retry = self.spec.retry or app.retry
        self.function = self.spec.begin(clock.now_ms)
        self.running: dict[Call, None] = {}
        self.queue: deque[Call] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self._spare = False
        """True while there is an asyncio task that has not begun."""
        self.context = contextvars.Context()

    def start(self, call: Call) -> None:
        """Start a call, or put it behind those that wait for room."""
        self.queue.append(call)
        if not self._spare and len(self.running) < self.spec.concurrency:
            self._spawn()

    def _spawn(self) -> None:
        self._spare = True
        task = asyncio.get_running_loop().create_task(self._run(), context=self.context.copy())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self) -> None:
        """Make calls until none waits. Those that need not wait for anything share one asyncio task."""
        self._spare, task, single = False, asyncio.current_task(), self.spec.size is None
        while self.queue and len(self.running) < self.spec.concurrency:
            call = self.queue.popleft()
            self.running[call] = None
            call.begun, call.task, call.since = True, task, self.now()
            if self.queue and not self._spare and len(self.running) < self.spec.concurrency:
                self._spawn()  # for when this one has to wait
            try:
                await (self._single(call) if single else self._batch(call))
            except asyncio.CancelledError:
                if not call.dropped or task is None:
                    raise
                task.uncancel()

    def expire(self, now: int) -> None:
        """Break off what has taken longer than the time-out."""
        for call in self.running:
            if call.due is not None and call.due <= now and call.task is not None:
                call.expired, call.due = True, None
                call.task.cancel()

    def drop(self, call: Call) -> None:
        """Forget a call, whatever comes of it."""
        call.dropped = True
        if call.task is not None:
            call.task.cancel()
        elif call in self.queue:
            self.queue.remove(call)

    def _done(self, call: Call) -> None:
        self.running.pop(call, None)
        call.task = None
        if not call.dropped:
            self.finished(call)

    async def _single(self, call: Call) -> None:
        row = call.rows[0]
        leases = lease_all(self.app) if self.app.resources else ()
        try:
            try:
                if self.spec.timeout is not None:
                    call.due = self.now() + self.spec.timeout
                call.results = [await self.function(row.event)]
                call.due = None
            except (Exception, asyncio.CancelledError) as error:
                call.due = None
                failed = await self._after(call, self._told(call, error), 1)
                call.results = [await self._again(call, row)] if failed is None else [failed]
        finally:
            for lease in leases:
                lease.release()
            self._done(call)

    async def _again(self, call: Call, row: Row) -> Any:
        attempt = 1
        while True:
            attempt += 1
            try:
                return await self._try(call, self.fresh(row.origin))
            except (Exception, asyncio.CancelledError) as error:
                failed = await self._after(call, self._told(call, error), attempt)
                if failed is not None:
                    return failed

    async def _try(self, call: Call, event: Any) -> Any:
        if self.spec.timeout is not None:
            call.due = self.now() + self.spec.timeout
        try:
            return await self.function(event)
        finally:
            call.due = None

    async def _after(self, call: Call, error: Exception, attempt: int) -> Failed | None:
        """After a try that has failed: None once it is time for another one."""
        wait = self.retry.wait(attempt, error)
        if wait is None:
            return Failed(error, attempt)
        await self.clock.sleep(wait)
        return None

    def _told(self, call: Call, error: BaseException) -> Exception:
        """What a try failed with, as an error of the event. Raises what is none."""
        if isinstance(error, Exception):
            return error
        if call.dropped or not isinstance(error, asyncio.CancelledError):
            raise error
        late: Exception
        if call.expired:
            call.expired = False
            late = TimeoutError(f"no answer within {self.spec.timeout} ms")
        elif call.task is not None and call.task.cancelling():
            raise error
        else:
            late = FlowkitError("the call was cancelled from within")
        if call.task is not None:
            call.task.uncancel()
        return late.with_traceback(error.__traceback__)

    async def _batch(self, call: Call) -> None:
        leases = lease_all(self.app) if self.app.resources else ()
        try:
            call.results = await self._several(call, call.rows, first=True)
        finally:
            for lease in leases:
                lease.release()
            self._done(call)

    async def _several(self, call: Call, rows: list[Row], *, first: bool) -> list[Any]:
        attempt = 0
        while True:
            attempt += 1
            events = [row.event if first and attempt == 1 else self.fresh(row.origin) for row in rows]
            try:
                return self._checked(await self._try(call, events), len(rows))
            except (Exception, asyncio.CancelledError) as error:
                failed = await self._after(call, self._told(call, error), attempt)
            if failed is not None:
                break
        if len(rows) == 1:
            return [failed]
        half = len(rows) // 2
        return [
            *await self._several(call, rows[:half], first=False),
            *await self._several(call, rows[half:], first=False),
        ]

    def _checked(self, results: Any, wanted: int) -> list[Any]:
        try:
            found = list(results)
        except TypeError:
            raise FlowkitError(
                f"{self.name!r}: gave {type(results).__name__}, not a list of {wanted} results"
            ) from None
        if len(found) != wanted:
            raise FlowkitError(f"{self.name!r}: gave {len(found)} results for a batch of {wanted} events")
        return found


class CallDriver(Driver):
    """Where events go into the calls of one stream. Never asks for single events: what it takes is collected."""

    def __init__(self, stream: Called[Any], cursor: Cursor) -> None:
        super().__init__(stream.name, cursor, [], stream.spec.retry or Retry())
        self.stream, self.spec, self.sources = stream, stream.spec, stream.parents
        self.need = Need(stream.spec.size or 1, stream.spec.within)
        self.calling: Calling
        self.concurrency = stream.spec.concurrency
        self.encoders: dict[type, Callable[[Any], bytes] | None] = {}
        """How its results are kept, by their class."""
        self.pending: deque[Call] = deque()
        """Calls not handed over, the oldest first."""
        self.forming: list[Row] = []
        """The events of a batch that is not complete."""
        self.since = 0
        """Since when (ms) the batch waits."""

    @property
    def full(self) -> bool:
        """True if there is no room for another call."""
        return len(self.pending) >= self.concurrency
