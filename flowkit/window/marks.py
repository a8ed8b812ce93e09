"""In-band watermarks: the split of a topic into which several tasks send, and what each says of how far it is.

events and marks as they lie in the split       watermark of the split
────────────────────────────────────────────    ──────────────────────
e e A:40 e e                                    no time: B has not been heard
e B:10                                          10, the least
e A:90 e B:60(idle)                             60, then 90: an idle sender does not hold it
e e A:95(idle)                                  95; all are idle, and it holds
"""

from collections.abc import Iterable
from typing import Any

from flowkit.record import MIN_TIME
from flowkit.window.watermark import ACTIVE, IDLE, QUIET, Split

NEVER_BY_EVENTS = 2**66
"""The out-of-orderness of a split whose events do not move its watermark, however late their time."""


class MarkedSplit(Split):
    """A split whose watermark its senders tell: the least of those that are not idle. It never goes back.

    If all of them are silent and go by the clock, it is the furthest of them: nobody waits for anybody then.
    """

    __slots__ = ("floor", "marks", "senders")

    def __init__(self, name: str, number: int, senders: Iterable[str]) -> None:
        super().__init__(name, number, NEVER_BY_EVENTS)
        self.senders = frozenset(senders)
        self.marks: dict[str, tuple[int, int]] = {}
        """The last (watermark, standing) of each sender that was heard."""
        self.floor = MIN_TIME

    def hear(self, sender: str, watermark: int, standing: int = ACTIVE) -> None:
        """`sender` has come to `watermark` (ms) and stands so. One that is none of the senders any more is ignored."""
        if sender not in self.senders:
            return
        before = self.marks.get(sender, (MIN_TIME, ACTIVE))[0]
        self.marks[sender] = max(before, watermark), standing
        if len(self.marks) < len(self.senders):
            return
        if self.silent:
            self.floor = max(self.floor, *(mark for mark, _ in self.marks.values()))
        elif not self.all_idle:
            self.floor = max(self.floor, min(mark for mark, standing in self.marks.values() if standing != IDLE))

    @property
    def watermark(self) -> int:
        return self.floor

    @property
    def all_idle(self) -> bool:
        """True if every sender is idle."""
        return self._all(IDLE)

    @property
    def silent(self) -> bool:
        """True if no sender goes on, and at least one goes by the clock."""
        return self._all(IDLE, QUIET) and not self.all_idle

    def _all(self, *standings: int) -> bool:
        heard = self.marks.values()
        return len(heard) == len(self.senders) and all(standing in standings for _, standing in heard)

    @property
    def counts(self) -> bool:
        return super().counts and not self.all_idle

    def save(self) -> list[Any]:
        return [*super().save(), self.floor, {sender: list(mark) for sender, mark in self.marks.items()}]

    def load(self, saved: list[Any]) -> None:
        super().load(saved)
        _, _, _, self.floor, marks = saved
        self.marks = {sender: (mark[0], mark[1]) for sender, mark in marks.items() if sender in self.senders}

    def clear(self) -> None:
        super().clear()
        self.floor, self.marks = MIN_TIME, {}
