"""Resources: what each worker makes once and closes at its end (clients, models), and changes for a new one if asked.

Here is what is declared and used; `flowkit.worker.resources` makes, replaces and closes them.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Generic, Protocol, TypeVar

from flowkit.errors import ConfigError, NoEvent

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Held(Protocol[T_co]):
    """A resource in a worker."""

    def value(self) -> T_co:
        """What the factory made last."""

    async def reload(self) -> None:
        """Make a new one."""


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
        self.bound: ContextVar[Held[T]] = ContextVar(f"flowkit_resource_{name}")

    def __call__(self) -> T:
        return self._held().value()

    async def reload(self) -> None:
        """Make a new one. If that fails, the error is raised and the old one stays."""
        await self._held().reload()

    def _held(self) -> Held[T]:
        try:
            return self.bound.get()
        except LookupError:
            raise NoEvent(f"resource {self.name!r} exists only while a worker runs: use it inside an agent") from None
