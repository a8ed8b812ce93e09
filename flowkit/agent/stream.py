"""The stream that an agent iterates: a thin handle through which the engine and the agent's code take turns.

An agent is a coroutine that the engine drives by hand. Asking for the next event suspends it into the engine, which
sends the event in: 0.14 µs a turn, where handing over between two asyncio tasks costs 4 µs. What the agent awaits
besides goes on to the event loop as it is, so any asyncio library works inside, and several agents of a task step event
by event without locks or queues. All agents of a flowkit task run in its one asyncio task, from first step to end.
"""

from collections.abc import AsyncIterator, Generator
from types import coroutine
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Need:
    """What an agent suspends with: it wants an event (`size` None), or a batch of up to `size` events."""

    __slots__ = ("size", "within")

    def __init__(self, size: int | None = None, within: int | None = None) -> None:
        self.size, self.within = size, within


EVENT = Need()
"""The one Need of every agent that goes event by event: compared by identity on the hot path."""

END: Any = type("End", (), {})()
"""Sent in at the end of the input: the stream's loop ends."""


@coroutine
def _ask(need: Need) -> Generator[Need, Any, Any]:
    event = yield need
    if event is END:
        raise StopAsyncIteration
    return event


class Stream(Generic[T_co]):
    """The events of an agent's sources, in the order of the task: by `async for event in stream`, or by `batches`."""

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    def __anext__(self) -> Any:
        return _ask(EVENT)

    def batches(self, size: int = 1000, *, within: int | None = None) -> AsyncIterator[list[T_co]]:
        """Lists of up to `size` events.

        A batch ends when it is full, when a window is about to fire (so that its events are in it), at the end of the
        input, or once its first event is `within` ms old by the clock (by event time in a bounded run). Use
        `table.at(event)[key]` inside. Events of an unfinished batch are saved with each commit.
        """
        if size < 1:
            raise ValueError("size must be at least 1")
        return _Batches(Need(size, within))


class _Batches(AsyncIterator[Any]):
    __slots__ = ("_need",)

    def __init__(self, need: Need) -> None:
        self._need = need

    def __anext__(self) -> Any:
        return _ask(self._need)
