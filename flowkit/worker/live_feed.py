"""The feed of a live task: a journal of what the world gave since the last commit."""

from collections.abc import Sequence
from typing import Any

from flowkit.source import Position
from flowkit.worker.engine import Engine
from flowkit.worker.feed import Completed, Marks, Piece, Records
from flowkit.worker.inlet import Decoded, Inlet


class LiveFeed:
    """Pieces in the order in which the world gave them: that order is an input too, and is kept until the commit."""

    def __init__(
        self,
        inlets: dict[tuple[str, int], Inlet],
        positions: dict[str, Position],
        heard: dict[str, int] | None = None,
        patterns: Sequence[str] = (),
    ) -> None:
        self.inlets = inlets
        self.journal: list[Piece] = []
        self.at = 0
        self.fixed = 0
        """After a rewind: how much of the journal must come again as it came. What failed is found again by that."""
        self.positions = dict(positions)
        self.heard = dict(heard or {})
        """By split: when (ms by the clock) it last sent something. For people, who ask what holds the watermark."""
        self._committed = dict(positions)
        self._patterns = list(patterns)
        """The patterns that are read: once a commit names one, all that matches it later is new."""

    def begin(self, split: str, position: Position) -> None:
        """A split without a position is read from here, also after a restart before anything has come."""
        for positions in (self.positions, self._committed):
            positions.setdefault(split, position)

    def give(self, piece: Piece) -> None:
        """Add a piece; records whole batches at a time."""
        self.journal.append(piece)

    @property
    def replaying(self) -> bool:
        return self.at < self.fixed

    async def next(self, limit: int) -> Piece | None:
        if self.at == len(self.journal):
            return None
        piece = self.journal[self.at]
        if isinstance(piece, Records):
            return Records(
                piece.engine, piece.topic, piece.split, piece.decoded, piece.start, min(piece.stop, piece.start + limit)
            )
        return piece

    def taken(self, piece: Piece, count: int) -> None:
        given = self.journal[self.at]
        if isinstance(given, Records) and isinstance(piece, Records):
            done = given.start + count
            self.positions[given.split.name] = given.decoded.batch.position(done)
            if done < given.stop:
                # What is done and what is left, so that a rewind gives out the same again.
                given_rest = Records(given.engine, given.topic, given.split, given.decoded, done, given.stop)
                self.fixed += self.at < self.fixed
                self.journal[self.at : self.at + 1] = [
                    Records(given.engine, given.topic, given.split, given.decoded, given.start, done),
                    given_rest,
                ]
        elif isinstance(given, Marks):
            self.positions[given.split.name] = given.decoded.batch.position(given.stop)
        self.at += 1

    def commit(self) -> dict[str, Any]:
        del self.journal[: self.at]
        self.fixed = max(0, self.fixed - self.at)
        self.at = 0
        self._committed = dict(self.positions)
        saved: dict[str, Any] = {"positions": dict(self.positions), "heard": dict(self.heard)}
        return {**saved, "patterns": self._patterns} if self._patterns else saved

    async def rewind(self) -> None:
        # Also the positions: the next commit may come before everything has been given out again.
        self.positions = dict(self._committed)
        fresh: dict[int, Decoded] = {}
        for piece in self.journal:
            if isinstance(piece, Records):
                old = piece.decoded
                if id(old) not in fresh:
                    fresh[id(old)] = self.inlets[(piece.topic, piece.split.number)].decode(old.batch)
                piece.decoded = fresh[id(old)]
        self.fixed = max(self.fixed, min(self.at + 1, len(self.journal)))
        self.at = 0

    def done(self, engine: Engine) -> None:
        calls, replaying = engine.calls, self.at < self.fixed
        if replaying and (not (calls.cuts or calls.no_room) or isinstance(self.journal[self.at], Completed)):
            return
        ready = calls.take_done()
        if ready:
            self.journal.insert(self.at, Completed(engine, ready))
            self.fixed += replaying

    async def close(self) -> None:
        self.journal.clear()
