"""Count tables: windows of a number of events of a key. An event counts once a key, however often it looks.

Count(3)            |e1 e2 e3|e4 e5 e6|
Count(4, every=2)   |e1 e2|                  the first window is not full, as in Flink
                    |e1 e2 e3 e4|
                          |e3 e4 e5 e6|
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from flowkit.record import Closed
from flowkit.table.cells import Cells, no_event
from flowkit.table.cursor import Mode
from flowkit.table.state import Open, State


class Counter:
    """What is known of one key: how many events it has had, and its open windows, oldest first.

    `seen` is the ordinal of the last event that was counted (of this run: it is not saved).
    """

    __slots__ = ("count", "seen", "windows")

    def __init__(self, count: int, windows: "list[Part]") -> None:
        self.count, self.windows, self.seen = count, windows, -1


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
        return pack((counter.count, [(p.number, p.start, p.high, encode(p.value)) for p in counter.windows]))

    def decode_counter(data: bytes) -> Counter:
        count, parts = unpack(data)
        return Counter(count, [Part(number, start, high, decode(value)) for number, start, high, value in parts])

    return encode_counter, decode_counter


class CountState(State):
    """Windows of `n` events, one firing each `every` events."""

    def __init__(
        self, *args: Any, n: int, every: int, new: Callable[[Any], Any], ttl: int | None = None, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.n, self.every, self.new, self.ttl = n, every, new, ttl
        self.cells = Cells(self.shape, self.store, (self.name, None))
        self.moving = True
        self.full: list[Any] = []

    # Seen by agents

    def live(self, key: Any) -> Any:
        if self.shape.mode is not Mode.WRITE:
            value = self.get(key)
            return value if value is not None else self.new(key)
        return self._counted(key).windows[-1].value

    def _counted(self, key: Any) -> Counter:
        """The key's counter with this event counted."""
        t = self.now()
        counter: Counter = self.cells.load(key)
        if counter.seen == self.cursor.ordinal:
            return counter
        counter.seen = self.cursor.ordinal
        if self.ttl is not None and counter.windows and counter.windows[-1].high + self.ttl <= t:
            counter.windows.clear()
            counter.count = 0
        index = counter.count
        counter.count += 1
        first = index // self.every + 1
        last = (index + self.n) // self.every
        known = {part.number for part in counter.windows}
        for number in range(first, last + 1):
            if number not in known:
                counter.windows.append(Part(number, t, t, self.new(key)))
        for part in counter.windows:
            part.high = max(part.high, t)
        if counter.count % self.every == 0:
            self.full.append(key)
            self.cursor.ready = True
        return counter

    def put(self, key: Any, value: Any) -> None:
        self.check_write()
        if value is None:
            self.delete(key)
        else:
            self._counted(key).windows[-1].value = value

    def delete(self, key: Any) -> None:
        self.check_write()
        self.cells.delete(key)

    def find(self, key: Any) -> Any:
        counter = self.cells.find(key)
        return counter.windows[-1].value if counter is not None and counter.windows else None

    def get(self, key: Any) -> Any:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        value = self.find(key)
        return None if value is None else self.shape.present(value)

    def windows(self, key: Any) -> list[Open[Any]]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        if self.shape.mode is Mode.READ:
            counter = self.cells.find(key)
            parts = counter.windows if counter is not None else []
            return [Open(self.shape.present(part.value), part.start, part.high + 1) for part in parts]
        return [Open(part.value, part.start, part.high + 1) for part in self._counted(key).windows]

    def scan(self) -> Iterator[Any]:
        if self.shape.mode is Mode.OUTSIDE:
            raise no_event(self.name)
        for _, key, counter in self.cells.items():
            for part in counter.windows:
                yield key, Open(self.shape.present(part.value), part.start, part.high + 1)

    def refresh(self) -> None:
        pass

    # Boundaries

    def all_cells(self) -> Iterator[Cells]:
        yield self.cells

    def value_of(self, cell: Any) -> Any:
        return cell.windows[-1].value if cell is not None and cell.windows else None

    def undo(self) -> None:
        self.full.clear()
        super().undo()

    def rollback(self, meta: dict[str, Any]) -> None:
        self.full.clear()
        super().rollback(meta)

    # Time

    def take_ready(self) -> list[tuple[int, bytes, Closed[Any, Any]]]:
        fired = []
        for key in self.full:
            counter: Counter = self.cells.load(key)
            number = counter.count // self.every
            for part in [part for part in counter.windows if part.number == number]:
                counter.windows.remove(part)
                closed = Closed(key, self.shape.final(part.value), part.start, part.high + 1)
                fired.append((part.high + 1, self.shape.encode_key(key), closed))
            if self.n == self.every:
                self.cells.delete(key)
        self.full.clear()
        return fired  # type: ignore[return-value]
