"""Window join: all pairs of a left and a right event of the same key that fall in the same window.

    window   [--------------)[--------------)
    left        a     b           c
    right           X                            a-X, b-X when the first window closes; c alone if `how` has lefts

Its rows are the value of an ordinary table of an aligned window; when the window closes, they are paired.
"""

from collections.abc import Iterator
from typing import Any, Generic

import msgspec

from flowkit.errors import ConfigError
from flowkit.join.joined import LEFT, How, L, R, how_problems, joined_type
from flowkit.record import Closed, Joined


class WindowRows(msgspec.Struct, Generic[L, R], array_like=True):
    """Both sides' events of one key and window, in order of arrival."""

    left: list[L] = msgspec.field(default_factory=list)
    right: list[R] = msgspec.field(default_factory=list)


class WindowJoin:
    """Pairs of the left and right events of a window; `how` says whose events are sent if the other side has none.

    `value_type` is that of the window's table, `type` that of what is sent. `name` names the join in errors.

    >>> join = WindowJoin(str, str, "left")
    >>> value = join.new()
    >>> for side, event in ((0, "a"), (1, "X"), (0, "b")):
    ...     join.add(value, side, event)
    >>> [(row.left, row.right) for row in join.rows(value)]
    [('a', 'X'), ('b', 'X')]

    Raises ConfigError for an unknown `how`.
    """

    def __init__(self, left_type: Any, right_type: Any, how: How = "inner", *, name: str = "join") -> None:
        if problems := list(how_problems(name, how, ("inner", "left", "right", "outer"))):
            raise ConfigError(*problems)
        self.value_type: Any = WindowRows[left_type, right_type]
        self.type = joined_type(left_type, right_type, how)
        self.how = how
        self.outer = (how in ("left", "outer"), how in ("right", "outer"))

    def new(self) -> WindowRows[Any, Any]:
        return WindowRows()

    def add(self, value: WindowRows[Any, Any], side: int, event: Any) -> None:
        (value.left if side == LEFT else value.right).append(event)

    def rows(self, value: WindowRows[Any, Any]) -> Iterator[Joined[Any, Any]]:
        """What a closed window sends, in order of arrival: of the left events, and within one of them of the right.

        Its event time is the window's last moment, end - 1.
        """
        left, right = value.left, value.right
        if left and right:
            return (Joined(a, b) for a in left for b in right)
        if left and self.outer[0]:
            return (Joined(a, None) for a in left)
        if right and self.outer[1]:
            return (Joined(None, b) for b in right)
        return iter(())

    def product(self, closed: Closed[Any, WindowRows[Any, Any]]) -> Iterator[Joined[Any, Any]]:
        """`rows` of a closed window: for a flat_map over the table's closed windows."""
        return self.rows(closed.value)
