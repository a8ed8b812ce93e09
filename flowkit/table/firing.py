"""A firing that is under way: how far a table has given out the results of windows that end together.

It is saved with a commit that cuts the firing, which then goes on behind the last key.
"""

from typing import Any

from flowkit.record import Pane


class Firing:
    """The windows that end at `end` (ms) are being fired, or give early results for `keys`.

    `last` is the key of the last result, `now` the time (ms) by which expiry goes. Keys are bytes, in order.
    """

    __slots__ = ("end", "keys", "last", "now", "start")

    def __init__(self, start: int, end: int, *, keys: list[bytes] | None = None, now: int = 0) -> None:
        self.start, self.end, self.keys, self.now = start, end, keys, now
        self.last: bytes | None = None

    @property
    def pane(self) -> Pane:
        """What the results are labelled as."""
        return "on_time" if self.keys is None else "early"

    def left(self) -> list[bytes]:
        """The keys that still have an early result to give."""
        last, keys = self.last, self.keys or []
        return keys if last is None else [key for key in keys if key > last]

    def save(self) -> list[Any]:
        """As builtins, for a commit."""
        return [self.start, self.end, None if self.keys is None else self.left(), self.now, self.last]

    @classmethod
    def load(cls, saved: list[Any] | None) -> "Firing | None":
        """What `save` gave; None: no firing was cut."""
        if saved is None:
            return None
        start, end, keys, now, last = saved
        firing = cls(start, end, keys=keys, now=now)
        firing.last = last
        return firing
