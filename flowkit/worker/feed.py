"""What a task works on, piece by piece, and going back to the last commit.

A feed gives out *pieces*: records of a split, or a fact about one (it has ended, it is idle). It remembers what it gave
out since the last commit, so that the task can take everything back and come again. There are two: `BoundedFeed` merges
inputs that end, `LiveFeed` takes what the world gives.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from flowkit.window import MarkedSplit, Split
from flowkit.worker.calling import Call
from flowkit.worker.engine import Engine
from flowkit.worker.inlet import Decoded, Mark


@dataclass(slots=True)
class Records:
    """Records `[start, stop)` of one split, for one engine. The task says how many it took (`Feed.taken`)."""

    engine: Engine
    topic: str
    split: Split
    decoded: Decoded
    start: int
    stop: int


@dataclass(slots=True)
class Marks:
    """Marks `[start, stop)` of one split of an internal topic: how far its senders are."""

    engine: Engine
    split: MarkedSplit
    decoded: Decoded
    start: int
    stop: int

    @property
    def marks(self) -> list[Mark]:
        return [self.decoded.marks[index] for index in range(self.start, self.stop)]


@dataclass(slots=True)
class Ended:
    """A split has no more records: it no longer holds the watermark."""

    engine: Engine
    split: Split


@dataclass(slots=True)
class Drained:
    """All inputs of an engine have ended, but what it still has to hand over may come back to it."""

    engine: Engine


@dataclass(slots=True)
class Finished:
    """All inputs of an engine have ended."""

    engine: Engine


@dataclass(slots=True)
class Idle:
    """A split has been silent for too long: it no longer holds the watermark until it speaks again."""

    engine: Engine
    split: Split


@dataclass(slots=True)
class Found:
    """A split was found late, and holds records already: from now on the watermark waits for it."""

    engine: Engine
    split: Split


@dataclass(slots=True)
class ClockMark:
    """All inputs are silent: the watermark goes on by the clock (ms)."""

    engine: Engine
    watermark: int


@dataclass(slots=True)
class Tick:
    """The clock was read, and says `at` (ms): what waits for it is looked at."""

    engine: Engine
    at: int


@dataclass(slots=True)
class Completed:
    """Calls of a live task are done: their results are an input that the world gave."""

    engine: Engine
    calls: list[Call]


@dataclass(slots=True)
class Unfinished:
    """A firing was cut: it goes on. No feed gives this: the task asks its engines before it asks its feed."""

    engine: Engine


@dataclass(slots=True)
class Waiting:
    """An input has nothing for now and is not at its end (standard input): time to commit, or to stop."""


Piece = Records | Marks | Ended | Drained | Finished | Idle | Found | ClockMark | Tick | Completed | Unfinished


class Feed(Protocol):
    """Where a task takes its pieces from."""

    @property
    def replaying(self) -> bool:
        """True while what was given out before a rewind comes again as it came."""

    async def next(self, limit: int) -> Piece | Waiting | None:
        """The next piece, of at most `limit` records; None: nothing more (for now)."""

    def taken(self, piece: Piece, count: int) -> None:
        """The piece was handled; of its records, the first `count`."""

    def commit(self) -> dict[str, Any]:
        """Everything given out so far is behind: what must be kept to go on from here (msgpack-able)."""

    def done(self, engine: Engine) -> None:
        """Take in the calls of a live engine that are done, to be given out next."""

    async def rewind(self) -> None:
        """Go back to the last `commit`."""

    async def close(self) -> None: ...
