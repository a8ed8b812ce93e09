"""Live objects over the store: what agents change, what the next commit saves, and how all of it is taken back.

    fresh    handed out since the last boundary (commit, or `mark`): all that an event may have changed
    dirty    changed since the last commit
    clean    as committed: a cache, bounded
    store    the committed bytes

A look-up goes down these four and leaves the object in `fresh`, so that the common case is one dict look-up and every
change is seen without hooks in the objects. Between `mark` and `keep` or `undo` objects are handed out as copies:
taking an event back is then to forget `fresh`. `rollback` takes back everything since the last commit.
"""

from collections.abc import Callable, Iterator
from typing import Any

from flowkit.errors import NoEvent, WrongPartition
from flowkit.store import Space, SpaceChange, Store
from flowkit.table.cursor import Mode

GONE: Any = type("Gone", (), {"__repr__": lambda _self: "GONE"})()
"""Stands in `dirty` for a deleted key."""


class Shape:
    """How one table's keys and values are made, encoded and checked; shared by all its cells.

    `new(key)` makes the cell of a key that has none (raises KeyError if the type has no default). `present(value)`
    makes what a reader may keep (a copy, or an aggregate's result), `final(value)` the same of a value that the table
    is done with. `owns(key bytes)` is False for another partition's keys; None where there is one partition.
    """

    __slots__ = (
        "clean_limit",
        "copying",
        "decode",
        "decode_key",
        "encode",
        "encode_key",
        "final",
        "mode",
        "name",
        "new",
        "owns",
        "present",
    )

    def __init__(
        self,
        name: str,
        encode_key: Callable[[Any], bytes],
        decode_key: Callable[[bytes], Any],
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        new: Callable[[Any], Any],
        present: Callable[[Any], Any],
        final: Callable[[Any], Any],
        owns: Callable[[bytes], bool] | None = None,
        clean_limit: int = 1_000_000,
    ) -> None:
        self.name = name
        self.encode_key, self.decode_key = encode_key, decode_key
        self.encode, self.decode = encode, decode
        self.new, self.owns, self.clean_limit = new, owns, clean_limit
        self.present, self.final = present, final
        self.copying = False
        self.mode = Mode.OUTSIDE

    def copy(self, value: Any) -> Any:
        return self.decode(self.encode(value))

    def check_key(self, key: Any) -> None:
        """Raise WrongPartition if another task keeps this key: a count of it here would be a part of the truth."""
        if self.owns is not None and not self.owns(self.encode_key(key)):
            raise WrongPartition(
                f"table {self.name!r}: key {key!r} belongs to another partition; re-key the stream by it first (group_by)"
            )


