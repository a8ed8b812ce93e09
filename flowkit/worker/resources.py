"""An app's resources in one worker: made, looked after, replaced and closed.

    made ──► current ──► replaced ── the calls that could use it end ──► closed

At a reload the new one is made first; if that fails, the old one stays.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar

import structlog

from flowkit.app import App
from flowkit.clock import Clock
from flowkit.resource import Resource

T = TypeVar("T")

log = structlog.get_logger("flowkit.resource")


@asynccontextmanager
async def resources(app: App, clock: Clock) -> AsyncIterator[Callable[[], None]]:
    """The app's resources, made in order of declaration and closed in reverse, for the code of this context.

    What is given is to be called now and then: it looks whether one is to be made anew.
    """
    async with AsyncExitStack() as stack:
        holders = []
        for resource in app.resources.values():
            holder: Holder[Any] = Holder(resource, clock)
            await holder.open()
            stack.push_async_callback(holder.close)
            resource.bound.set(holder)
            holders.append(holder)

        def look() -> None:
            for holder in holders:
                holder.look()

        yield look


def lease_all(app: App) -> "Sequence[Lease]":
    """Keep open what the app's resources are now, as far as they are open here."""
    if not app.resources:
        return ()
    held = (resource.bound.get(None) for resource in app.resources.values())
    return [Lease(holder.current) for holder in held if isinstance(holder, Holder)]


class Lease:
    """Keeps an instance open. `release` it once."""

    __slots__ = ("instance",)

    def __init__(self, instance: "Instance[Any]") -> None:
        self.instance = instance
        instance.users += 1

    def release(self) -> None:
        self.instance.users -= 1
        self.instance.look()


class Instance(Generic[T]):
    """One object that the factory made. An asyncio task of its own enters and leaves the factory's context."""

    def __init__(self, name: str, factory: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.name, self.factory = name, factory
        self.value: T
        self.users = 0
        self.retired = False
        self.over = asyncio.Event()
        self._made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.life = asyncio.create_task(self._live(), name=f"resource {name}")

    async def made(self) -> None:
        """Wait until it is made. Raises what the factory raises."""
        try:
            await asyncio.shield(self._made)
        except asyncio.CancelledError:
            self.life.cancel()
            raise

    async def _live(self) -> None:
        entered = False
        try:
            async with self.factory() as self.value:
                entered = True
                if not self._made.done():
                    self._made.set_result(None)
                await self.over.wait()
        except BaseException as error:
            if entered or self._made.done():
                raise
            self._made.set_exception(error)

    def look(self) -> None:
        """Close it once it has been replaced and nobody can use it any more."""
        if self.retired and not self.users:
            self.over.set()

    async def close(self) -> None:
        """Close it now. Raises what the factory raises after its yield."""
        self.retired = True
        self.over.set()
        await self.life


class Holder(Generic[T]):
    """A resource in one worker."""

    def __init__(self, resource: "Resource[T]", clock: Clock) -> None:
        self.resource, self.clock = resource, clock
        self.current: Instance[T]
        self.old: list[Instance[T]] = []
        self.checked = clock.now_ms()
        self.changing = asyncio.Lock()
        self.polling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the first one."""
        self.current = await self.make()

    def value(self) -> T:
        return self.current.value

    async def make(self) -> Instance[T]:
        instance = Instance(self.resource.name, self.resource.factory)
        await instance.made()
        return instance

    async def reload(self) -> None:
        async with self.changing:
            new = await self.make()
            before, self.current = self.current, new
            before.retired = True
            # Whoever takes it at the end may have to wait for a call: its errors are told here.
            before.life.add_done_callback(self._closed)
            self.old = [instance for instance in self.old if not instance.life.done()]
            self.old.append(before)
            before.look()
        log.info("resource reloaded", resource=self.resource.name)

    def _closed(self, life: "asyncio.Task[None]") -> None:
        if not life.cancelled() and (error := life.exception()) is not None:
            log.error("resource failed while it was closed", resource=self.resource.name, error=str(error))

    def look(self) -> None:
        every, now = self.resource.reload_every, self.clock.now_ms()
        if every is None or now - self.checked < every or (self.polling is not None and not self.polling.done()):
            return
        self.checked = now
        self.polling = asyncio.create_task(self._poll(), name=f"reload {self.resource.name}")

    async def _poll(self) -> None:
        try:
            await self.reload()
        except Exception as error:
            log.exception("resource not reloaded: the old one stays", resource=self.resource.name, error=str(error))

    async def close(self) -> None:
        if self.polling is not None:
            self.polling.cancel()
            await asyncio.gather(self.polling, return_exceptions=True)
        for instance in self.old:
            instance.over.set()
        await asyncio.gather(*(instance.life for instance in self.old), return_exceptions=True)
        await self.current.close()
