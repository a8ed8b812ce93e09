"""One at a time: who prepares or resolves a frame, or turns the log; and what waits until no frame is undecided."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from flowkit.errors import StoreError
from flowkit.store.reading import Reading

T = TypeVar("T")


class Turns:
    """Who finds it `busy` waits until it is `free`, sets `busy`, and in the end calls `leave`.

    A lock would cost a commit of one key a fifth.
    """

    def __init__(self, view: Reading) -> None:
        self.view = view
        self.busy = False
        self._queue: list[asyncio.Future[None]] = []
        self.at_rest: list[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = []
        """What waits for the undecided frame to be decided."""

    async def free(self) -> None:
        """Wait until nobody has the turn."""
        while self.busy:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(waiting)
            await waiting

    def leave(self) -> None:
        """The turn is over."""
        self.busy = False
        if self._queue:
            for waiting in self._queue:
                if not waiting.done():
                    waiting.set_result(None)
            self._queue.clear()

    @asynccontextmanager
    async def between_frames(self) -> AsyncIterator[None]:
        """A turn of one's own. Raises StoreError while a frame is undecided."""
        await self.free()
        self.must_be_decided()
        self.busy = True
        try:
            yield
        finally:
            self.leave()

    def must_be_decided(self) -> None:
        """Raises StoreError while a frame is undecided."""
        if self.view.undecided is not None:
            raise StoreError(f"frame {self.view.undecided.number} is still undecided")

    async def once_at_rest(self, do: Callable[[], Awaitable[T]]) -> T:
        """Do something at a moment when no frame is being prepared, or undecided."""
        await self.free()
        if self.view.undecided is None:
            async with self.between_frames():
                return await do()
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.at_rest.append((do, waiting))
        return await waiting

    async def let_rest(self) -> None:
        """Do what waited, before the next frame comes: under steady load there may be no other moment."""
        while self.at_rest:
            do, waiting = self.at_rest.pop(0)
            if waiting.done():
                continue
            try:
                waiting.set_result(await do())
            except StoreError as error:
                waiting.set_exception(error)

    def close(self, why: StoreError) -> None:
        """Whoever waits, waits for nothing."""
        for _, waiting in self.at_rest:
            if not waiting.done():
                waiting.set_exception(why)
