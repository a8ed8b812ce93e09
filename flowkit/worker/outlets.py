"""What a task has to send: encoded where it is emitted, handed on when the commit is cut."""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from flowkit.agent import Internal, Outlet
from flowkit.codec import Codec, Envelope, encode_key, field_getter
from flowkit.record import Closed


class Outgoing(NamedTuple):
    """One record on its way out. `time` in ms.

    `link` is what agents of the same run read, where the outside dictates another codec for `value`. `order` grows with
    the end of the window that it is the result of, and with its panes; None: it is of none.
    """

    key: bytes | None
    value: bytes | None
    time: int
    link: bytes | None = None
    order: int | None = None


_PANES = {"early": 0, "on_time": 1, "late": 2}


def order_of(window: Closed[Any, Any]) -> int:
    """A number that grows with a window's end, then with its panes."""
    return window.end << 2 | _PANES[window.pane]


class BoundOutlet:
    """One topic or sink of a task, with what was emitted to it since the last commit.

    Values are encoded at once: the agent may go on changing the object that it has sent. `linked` tells that agents of
    the same run read it.
    """

    def __init__(self, outlet: Outlet[Any], codec: str | None = None) -> None:
        self.name = outlet.name
        internal = isinstance(outlet, Internal)
        self.codec = Envelope(outlet.element) if internal else Codec(codec or outlet.codec, outlet.element)
        self._own = None if codec in (None, outlet.codec) else Codec(outlet.codec, outlet.element)
        key = outlet.key
        self._key: Callable[[Any], Any] | None = field_getter(outlet.element, key) if isinstance(key, str) else key
        self.records: list[Outgoing] = []
        self.linked = False
        self.awaited = True
        """False while those who read it in this run still have records of before: one more changes nothing for them."""
        self.total = 0

    def emit(self, value: Any, key: Any, time: int, order: int | None = None) -> None:
        if key is None and self._key is not None:
            key = self._key(value)
        key_bytes = None if key is None else encode_key(key)
        link = self._own.encode(value) if self.linked and self._own is not None else None
        self.records.append(Outgoing(key_bytes, self.codec.encode(value), time, link, order))

    def emit_all(self, values: Sequence[Any], keys: Sequence[Any], times: Sequence[int]) -> None:
        """Many at once, with keys of their own, where nobody in this run reads them: all of them, or it raises."""
        rows = zip(map(encode_key, keys), map(self.codec.encode, values), times, repeat(None), repeat(None))
        self.records += list(map(Outgoing._make, rows))
