"""Watermarks: how far event time has come, by split and for the task that reads the splits.

A split's watermark is the highest time seen in it, less the out-of-orderness, less 1 ms. The task's is the least of
its splits', idle and ended ones left out; it never goes back, and holds while all are idle.
"""

from typing import Any, TypeVar

from flowkit.record import END_OF_TIME, MIN_TIME

T = TypeVar("T", bound="Split")

ACTIVE, IDLE, QUIET = 0, 1, 2
"""How a task stands: it goes on; all its inputs are idle; they are silent, and it goes by the clock."""


class Split:
    """What is known of one split. Times in ms."""

    __slots__ = ("ended", "high", "holds", "idle", "name", "number", "out_of_order")

    def __init__(self, name: str, number: int, out_of_order: int) -> None:
        self.name, self.number = name, number
        self.out_of_order = out_of_order
        self.high = MIN_TIME
        self.idle = False
        self.ended = False
        self.holds = True
        """False if the watermark never waits for this split."""

    @property
    def topic(self) -> str:
        """The broker's topic whose split it is.

        >>> Split("orders[12]", 12, 0).topic
        'orders'
        """
        return self.name.removesuffix(f"[{self.number}]")

    @property
    def counts(self) -> bool:
        """True if the task's watermark waits for this split now."""
        return self.holds and not self.idle and not self.ended

    @property
    def watermark(self) -> int:
        return MIN_TIME if self.high == MIN_TIME else self.high - self.out_of_order - 1

    def save(self) -> list[Any]:
        """What a commit keeps."""
        return [self.high, self.idle, self.ended]

    def load(self, saved: list[Any]) -> None:
        """Go back to what a commit kept."""
        self.high, self.idle, self.ended = saved[:3]

    def clear(self) -> None:
        """Forget what was seen, as before the first record."""
        self.high, self.idle, self.ended = MIN_TIME, False, False


class FoundSplit(Split):
    """A split that came when others had gone on: they wait for it only once it speaks, or is known to hold something.

    So a topic that is made and stays empty holds up nobody.
    """

    __slots__ = ()

    def __init__(self, name: str, number: int, out_of_order: int) -> None:
        super().__init__(name, number, out_of_order)
        self.idle = True

    def clear(self) -> None:
        super().clear()
        self.idle = True


class Splits:
    """The splits of one task and their common watermark (ms).

    >>> splits = Splits()
    >>> a, b = splits.add("a", 5), splits.add("b", 0)
    >>> a.high = 100
    >>> splits.watermark() == MIN_TIME          # b has sent nothing yet, and may be far behind
    True
    >>> b.idle = True
    >>> splits.watermark()
    94
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Split] = {}
        self.floor = MIN_TIME
        self.hold = END_OF_TIME
        """What holds the watermark back besides the splits: events that are on their way through a call."""
        self.by_clock = False
        """True while the watermark goes by the clock, since all splits are silent."""

    def add(self, name: str, out_of_order: int, number: int = 0) -> Split:
        """Start to follow a split; until it has sent something it holds the watermark back."""
        return self.by_name.setdefault(name, Split(name, number, out_of_order))

    def follow(self, split: T) -> T:
        """Start to follow `split`."""
        self.by_name[split.name] = split
        return split

    def others(self, name: str) -> int:
        """The least watermark of all splits but `name`; END_OF_TIME if none of them holds it.

        That is: what the task's watermark is at most, however far `name` goes.
        """
        if not self.by_name[name].holds:
            return self.watermark()
        marks = [split.watermark for n, split in self.by_name.items() if n != name and split.counts]
        return min(marks, default=END_OF_TIME)

    def watermark(self) -> int:
        """The task's watermark now."""
        return min(self.reached(), self.hold)

    def reached(self) -> int:
        """How far the splits have come, whatever holds the watermark back besides."""
        least = END_OF_TIME + 1
        for split in self.by_name.values():
            if split.counts and (mark := split.watermark) < least:
                least = mark
        if least <= END_OF_TIME:
            self.floor = max(self.floor, least)
        elif self.by_name and all(split.ended for split in self.by_name.values()):
            self.floor = END_OF_TIME
        return self.floor

    def standing(self) -> int:
        """What a task that has no more than these splits says of itself: ACTIVE, IDLE or QUIET."""
        if self.hold < END_OF_TIME:
            return ACTIVE  # what comes of it is still to come
        if self.by_clock:
            return QUIET
        return ACTIVE if self.floor == END_OF_TIME or any(s.counts for s in self.by_name.values()) else IDLE

    def save(self) -> dict[str, Any]:
        """What a commit keeps."""
        return {
            "floor": self.floor,
            "by_clock": self.by_clock,
            "splits": {name: split.save() for name, split in self.by_name.items()},
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go back to what a commit kept. Splits that are gone by now are forgotten."""
        self.floor, self.by_clock = saved["floor"], saved.get("by_clock", False)
        for name, row in saved["splits"].items():
            if name in self.by_name:
                self.by_name[name].load(row)

    def clear(self) -> None:
        """Forget what was seen, as before the first record."""
        self.floor, self.by_clock = MIN_TIME, False
        for split in self.by_name.values():
            split.clear()
