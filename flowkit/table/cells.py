"""Live objects over the store: what agents change, what the next commit saves, and how all of it is taken back.

    live     the objects as they are now: a cache, bounded
    fresh    handed out since the last boundary (commit, or `mark`): all that an event may have changed
    dirty    changed since the last commit
    store    the committed bytes

The common look-up is two dict operations, `live[key]` and `fresh[key] = …`: so every change is seen without hooks in
the objects. Between `mark` and `keep` or `undo` objects are handed out as copies: taking an event back is then to
forget `fresh`. `rollback` takes back everything since the last commit.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from flowkit.errors import NoEvent, WrongPartition
from flowkit.store import Space, SpaceChange
from flowkit.table.cursor import Mode
from flowkit.table.stored import Stored

GONE: Any = type("Gone", (), {"__repr__": lambda _self: "GONE"})()
"""Stands in `dirty` for a deleted key."""

CHUNK = 1_000
"""So many keys are read from the store at once while a window fires."""


class Shape:
    """How one table's keys and values are made, encoded and checked; shared by all its cells.

    `new(key)` makes the cell of a key that has none (raises KeyError if the type has no default). `present(value)`
    makes what a reader may keep (a copy, or an aggregate's result), `final(value)` the same of a value that the table
    is done with. `encode_value` is for a value alone, where a cell holds more. `owns(key bytes)` is False for another
    partition's keys; None where there is one partition. `space` is the table's name in the store. `make()` does what
    `new(key)` does, where the key does not matter; else None.
    """

    __slots__ = (
        "clean_limit",
        "copying",
        "decode",
        "decode_key",
        "encode",
        "encode_key",
        "encode_value",
        "final",
        "make",
        "mode",
        "name",
        "new",
        "owns",
        "present",
        "space",
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
        *,
        encode_value: Callable[[Any], bytes] | None = None,
        owns: Callable[[bytes], bool] | None = None,
        clean_limit: int = 1_000_000,
        space: str | None = None,
        make: Callable[[], Any] | None = None,
    ) -> None:
        self.make = make
        self.name, self.space = name, space or name
        self.encode_value = encode_value or encode
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
                f"table {self.name!r}: key {key!r} belongs to another partition; "
                "re-key the stream by it first (group_by)"
            )


class Cells:
    """The live objects of one space of the store.

    `fresh` is within `live`, but for copies handed out between `mark` and `keep` or `undo`.
    """

    __slots__ = ("deleted", "dirty", "fresh", "gone", "has_gone", "live", "maybe_stored", "shape", "space", "store")

    def __init__(self, shape: Shape, store: Stored, space: Space) -> None:
        self.shape, self.store, self.space = shape, store, space
        self.live: dict[Any, Any] = {}
        self.fresh: dict[Any, Any] = {}
        self.dirty: dict[Any, Any] = {}
        self.deleted: set[Any] = set()
        self.gone: frozenset[Any] = frozenset()
        """What the last frame deletes: the store shows that only once the frame is prepared."""
        self.has_gone = False
        """True if `dirty` may hold GONE."""
        self.maybe_stored = store.has(space)
        """False while nothing of the space is anywhere but in `live`."""

    def all_live(self) -> bool:
        """True if a key that is not in `live` is surely new, and may be put there without a further look."""
        return not (self.maybe_stored or self.shape.copying or self.deleted or self.shape.owns is not None)

    def load(self, key: Any) -> Any:
        """The object of a key, to be handed out: it is in `fresh` from now on."""
        shape = self.shape
        # A window that was opened in this run is all in memory: a new key costs no look into the store (0.4 µs).
        if not (self.maybe_stored or shape.copying or self.deleted or shape.owns is not None):
            value = self.live.get(key)
            if value is None:
                # A call of the type itself, without a function around it: 0.06 µs a new key.
                make = shape.make
                value = self.live[key] = shape.new(key) if make is None else make()
            self.fresh[key] = value
            return value
        value = self.fresh.get(key)
        if value is not None:
            return value
        value = self.find(key)
        if value is None:
            if shape.owns is not None:
                shape.check_key(key)
            value = shape.new(key)
        elif shape.copying:
            value = shape.copy(value)
        self.fresh[key] = value
        if not shape.copying:
            self.live[key] = value
        return value

    def find(self, key: Any) -> Any:
        """The object as it is now, or None; nothing is marked as changed."""
        value = self.fresh.get(key)
        if value is not None:
            return value
        return None if key in self.deleted else self.before(key)

    def before(self, key: Any) -> Any:
        """The object as it was at the last boundary, or None."""
        value = self.live.get(key)
        if value is None and self.maybe_stored and key not in self.dirty and key not in self.gone:
            data = self.store.get(self.space, self.shape.encode_key(key))
            if data is not None:
                value = self.live[key] = self.shape.decode(data)
        return value

    def set(self, key: Any, value: Any) -> None:
        self.fresh[key] = value
        if not self.shape.copying:
            self.live[key] = value

    def delete(self, key: Any) -> None:
        self.fresh.pop(key, None)
        self.deleted.add(key)
        if not self.shape.copying:
            self.live.pop(key, None)

    def touched(self) -> list[Any]:
        """The keys handed out, set or deleted since the last boundary."""
        return [*self.fresh, *(self.deleted - self.fresh.keys())]

    # Boundaries

    def seal(self) -> None:
        """Move `fresh` to `dirty`: what is handed out from now on can be told from what was before."""
        if self.deleted:
            for key in self.deleted:
                self.live.pop(key, None)
                self.dirty[key] = GONE
            self.deleted, self.has_gone = set(), True
        if self.fresh:
            self.live.update(self.fresh)
            if self.dirty:
                self.dirty.update(self.fresh)
            else:
                self.dirty = self.fresh
            self.fresh = {}

    def undo(self) -> None:
        """Forget what was handed out since the last `seal` (as copies)."""
        self.fresh, self.deleted = {}, set()

    def rollback(self) -> None:
        """Go back to the last commit."""
        for key in (*self.fresh, *self.dirty, *self.deleted):
            self.live.pop(key, None)
        self.fresh, self.dirty, self.deleted, self.gone = {}, {}, set(), frozenset()
        self.has_gone, self.maybe_stored = False, True

    def cut(self) -> SpaceChange | None:
        """What a commit must save of this space; afterwards `live` is as committed. The frame before is prepared."""
        self.gone = frozenset()
        if self.deleted or (self.fresh and self.dirty):
            self.seal()
        # Straight from `fresh` where nothing was sealed: no copy of the dict at a commit.
        changed = self.dirty or self.fresh
        if not changed:
            return None
        shape = self.shape
        encode = shape.encode
        keys = list(map(shape.encode_key, changed))
        values: list[bytes | None]
        # Known, not looked for: comparing 5,000 values with GONE costs 0.03 µs each.
        if self.has_gone:
            values = [None if value is GONE else encode(value) for value in changed.values()]
            self.gone = frozenset(key for key, value in changed.items() if value is GONE)
        else:
            values = list(map(encode, changed.values()))
        if len(self.live) > shape.clean_limit:
            self.live = {key: value for key, value in changed.items() if value is not GONE}
            self.maybe_stored = True
        self.fresh, self.dirty, self.has_gone = {}, {}, False
        return SpaceChange(self.space[0], self.space[1], keys, values)

    # All of it

    def items(self) -> list[tuple[bytes, Any, Any]]:
        """(key bytes, key, object) of everything there is now, in order of key bytes."""
        shape = self.shape
        gone = [*self.gone, *(key for key, value in self.dirty.items() if value is GONE)]
        live: dict[Any, Any] = dict.fromkeys(gone, GONE)
        live |= self.live | dict.fromkeys(self.deleted, GONE) | self.fresh
        rows = [(shape.encode_key(key), key, value) for key, value in live.items()]
        known = {row[0] for row in rows}
        rows = [row for row in rows if row[2] is not GONE]
        for key_bytes, data in self.store.scan(self.space):
            if key_bytes not in known:
                rows.append((key_bytes, shape.decode_key(key_bytes), shape.decode(data)))
        rows.sort(key=_by_key_bytes)
        return rows

    def rows(self, after: bytes | None) -> Iterator[tuple[bytes, Any, Any]]:
        """The same from behind the key `after` on, each object looked up only when it is asked for.

        Commits may come between two of them, but nothing else than `release` may change what there is. The keys that
        are live are put in order once; those that are only stored are read in chunks.
        """
        encode_key, decode_key, decode = self.shape.encode_key, self.shape.decode_key, self.shape.decode
        known = self.live.keys() | self.fresh.keys() | self.dirty.keys() | self.deleted | self.gone
        order = [(encode_key(key), key) for key in known]
        if after is not None:
            order = [row for row in order if row[0] > after]
        order.sort(key=_by_key_bytes)
        at = 0
        for key_bytes, data in self._stored(after) if self.maybe_stored else ():
            while at < len(order) and order[at][0] <= key_bytes:
                name, key = order[at]
                at += 1
                if (value := self.live.get(key) or self.find(key)) is not None:
                    yield name, key, value
            if at == 0 or order[at - 1][0] != key_bytes:
                yield key_bytes, decode_key(key_bytes), decode(data)
        for n in range(at, len(order)):
            name, key = order[n]
            if (value := self.live.get(key) or self.find(key)) is not None:
                yield name, key, value

    def _stored(self, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the store behind `after`. Each chunk is a scan of its own: no scan outlives a commit."""
        while True:
            found = self.store.scan(self.space, start=after)
            chunk = [row for row in islice(found, CHUNK) if row[0] != after]
            yield from chunk
            if not chunk:
                return
            after = chunk[-1][0]

    def release(self, key: Any) -> None:
        """Let go of an object: it belongs to someone else now, and what becomes of it is not saved."""
        self.live.pop(key, None)
        self.fresh.pop(key, None)
        self.dirty.pop(key, None)

    def unsaved(self) -> Iterator[tuple[Any, Any]]:
        """(key, object) of committed objects that were changed outside their event (the harness asks)."""
        for key, value in self.live.items():
            if key in self.dirty or key in self.fresh or key in self.deleted:
                continue
            data = self.store.get(self.space, self.shape.encode_key(key))
            if data is not None and self.shape.encode(value) != data:
                yield key, value


def _by_key_bytes(row: tuple[Any, ...]) -> Any:
    return row[0]


def no_event(name: str) -> NoEvent:
    """The error of a table used where there is no event."""
    return NoEvent(
        f"table {name!r} was used outside an event: table[key] means 'at this event's time', so it works only while an "
        "agent handles an event"
    )
