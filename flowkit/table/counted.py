"""Count tables: windows of a number of events of a key. An event counts once a key, however often it looks.

Count(3)            |e1 e2 e3|e4 e5 e6|
Count(4, every=2)   |e1 e2|                  the first window is not full, as in Flink
                    |e1 e2 e3 e4|
                          |e3 e4 e5 e6|
Count(2, every=3)       |e2 e3|  |e5 e6|      e1 and e4 count nowhere
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from flowkit.record import MIN_TIME, Closed
from flowkit.store import SpaceChange
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.expiry import Expiry
from flowkit.table.state import Open, State
from flowkit.table.timers import Timers


class Counter:
    """What is known of one key: how many events it has had, its last use (ms) if there is a ttl, and its open windows.

    `seen` is the ordinal of the last event that was counted, `index` its number from 0 (of this run: not saved).
    """

    __slots__ = ("count", "index", "last", "seen", "windows")

    def __init__(self, count: int, last: int, windows: "list[Part]") -> None:
        self.count, self.last, self.windows = count, last, windows
        self.seen = self.index = -1


class Part:
    """One open window: its number (it fires at event `number * every`), first time and greatest time (ms)."""

    __slots__ = ("high", "number", "start", "value")

    def __init__(self, number: int, start: int, high: int, value: Any) -> None:
        self.number, self.start, self.high, self.value = number, start, high, value


def counter_codec(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> tuple[Callable[[Counter], bytes], Callable[[bytes], Counter]]:
    """Encoder and decoder of a cell, around those of the values."""
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode

    def encode_counter(counter: Counter) -> bytes:
        parts = [(p.number, p.start, p.high, encode(p.value)) for p in counter.windows]
        return pack((counter.count, counter.last, parts))

    def decode_counter(data: bytes) -> Counter:
        count, last, parts = unpack(data)
        return Counter(count, last, [Part(number, start, high, decode(value)) for number, start, high, value in parts])

    return encode_counter, decode_counter


class CountState(State):
    """Windows of `n` events, one firing each `every` events. With a `ttl` a key not counted for so long starts anew."""

    def __init__(
        self, *args: Any, n: int, every: int, new: Callable[[Any], Any], ttl: int | None = None, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.n, self.every, self.new = n, every, new
        self.cells = Cells(self.shape, self.store, (self.space, None))
        self.moving = True
        self.expiry = None if ttl is None else Expiry(ttl, self.store, self.space)
        self.full: list[tuple[Any, int]] = []
        """Windows to fire in this step: keys and numbers."""
        self._full_at_mark = 0
        self._batch: Any = None
        self._in_batch: dict[tuple[Any, int], int] = {}
        """Which event of the present batch was counted as which of its key."""

    # Seen by agents

    def live(self, key: Any) -> Any:
        if self.shape.mode is not Mode.WRITE:
            value = self.get(key)
            return value if value is not None else self.new(key)
        parts = self._here(key)
        # An event that falls in no window may do with its value what it likes.
        return parts[-1].value if parts else self.new(key)

    def _here(self, key: Any) -> list[Part]:
        """The windows of `key` that this event is in; it is counted if it was not yet."""
        counter: Counter = self.cells.load(key)
        index = self._index(counter, key)
        if index < 0:
            index = self._count(counter, key)
        first, last = index // self.every + 1, (index + self.n) // self.every
        return [part for part in counter.windows if first <= part.number <= last]

    def _index(self, counter: Counter, key: Any) -> int:
        """As which of its key's events this one was counted; -1 if it was not."""
        cursor = self.cursor
        if cursor.batch is None:
            return counter.index if counter.seen == cursor.ordinal else -1
        if self._batch is not cursor.batch:
            self._batch, self._in_batch = cursor.batch, {}
        return self._in_batch.get((key, cursor.ordinal), -1)

    def _count(self, counter: Counter, key: Any) -> int:
        t = self.now()
        if self.expiry is not None:
            now = self.clock_now()
            if self.expiry.over(counter.last, now):
                counter.windows.clear()
                counter.count = 0
            if counter.last == MIN_TIME:
                self.expiry.expect(now, self.shape.encode_key(key))
                self.due = min(self.due, now + self.expiry.ttl)
            counter.last = max(counter.last, now)
        index = counter.count
        counter.seen, counter.index = self.cursor.ordinal, index
        counter.count += 1
        if self.cursor.batch is not None:
            self._in_batch[key, self.cursor.ordinal] = index
        first, last = index // self.every + 1, (index + self.n) // self.every
        known = {part.number for part in counter.windows}
        for number in range(first, last + 1):
            if number not in known:
                counter.windows.append(Part(number, t, t, self.new(key)))
        for part in counter.windows:
            if first <= part.number <= last:
                part.high = max(part.high, t)
        if counter.count % self.every == 0:
            self.full.append((key, counter.count // self.every))
            self.cursor.ready = True
        return index

    def put(self, key: Any, value: Any) -> None:
        self.check_write()
        if value is None:
            self.delete(key)
            return
        for part in self._here(key)[-1:]:
            part.value = value

    def delete(self, key: Any) -> None:
        self.check_write()
        self.cells.delete(key)

    def find(self, key: Any) -> Any:
        counter: Counter | None = self.cells.find(key)
        return counter.windows[-1].value if counter is not None and self._lives(counter) else None

    def _lives(self, counter: Counter) -> bool:
        """True if the key has open windows and is not expired."""
        if not counter.windows or self.expiry is None:
            return bool(counter.windows)
        return not self.expiry.over(counter.last, self.clock_now())

    def windows(self, key: Any) -> list[Open[Any]]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        if self.shape.mode is Mode.READ:
            counter: Counter | None = self.cells.find(key)
            parts = counter.windows if counter is not None and self._lives(counter) else []
            return [Open(self.shape.present(part.value), part.start, part.high + 1) for part in parts]
        return [Open(part.value, part.start, part.high + 1) for part in self._here(key)]

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, counter in self.cells.items():
            for part in counter.windows if self._lives(counter) else []:
                yield key, Open(self.shape.present(part.value), part.start, part.high + 1)

    def refresh(self) -> None:
        """There is no quick path: every look-up may count."""

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def all_timers(self) -> Iterable[Timers]:
        return () if self.expiry is None else (self.expiry.timers,)

    def entries(self, cell: Any, end: int | None) -> dict[Any, tuple[Any, int, int]]:
        return {} if cell is None else {p.number: (p.value, p.start, p.high + 1) for p in cell.windows}

    def mark(self) -> None:
        super().mark()
        self._full_at_mark = len(self.full)
        self._batch = None

    def undo(self) -> None:
        # Windows that were full before the mark are still to fire.
        del self.full[self._full_at_mark :]
        self._batch = None
        super().undo()

    def cut(self) -> tuple[list[SpaceChange], list[tuple[str, int | None]]]:
        self._batch = None
        return super().cut()

    def rollback(self, meta: dict[str, Any]) -> None:
        self.full.clear()
        self._batch = None
        super().rollback(meta)

    def open(self, meta: dict[str, Any]) -> None:
        super().open(meta)
        self.full = [(self.shape.decode_key(key), number) for key, number in meta.get("full", ())]
        if self.full:
            self.cursor.ready = True
        if self.expiry is not None:
            self.expiry.timers.open()
            self.due = self.expiry.due

    def meta(self) -> dict[str, Any]:
        # Only a commit in the middle of a firing finds any: what another table fires fills windows of this one.
        full = [(self.shape.encode_key(key), number) for key, number in self.full]
        return super().meta() | ({"full": full} if full else {})

    # Time

    def take_ready(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired: list[tuple[int, bytes, Closed[Any, Any]]] = []
        full, self.full = self.full, []
        for key, number in full:
            if self.cells.find(key) is None:
                continue  # deleted by the event that filled the window
            counter: Counter = self.cells.load(key)
            for part in [part for part in counter.windows if part.number == number]:
                counter.windows.remove(part)
                closed = Closed(key, self.shape.final(part.value), part.start, part.high + 1)
                fired.append((part.high + 1, self.shape.encode_key(key), closed))
            if not counter.windows and counter.count % self.every == 0:
                # Nothing is left to be known of the key: the next event begins anew.
                self.cells.delete(key)
        return fired

    def settle(self, watermark: int) -> None:
        super().settle(watermark)
        if self.expiry is None:
            return
        for key_bytes in self.expiry.passed(watermark):
            key = self.shape.decode_key(key_bytes)
            counter: Counter | None = self.cells.find(key)
            if counter is None:
                continue
            if self.expiry.over(counter.last, watermark):
                self.cells.delete(key)
            else:
                self.expiry.expect(counter.last, key_bytes)
        self.due = self.expiry.due


def no_count(_key: Any) -> Counter:
    """The cell of a new key."""
    return Counter(0, MIN_TIME, [])
