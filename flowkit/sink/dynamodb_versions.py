"""Which of two writes of an item is the newer one: the condition under which DynamoDB takes a write.

    flowkit_version          the row's number: grows from record to record, the same when it is sent again
    flowkit_version_window   for the result of a window: (window end in ms) * 4 + pane; no other item has it

    both of windows          the later window is newer, then the later pane, then the greater number
    else                     the greater number is newer

Every row has a number, so that two rows of different kinds are never compared by unlike things. Among windows the end
goes first, since it is the same whoever computes it: a late firing of an old window does not put back the present one,
and a task that took keys over from another machine, whose clock went before its own, still gets its results in. The
same window computed again, by mended code, has a greater number and replaces what was there; the same row delivered
again, by whomever, is not newer than itself and changes nothing.

Without a window, rows of one task are in order by their numbers, and a task that takes a key over begins at its clock:
its clock must not be behind the last record of the one before. An item that gets both kinds, such as a feature that a
window sets and a timer resets, goes by numbers at each change of kind: as they were emitted.

What is removed has no version any more. A removal and what was before it are delivered again in order, and end as they
should; only a request of before, that is alone and later than the removal, brings the item back: `tombstone=mark` keeps
the version.
"""

from collections.abc import Sequence
from typing import Any

from flowkit.sink.dispatch import Item


class Versions:
    """The version attributes, `name` and `name`_window."""

    def __init__(self, name: str) -> None:
        self.number, self.window = self.names = (name, f"{name}_window")
        absent = "attribute_not_exists(#n)"
        self._plain = {
            "ConditionExpression": f"{absent} OR #n < :n",
            "ExpressionAttributeNames": {"#n": self.number},
        }
        self._windowed = {
            "ConditionExpression": (
                f"{absent} OR (attribute_not_exists(#w) AND #n < :n) OR #w < :w OR (#w = :w AND #n < :n)"
            ),
            "ExpressionAttributeNames": {"#n": self.number, "#w": self.window},
        }

    def stamp(self, item: dict[str, Any], order: int | None, number: int) -> int:
        """Write the version into an item; how many bytes it takes."""
        item[self.number] = {"N": str(number)}
        size = len(self.number) + 11
        if order is not None:
            item[self.window] = {"N": str(order)}
            size += len(self.window) + 11
        return size

    def condition(self, order: int | None, number: int) -> dict[str, Any]:
        """What PutItem and DeleteItem take: True if there is no item, one without a version, or an older one."""
        if order is None:
            return {**self._plain, "ExpressionAttributeValues": {":n": {"N": str(number)}}}
        values = {":n": {"N": str(number)}, ":w": {"N": str(order)}}
        return {**self._windowed, "ExpressionAttributeValues": values}


def settled(items: Sequence[Item], *, batch: bool) -> list[Item]:
    """Of the writes of one item those that the others do not replace at once anyway.

    In a run of one kind that is the newest; where kinds change, each run's newest, as what lies in the table may decide
    between them. With `batch` it is the last one.
    """
    kept: dict[bytes | None, list[Item]] = {}
    for item in items:
        runs = kept.setdefault(item.key, [])
        if runs and batch:
            runs[-1] = item
        elif runs and (runs[-1].body.order is None) == (item.body.order is None):
            if item.body.order is None or item.body.order >= runs[-1].body.order:
                runs[-1] = item
        else:
            runs.append(item)
    return sorted((item for runs in kept.values() for item in runs), key=lambda item: item.row)
