"""Where results go: the seam between flowkit and an outside system that takes no part in the commit.

No effect leaves before its frame is durable. At the cut a sink *stages* the records into a hand-off, which is part of
the frame; once the frame counts the hand-off is *delivered*. Delivery is idempotent: after a crash the last frame's
hand-off is delivered again.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from flowkit.sink.file import FileSink
from flowkit.sink.file_target import OutputClosed

__all__ = ["FileSink", "Outgoing", "OutputClosed", "Sink"]


class Outgoing(Protocol):
    """One record on its way out, encoded."""

    key: bytes | None
    value: bytes | None
    time: int


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
