"""The seam between flowkit and an outside system that results go to: what each system's file offers."""

from collections.abc import Sequence
from typing import Any, Protocol


class Outgoing(Protocol):
    """One record on its way out, encoded."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def time(self) -> int: ...


class Sink(Protocol):
    """One bound output."""

    codec: str | None
    """The codec that the outside dictates (a `.csv` file is CSV), or None: the topic's own."""

    guarantee: str
    """What a reader of the output can rely on, in words; `flowkit explain` shows it."""

    async def open(self, state: Any) -> None:
        """Get ready to go on after `state` (what `state()` gave at the last commit that counts; None: a new run)."""

    def stage(self, records: Sequence[Outgoing], final: bool) -> Any:
        """Turn records into a hand-off (msgpack-able; None if there is nothing to hand off). No I/O.

        `final` says that nothing will follow (end of a bounded run, or a clean stop).
        """

    def state(self) -> Any:
        """What `open` needs to go on after everything staged so far (msgpack-able)."""

    async def deliver(self, handoff: Any) -> None:
        """Bring a hand-off's effect about. Doing it twice changes nothing."""

    async def close(self) -> None: ...