class Cells:
    """The live objects of one space of the store."""

    __slots__ = ("clean", "deleted", "dirty", "fresh", "shape", "space", "store")

    def __init__(self, shape: Shape, store: Store, space: Space) -> None:
        self.shape, self.store, self.space = shape, store, space
        self.fresh: dict[Any, Any] = {}
        self.dirty: dict[Any, Any] = {}
        self.clean: dict[Any, Any] = {}
        self.deleted: set[Any] = set()

    def load(self, key: Any) -> Any:
        """The live object of a key that is not in `fresh`; it is from now on."""
        shape = self.shape
        value = self.dirty.get(key)
        if value is None:
            value = self.clean.get(key)
        if value is None or value is GONE or self.deleted:
            value = self.find(key)
        if value is None:
            shape.check_key(key)
            value = shape.new(key)
        elif shape.copying:
            value = shape.copy(value)
        self.fresh[key] = value
        return value

    def cache(self) -> dict[Any, Any]:
        """Where a look-up may go after `fresh` and before `load`: nowhere while `dirty` hides parts of `clean`."""
        return {} if self.dirty or self.deleted or self.shape.copying else self.clean

    def take(self, key: Any) -> Any:
        """The live object of any key."""
        value = self.fresh.get(key)
        return self.load(key) if value is None else value

    def find(self, key: Any) -> Any:
        """The object as it is now, or None; nothing is marked as changed."""
        value = self.fresh.get(key)
        if value is not None:
            return value
        if key in self.deleted:
            return None
        value = self.dirty.get(key)
        if value is not None:
            return None if value is GONE else value
        value = self.clean.get(key)
        if value is None:
            data = self.store.get(self.space, self.shape.encode_key(key))
            if data is not None:
                value = self.clean[key] = self.shape.decode(data)
        return value

    def delete(self, key: Any) -> None:
        self.fresh.pop(key, None)
        self.deleted.add(key)

    def touched(self) -> list[Any]:
        """The keys handed out, set or deleted since the last boundary."""
        return [*self.fresh, *(self.deleted - self.fresh.keys())]

    def before(self, key: Any) -> Any:
        """The object as it was at the last mark, or None."""
        value = self.dirty.get(key)
        if value is not None:
            return None if value is GONE else value
        value = self.clean.get(key)
        if value is None:
            data = self.store.get(self.space, self.shape.encode_key(key))
            value = None if data is None else self.shape.decode(data)
        return value

    # Boundaries

    def seal(self) -> None:
        """Move `fresh` to `dirty`: what is handed out from now on can be told from what was before."""
        if self.deleted:
            self.dirty.update(dict.fromkeys(self.deleted, GONE))
            self.deleted = set()
        if self.fresh:
            self.dirty.update(self.fresh)
            self.fresh = {}

    def undo(self) -> None:
        """Forget what was handed out since the last `seal` (as copies)."""
        self.fresh, self.deleted = {}, set()

    def rollback(self) -> None:
        """Go back to the last commit."""
        for key in (*self.fresh, *self.dirty, *self.deleted):
            self.clean.pop(key, None)
        self.fresh, self.dirty, self.deleted = {}, {}, set()

    def cut(self) -> SpaceChange | None:
        """What a commit must save of this space; afterwards all of it is clean."""
        if self.deleted or (self.fresh and self.dirty):
            self.seal()
        # Straight from `fresh` where nothing was sealed: no copy of the dict at a commit.
        changed = self.dirty or self.fresh
        if not changed:
            return None
        shape = self.shape
        encode = shape.encode
        keys = list(map(shape.encode_key, changed))
        if GONE in changed.values():
            values = [None if value is GONE else encode(value) for value in changed.values()]
            self.clean = {k: v for k, v in (self.clean | changed).items() if v is not GONE}
        else:
            values = list(map(encode, changed.values()))
            if not self.clean or len(self.clean) > shape.clean_limit:
                self.clean = changed
            else:
                self.clean.update(changed)
        self.fresh, self.dirty = {}, {}
        return SpaceChange(self.space[0], self.space[1], keys, values)

    # All of it

    def items(self) -> list[tuple[bytes, Any, Any]]:
        """(key bytes, key, object) of everything there is now, in order of key bytes."""
        shape = self.shape
        live: dict[Any, Any] = {**self.clean, **self.dirty, **dict.fromkeys(self.deleted, GONE), **self.fresh}
        rows = [(shape.encode_key(key), key, value) for key, value in live.items()]
        known = {row[0] for row in rows}
        rows = [row for row in rows if row[2] is not GONE]
        for key_bytes, data in self.store.scan(self.space):
            if key_bytes not in known:
                rows.append((key_bytes, shape.decode_key(key_bytes), shape.decode(data)))
        rows.sort(key=_by_key_bytes)
        return rows

    def unsaved(self) -> Iterator[tuple[Any, Any]]:
        """(key, object) of committed objects that were changed outside their event (the harness asks)."""
        for key, value in self.clean.items():
            if key in self.dirty or key in self.fresh or key in self.deleted:
                continue
            data = self.store.get(self.space, self.shape.encode_key(key))
            if data is not None and self.shape.encode(value) != data:
                yield key, value


def _by_key_bytes(row: tuple[bytes, Any, Any]) -> bytes:
    return row[0]


def no_event(name: str) -> NoEvent:
    """The error of a table used where there is no event."""
    return NoEvent(
        f"table {name!r} was used outside an event: table[key] means 'at this event's time', so it works only while an "
        "agent handles an event"
    )
