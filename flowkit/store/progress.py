"""How far a piece of long work is: what bars are fed with."""

from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """How far a piece of long work is, in bytes; `name` is the file that was done last."""

    name: str
    done: int
    total: int


OnProgress = Callable[[Step], None]
"""Called now and then, maybe in another thread, by what may take long."""
