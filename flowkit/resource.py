"""Resources: what each worker makes once and closes at its end (clients, models), and changes for a new one if asked.

made ──► current ──► replaced ── the calls that could use it end ──► closed
            └ reload: a new one is made first; if that fails, the old one stays
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import structlog

from flowkit.clock import Clock
from flowkit.errors import ConfigError, NoEvent

T = TypeVar("T")

log = structlog.get_logger("flowkit.resource")


class Lease:
    """Keeps an instance open. `release` it once."""

    __slots__ = ("instance",)

    def __init__(self, instance: "_Instance[Any]") -> None:
        self.instance = instance
        instance.users += 1

    def release(self) -> None:
        self.instance.users -= 1
        self.instance.look()


class _Instance(Generic[T]):
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


class _Holder(Generic[T]):
    """A resource in one worker."""

    def __init__(self, resource: "Resource[T]", clock: Clock) -> None:
        self.resource, self.clock = resource, clock
        self.current: _Instance[T]
        self.old: list[_Instance[T]] = []
        self.checked = clock.now_ms()
        self.changing = asyncio.Lock()
        self.polling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.current = await self.make()

    async def make(self) -> _Instance[T]:
        instance = _Instance(self.resource.name, self.resource.factory)
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


class Resource(Generic[T]):
    """Something that one worker makes once and closes at its end: a client, a model. Call it to get it.

    `await resource.reload()` makes a new one by the same factory; later calls of the resource give that. The old one is
    closed once nothing that began before can use it: calls of async functions, and the events that agents are at. An
    agent is to take it anew for each event, not once for all.
    """

    def __init__(
        self, name: str, factory: Callable[[], AbstractAsyncContextManager[T]], reload_every: int | None = None
    ) -> None:
        if reload_every is not None and (type(reload_every) is not int or reload_every < 1):
            raise ConfigError(
                f"resource {name!r}: reload_every={reload_every!r}: give whole ms, 1 or more (minutes(…))"
            )
        self.name, self.factory, self.reload_every = name, factory, reload_every
        self.bound: ContextVar[_Holder[T]] = ContextVar(f"flowkit_resource_{name}")

    def __call__(self) -> T:
        return self._holder().current.value

    async def reload(self) -> None:
        """Make a new one. If that fails, the error is raised and the old one stays."""
        await self._holder().reload()

    def lease(self) -> Lease:
        """Keep open what a call would give now, until the lease is released."""
        return Lease(self._holder().current)

    def _holder(self) -> _Holder[T]:
        try:
            return self.bound.get()
        except LookupError:
            raise NoEvent(f"resource {self.name!r} exists only while a worker runs: use it inside an agent") from None

    @asynccontextmanager
    async def open(self, clock: Clock) -> AsyncIterator[Callable[[], None]]:
        """Make it for the code that runs in this context. What is given is to be called now and then: it looks at the
        clock, for `reload_every`.
        """
        holder = _Holder(self, clock)
        await holder.open()
        self.bound.set(holder)
        try:
            yield holder.look
        finally:
            await holder.close()


def lease_all(resources: Iterable[Resource[Any]]) -> list[Lease]:
    """Leases of what these give now; none of those that are not open (a test of parts of a worker)."""
    return [Lease(holder.current) for resource in resources if (holder := resource.bound.get(None)) is not None]
