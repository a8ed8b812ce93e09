"""A destination in memory, for tests of what is the same for all services: `shelf://NAME`.

It takes what a script lets it: each call's outcome is asked of `Shelf.script` first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from flowkit.sink.dispatch import Dispatch, Item, Limits, Outcome
from flowkit.sink.records import RecordSink, Row
from flowkit.sink.seam import SinkTask

Script = Callable[[Sequence[Item]], Sequence[Outcome]]


def all_well(items: Sequence[Item]) -> Sequence[Outcome]:
    """Every item is taken."""
    return [None] * len(items)


class Shelf:
    """Where records are put: `taken` has (id, key, value) in the order in which they came."""

    shelves: ClassVar[dict[str, "Shelf"]] = {}

    def __init__(self, script: Script = all_well) -> None:
        self.script = script
        self.taken: list[tuple[str, bytes | None, bytes | None]] = []
        self.rows: list[Row] = []
        self.opened = 0
        self.is_open = False

    async def send(self, items: Sequence[Item]) -> Sequence[Outcome]:
        """One call."""
        outcomes = self.script(items)
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome is None:
                row: Row = item.body
                self.taken.append((row.id, row.key, row.value))
                self.rows.append(row)
        return outcomes


class ShelfDestination:
    codec = "json"
    guarantee = "at least once"

    def __init__(self, shelf: Shelf, limits: Limits) -> None:
        self.shelf, self.limits = shelf, limits

    async def __aenter__(self) -> Self:
        self.shelf.opened += 1
        self.shelf.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.shelf.is_open = False

    def check(self) -> None:
        pass

    def writers(self, groups: Sequence[str], tasks: int, largest: int) -> str:
        return ""

    def sink(self, task: SinkTask) -> RecordSink:
        return RecordSink(Dispatch("shelf", self.shelf.send, self.limits), _make, task.clock, codec="json")


def _make(number: int, row: Row) -> Item:
    return Item(number, row.key, len(row.value or b""), row)


def open_destination(place: str, options: Mapping[str, str], where: str, fields: Any) -> ShelfDestination:
    """As the registry asks for it."""
    return ShelfDestination(Shelf.shelves[place], Limits(int(options.get("items", "3")), 1_000, 2))
