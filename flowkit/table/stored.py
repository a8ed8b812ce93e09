"""What tables ask of a store: the committed bytes, and those of the frame that is being committed."""

from collections.abc import Iterator
from typing import Protocol

from flowkit.store import Space


class Stored(Protocol):
    """A task's store, to be read."""

    def get(self, space: Space, key: bytes) -> bytes | None:
        """The value of `key`; None if there is none."""

    def scan(self, space: Space, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys from `start` on and their values, in order, as they are at this call."""

    def has(self, space: Space) -> bool:
        """False if the space surely has no keys."""

    def ends(self, table: str) -> list[int]:
        """The window ends of which `table` has a space, in order."""
