"""One call for all who want the same key at the same time, and one for the keys of one turn of the event loop.

    wanted ─┬─ kept ─────────────────────────────► answer
            ├─ under way ── wait for it ─────────► answer
            └─ new ── lookup(key), or many(keys) ► answer

`many` is asked for all keys that are new in this turn.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from flowkit.lookup.cache import MISSING, Cache, Kept


class _Flight:
    """A lookup under way, and how many wait for it."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiters = 0
        self.task: asyncio.Task[None] | None = None


class Shared:
    """A lookup, asked once for each key at a time."""

    def __init__(self, lookup: Any, cache: Cache | None, now: Callable[[], int]) -> None:
        self.lookup = lookup
        self.kept = None if cache is None else Kept(cache, now)
        self._flights: dict[Any, _Flight] = {}
        self._new: dict[Any, _Flight] = {}
        """Those that go into the next call of `many`."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, key: Any) -> Any:
        if self.kept is not None and (found := self.kept.get(key)) is not MISSING:
            return found
        flight = self._flights.get(key) or self._begin(key)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.answer)
        except asyncio.CancelledError:
            # A time-out: whoever tries again is to begin anew, not to wait for the same.
            if self._flights.get(key) is flight:
                del self._flights[key]
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.answer.done() and flight.task is not None:
                flight.task.cancel()

    async def aclose(self) -> None:
        """Break off what is under way, and close the lookup."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self.lookup, "aclose"):
            await self.lookup.aclose()

    def _begin(self, key: Any) -> _Flight:
        flight = self._flights[key] = _Flight()
        if hasattr(self.lookup, "many"):
            if not self._new:
                asyncio.get_running_loop().call_soon(self._ask_many)
            self._new[key] = flight
        else:
            flight.task = self._spawn(self._ask(key, flight))
        return flight

    def _spawn(self, coroutine: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(coroutine, name="lookup")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, key: Any, flight: _Flight) -> None:
        try:
            answer = await self.lookup(key)
        except Exception as error:  # noqa: BLE001  it is raised where the answer is awaited
            self._land(key, flight, None, error)
        except asyncio.CancelledError:
            flight.answer.cancel()
            raise
        else:
            self._land(key, flight, answer, None)

    def _ask_many(self) -> None:
        flights, self._new = self._new, {}
        if flights:
            task = self._spawn(self._many(flights))
            task.set_name(f"lookup of {len(flights)}")

    async def _many(self, flights: dict[Any, _Flight]) -> None:
        try:
            answers = await self.lookup.many(list(flights))
        except Exception as error:  # noqa: BLE001  it is raised where the answers are awaited
            for key, flight in flights.items():
                self._land(key, flight, None, error)
        except asyncio.CancelledError:
            for flight in flights.values():
                flight.answer.cancel()
            raise
        else:
            for key, flight in flights.items():
                self._land(key, flight, answers.get(key), None)

    def _land(self, key: Any, flight: _Flight, answer: Any, error: Exception | None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.answer.done():
            return
        if error is not None:
            flight.answer.set_exception(error)
            flight.answer.exception()  # nobody may be left to hear it
            return
        if self.kept is not None:
            self.kept.put(key, answer)
        flight.answer.set_result(answer)
