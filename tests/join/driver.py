"""A task in small: it gives steps to a join as the engine does, and checks at each call what the protocol promises."""

import random
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
from hypothesis import strategies as st

from flowkit.join import AsOfJoin, IntervalJoin
from flowkit.record import END_OF_TIME, MIN_TIME, Record

LEFT, RIGHT = 0, 1


class Order(Record, frozen=True):
    """A left event; `n` is its place in the steps."""

    n: int


class Payment(Record, frozen=True):
    """A right event. One with `gone` deletes."""

    n: int
    gone: bool = False


Row = tuple[Literal["row"], int, str, int, bool]  # side, key, time, gone
Advance = tuple[Literal["advance"], int]  # to a watermark
Step = Row | Advance
Out = tuple[str, Any, int]  # key, joined, time


def rows(least: int = 0, most: int = 40) -> st.SearchStrategy[Row]:
    return st.tuples(
        st.just("row"), st.sampled_from((LEFT, RIGHT)), st.sampled_from("ab"), st.integers(least, most), st.booleans()
    )


def steps(least: int = 0, most: int = 40) -> st.SearchStrategy[list[Step]]:
    """Rows of both sides and two keys, in any order of time, and watermarks between them; the end is at the end."""
    advances: st.SearchStrategy[Advance] = st.tuples(st.just("advance"), st.integers(least, most))
    several: st.SearchStrategy[list[Step]] = st.lists(
        st.one_of(rows(least, most), rows(least, most), rows(least, most), advances), max_size=60
    )
    end: Step = ("advance", END_OF_TIME)
    return several.map(lambda several: [*several, end])


def in_time(given: Iterable[Step]) -> list[Step]:
    """The steps without rows that are late and watermarks that go back."""
    watermark = MIN_TIME
    kept: list[Step] = []
    for step in given:
        if step[0] == "row" and step[3] > watermark:
            kept.append(step)
        elif step[0] == "advance" and step[1] > watermark:
            watermark = step[1]
            kept.append(step)
    return kept


def event(n: int, step: Row) -> Order | Payment:
    return Order(n) if step[1] == LEFT else Payment(n, step[4])


class Driver:
    """Gives steps; between two calls a cell is encoded and decoded, always or (`often` < 1) at random."""

    def __init__(self, join: IntervalJoin | AsOfJoin, seed: int = 0, often: float = 1) -> None:
        self.join = join
        self.cells: dict[str, Any] = {}
        self.out: list[Out] = []
        self.wakes = 0
        self.watermark = MIN_TIME
        self._random, self._often = random.Random(seed), often
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(join.cell_type).decode

    def run(self, given: list[Step], look: Callable[["Driver"], None] = lambda driver: None) -> list[Out]:
        for n, step in enumerate(given):
            if step[0] == "row":
                self.row(n, step)
            else:
                self.advance(step[1])
            look(self)
        return self.out

    def row(self, n: int, step: Row) -> None:
        _, side, key, t, _ = step
        cell = self._cell(key)
        sent = self.join.event(key, cell, side, event(n, step), t)
        assert all(time > self.watermark for _, _, time in sent)
        self._took(key, cell, sent)
        assert self.join.due(cell) > self.watermark

    def advance(self, watermark: int) -> None:
        while woken := min(((at, key) for key in self.cells if (at := self._due(key)) <= watermark), default=None):
            at, key = woken
            cell = self._cell(key)
            sent = self.join.wake(key, cell, at)
            assert all(time == at for _, _, time in sent)
            self.wakes += 1
            self._took(key, cell, sent)
            assert key not in self.cells or self._due(key) > at
        self.watermark = watermark

    def _due(self, key: str) -> int:
        return self.join.due(self.cells[key])

    def _cell(self, key: str) -> Any:
        cell = self.cells.get(key)
        if cell is None:
            return self.join.new()
        if self._random.random() < self._often:
            return self._decode(self._encode(cell))
        return cell

    def _took(self, key: str, cell: Any, sent: Iterable[tuple[str, Any, int]]) -> None:
        for output, joined, time in sent:
            assert output == ""
            # What is sent has the type that the join says.
            assert msgspec.convert(msgspec.to_builtins(joined), self.join.type) == joined
            self.out.append((key, joined, time))
        if self.join.over(cell):
            self.cells.pop(key, None)
        else:
            self.cells[key] = cell
