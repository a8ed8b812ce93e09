"""Pure join logic of one key: what two streams' events make together, in event time. No streams, no I/O, no clock.

An `IntervalJoin` and an `AsOfJoin` are driven by three calls, for a cell of state a key: `event` gives an event that is
not late, in any order of time; `wake` says that event time has come to the cell's `due`; `over` tells that the key can
be forgotten. A `WindowJoin` is the value of a window's table. Cells live through encoding and decoding with msgspec
between any two calls, given the cell type.
"""

from flowkit.join.asof import AsOfCell, AsOfJoin
from flowkit.join.interval import IntervalCell, IntervalJoin
from flowkit.join.joined import LEFT, NEVER, RIGHT, How, Sent
from flowkit.join.window import WindowJoin, WindowRows

__all__ = [
    "LEFT",
    "NEVER",
    "RIGHT",
    "AsOfCell",
    "AsOfJoin",
    "How",
    "IntervalCell",
    "IntervalJoin",
    "Sent",
    "WindowJoin",
    "WindowRows",
]
